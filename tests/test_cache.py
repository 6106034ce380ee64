"""The KV cache: a value, with appends in amortised constant time and sliding layers bounded by their window."""

import numpy as np
from family import small
from numpy.testing import assert_array_equal

from minigemma import EMPTY, forward
from minigemma.cache import Buffer, Entry


def rows(start, end):
    return np.arange(start, end, dtype=np.float32).reshape(-1, 1, 1)


def test_only_layers_that_write_have_an_entry_and_sliding_ones_hold_window_minus_one_keys():
    config, weights = small("E2B")
    _, cache = forward(np.arange(23), weights, config)
    assert cache.length == 23
    assert sorted(cache.entries) == [0, 1, 2, 3, 4]
    assert [len(cache.entries[i].k) for i in range(5)] == [4, 4, 4, 4, 23]  # the window is 5


def test_appending_copies_each_row_a_constant_number_of_times_on_average(monkeypatch):
    copied = []
    original = Buffer.__init__

    def counting(self, k, v, capacity):
        copied.append(len(k))
        original(self, k, v, capacity)

    monkeypatch.setattr(Buffer, "__init__", counting)
    for window in (None, 64):
        copied.clear()
        entry = EMPTY.append(0, rows(0, 1), rows(0, 1))
        for i in range(1, 4096):
            entry = entry.append(rows(i, i + 1), rows(i, i + 1)).trim(window)
        assert sum(copied) < 2 * 4096
        assert_array_equal(entry.k.ravel(), np.arange(0 if window is None else 4096 - 63, 4096))


def test_a_sliding_layers_memory_does_not_grow_with_the_sequence():
    entry = EMPTY.append(0, rows(0, 1), rows(0, 1))
    sizes = set()
    for i in range(1, 5000):
        entry = entry.append(rows(i, i + 1), rows(i, i + 1)).trim(64)
        if i > 1000:
            sizes.add(len(entry.buffer.k))
    assert max(sizes) <= 2 * 65


def test_a_second_branch_copies_and_the_first_keeps_its_rows():
    stem = Entry(Buffer(rows(0, 3), rows(0, 3), 100), 0, 3)
    left = stem.append(rows(10, 12), rows(10, 12))
    right = stem.append(rows(20, 22), rows(20, 22))
    assert left.buffer is stem.buffer
    assert right.buffer is not stem.buffer
    assert_array_equal(left.k.ravel(), [0, 1, 2, 10, 11])
    assert_array_equal(right.k.ravel(), [0, 1, 2, 20, 21])
    assert_array_equal(stem.k.ravel(), [0, 1, 2])


def test_the_bytes_of_a_cache_are_those_of_the_rows_it_holds():
    config, weights = small("E2B")
    _, cache = forward(np.arange(23), weights, config)
    assert cache.nbytes == 2 * 4 * (4 * 4 * 8 + 23 * 16)  # K and V, float32: 4 sliding layers, 1 global
