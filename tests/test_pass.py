"""Properties of the pass: however a sequence is cut, cached or asked for, the numbers are the same."""

import numpy as np
import pytest
from family import MEMBERS, small
from numpy.testing import assert_allclose, assert_array_equal

import minigemma
from minigemma import EMPTY, Edit, Error, Trace, forward
from minigemma.config import GLOBAL

# Products of other shapes round in another order. Measured over the members and three seeds, that makes up to 4.4e-6 in
# float32 and 2.5e-14 in float64.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def pieces(tokens, config, weights, cuts, logits="all"):
    """The sequence in pieces that end at `cuts`, each continuing the cache of the one before."""
    cache, out = EMPTY, []
    for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        piece, cache = forward(tokens[start:end], weights, config, cache, logits=logits)
        out.append(piece)
    return np.concatenate(out), cache


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cuts", [[9], [1, 2, 15], list(range(1, 23))], ids=["two", "uneven", "token by token"])
def test_a_sequence_in_pieces_gives_the_logits_of_the_whole(member, dtype, cuts):
    config, weights = small(member, dtype)
    tokens = np.random.default_rng(7).integers(0, config.vocab_size, 23)
    whole, _ = forward(tokens, weights, config)
    cut, _ = pieces(tokens, config, weights, cuts)
    assert cut.dtype == whole.dtype == dtype
    assert distance(cut, whole) < TOLERANCE[dtype]


def test_asking_for_the_last_logits_gives_the_last_row_of_all(exact):
    config, weights, tokens = exact
    everything, _ = forward(tokens, weights, config)
    last, _ = forward(tokens, weights, config, logits="last")
    assert last.shape == (1, config.vocab_size)
    assert distance(last[0], everything[-1]) < 1e-12


def test_a_prompt_prefilled_without_logits_continues_like_one_that_was_not(exact):
    config, weights, tokens = exact
    whole, _ = forward(tokens, weights, config)
    nothing, cache = forward(tokens[:-1], weights, config, logits=None)
    last, _ = forward(tokens[-1:], weights, config, cache, logits="last")
    assert nothing is None
    assert distance(last[0], whole[-1]) < 1e-12


def test_without_logits_the_kv_sharing_layers_do_not_run_and_with_last_they_run_for_one_position():
    config, weights = small("E2B")
    prefill, last = Trace(), Trace()
    forward([3, 4, 5, 6], weights, config, tap=prefill, logits=None)
    forward([3, 4, 5, 6], weights, config, tap=last, logits="last")
    first = config.first_kv_shared_layer
    assert f"layers.{first - 1}.resid_post" in prefill
    assert not any(name.startswith(f"layers.{first}.") for name in prefill)
    assert len(last[f"layers.{first - 1}.resid_post"]) == 4
    assert len(last[f"layers.{first}.resid_pre"]) == 1


def test_one_cache_continued_in_two_ways_gives_both_right_answers(exact):
    config, weights, tokens = exact
    _, cache = forward(tokens, weights, config)
    for ending in ([1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]):  # in turn, from the same value
        continued, _ = forward(ending, weights, config, cache)
        whole, _ = forward([*tokens, *ending], weights, config)
        assert distance(continued, whole[len(tokens) :]) < 1e-12


def test_a_branch_taken_later_leaves_the_first_branch_alone(exact):
    config, weights, tokens = exact
    _, stem = forward(tokens, weights, config)
    _, left = forward([1], weights, config, stem)
    _, right = forward([2], weights, config, stem)
    for cache, token in ((left, 1), (right, 2)):
        continued, _ = forward([3], weights, config, cache)
        whole, _ = forward([*tokens, token, 3], weights, config)
        assert distance(continued[0], whole[-1]) < 1e-12


def test_the_same_call_gives_the_same_bits(member):
    config, weights = small(member)
    tokens = np.arange(20)
    first, cache = forward(tokens, weights, config)
    again, _ = forward(tokens, weights, config)
    assert_array_equal(first, again)
    one, _ = forward([5], weights, config, cache)
    two, _ = forward([5], weights, config, cache)
    assert_array_equal(one, two)


def test_a_call_changes_none_of_its_arguments():
    config, weights = small("E2B")
    tokens, rows = np.arange(6), np.ones((1, config.hidden_size), np.float32)
    forward(tokens, weights, config, soft_tokens=([2], rows))
    assert_array_equal(tokens, np.arange(6))
    assert_array_equal(rows, 1)


def test_the_residual_identity_holds_in_every_layer(exact):
    """resid_post == layer_scalar * (resid_pre + attn_out + mlp_out + ple_out)."""
    config, weights, tokens = exact
    trace = Trace()
    forward(tokens, weights, config, tap=trace)
    for i, layer in enumerate(weights.layers):
        parts = ["resid_pre", "attn_out", "mlp_out"] + ["ple_out"] * bool(config.hidden_size_per_layer_input)
        total = sum(trace[f"layers.{i}.{part}"] for part in parts)
        assert_allclose(trace[f"layers.{i}.resid_post"], layer.layer_scalar * total, rtol=1e-12, atol=1e-12)


def test_a_token_changes_nothing_before_it(exact):
    config, weights, tokens = exact
    changed = tokens.copy()
    changed[12] = (changed[12] + 1) % config.vocab_size
    before, _ = forward(tokens, weights, config)
    after, _ = forward(changed, weights, config)
    assert distance(after[:12], before[:12]) < TOLERANCE["float64"]  # an expert's product has as many rows as tokens
    assert all(distance(*rows) > 1e-6 for rows in zip(after[12:], before[12:], strict=True))


def test_the_window_counts_the_current_token():
    """A sliding layer's query sees itself and window - 1 keys before it."""
    config, weights = small("E2B")
    trace = Trace("layers.0.attn.pattern")
    forward(np.arange(20), weights, config, tap=trace)
    seen = trace["layers.0.attn.pattern"][0] > 0  # [T, S]
    expected = [[max(0, t - config.sliding_window + 1) <= s <= t for s in range(20)] for t in range(20)]
    assert_array_equal(seen, expected)


def test_a_kv_sharing_layer_reads_the_last_writer_of_its_own_kind():
    """Edit a donor's keys: exactly its own layer and the sharing layers of its kind change what they attend to."""
    config, weights = small("E2B")
    tokens = np.arange(20)
    plain, edited = Trace("*.attn.scores"), Trace("*.attn.scores")
    forward(tokens, weights, config, tap=plain)
    donor = config.layers[5].kv_from
    assert (donor, config.layers[9].kv_from) == (3, 4)
    freeze = {f"layers.{i}.resid_pre": (lambda x, i=i: residual[f"layers.{i}.resid_pre"]) for i in range(10)}
    residual = Trace("*.resid_pre")
    forward(tokens, weights, config, tap=residual)
    edit = Edit({f"layers.{donor}.attn.rot_k": np.negative} | freeze)
    forward(tokens, weights, config, tap=lambda name, array: edited(name, edit(name, array)))
    changed = [i for i in range(10) if (plain[f"layers.{i}.attn.scores"] != edited[f"layers.{i}.attn.scores"]).any()]
    assert changed == [3, 5, 6, 7, 8]


def test_silencing_the_ple_tap_equals_a_model_whose_ple_projections_are_zero():
    config, weights = small("E2B", np.float64)
    tokens = np.arange(15)
    silenced, _ = forward(tokens, weights, config, tap=Edit({"layers.*.ple_out": np.zeros_like}))
    for layer in weights.layers:
        layer.per_layer_projection = np.zeros_like(layer.per_layer_projection)
    without, _ = forward(tokens, weights, config)
    assert_allclose(silenced, without, rtol=1e-12)
    with_ple, _ = forward(tokens, *small("E2B", np.float64)[::-1])
    assert distance(with_ple, without) > 1e-2


def test_every_tap_can_be_changed_and_the_change_is_used(exact):
    config, weights, tokens = exact
    trace = Trace()
    before, _ = forward(tokens, weights, config, tap=trace)
    for name in trace:
        if name.endswith("router.experts"):
            change = Edit({name: lambda chosen: chosen[:, ::-1]})
        else:
            change = Edit({name: lambda array: array * 1.5 + 0.25 * np.sin(np.arange(array.shape[-1]))})
        after, _ = forward(tokens, weights, config, tap=change)
        assert distance(after, before) > 1e-7, name


def test_soft_tokens_replace_embeddings_and_look_up_the_pad_tokens_ple():
    config, weights = small("E2B", np.float64)
    rows = np.random.default_rng(3).standard_normal((2, config.hidden_size))
    trace = Trace()
    out, _ = forward([9, 9, 9, 9], weights, config, tap=trace, soft_tokens=([1, 2], rows))
    assert_array_equal(trace["embed"][1:3], rows)  # not multiplied by sqrt(hidden_size)
    pad = weights.embed_tokens_per_layer[0] * config.hidden_size_per_layer_input**0.5
    assert_allclose(trace["ple.token"][1:3].reshape(2, -1), [pad, pad])
    other, _ = forward([9, 50, 51, 9], weights, config, soft_tokens=([1, 2], rows))
    assert_array_equal(out, other)  # the placeholder ids themselves are never read


@pytest.mark.parametrize(
    ("soft_tokens", "complaint"),
    [
        (([1], np.ones((2, 24))), "1 position"),
        (([4], np.ones((1, 24))), "position 4"),
        (([-1], np.ones((1, 24))), "position -1"),
        (([1], np.ones((1, 23))), "24"),
        (([1, 1], np.ones((2, 24))), "twice"),
        (([1.0], np.ones((1, 24))), "integers, not float64"),
        (([[1]], np.ones((1, 24))), r"integers, not int64 of shape \[1, 1\]"),
        (([1], [["a"] * 24]), "24 numbers"),
        (np.ones((3, 24)), "give a pair"),
        (3, "give a pair"),
    ],
)
def test_soft_tokens_that_do_not_fit_are_refused(soft_tokens, complaint):
    config, weights = small("E2B")
    with pytest.raises(Error, match=complaint):
        forward([9, 9, 9, 9], weights, config, soft_tokens=soft_tokens)


def test_no_soft_tokens_change_nothing():
    config, weights = small("E2B")
    out, _ = forward([9, 5], weights, config, soft_tokens=([], np.ones((0, 24))))
    assert np.array_equal(out, forward([9, 5], weights, config)[0])


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        ([], "non-empty"),
        ([[1, 2]], "shape"),
        ([0.5], "ids"),
        ([0, 120], "token id 120 is outside the vocabulary, 0 to 119"),
        ([3, -1], "token id -1"),
        (np.zeros(257, int), "positions"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_in_one_line(tokens, complaint):
    config, weights = small("E2B")
    with pytest.raises(Error, match=complaint) as caught:
        forward(tokens, weights, config)
    assert "\n" not in str(caught.value)


def test_the_first_and_the_last_of_ids_and_positions_are_taken():
    config, weights = small("E2B")
    count = config.max_position_embeddings
    ends = ([0, count - 1], np.ones((2, config.hidden_size)))
    _, cache = forward([0, config.vocab_size - 1] * (count // 2), weights, config, soft_tokens=ends)
    assert cache.length == count


def test_an_unknown_choice_of_logits_is_refused():
    config, weights = small("E2B")
    with pytest.raises(Error, match="first"):
        forward([1], weights, config, logits="first")


@pytest.mark.parametrize(("wrong", "words"), [
    ("E4B", "have 10 layers and the config 9"), ("vocab_size", "embed_tokens must have"),
    ("num_attention_heads", "q_proj must have"), ("num_key_value_heads", "k_proj must have"),
    ("hidden_size_per_layer_input", "per_layer_input_gate must have"),
])  # fmt: skip
def test_weights_of_another_config_are_refused_before_any_work(wrong, words):
    _, weights = small("E2B")
    sizes = {"vocab_size": 119, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size_per_layer_input": 7}
    config, own = small(wrong) if wrong in MEMBERS else small("E2B", **{wrong: sizes[wrong]})
    forward([1], own, config)
    with pytest.raises(Error, match=words):
        forward([1], weights, config)


def test_weights_without_experts_are_refused_where_the_config_has_them():
    layers = {"layer_types": small("26B-A4B")[0].source["layer_types"]}
    _, weights = small("12B", **layers)
    with pytest.raises(Error, match=r"router_proj must have .* and are missing"):
        forward([1], weights, small("26B-A4B")[0])


def test_weights_and_config_in_the_wrong_order_are_refused():
    with pytest.raises(Error, match="tokens, weights and config, in this order"):
        forward([1], *small("E2B"))


def test_activations_near_the_end_of_float32_stay_finite():
    config, weights = small("E2B")
    edit = Edit({"embed": lambda x: x * np.float32(1e30)})
    with np.errstate(all="raise", under="ignore"):
        out, _ = forward(np.arange(12), weights, config, tap=edit)
    assert np.isfinite(out).all()


def test_logits_stay_inside_the_soft_cap(member):
    config, weights = small(member)
    weights.norm = weights.norm * 1e4
    out, _ = forward(np.arange(12), weights, config)
    assert np.abs(out).max() <= config.final_logit_softcapping
    assert np.abs(out).max() > 0.99 * config.final_logit_softcapping


def test_the_members_differ_in_the_ways_that_the_tests_rely_on():
    configs = {name: small(name)[0] for name in MEMBERS}
    assert all(config.layers[-1].kind == GLOBAL for config in configs.values())
    assert [name for name, config in configs.items() if config.hidden_size_per_layer_input] == ["E2B", "E4B"]
    assert [config.layers[-1].k_eq_v for config in configs.values()] == [False, False, True, True, True]
    assert configs["E2B"].layers[5].intermediate_size == 2 * configs["E2B"].layers[4].intermediate_size
    assert minigemma.forward is forward
