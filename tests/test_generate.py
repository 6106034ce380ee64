"""Prefill in chunks, sampling and streaming."""

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from family import small

import minigemma
from minigemma import Error, forward, generate_ids
from minigemma.sampling import prefill, sample, settings

MODULE = import_module("minigemma.sampling")


def model_of(member, dtype="float64", generation_config=None, **changes):
    config, weights = small(member, dtype, **changes)
    return SimpleNamespace(config=config, weights=weights, generation_config=generation_config or {})


def drawn(model, ids, count, **options):
    return [id for id, _ in generate_ids(model, ids, count, **options)]


@pytest.mark.parametrize("chunk", [1, 7, 23, 512])
def test_a_prefill_in_chunks_ends_where_one_call_ends(member, chunk, monkeypatch):
    monkeypatch.setattr(MODULE, "CHUNK", chunk)
    model = model_of(member)
    tokens = np.arange(23)
    whole, _ = forward(tokens, model.weights, model.config)
    last, cache = prefill(tokens, model.weights, model.config)
    assert cache.length == 23
    np.testing.assert_allclose(last, whole[-1], rtol=1e-10, atol=1e-12)


def test_a_chunk_never_needs_more_scores_than_the_limit(monkeypatch):
    model = model_of("E2B")
    sizes = []

    def watched(tokens, weights, config, cache, **options):
        trace = minigemma.Trace("*.attn.scores")
        result = forward(tokens, weights, config, cache, **options | {"tap": trace})
        sizes.extend(array.size * 4 for array in trace.values())
        return result

    monkeypatch.setattr(MODULE, "forward", watched)
    monkeypatch.setattr(MODULE, "SCORE_BYTES", 10_000)
    prefill(np.arange(100), model.weights, model.config)
    assert 5_000 < max(sizes) <= 10_000


def test_greedy_tokens_are_those_of_the_whole_sequence_without_a_cache(member):
    model = model_of(member)
    prompt = [3, 4, 5, 6, 7, 8, 9]
    ids = drawn(model, prompt, 20, temperature=0)
    whole, _ = forward([*prompt, *ids], model.weights, model.config)
    assert ids == list(whole[len(prompt) - 1 : -1].argmax(-1))


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others():
    model = model_of("E2B")
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert drawn(model, [1, 2], 20, seed=5, **options) == drawn(model, [1, 2], 20, seed=5, **options)
    assert drawn(model, [1, 2], 20, seed=5, **options) != drawn(model, [1, 2], 20, seed=6, **options)


def frequencies(logits, **options):
    rng = np.random.default_rng(0)
    return np.bincount([sample(logits, rng, **options) for _ in range(20_000)], minlength=len(logits)) / 20_000


def test_sampling_draws_each_token_with_its_probability():
    logits = np.log(np.array([0.5, 0.1, 0.3, 0.1], np.float32))
    np.testing.assert_allclose(frequencies(logits), [0.5, 0.1, 0.3, 0.1], atol=0.015)
    hot = np.array([0.5, 0.1, 0.3, 0.1]) ** (1 / 2)
    np.testing.assert_allclose(frequencies(logits, temperature=2.0), hot / hot.sum(), atol=0.015)


def test_top_k_keeps_the_most_probable_and_top_p_the_fewest_that_reach_it():
    logits = np.log(np.array([0.4, 0.05, 0.3, 0.25], np.float32))
    np.testing.assert_allclose(frequencies(logits, top_k=2), [4 / 7, 0, 3 / 7, 0], atol=0.015)
    np.testing.assert_allclose(frequencies(logits, top_p=0.5), [4 / 7, 0, 3 / 7, 0], atol=0.015)
    np.testing.assert_allclose(frequencies(logits, top_p=0.39), [1, 0, 0, 0])
    np.testing.assert_allclose(frequencies(logits, top_k=3, top_p=0.8), [8 / 19, 0, 6 / 19, 5 / 19], atol=0.015)


def test_the_checkpoints_generation_config_is_the_default_and_arguments_override_it():
    defaults = {"do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95}
    assert settings(defaults) == {"temperature": 0.7, "top_k": 64, "top_p": 0.95}
    assert settings(defaults, temperature=0.0, top_k=3) == {"temperature": 0.0, "top_k": 3, "top_p": 0.95}
    assert settings({})["temperature"] == 0  # transformers' default is greedy
    assert settings({"temperature": 0.7})["temperature"] == 0


def test_generation_ends_at_any_stop_id_and_does_not_yield_it():
    model = model_of("E2B")
    free = drawn(model, [1, 2, 3], 20, temperature=0)
    stop = free[6]
    first = free.index(stop)
    model.generation_config = {"eos_token_id": [119, stop]}
    assert drawn(model, [1, 2, 3], 20, temperature=0) == free[:first]
    model.generation_config = {"eos_token_id": stop}
    assert drawn(model, [1, 2, 3], 20, temperature=0) == free[:first]


@pytest.mark.parametrize(
    ("ids", "count", "options", "complaint"),
    [
        ([], 5, {}, "empty"),
        ([1], 0, {}, "max_new_tokens"),
        ([1], 256, {}, "256 positions"),
        ([1] * 250, 7, {}, "256 positions"),
        ([1], 5, {"temperature": -1}, "temperature"),
        ([1], 5, {"temperature": float("nan")}, "temperature"),
        ([1], 5, {"top_k": -3}, "top_k"),
        ([1], 5, {"top_k": 1.5}, "top_k"),
        ([1], 5, {"top_p": 1.01}, "top_p"),
        ([1], 5, {"top_p": 0}, "top_p"),
        ([500], 5, {}, "token id 500"),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_one_line(ids, count, options, complaint):
    with pytest.raises(Error, match=complaint) as caught:
        drawn(model_of("E2B"), ids, count, **options)
    assert "\n" not in str(caught.value)


def test_the_last_position_can_be_reached():
    assert len(drawn(model_of("E2B"), [1] * 250, 6, temperature=0)) == 6


def test_generate_streams_text_and_needs_a_tokenizer(tiny, checkpoint):
    pieces = list(minigemma.generate(tiny, "Once upon a time", max_new_tokens=20, temperature=0.0))
    ids = drawn(tiny, tiny.tokenizer.encode("Once upon a time"), 20, temperature=0.0)
    assert "".join(pieces) == tiny.tokenizer.decode(ids)
    assert len(pieces) > 10
    for prompt in ("Once", [2, 5]):
        with pytest.raises(Error, match=r"tokenizer\.json"):
            minigemma.generate(minigemma.load(checkpoint), prompt)
