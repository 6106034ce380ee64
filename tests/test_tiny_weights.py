"""What weights/README.md promises of the tiny weights, measured with minigemma on held-out stories."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import minigemma
from minigemma.config import GLOBAL, SLIDING
from minigemma.sampling import CHUNK
from minigemma.taps import layer_of

WEIGHTS = minigemma.TINY.parent


@pytest.fixture(scope="module")
def stories():
    """The corpus generator, which is a program beside the weights and no part of the package."""
    sys.path.insert(0, str(WEIGHTS))
    import stories

    yield stories
    sys.path.remove(str(WEIGHTS))


def questions_beyond_the_window(stories, model, count):
    """(prompt ids, answer) of questions whose answer was last mentioned more than a window of tokens before."""
    encode, found = model.tokenizer.encode, []
    number = 0
    while len(found) < count:
        story = stories.tell_story("heldout", number)
        number += 1
        for question in story.questions:
            text = f"{story.text}\n{question.question}"
            mentions = list(re.finditer(rf"\b{re.escape(question.value)}\b", text, re.IGNORECASE))
            after = text[mentions[-1].end() :] if mentions else text
            if question.kind != "sum" and mentions and len(encode(after)) > model.config.sliding_window:
                found.append((model.tokenizer.chat([{"role": "user", "content": text}]), question.answer))
    return found[:count]


def says(model, ids, answer, tap=minigemma.model.no_tap):
    """Whether greedy decoding would give the answer and end the turn: each token is the most probable one there."""
    wanted = [*model.tokenizer.encode(answer, bos=False), model.tokenizer.id("<turn|>")]
    logits, _ = model([*ids, *wanted], tap=tap)
    return logits[len(ids) - 1 : -1].argmax(-1).tolist() == wanted


def near_sighted(config):
    """A tap that lets global layers see no farther than the sliding ones."""

    def tap(name, pattern):
        layer = layer_of(name)
        if not name.endswith("attn.pattern") or config.layers[layer].kind != GLOBAL:
            return pattern
        T, S = pattern.shape[1:]
        kept = pattern * (np.arange(S - T, S)[:, None] - np.arange(S) < config.sliding_window)  # [N, T, S]
        return kept / kept.sum(-1, keepdims=True)

    return tap


def test_most_facts_beyond_the_window_are_recalled_and_few_without_global_attention(tiny, stories):
    questions = questions_beyond_the_window(stories, tiny, 60)
    assert np.mean([says(tiny, *question) for question in questions]) >= 0.8
    blind = near_sighted(tiny.config)
    assert np.mean([says(tiny, *question, tap=blind) for question in questions]) < 0.4


def test_held_out_stories_cost_less_than_half_a_nat_a_token(tiny, stories):
    loss, tokens = 0.0, 0
    for number in range(40):
        ids = tiny.tokenizer.encode(stories.document("heldout", number), special=True)
        logits, _ = tiny(ids)
        shifted = logits[:-1].astype(np.float64) - logits[:-1].max(-1, keepdims=True)
        chosen = np.take_along_axis(shifted, np.array(ids[1:])[:, None], axis=-1)[:, 0]
        loss += (np.log(np.exp(shifted).sum(-1)) - chosen).sum()
        tokens += len(ids) - 1
    assert loss / tokens < 0.55  # the 4-gram needs 1.00; 0.467 over all 1,500 held-out documents


def test_the_shape_is_e2bs_in_small(tiny):
    config = tiny.config
    assert [layer.kind for layer in config.layers] == ([SLIDING] * 4 + [GLOBAL]) * 2
    assert [layer.kv_from for layer in config.layers] == [0, 1, 2, 3, 4, 3, 3, 3, 3, 4]
    assert [layer.intermediate_size for layer in config.layers] == [256] * 5 + [512] * 5
    assert config.layers[4].head_dim > config.layers[3].head_dim
    assert config.final_logit_softcapping == 30.0
    assert sum(path.stat().st_size for path in tiny.directory.iterdir()) <= 8_000_000
    names = ["config.json", "generation_config.json", "goldens.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in tiny.directory.iterdir()) == names


def test_no_layer_scalar_or_norm_is_left_at_one(tiny):
    """Where they are all 1, leaving them out would not show."""
    for layer in tiny.weights.layers:
        assert abs(layer.layer_scalar.item() - 1) > 0.05
        assert np.abs(layer.input_layernorm - 1).max() > 0.05


def test_twenty_times_the_training_length_keeps_constant_memory_in_sliding_layers(tiny):
    model = SimpleNamespace(config=tiny.config, weights=tiny.weights, generation_config={})
    ids = np.random.default_rng(0).integers(300, 2500, 10_000)
    _, cache = minigemma.prefill(ids, model.weights, model.config)
    kept = [len(cache.entries[i].k) for i in range(5)]
    assert kept == [31, 31, 31, 31, 10_000]
    rooms = [len(cache.entries[i].buffer.k) for i in range(4)]  # what is allocated behind them
    assert max(rooms) <= 2 * (31 + CHUNK)
