"""Every tap of the pass has the name and the shape that the table in trace.py promises."""

import numpy as np
import pytest
from family import small

from minigemma import Error, Trace, forward
from minigemma.taps import SHAPES, layer_of, shape_key


def sizes(config, layer, new, seen):
    """The number behind each letter of SHAPES, in this layer."""
    letters = {
        "T": new, "S": seen, "D": config.hidden_size, "N": config.num_attention_heads, "V": config.vocab_size,
        "L": config.num_hidden_layers, "P": config.hidden_size_per_layer_input, "E": config.num_experts,
        "k": config.top_k_experts,
    }  # fmt: skip
    if layer is not None:
        here = config.layers[layer]
        letters |= {"K": here.num_key_value_heads, "H": here.head_dim, "F": here.intermediate_size}
    return letters


def expected_names(config):
    """The taps that a config has, in order."""
    names = []
    for key in SHAPES:
        if not key.startswith("layers."):
            absent = key.startswith("ple") and not config.hidden_size_per_layer_input
            names += [] if absent else [key]
    per_layer = [key for key in SHAPES if key.startswith("layers.")]
    before, after = [n for n in names if n not in ("final_norm", "logits")], ["final_norm", "logits"]
    layers = []
    for layer in config.layers:
        for key in per_layer:
            part = key.removeprefix("layers.*.")
            writes = part in ("attn.k_raw", "attn.v_raw", "attn.k", "attn.rot_k", "attn.v")
            routed = part.startswith("router.") or part in ("mlp.dense_out", "mlp.moe_out")
            ple = part.startswith("ple")
            if (writes and layer.shares_kv) or (routed and not config.enable_moe_block):
                continue
            if ple and not config.hidden_size_per_layer_input:
                continue
            layers.append(f"layers.{layer.index}.{part}")
    return before + layers + after


def test_the_pass_has_exactly_the_taps_of_the_table_in_its_order(member):
    config, weights = small(member)
    trace = Trace()
    forward(np.arange(14), weights, config, tap=trace)
    assert list(trace) == expected_names(config)


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
        assert array.shape == tuple(letters[axis] for axis in SHAPES[shape_key(name)].split()), name


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
