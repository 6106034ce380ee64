"""Interventions change what they name and nothing else, and their effect is reported as it is."""

import numpy as np
import pytest
from family import small

from minigemma import Edit, Error, Trace, forward
from minigemma.interventions import chain, effect, log_softmax, mean, other_token, patch, scale, token_losses, zero
from minigemma.taps import time_axis

TOKENS = np.random.default_rng(5).integers(1, 120, 14)


def run(tap, tokens=TOKENS, member="E2B", **options):
    """The trace of a pass under a tap: what the pass went on with."""
    config, weights = small(member)
    trace = Trace()
    logits, _ = forward(tokens, weights, config, tap=chain(tap, trace), **options)
    return trace, logits


def nothing(name, array):
    return array


def rows(trace, name):
    """A recorded array with the positions first."""
    return np.moveaxis(trace[name], time_axis(name), 0)


CHANGES = {
    "zero": (zero, lambda old: 0 * old),
    "scale": (lambda name, where: scale(name, 0.25, where), lambda old: 0.25 * old),
    "mean": (mean, lambda old: np.broadcast_to(old.mean(0), old.shape)),
    "another token's": (
        lambda name, where: other_token(name, 2, where),
        lambda old: np.broadcast_to(old[2], old.shape),
    ),
}


@pytest.mark.parametrize("name", ["layers.3.attn.pattern", "layers.5.ple_out", "ple.token", "layers.0.mlp.act"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_named_positions_change_as_said_and_no_others(change, name):
    intervention, expected = CHANGES[change]
    before, _ = run(nothing)
    after, _ = run(intervention(name, [4, -1]))
    changed = np.zeros(len(TOKENS), bool)
    changed[[4, -1]] = True
    assert np.allclose(rows(after, name)[changed], expected(rows(before, name))[changed])
    assert np.array_equal(rows(after, name)[~changed], rows(before, name)[~changed])
    earlier = list(before)[: list(before).index(name)]
    assert all(np.array_equal(after[other], before[other]) for other in earlier)


def test_a_pattern_reaches_every_layer_it_fits_and_no_other():
    after, _ = run(zero("layers.[24].mlp_out"))
    silent = [i for i in range(10) if not after[f"layers.{i}.mlp_out"].any()]
    assert silent == [2, 4]


def test_a_tap_leaves_the_array_it_was_given_alone():
    array = np.ones((14, 24), np.float32)
    zero("embed")("embed", array)
    assert (array == 1).all()


def test_patching_a_runs_whole_residual_into_another_gives_that_runs_logits():
    theirs, logits = run(nothing, TOKENS[::-1])
    _, patched = run(patch("layers.9.resid_post", theirs))
    assert np.array_equal(patched, logits)


def test_patching_reads_the_positions_it_is_told_to_of_a_run_of_another_length():
    theirs, _ = run(nothing, TOKENS[:6])
    after, _ = run(patch("layers.2.resid_post", theirs, positions=[9, 10], source=[1, 5]))
    assert np.array_equal(after["layers.2.resid_post"][[9, 10]], theirs["layers.2.resid_post"][[1, 5]])


def test_a_mean_may_come_from_another_run():
    theirs, _ = run(nothing, TOKENS[:6])
    after, _ = run(mean("layers.2.attn_out", trace=theirs))
    assert np.allclose(after["layers.2.attn_out"], theirs["layers.2.attn_out"].mean(0))


def test_taps_in_a_chain_act_in_order_and_edit_is_one_of_them():
    double = Edit({"embed": lambda array: 2 * array})
    first, _ = run(chain(double, zero("embed", 0)))
    plain, _ = run(nothing)
    assert not first["embed"][0].any()
    assert np.array_equal(first["embed"][1:], 2 * plain["embed"][1:])


def test_taking_a_layers_part_out_of_the_sum_is_the_same_as_zeroing_it():
    """resid_post = layer_scalar * (resid_pre + attn_out + mlp_out + ple_out), so a zeroed term is simply missing."""
    _, weights = small("E2B")
    after, _ = run(zero("layers.4.ple_out"))
    expected = after["layers.4.resid_ffn"] * weights.layers[4].layer_scalar
    assert np.array_equal(after["layers.4.resid_post"], expected)


def test_the_effect_of_nothing_is_nothing_and_of_an_ablation_is_what_the_logits_say(tiny):
    ids = tiny.tokenizer.encode("Tom put the kite in the barn.")
    same = effect(tiny, ids, nothing)
    assert not same.kl.any()
    assert np.array_equal(same.loss_before, same.loss_after)
    cut = effect(tiny, ids, zero("layers.*.ple_out"), top=3)
    p, q = (np.exp(log_softmax(tiny(ids, tap=tap)[0])) for tap in (nothing, zero("layers.*.ple_out")))
    assert np.allclose(cut.kl, (p * np.log(p / q)).sum(-1))
    assert np.allclose(cut.loss_after, -np.log(q[np.arange(len(ids) - 1), ids[1:]]), atol=1e-5)
    assert np.array_equal(cut.top_after[:, 0], q.argmax(-1))
    assert cut.loss_after.mean() > cut.loss_before.mean() + 1
    assert repr(tiny.tokenizer.token(cut.top_after[-1, 0])) in cut.text(tiny.tokenizer)


def test_an_intervention_reaches_no_earlier_position(tiny):
    ids = tiny.tokenizer.encode("Tom put the kite in the barn.")
    cut = effect(tiny, ids, zero("layers.2.attn_out", positions=5))
    assert not cut.kl[:5].any()
    assert cut.kl[5] > 0


def test_losses_are_those_of_the_log_softmax():
    logits = np.random.default_rng(0).normal(0, 50, (14, 120)).astype(np.float32)
    expected = -log_softmax(logits)[np.arange(13), TOKENS[1:]]
    assert np.allclose(token_losses(logits, TOKENS), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("tap", "words"),
    [
        (lambda: zero("layer.3.mlp_out"), "fits no tap"),
        (lambda: zero("embed", 14), "within its 14 rows"),
        (lambda: zero("embed", []), "positions"),
        (lambda: zero("embed", 1.5), "positions"),
        (lambda: other_token("embed", [1, 2], [3, 4, 5]), "2 source positions for 3"),
        (lambda: patch("embed", {}), "does not hold it"),
        (lambda: patch("embed", {"embed": np.zeros((3, 24))}), "of the other run: positions"),
        (lambda: patch("embed", {"embed": np.zeros((14, 8))}), r"new rows of shape \[14, 8\] do not fit \[24\]"),
        (lambda: mean("embed", trace={"embed": np.zeros((14, 8))}), r"new rows of shape \[8\]"),
        (lambda: zero("layers.12.mlp_out"), "fits no tap of this model, which has 10 layers"),
        (lambda: zero("layers.3.router.probs"), "fits no tap of this model"),
    ],
)
def test_a_slip_is_refused_in_one_line(tap, words):
    with pytest.raises(Error, match=words) as caught:
        run(tap())
    assert "\n" not in str(caught.value)
