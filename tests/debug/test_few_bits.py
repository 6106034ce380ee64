"""Ports with weights of 4 or 8 bits: recognised as such, and compared with the same packed weights."""

import pytest

import minigemma
from minigemma import Edit, Trace
from minigemma.debug.diagnosis import diagnose_file
from minigemma.debug.diff import diff_file
from minigemma.model import forward
from minigemma.study.rounding import round_weights
from minigemma.tensors import TABLES
from minigemma.tools import quantize

TEXT = "Once upon a time there was a fox."
STATES = ["embed", "layers.*.resid_post", "final_norm"]


@pytest.fixture(scope="module")
def model():
    return minigemma.load(minigemma.TINY)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    out = tmp_path_factory.mktemp("four")
    quantize.write(minigemma.TINY, out, 4)
    return minigemma.load(out)


def recorded(path, weights, model, only=None, change=None):
    ids, trace = model.tokenizer.encode(TEXT), Trace(only) if only else Trace()
    taps = trace if change is None else (lambda name, array: trace(name, change(name, array)))
    forward(ids, weights, model.config, tap=taps)
    trace.save(path, tokens=ids)
    return path


@pytest.mark.parametrize("tables", [True, False], ids=["all", "matrices"])
@pytest.mark.parametrize("only", [None, STATES], ids=["all taps", "hidden states"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_same_weights_in_fewer_bits_are_recognised(bits, only, tables, model, tmp_path):
    weights, _ = round_weights(model.weights, model.config, bits, lambda tensor: tables or tensor.part not in TABLES)
    found = diagnose_file(recorded(tmp_path / "t.safetensors", weights, model, only), model)
    assert found.verdict == "other-weights"
    assert f"the same weights, of about {bits} bits" in found.sentence


def test_other_weights_are_not_called_the_same_in_fewer_bits(model, tmp_path):
    other = minigemma.random_weights(model.config, 1)
    found = diagnose_file(recorded(tmp_path / "t.safetensors", other, model), model)
    assert found.verdict == "other-weights" and "same weights" not in found.sentence


def test_a_port_on_packed_weights_is_sound_beside_the_same_packed_weights(packed, tmp_path):
    twin = minigemma.load(packed.directory, "float32")
    path = recorded(tmp_path / "t.safetensors", twin.weights, packed)
    assert diff_file(path, packed).first_broken is None
    assert diagnose_file(path, packed).verdict == "healthy"


def test_a_mistake_beside_the_rounding_is_named_with_the_same_packed_weights(packed, tmp_path):
    wrong = Edit({"layers.*.attn.scores": lambda scores: scores / packed.config.layers[0].head_dim ** 0.5})
    path = recorded(tmp_path / "t.safetensors", packed.weights, packed, change=wrong)
    found = diagnose_file(path, packed)
    assert found.verdict == "fault" and "attn.scores" in found.first_broken
