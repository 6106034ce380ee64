"""NaN and infinity are found where they appear, and finite numbers of any size never become either."""

import numpy as np
import pytest
from family import small
from processes import one_line

import minigemma
from minigemma import Edit, Error, Finite, Trace, forward
from minigemma.__main__ import main
from minigemma.packed import HalfMatrix, narrow

STORY = "Once upon a time"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("member", "attribute", "tap"),
    [
        ("E2B", "embed_tokens", "embed"),
        ("E2B", "embed_tokens_per_layer", "ple.token"),
        ("E2B", "per_layer_projection_norm", "ple.context"),
        ("E2B", "norm", "final_norm"),
        ("E2B", "layers.2.q_proj", "layers.2.attn.q_raw"),
        ("E2B", "layers.2.k_norm", "layers.2.attn.k"),
        ("E2B", "layers.3.v_proj", "layers.3.attn.v_raw"),
        ("E2B", "layers.7.up_proj", "layers.7.mlp.up"),
        ("E2B", "layers.7.layer_scalar", "layers.7.resid_post"),
        ("26B-A4B", "layers.1.router_proj", "layers.1.router.probs"),
        ("26B-A4B", "layers.1.experts_down_proj", "layers.1.mlp.moe_out"),
    ],
)
@np.errstate(all="ignore")
def test_a_bad_weight_is_named_by_the_first_tap_that_it_reaches(member, attribute, tap, value):
    config, loaded = small(member)
    *layer, attribute = attribute.split(".")
    owner = loaded.layers[int(layer[1])] if layer else loaded
    getattr(owner, attribute)[...] = value
    trace = Trace()
    with pytest.raises(Error, match=rf"^{tap}: \d+ of \d+ values"):
        forward(np.arange(6), loaded, config, tap=Finite(trace))
    assert list(trace)[-1] == tap  # the other tap has seen it too
    assert all(np.isfinite(trace[name]).all() for name in trace if name != tap)


def test_the_check_says_where_the_first_bad_value_is():
    with pytest.raises(Error, match=r"^layers\.3\.attn\.q: 2 of 24 values .* first at \[1, 0, 3\] \(T N H\)"):
        Finite()("layers.3.attn.q", np.array([[0, 0, 0, 0]] * 3 + [[0, 0, 0, np.nan]] * 2 + [[0] * 4]).reshape(2, 3, 4))


def test_a_value_that_an_edit_makes_bad_is_named_there():
    config, loaded = small("E2B")
    broken = Edit({"layers.4.attn.z": lambda array: array * np.nan})
    with pytest.raises(Error, match=r"^layers\.4\.attn\.z: "):
        forward(np.arange(6), loaded, config, tap=Finite(broken))


def test_the_check_changes_nothing_in_a_sound_pass(exact):
    config, loaded, tokens = exact
    np.testing.assert_array_equal(
        forward(tokens, loaded, config, tap=Finite())[0], forward(tokens, loaded, config)[0]
    )  # fmt: skip


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_activations_of_1e30_and_1e_minus_30_go_through_the_whole_pass_in_float32(member, scale, half):
    config, loaded = small(member)
    tokens = np.arange(23)
    if half:
        for owner in (loaded, *loaded.layers):
            for name, array in vars(owner).items():
                if isinstance(array, np.ndarray) and array.ndim > 1:
                    setattr(owner, name, HalfMatrix(narrow(array)))
    taps = ["embed", "layers.2.resid_post"] if scale < 1 else ["embed"]  # float32 does not reach 1e60
    grow = Edit(dict.fromkeys(taps, lambda x: x * x.dtype.type(scale)))
    with np.errstate(invalid="raise", divide="raise"):
        logits, _ = forward(tokens, loaded, config, tap=Finite(grow))
    if scale < 1 and config.enable_moe_block:
        return  # all experts are equally probable then, and rounding chooses
    for owner in (loaded, *loaded.layers):
        for name, array in vars(owner).items():
            if name != "layers":
                setattr(owner, name, np.asarray(array, np.float64))
    exact, _ = forward(tokens, loaded, config, tap=grow)
    assert np.linalg.norm(logits - exact) < 2e-5 * np.linalg.norm(exact)  # of a pass in float32, as in test_goldens


@pytest.fixture
def poisoned(tmp_path):
    """The tiny weights with a NaN in layer 3's MLP."""
    model = minigemma.load(minigemma.TINY, "float32")
    model.weights.layers[3].gate_proj[7, 7] = np.nan
    minigemma.save(tmp_path / "w", model.weights, model.config)
    for name in ("tokenizer.json", "generation_config.json"):
        (tmp_path / "w" / name).write_bytes((minigemma.TINY / name).read_bytes())
    return tmp_path / "w"


def test_generation_never_draws_from_logits_that_are_no_numbers(poisoned, capsys, tmp_path, run):
    one_line(run("generate", STORY, "--weights", poisoned), "the logits are not finite")
    one_line(run("generate", STORY, "--weights", poisoned, "--check"), "layers.3.mlp.gate: ")
    one_line(run("trace", STORY, "--weights", poisoned, "--check", "--out", tmp_path / "t"), "layers.3.mlp.gate: ")
    assert not (tmp_path / "t").exists()
    assert main(["trace", STORY, "--weights", str(poisoned), "--out", str(tmp_path / "t")]) == 0
    assert "hold NaN or infinity, layers.3.mlp.gate first" in capsys.readouterr().err
