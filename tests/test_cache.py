"""The KV cache: a value, with appends in amortised constant time and sliding layers bounded by their window."""

import copy
import pickle
import threading

import numpy as np
import pytest
from family import kinds, small
from numpy.testing import assert_array_equal

from minigemma import EMPTY, Cache, Error, forward
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
        entry = EMPTY.extended(0, rows(0, 1), rows(0, 1))
        for i in range(1, 4096):
            entry = entry.extended(rows(i, i + 1), rows(i, i + 1)).trim(window)
        assert sum(copied) < 2 * 4096
        assert_array_equal(entry.k.ravel(), np.arange(0 if window is None else 4096 - 63, 4096))


def test_a_sliding_layers_memory_does_not_grow_with_the_sequence():
    entry = EMPTY.extended(0, rows(0, 1), rows(0, 1))
    sizes = set()
    for i in range(1, 5000):
        entry = entry.extended(rows(i, i + 1), rows(i, i + 1)).trim(64)
        if i > 1000:
            sizes.add(len(entry.buffer.k))
    assert max(sizes) <= 2 * 65


def test_a_second_branch_copies_and_the_first_keeps_its_rows():
    stem = Entry(Buffer(rows(0, 3), rows(0, 3), 100), 0, 3)
    left = stem.extended(rows(10, 12), rows(10, 12))
    right = stem.extended(rows(20, 22), rows(20, 22))
    assert left.buffer is stem.buffer
    assert right.buffer is not stem.buffer
    assert_array_equal(left.k.ravel(), [0, 1, 2, 10, 11])
    assert_array_equal(right.k.ravel(), [0, 1, 2, 20, 21])
    assert_array_equal(stem.k.ravel(), [0, 1, 2])


def test_the_bytes_of_a_cache_are_those_of_the_rows_it_holds():
    config, weights = small("E2B")
    _, cache = forward(np.arange(23), weights, config)
    assert cache.nbytes == 2 * 4 * (4 * 4 * 8 + 23 * 16)  # K and V, float32: 4 sliding layers, 1 global


def test_two_threads_that_continue_one_cache_both_get_their_own_keys():
    """Rows large enough that NumPy lets another thread run while it copies them, as E2B's are."""
    stem, wrong = np.zeros((512, 1, 256), np.float32), 0
    for _ in range(400):
        entry, barrier, found = Entry(Buffer(stem, stem, 1024), 0, 512), threading.Barrier(2), {}

        def work(number, entry=entry, barrier=barrier, found=found):
            new = np.full((256, 1, 256), number, np.float32)
            barrier.wait()
            found[number] = entry.extended(new, new)

        threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wrong += any((found[number].k[-256:] != number).any() for number in (1, 2))
    assert wrong == 0


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copied_or_pickled_cache_continues_like_the_original(again):
    config, weights = small("E2B")
    _, cache = forward(np.arange(9), weights, config)
    twin = again(cache)
    assert_array_equal(forward([3, 4], weights, config, cache)[0], forward([3, 4], weights, config, twin)[0])


OTHERS = {
    "fewer layers": {"layer_types": kinds(3), "num_kv_shared_layers": 0},
    "more layers": {"layer_types": kinds(4, 4, 4), "num_kv_shared_layers": 5},
    "other sharing": {"num_kv_shared_layers": 4},
    "other kinds": {"layer_types": kinds(3, 0, 4)},
    "shorter window": {"sliding_window": 4},
    "longer window": {"sliding_window": 6},
    "more kv heads": {"num_key_value_heads": 2},
    "wider heads": {"head_dim": 16},
    "wider global heads": {"global_head_dim": 32},
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_cache_of_another_model_is_refused_before_any_work(change):
    _, cache = forward(np.arange(9), *small("E2B", **OTHERS[change])[::-1])
    refused(cache, *small("E2B"), "cache belongs to another model")


@pytest.mark.parametrize(("stored", "needed"), [("float32", "float64"), ("float64", "float32")])
def test_a_cache_of_another_number_format_is_refused(stored, needed):
    _, cache = forward(np.arange(9), *small("E2B", stored)[::-1])
    refused(cache, *small("E2B", needed), f"holds {stored}.* needs {needed}")


@pytest.mark.parametrize("wrong", [None, {}, 7, (np.zeros(3), EMPTY), Cache])
def test_what_is_not_a_cache_is_refused(wrong):
    refused(wrong, *small("E2B"), "cache must be the Cache that forward returned")


def test_a_cache_whose_length_does_not_fit_its_rows_is_refused():
    config, weights = small("E2B")
    _, cache = forward(np.arange(9), weights, config)
    refused(cache._replace(length=8), config, weights, "another model")
    refused(cache._replace(length=0), config, weights, "another model")
    refused(EMPTY._replace(length=3), config, weights, "another model")


def refused(cache, config, weights, words):
    """forward says in one line that it cannot continue this cache, and calls no tap."""
    calls = []

    def tap(name, array):
        calls.append(name)
        return array

    with pytest.raises(Error, match=words) as caught:
        forward([1], weights, config, cache, tap=tap)
    assert not calls and "\n" not in str(caught.value)
