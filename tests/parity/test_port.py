"""The faulty ports are right where they claim to be and wrong where they mean to be: without a mistake they are
transformers' model, and with one the first tap that differs is the mistaken step."""

from fnmatch import fnmatchcase
from functools import cache

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from family import MEMBERS, fields
from transformers.models.gemma4 import modeling_gemma4

from minigemma.config import GLOBAL, SLIDING
from minigemma.taps import TAPS, layer_of, tap_kind
from minigemma.tensors import checkpoint_tensors

from .case import TOLERANCE, Case, distance
from .port import FAULTS, VARIANTS, random_flip, record_port, sign_flip, unused_weights

T, W = 23, 5  # tokens, window
BENIGN = ["B7", "B8", "C1b", "L6", "H8"]  # what a norm divides away, or nearly
SEEN = 1e-6  # two whole runs of the same ops are equal to the bit; eps alone makes 3e-5 of B6 and B8
ORDER = list(TAPS)
VARIANT = {fault.id: fault for fault in VARIANTS}


@cache
def case(member, soft=False):
    rng = np.random.default_rng(7)
    prompt = np.array([2, *rng.integers(3, 120, T - 1)])
    rows = rng.standard_normal((4, 24)).astype(np.float32)
    return Case(fields(member), prompt, seed=1, soft_tokens=(np.array([3, 4, 5, 9]), rows) if soft else None)


def port(member, *faults, how="whole", **options):
    chosen = case(member, soft=how == "soft")
    weights, soft = chosen.weights(options.get("dtype", np.float32)), chosen.soft_tokens
    return record_port(chosen.raw, chosen.config, weights, chosen.prompt, faults, how=how, soft_tokens=soft, **options)


sound = cache(lambda member, how: port(member, how=how))


def execution(name):
    """Sorts names of taps into the order of execution."""
    layer = layer_of(name)
    place = ORDER.index(tap_kind(name))
    return (place > ORDER.index("ple") if layer is None else 0.5, -1 if layer is None else layer, place)


def first_difference(taps, right):
    """The first tap of both runs that differs."""
    for name in sorted(taps.keys() & right.keys(), key=execution):
        if taps[name].shape != right[name].shape or not distance(taps[name], right[name]) < SEEN:
            return name
    return None


def close(one, other):
    assert distance(one, other) < TOLERANCE[np.float32]


def normed(x):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("member", MEMBERS)
def test_a_port_without_a_mistake_is_transformers_to_the_bit(member, dtype):
    taps, reference = port(member, dtype=dtype), case(member).reference(dtype)
    assert taps.keys() == reference.keys()
    for name, array in taps.items():
        np.testing.assert_array_equal(array, reference[name], name)


def test_a_port_without_a_mistake_takes_soft_tokens_as_transformers_does():
    reference = case("E2B", soft=True).reference(np.float32)
    for name, array in port("E2B", how="soft").items():
        np.testing.assert_array_equal(array, reference[name], name)


@pytest.mark.parametrize(
    "options", [{"how": "cached"}, {"how": "cached", "prefill": 1}, {"attention": "sdpa"}], ids=["half", "one", "sdpa"]
)
@pytest.mark.parametrize("member", MEMBERS)
def test_a_cached_run_and_sdpa_are_transformers_up_to_rounding(member, options):
    taps, reference = port(member, **options), case(member).reference(np.float32)
    lacking = {tap_kind(name) for name in reference.keys() - taps.keys()}
    assert lacking == {"layers.*.attn.scores", "layers.*.attn.pattern"}
    for name, array in taps.items():
        assert array.shape == reference[name].shape, name
        assert distance(array, reference[name]) < TOLERANCE[np.float32], name


@pytest.mark.parametrize("member", MEMBERS)
def test_taps_of_a_bfloat16_run_are_bfloat16_numbers(member):
    for name, array in port(member, precision="bfloat16").items():
        if ".router." not in name:  # which transformers keeps in float32
            assert array.dtype == np.float32, name
            assert not (array.view(np.uint32) & 0xFFFF).any(), name


@pytest.mark.parametrize(
    "fault", [*FAULTS.values(), *VARIANTS], ids=[*FAULTS, *(f"{fault.id}-variant" for fault in VARIANTS)]
)
def test_a_mistake_shows_first_at_the_step_it_names(fault):
    right, wrong = sound(fault.member, fault.how), port(fault.member, fault, how=fault.how)
    assert fnmatchcase(first_difference(wrong, right), fault.first)
    if wrong["logits"].shape == right["logits"].shape:
        away = distance(wrong["logits"], right["logits"])
        assert 0 < away < 1e-3 if fault.id in BENIGN else away > 1e-4


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("seed", range(3))
def test_a_random_flip_shows_first_at_the_tap_it_names(member, seed):
    fault, tap = random_flip(case(member).config, seed)
    assert first_difference(port(member, fault), sound(member, "whole")) == tap


def test_a_flip_turns_the_sign_of_half_the_channels():
    wrong = port("E2B", sign_flip("layers.2.self_attn.o_proj"))["layers.2.attn.o"]
    ratio = wrong / sound("E2B", "whole")["layers.2.attn.o"]
    assert sorted(ratio[0]) == [-1] * 12 + [1] * 12
    assert (ratio == ratio[0]).all()


def test_two_mistakes_installed_together_both_act():
    both, scores = port("E2B", "A8", "D1"), port("E2B", "D1")["layers.0.attn.scores"]
    np.testing.assert_array_equal(both["layers.0.attn.scores"], scores)
    gate, up = both["layers.0.mlp.gate"], both["layers.0.mlp.up"]
    close(both["layers.0.mlp.act"], gate / (1 + np.exp(-gate)) * up)


@pytest.mark.parametrize("pair", [("B9", "G2"), ("D10", "E9"), ("E8", "D10"), ("B18", "J2"), ("D7", "B5")])
def test_a_pair_of_mistakes_is_neither_of_the_two(pair):
    for one in pair:
        assert first_difference(port("E2B", *pair), port("E2B", one))


def test_a_run_leaves_transformers_as_it_was():
    before = dict(vars(modeling_gemma4))
    port("E2B", "D8", "D7", "E8", "G1", "D11")
    port("E4B", "D6b")
    assert vars(modeling_gemma4) == before


@pytest.mark.parametrize("name", ["D8", "D6b"])
def test_a_mistake_inside_eager_attention_is_refused_with_sdpa(name):
    with pytest.raises(ValueError, match="eager"):
        port(FAULTS[name].member, name, attention="sdpa")


# What some of the mistakes compute


def visible(name, layer):
    """The keys that a query of the middle sees, relative to it."""
    row = port("E2B", name)[f"layers.{layer}.attn.pattern"][0, 12]
    return [int(key) - 12 for key in np.flatnonzero(row)]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("G1", range(-12, 1)),
        ("G2", range(-5, 1)),
        ("G2b", range(-3, 1)),
        ("G3", range(-3, 2)),
        ("D11", range(-4, 5)),
        ("D8", range(-4, 1)),
    ],
)
def test_a_query_of_a_sliding_layer_sees_the_wrong_keys(name, keys):
    assert visible(name, 0) == list(keys)


@pytest.mark.parametrize(("name", "keys"), [("G1", range(-12, 1)), ("D11", range(-12, 11)), ("G3", range(-12, 1))])
def test_a_query_of_a_global_layer_sees_these_keys(name, keys):
    assert visible(name, 4) == list(keys)


def test_layer_1_as_a_global_one_has_no_window():
    assert visible("D7", 1) == list(range(-12, 1))
    assert visible("D7", 2) == list(range(-4, 1))


@pytest.mark.parametrize(("name", "layer", "donor"), [("F5", 5, 0), ("F5", 9, 4), ("F5b", 5, 2), ("F5b", 9, 4)])
def test_a_sharing_layer_reads_the_wrong_donor(name, layer, donor):
    taps = port("E2B", name)
    values = np.einsum("nts,sh->tnh", taps[f"layers.{layer}.attn.pattern"], taps[f"layers.{donor}.attn.v"][:, 0])
    close(taps[f"layers.{layer}.attn.z"], values)


def test_layers_that_share_nothing_use_the_weights_that_the_file_holds_for_nothing():
    taps, arrays = port("E2B", "F1"), unused_weights(case("E2B").config)
    tensors = {tensor.name: tensor.shape for tensor in checkpoint_tensors(case("E2B").config, unused=True)}
    assert {name: array.shape for name, array in arrays.items()}.items() <= tensors.items()
    k = taps["layers.5.attn.in"] @ arrays["model.layers.5.self_attn.k_proj.weight"].T
    close(taps["layers.5.attn.k_raw"][:, 0], k)
    k = normed(k) * arrays["model.layers.5.self_attn.k_norm.weight"]
    close(taps["layers.5.attn.k"][:, 0], k)


@pytest.mark.parametrize(("name", "source"), [("D3", "attn.k"), ("D3b", "attn.rot_k")])
def test_v_is_made_from_the_wrong_stage_of_k(name, source):
    taps = port("12B", name)
    layer = next(layer.index for layer in case("12B").config.layers if layer.k_eq_v)
    close(taps[f"layers.{layer}.attn.v"], normed(taps[f"layers.{layer}.{source}"]))


def turned(x, pairs, angles):
    """x [T, N, H] with each of the pairs turned by its angle [T, pair], as complex numbers."""
    out = x.copy()
    for (one, other), angle in zip(pairs, angles.T, strict=True):
        z = (x[..., one] + 1j * x[..., other]) * np.exp(1j * angle)[:, None]
        out[..., one], out[..., other] = z.real, z.imag
    return out


HALVES = {SLIDING: [(j, j + 4) for j in range(4)], GLOBAL: [(j, j + 8) for j in range(8)]}
QUARTER = HALVES[GLOBAL][:2]


@pytest.mark.parametrize(
    ("name", "layer", "pairs", "theta", "width"),
    [
        ("E1", 4, [(0, 2), (1, 3)], 1e6, 16),
        ("E2", 4, QUARTER, 1e6, 4),
        ("E3", 4, HALVES[GLOBAL], 1e6, 16),
        ("E5", 4, QUARTER, 1e4, 16),
        ("E5b", 0, HALVES[SLIDING], 1e6, 8),
        ("E6", 0, HALVES[SLIDING][:1], 1e4, 8),
        ("E8", 0, [(0, 1), (2, 3), (4, 5), (6, 7)], 1e4, 8),
        ("E8", 4, [(0, 1), (2, 3)], 1e6, 16),
        ("D7", 1, HALVES[SLIDING][:1], 1e6, 8),
    ],
)
def test_rope_turns_the_wrong_pairs_or_by_the_wrong_angles(name, layer, pairs, theta, width):
    taps = port("E2B", name)
    angles = np.arange(T)[:, None] * theta ** (-2 * np.arange(len(pairs)) / width)
    for part in "q", "k":
        before, after = taps[f"layers.{layer}.attn.{part}"], taps[f"layers.{layer}.attn.rot_{part}"]
        close(after, turned(before, pairs, angles))


def test_rope_turns_the_other_way_in_q_only():
    taps = port("E2B", "E9")
    angles = np.arange(T)[:, None] * 1e4 ** (-2 * np.arange(4) / 8)
    for part, sign in ("q", -1), ("k", 1):
        right = turned(taps[f"layers.0.attn.{part}"], HALVES[SLIDING], sign * angles)
        close(taps[f"layers.0.attn.rot_{part}"], right)


@pytest.mark.parametrize(
    ("name", "residual"),
    [
        ("C2", lambda x, added, ple, s: (s * (x + added), ple)),
        ("C2 variant", lambda x, added, ple, s: (x + added, s * (x + added) + ple - (x + added))),
        ("C2b", lambda x, added, ple, s: (x + added, s * (added + ple) - added)),
    ],
)
def test_layer_scalar_scales_the_wrong_part(name, residual):
    taps = port("E2B", VARIANT["C2"] if name == "C2 variant" else name)
    for i, weights in enumerate(case("E2B").weights32.layers):
        names = "resid_pre", "attn_out", "mlp_out", "ple_out", "resid_ffn", "resid_post"
        x, attn_out, mlp_out, ple_out, resid_ffn, resid_post = (taps[f"layers.{i}.{part}"] for part in names)
        before, rest = residual(x, attn_out + mlp_out, ple_out, weights.layer_scalar)
        close(resid_ffn, before)
        close(resid_post, before + rest)


def test_the_context_projection_of_a_layer_reads_that_layers_hidden_state():
    taps, weights = port("E2B", "B5"), case("E2B").weights32
    L, P = len(weights.layers), 6
    for i in range(L):
        projected = taps[f"layers.{i}.resid_pre"] @ weights.per_layer_model_projection.T * 24**-0.5
        context = normed(projected.reshape(T, L, P)) * weights.per_layer_projection_norm
        close(taps["ple.context"][:, i], context[:, i])
        close(taps["ple"][:, i], (context[:, i] + taps["ple.token"][:, i]) * 2**-0.5)


def test_while_decoding_mistakes_of_the_cached_path_show_and_in_the_prompt_they_do_not():
    right = sound("E2B", "cached")
    for fault in FAULTS.values():
        if fault.how == "cached" and fault.id not in ("F3", "F12b"):  # they write in the prompt as well
            wrong = port("E2B", fault, how="cached")["logits"]
            np.testing.assert_array_equal(wrong[: T // 2], right["logits"][: T // 2], fault.id)
            assert distance(wrong[T // 2 :], right["logits"][T // 2 :]) > 1e-2, fault.id
