"""The twins differ from the tiny weights in what their names say and in nothing else."""

import json

import numpy as np
import pytest

import minigemma
from minigemma.interventions import token_losses

TWINS = {"tiny-no-ple": 256, "tiny-wide": 278}  # name: MLP width
DIFFER = {"hidden_size_per_layer_input", "intermediate_size"}


@pytest.fixture(params=TWINS)
def twin(request):
    return minigemma.load(minigemma.TINY.with_name(request.param))


def computed(model):
    """Parameters that a token is multiplied with: all that the pass reads but the PLE table."""
    count = minigemma.count(model.config)
    return count.total - count.parts.get("PLE table", 0)


def test_a_twin_has_no_ple_and_no_other_difference(twin, tiny):
    ours, theirs = tiny.config.source, twin.config.source
    assert theirs["hidden_size_per_layer_input"] == 0
    assert theirs["intermediate_size"] == TWINS[twin.directory.name]
    same = (set(ours) | set(theirs)) - DIFFER
    assert {name for name in same if ours.get(name) != theirs.get(name)} == set()


def test_a_twin_reads_text_as_the_tiny_weights_do(twin, tiny):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (twin.directory / name).read_bytes() == (tiny.directory / name).read_bytes()


def test_the_wide_twin_computes_as_much_as_the_model_with_ple(tiny):
    wide = minigemma.load(minigemma.TINY.with_name("tiny-wide"))
    narrower = 0.999 * computed(tiny)
    assert narrower < computed(tiny) <= computed(wide) < 1.002 * computed(tiny)


def test_a_twin_was_trained_as_long_as_the_tiny_weights(twin):
    logs = minigemma.TINY.parent / "training" / "logs"
    last = [
        path.read_text().splitlines()[-1].split(",")[:2]
        for path in (logs / "tiny.csv", logs / f"{twin.directory.name}.csv")
    ]
    assert last[0] == last[1]  # steps, tokens


def test_a_twin_predicts_held_out_stories_as_well_as_the_tiny_weights(twin, tiny):
    texts = [json.loads(line)["text"] for line in (minigemma.TINY.parent / "texts.jsonl").read_text().splitlines()[:8]]
    losses = []
    for model in (tiny, twin):
        ids = [model.tokenizer.encode(text) for text in texts]
        losses.append(np.concatenate([token_losses(model(each)[0], each) for each in ids]).mean())
    assert losses[1] < 1.1 * losses[0] < 1
