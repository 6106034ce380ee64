"""The arithmetic by itself: its rules, and that finite input never becomes NaN or infinity."""

import math
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from minigemma import ops


def test_rms_norm_multiplies_by_the_plain_weight():
    x = np.array([[3.0, -4.0]])
    assert_allclose(ops.rms_norm(x, np.array([1.0, 10.0]), 0.0), [[3 / 12.5**0.5, -40 / 12.5**0.5]])


def test_rms_norm_adds_eps_inside_the_root_a_millionth_unless_told():
    assert_allclose(ops.rms_norm(np.array([[1e-3, 1e-3]])), [[1 / 2**0.5] * 2])


def test_rms_norm_survives_rows_of_every_size():
    shape = np.array([1, -0.3, 0.7, 0.1])
    rows = np.outer([0, 1e-30, 1, 1e18, 1e25, 3e38], shape).astype(np.float32)
    with np.errstate(all="raise", under="ignore"):
        normed = ops.rms_norm(rows)
        of_heads = ops.rms_norm(rows[None])  # [1, 6, 4]
    assert_allclose(normed[2:], np.tile(shape / np.sqrt(np.mean(shape**2)), (4, 1)), rtol=2e-6)
    assert_array_equal(normed[0], 0)
    assert_array_equal(of_heads[0], normed)


def test_a_row_whose_squares_overflow_leaves_the_eps_of_other_rows_alone():
    assert_allclose(ops.rms_norm(np.array([[1e200], [10.0]]), eps=1.0), [[1], [10 / 101**0.5]])


def test_gelu_has_the_tanh_form():
    x = np.linspace(-6, 6, 101)
    exact = [0.5 * v * (1 + math.tanh((2 / math.pi) ** 0.5 * (v + 0.044715 * v**3))) for v in x]
    assert_allclose(ops.gelu(x), exact, rtol=1e-12, atol=1e-15)
    erf = [0.5 * v * (1 + math.erf(v / 2**0.5)) for v in x]
    assert np.abs(ops.gelu(x) - erf).max() > 1e-4  # the forms differ, and Gemma was trained with this one


def test_gelu_of_huge_values_is_the_value_or_nothing():
    with np.errstate(all="raise", under="ignore"):
        assert_array_equal(ops.gelu(np.array([-3e38, 3e38], np.float32)), np.array([-0.0, 3e38], np.float32))


@pytest.mark.parametrize("rows", [3, 5000])  # one thread, and several
def test_scores_and_their_softmax_go_into_the_memory_they_are_given(rows):
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(n, 1, 8)).astype(np.float32) for n in (rows, 100))  # [T, N, H], [S, K, H]
    memory = np.empty((1, rows, 100), np.float32)  # [N, T, S]
    ops.attention_scores(q, k, out=memory)
    assert_array_equal(memory, ops.attention_scores(q, k))
    pattern = ops.softmax(memory)
    ops.softmax(memory, out=memory)
    assert_array_equal(memory, pattern)


def test_softmax_gives_masked_keys_nothing_and_survives_large_scores():
    with np.errstate(all="raise", under="ignore"):
        weights = ops.softmax(np.array([[1e38, 1e38, -np.inf, -1e38]], np.float32))
    assert_array_equal(weights, np.array([[0.5, 0.5, 0, 0]], np.float32))


@pytest.mark.parametrize(("R", "C"), [(5, 5), (4, 6), (5, 2)])
def test_halve_is_a_convolution_at_every_second_place(R, C):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(R, C, 2)), rng.normal(size=(3, 2, 3, 3))  # [R, C, A], [B, A, 3, 3]
    padded = np.pad(x, ((1, 3), (1, 3), (0, 0)))
    expected = [
        [np.einsum("ija,baij->b", padded[r : r + 3, c : c + 3], kernel) for c in range(0, C, 2)] for r in range(0, R, 2)
    ]
    assert_allclose(ops.halve(x, kernel), expected)


def test_the_sinusoids_of_a_distance_go_from_one_radian_to_a_ten_thousandth():
    assert_allclose(ops.sinusoids(3, 4, float)[2], [np.sin(2), np.sin(2e-4), np.cos(2), np.cos(2e-4)])
    assert_allclose(ops.sinusoids(3, 2, float)[2], [np.sin(2), np.cos(2)])


def test_rope_rotates_the_pairs_half_a_head_apart_and_leaves_pairs_of_frequency_zero_still():
    x = np.arange(1.0, 9.0).reshape(1, 1, 8)  # [T, N, H]
    turned = ops.rope(x, *ops.rotation(np.array([3]), np.array([0.5, 0.0, 0.0, 0.0]), np.float64))
    assert_allclose(turned[0, 0, [0, 4]], [np.cos(1.5) - 5 * np.sin(1.5), 5 * np.cos(1.5) + np.sin(1.5)])
    assert_array_equal(turned[0, 0, [1, 2, 3, 5, 6, 7]], x[0, 0, [1, 2, 3, 5, 6, 7]])


def test_ropes_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k, inv_freq = rng.standard_normal((1, 1, 16)), rng.standard_normal((1, 1, 16)), 10.0 ** -np.arange(8)

    def score(a, b):
        turned = [ops.rope(x, *ops.rotation(np.array([p]), inv_freq, np.float64)) for x, p in ((q, a), (k, b))]
        return (turned[0] * turned[1]).sum()

    assert_allclose([score(5, 2), score(105, 102), score(100_005, 100_002)], score(3, 0), rtol=1e-9)


def test_angles_are_exact_at_positions_that_float32_cannot_multiply():
    cos, _ = ops.rotation(np.array([131_071]), np.array([0.7]), np.float32)
    assert abs(cos.item() - math.cos(131_071 * 0.7)) < 1e-7


@pytest.mark.parametrize("heads", [(4, 1), (4, 2), (4, 4)])
def test_grouped_queries_read_their_groups_key_and_value(heads):
    N, K = heads
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, N, 8)), rng.standard_normal((5, K, 8)), rng.standard_normal((5, K, 8))
    scores = ops.attention_scores(q, k)
    pattern = ops.softmax(scores)
    z = ops.attention_values(pattern, v)
    for n in range(N):
        assert_allclose(scores[n], q[:, n] @ k[:, n // (N // K)].T)
        assert_allclose(z[:, n], pattern[n] @ v[:, n // (N // K)])


def test_experts_sum_the_chosen_ones_by_their_weights():
    rng = np.random.default_rng(0)
    x, up, down = rng.standard_normal((3, 6)), rng.standard_normal((4, 10, 6)), rng.standard_normal((4, 6, 5))
    chosen, share = np.array([[0, 3], [3, 1], [2, 0]]), rng.uniform(size=(3, 2))
    out = ops.experts(x, up, down, chosen, share)
    for t in range(3):
        expected = 0
        for e, s in zip(chosen[t], share[t], strict=True):
            both = up[e] @ x[t]
            expected = expected + s * (down[e] @ (ops.gelu(both[:5]) * both[5:]))
        assert_allclose(out[t], expected)


def test_the_best_experts_come_first():
    assert_array_equal(ops.top_k(np.array([[0.1, 0.5, 0.15, 0.25]]), 3), [[1, 3, 2]])


def test_of_equally_probable_experts_the_first_come_first():
    probs = np.random.default_rng(0).integers(0, 40, (50, 128)) / 40  # [T, E], each value about three times
    expected = [sorted(range(128), key=lambda e, row=row: (-row[e], e))[:8] for row in probs]
    assert_array_equal(ops.top_k(probs, 8), expected)


def test_a_gate_far_below_zero_closes_without_a_warning():
    with warnings.catch_warnings(action="error"):
        assert_array_equal(ops.gated(np.ones(2, np.float32), np.array([-1000, 1000], np.float32)), [0, 1])
