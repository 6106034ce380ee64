"""What rounding costs is measured against the model's own probabilities."""

import json
from itertools import chain

import numpy as np
import pytest

import minigemma
from minigemma.__main__ import main
from minigemma.compressed import packs
from minigemma.interventions import log_softmax
from minigemma.study.rounding import choices, costs, round_weights
from minigemma.study.texts import documents, read_texts
from minigemma.tensors import text_tensors
from minigemma.tools import quantize

TEXTS = minigemma.TINY.parent / "texts.jsonl"


@pytest.fixture(scope="module")
def model():
    return minigemma.load(minigemma.TINY)


@pytest.fixture(scope="module")
def docs(model):
    return documents(model.tokenizer, read_texts(TEXTS), 32)[:3]


def test_the_parts_and_the_layers_cover_every_matrix_once(model):
    tensors = [t for t in text_tensors(model.config) if packs(t)]
    chosen = {name: [t.name for t in tensors if wanted(t)] for name, wanted in choices(model.config).items()}
    whole, layers = chosen.pop("everything"), {n: chosen.pop(n) for n in list(chosen) if n.startswith("layer ")}
    assert sorted(chain(*chosen.values())) == sorted(whole) == sorted(t.name for t in tensors)
    assert sorted(chain(*layers.values())) == sorted(t.name for t in tensors if t.layer is not None)


def test_rounding_in_memory_gives_what_quantize_writes(model, tmp_path):
    quantize.write(minigemma.TINY, tmp_path / "q", 4)
    written = minigemma.load(tmp_path / "q").weights
    ours, count = round_weights(model.weights, model.config, 4, lambda tensor: tensor.layer is not None)
    for layer, other in zip(ours.layers, written.layers, strict=True):
        for name, value in vars(layer).items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(getattr(other, name)), name)
    packed = [t for t in text_tensors(model.config) if packs(t) and t.layer is not None]
    assert count == sum(np.prod(t.shape) for t in packed)


def test_fewer_bits_cost_more_and_nothing_rounded_costs_nothing(model, docs):
    names = {"everything", "MLP", "layer 9"}
    four, eight = ({row["rounded"]: row for row in costs(model, docs, bits, names)} for bits in (4, 8))
    assert four.keys() == names
    for name in names:
        # steps 16 times as wide, and the divergence grows with the square
        assert four[name]["kl"][0] > 10 * eight[name]["kl"][0] > 0
    assert four["everything"]["kl"][0] > four["layer 9"]["kl"][0]
    own = log_softmax(model(docs[0].ids)[0])
    np.testing.assert_allclose(np.exp(own).sum(-1), 1, rtol=1e-12)


def test_quantize_prints_what_it_costs_by_part_and_by_depth(tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "Tom put the kite in the barn."}) + "\n", encoding="utf-8")
    assert main(["quantize", str(minigemma.TINY), str(tmp_path / "q"), "--texts", str(texts)]) == 0
    printed = capsys.readouterr().out
    for name in ("everything", "token table", "PLE table", "attention", "MLP", "layer 9"):
        assert f"\n{name} " in printed
