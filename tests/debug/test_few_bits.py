"""Ports with weights of few bits, or with a merged adapter: recognised as such, and compared with the same weights."""

from types import SimpleNamespace

import numpy as np
import pytest

import minigemma
from minigemma import Edit, Trace
from minigemma.debug.catalogue import to_bfloat16
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


CASES = [(4, None, True), (8, None, False), (4, STATES, False), (8, STATES, True)]


@pytest.mark.parametrize("bits, only, tables", CASES)
def test_the_same_weights_in_fewer_bits_are_recognised(bits, only, tables, model, tmp_path):
    weights, _ = round_weights(model.weights, model.config, bits, lambda tensor: tables or tensor.part not in TABLES)
    found = diagnose_file(recorded(tmp_path / "t.safetensors", weights, model, only), model)
    assert found.verdict == "other-weights"
    assert f"the same weights, of about {bits} bits" in found.sentence


def test_parts_of_other_bits_are_recognised_by_part(model, tmp_path):
    weights, _ = round_weights(model.weights, model.config, 8, lambda tensor: tensor.attribute == "v_proj")
    weights, _ = round_weights(weights, model.config, 4, lambda tensor: tensor.attribute in ("gate_proj", "up_proj"))
    found = diff_file(recorded(tmp_path / "t.safetensors", weights, model), model)
    assert found.identity == "other-weights"
    assert "the same weights, of about 8 bits in attn.v_raw and of about 4 bits in mlp.gate, mlp.up;" in found.sentence


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_merged_adapter_is_recognised_by_its_rank_and_its_matrices(precision, model, tmp_path):
    rng, weights = np.random.default_rng(0), SimpleNamespace(**vars(model.weights))
    weights.layers = [SimpleNamespace(**vars(layer)) for layer in weights.layers]
    for layer in weights.layers:
        for name in {"q_proj", "v_proj", "gate_proj"} & {*vars(layer)}:
            matrix = np.asarray(getattr(layer, name))
            adapter = rng.standard_normal((len(matrix), 3)) @ rng.standard_normal((3, matrix.shape[1]))
            size = 0.3 * np.linalg.norm(matrix) / np.linalg.norm(adapter)
            setattr(layer, name, (matrix + size * adapter).astype(np.float32))
    change = (lambda name, x: to_bfloat16(x)) if precision == "bfloat16" else None
    found = diff_file(recorded(tmp_path / "t.safetensors", weights, model, change=change), model)
    assert found.identity == "other-weights" and found.precision == precision
    assert "some of their matrices differ from ours by rank 3, and other ops agree" in found.sentence
    assert "the broken ops: attn.q_raw, mlp.gate in layers 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, all layers;" in found.sentence


CHANGES = {  # of a product, that are no other weights of low rank and no rounding
    "one head": lambda q: np.concatenate([q[:, :1] + q[:, 1:2], q[:, 1:]], 1),
    "a bias": lambda q: q + np.linspace(0, 1, q.shape[-1], dtype=q.dtype),
    "a factor": lambda q: q * np.float32(1.1),
    "one position": lambda q: np.concatenate([q[:1] + q[1:2], q[1:]]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_mistake_in_a_product_is_not_taken_for_other_weights(change, model, tmp_path):
    path = tmp_path / "t.safetensors"
    recorded(path, model.weights, model, change=lambda name, x: change(x) if name.endswith("attn.q_raw") else x)
    found = diff_file(path, model)
    assert found.identity is None and found.first_broken == "layers.0.attn.q_raw"


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
