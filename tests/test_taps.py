"""Every tap of the pass has the name and the shape that the table in trace.py promises."""

import bdb
import io
import random
import string
import sys

import numpy as np
import pytest
from family import small
from safetensors.numpy import load_file, save_file

import minigemma
from minigemma import Edit, Error, Finite, Trace, forward
from minigemma.interventions import chain, mean, scale, zero
from minigemma.taps import TAPS, axes_of, fits, layer_of, names_of, nearest, tap_kind


def sizes(config, layer, new, seen):
    """The number behind each letter of TAPS, in this layer."""
    letters = {
        "T": new, "S": seen, "D": config.hidden_size, "N": config.num_attention_heads, "V": config.vocab_size,
        "L": config.num_hidden_layers, "P": config.hidden_size_per_layer_input, "E": config.num_experts,
        "k": config.top_k_experts,
    }  # fmt: skip
    if layer is not None:
        here = config.layers[layer]
        letters |= {"K": here.num_key_value_heads, "H": here.head_dim, "F": here.intermediate_size}
    return letters


def test_the_pass_has_exactly_the_taps_of_the_table_in_its_order(member):
    config, weights = small(member)
    trace = Trace()
    forward(np.arange(14), weights, config, tap=trace)
    assert list(trace) == names_of(config)
    assert {tap_kind(name) for name in trace} <= set(TAPS)


@pytest.mark.parametrize("cached", [0, 9])
def test_every_tap_has_the_shape_that_the_table_says(member, cached):
    config, weights = small(member)
    trace = Trace()
    tokens = np.arange(cached + 14)
    _, cache = forward(tokens[:cached], weights, config) if cached else (None, None)
    options = {"cache": cache} if cached else {}
    forward(tokens[cached:], weights, config, tap=trace, **options)
    for name, array in trace.items():
        layer = layer_of(name)
        kept = cached
        if layer is not None and config.layers[layer].window is not None:
            kept = min(cached, config.layers[layer].window - 1)
        letters = sizes(config, layer, 14, kept + 14)
        assert array.shape == tuple(letters[axis] for axis in axes_of(name)), name


def test_a_trace_keeps_only_what_is_asked_for():
    config, weights = small("E2B")
    trace = Trace(["layers.3.attn.*", "logits"])
    forward([1, 2, 3], weights, config, tap=trace)
    assert set(map(layer_of, trace)) == {3, None}
    assert all(name == "logits" or name.startswith("layers.3.attn.") for name in trace)


def test_a_saved_trace_reads_back_as_it_was(tmp_path, member):
    config, weights = small(member)
    trace = Trace()
    forward([1, 2, 3], weights, config, tap=trace)
    trace.save(tmp_path / "trace.safetensors", tokens=[1, 2, 3], model="a model")
    again = Trace.load(tmp_path / "trace.safetensors")
    assert again.metadata == {"tokens": [1, 2, 3], "model": "a model", "axes": "T N H"}
    assert set(again) == set(trace)
    assert all(np.array_equal(again[name], trace[name]) for name in trace)


def test_a_file_that_is_no_trace_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(Error, match="safetensors"):
        Trace.load(tmp_path / "text")
    with pytest.raises(Error, match="no such file"):
        Trace.load(tmp_path / "nothing")


def test_a_traces_arrays_survive_what_later_taps_and_the_caller_do_to_theirs():
    config, weights = small("12B")
    plain, disturbed = Trace(), Trace()
    forward([1, 2, 3], weights, config, tap=plain)

    def spoil(name, array):
        disturbed(name, array)
        kept = array.copy()
        array[...] = 7
        return kept

    logits, _ = forward([1, 2, 3], weights, config, tap=spoil)
    logits[...] = 7
    assert all(np.array_equal(disturbed[name], plain[name]) for name in plain)
    with pytest.raises(ValueError, match="read-only"):
        plain["embed"][0] = 0


def test_an_edit_in_place_changes_the_tap_it_names_and_not_the_one_that_shares_its_values():
    """On global layers of 12B, 26B-A4B and 31B the raw values are the raw keys."""
    config, weights = small("12B")
    plain, edited = Trace(), Trace()
    forward([1, 2, 3], weights, config, tap=plain)

    def silence(array):
        array[...] = 0
        return array

    def silent(name, array):
        return silence(array) if name == "layers.3.attn.v_raw" else array

    for tap in (silent, Edit({"layers.3.attn.v_raw": silence})):
        forward([1, 2, 3], weights, config, tap=chain(tap, edited))
        assert config.layers[3].k_eq_v and not edited["layers.3.attn.v"].any()
        assert np.array_equal(edited["layers.3.attn.rot_k"], plain["layers.3.attn.rot_k"])


def test_the_safetensors_library_writes_a_trace_as_it_is(tmp_path, member):
    """The library ignores strides: an array that is not contiguous would come back in another order."""
    config, weights = small(member)
    trace = Trace()
    forward(np.arange(9), weights, config, tap=trace)
    save_file(dict(trace), tmp_path / "trace.safetensors")
    again = load_file(tmp_path / "trace.safetensors")
    assert list(trace) == names_of(config) and all(np.array_equal(again[name], trace[name]) for name in trace)


def test_a_second_call_overwrites_what_a_trace_holds():
    config, weights = small("E2B")
    trace = Trace("embed")
    for tokens in ([1, 2, 3], [4]):
        forward(tokens, weights, config, tap=trace)
    assert len(trace["embed"]) == 1


def slip_of_the_pen(name, rng):
    """The name with one letter left out, added or replaced, or with two letters exchanged."""
    i, letter = rng.randrange(len(name)), rng.choice(string.ascii_lowercase + string.digits + "._")
    before, here, after = name[:i], name[i], name[i + 1 :]
    exchanged = before + after[:1] + here + after[1:]
    return rng.choice([before + after, before + letter + here + after, before + letter + after, exchanged])


@pytest.mark.parametrize("layers", [None, "*", "[2-4]"])
@pytest.mark.parametrize("member", ["E2B", "26B-A4B"])  # with PLE, with experts
def test_of_a_misspelt_tap_the_right_name_is_suggested(member, layers):
    """In 95 % of cases: of a slip in a layer's number nobody can say which layer was meant."""
    rng, (config, _) = random.Random(0), small(member)
    names = names_of(config)
    right = rng.sample(names, 90) if layers is None else [kind.replace("*", layers) for kind in TAPS] * 2
    slips = [(name, slip_of_the_pen(name, rng)) for name in right if fits(name, names)]
    slips = [(name, slip) for name, slip in slips if not fits(slip, names)]
    suggested = sum(name in nearest(slip, names) for name, slip in slips)
    assert len(slips) > 50
    assert suggested >= (0.95 if layers != "[2-4]" else 0.9) * len(slips)  # half a bracket hides the range


WRONG = {
    "misspelt": ("layers.3.mpl.in", "E2B", "fits no tap; the nearest names are layers.3.mlp.in"),
    "no such layer": ("layers.10.mlp.in", "E2B", "fits no tap of this model, which has 10 layers"),
    "no per-layer embeddings": ("layers.*.ple_out", "31B", "fits no tap of this model"),
    "no keys of its own": ("layers.7.attn.rot_k", "E2B", "fits no tap of this model"),
    "no experts": ("*.router.*", "E2B", "fits no tap of this model"),
    "not a text": (3, "E2B", "name a tap by a text"),
}
MAKERS = {
    "Trace": Trace,
    "a list": lambda pattern: Trace(["embed", pattern]),
    "Edit": lambda pattern: Edit({"embed": np.copy, pattern: np.copy}),
    "zero": zero,
    "mean": mean,
    "scale": lambda pattern: scale(pattern, 2),
    "in a chain": lambda pattern: chain(Trace(), zero(pattern)),
    "in Finite": lambda pattern: Finite(Trace(pattern)),
}


ASKED = [("Trace", wrong, logits) for wrong in WRONG for logits in ("all", "last", None)]


@pytest.mark.parametrize(("tap", "wrong", "logits"), [*ASKED, *((tap, "misspelt", None) for tap in MAKERS)])
def test_a_pattern_that_fits_no_tap_of_the_model_is_refused_by_every_tap_before_any_work(tap, wrong, logits):
    pattern, member, words = WRONG[wrong]
    config, weights = small(member)
    seen = Trace()
    with pytest.raises(Error, match=words) as caught:
        forward([1, 2], weights, config, tap=chain(seen, MAKERS[tap](pattern)), logits=logits)
    assert not seen and "\n" not in str(caught.value)


def test_a_pattern_may_name_layers_that_a_call_without_logits_does_not_run():
    config, weights = small("E2B")
    trace = Trace("layers.9.resid_post")
    _, cache = forward([1, 2], weights, config, tap=trace, logits=None)
    assert not trace
    forward([3], weights, config, cache, tap=trace, logits="last")
    assert trace["layers.9.resid_post"].shape == (1, config.hidden_size)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda array: None, "layers.3.mlp_out: the tap returned NoneType, not an array"),
        (lambda array: array.tolist(), "layers.3.mlp_out: the tap returned list, not an array"),
        (lambda array: np.zeros(array.shape), "returned float64 .* must return float32"),
        (lambda array: array[:1], r"returned float32 of shape \[1, 24\] and must return float32 of shape \[3, 24\]"),
        (lambda array: array[None], r"shape \[1, 3, 24\]"),
    ],
)
@pytest.mark.parametrize("as_edit", [True, False])
def test_a_tap_that_returns_another_kind_of_array_is_refused_by_name(function, words, as_edit):
    config, weights = small("E2B")
    edit = Edit({"layers.3.mlp_out": function})

    def tap(name, array):
        return function(array) if name == "layers.3.mlp_out" else array

    with pytest.raises(Error, match=words):
        forward([1, 2, 3], weights, config, tap=edit if as_edit else tap)


@pytest.mark.parametrize("tap", [None, 3, Trace])
def test_what_cannot_be_a_tap_is_refused(tap):
    with pytest.raises(Error, match="tap must be a function"):
        forward([1], *small("E2B")[::-1], tap=tap)


@pytest.mark.parametrize("functions", ["embed", ["embed"], {"embed": 0}])
def test_an_edit_that_is_not_a_dict_of_functions_is_refused(functions):
    with pytest.raises(Error, match="Edit takes a dict"):
        Edit(functions)


@pytest.fixture
def typed(monkeypatch):
    """Gives lines to whoever reads the keyboard."""
    return lambda *lines: monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_stop_opens_the_debugger_in_forward_with_the_array_under_its_own_name(tiny, typed, capsys):
    typed("p pattern.shape, i", "n", "p z.shape", "c")
    logits, _ = tiny([2, 5, 6], tap=minigemma.Stop("layers.1.attn.pattern"))
    said = capsys.readouterr().out
    assert "layers.1.attn.pattern [4, 3, 3], made at model.py:" in said
    assert "scores [4, 3, 3]" in said
    assert "((4, 3, 3), 1)" in said
    assert "(3, 4, 32)" in said
    assert np.array_equal(logits, tiny([2, 5, 6])[0])


def test_stop_opens_at_each_tap_that_fits_and_the_last_line_of_forward_is_one_of_them(tiny, typed, capsys):
    typed("c", "c", "p capped.shape", "c")
    tiny([2, 5, 6], tap=minigemma.Stop("layers.[01].attn.q", "logits"))
    said = capsys.readouterr().out
    opened = [line.removeprefix("(Pdb) ").split()[0] for line in said.splitlines() if "made at" in line]
    assert opened == ["layers.0.attn.q", "layers.1.attn.q", "logits"]
    assert f"(3, {tiny.config.vocab_size})" in said


def test_quitting_the_debugger_ends_the_pass_and_leaves_no_debugger_behind(tiny, typed):
    typed("q")
    with pytest.raises(bdb.BdbQuit):
        tiny([2, 5], tap=minigemma.Stop("layers.0.attn.q"))
    assert sys.gettrace() is None


def test_a_trace_says_what_it_has_where_a_name_is_misspelt(tiny):
    trace = Trace("layers.0.attn.*")
    with pytest.raises(KeyError, match="nothing is recorded yet"):
        trace["layers.0.attn.q"]
    tiny([2, 5], tap=trace)
    with pytest.raises(KeyError, match=r"nearest names are layers\.0\.attn\.pattern,"):
        trace["layers.0.attn.patern"]
    assert trace.get("layers.0.attn.patern") is None
    assert "layers.0.attn.patern" not in trace
