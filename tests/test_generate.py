"""Prefill in chunks, sampling and streaming."""

import json
import warnings
from importlib import import_module

import numpy as np
import pytest
from family import small

import minigemma
from minigemma import Error, forward, generate_ids
from minigemma.sampling import prefill, sample, settings, stop_ids

MODULE = import_module("minigemma.sampling")


def model_of(member, dtype="float64", generation_config=None, **changes):
    config, weights = small(member, dtype, **changes)
    return minigemma.Model(None, config, weights, generation_config or {})


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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"top_k": None}, {"top_k": 50}),  # null: as if it were missing
        ({"top_k": 64.0}, {"top_k": 64}),
        ({"temperature": None}, {"temperature": 1.0}),
        ({"temperature": 1}, {"temperature": 1}),
        ({"top_p": None}, {"top_p": 1.0}),
        ({"do_sample": None}, {"temperature": 0.0}),
    ],
)
def test_a_generation_config_is_read_as_transformers_reads_it(changes, expected):
    chosen = settings({"do_sample": True, "temperature": 0.7, "top_k": 3, "top_p": 0.5} | changes)
    assert chosen == {"temperature": 0.7, "top_k": 3, "top_p": 0.5} | expected
    assert all(type(chosen[name]) is type(value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("eos", "ids"), [(1, {1}), (1.0, {1}), ([1, 106.0], {1, 106}), ([], set()), (None, set()), ([1, 1], {1})]
)
def test_stop_ids_may_be_one_id_or_a_list_or_missing(eos, ids):
    assert stop_ids({"eos_token_id": eos}, 120) == ids
    assert stop_ids({}, 120) == set()


@pytest.mark.parametrize(
    "changes", [{"top_k": -1}, {"top_k": 2.5}, {"top_p": 0}, {"temperature": "warm"}, {"do_sample": 1},
                {"eos_token_id": "x"}, {"eos_token_id": [True]}, {"eos_token_id": 1.5}, {"eos_token_id": [None]}]
)  # fmt: skip
def test_an_error_about_a_value_names_the_file_that_it_comes_from(checkpoint, changes):
    (name,) = changes
    (checkpoint / "generation_config.json").write_text(json.dumps({"do_sample": True} | changes))
    with pytest.raises(Error, match=f"generation_config.json: {name} must be"):
        drawn(minigemma.load(checkpoint), [1], 2)


def test_an_error_about_an_argument_names_no_file(checkpoint):
    (checkpoint / "generation_config.json").write_text('{"do_sample": true, "top_k": "x"}')
    assert drawn(minigemma.load(checkpoint), [1], 2, top_k=3, seed=0)  # the file's value is not used
    with pytest.raises(Error, match=r"^top_k must be a whole number from 0"):
        drawn(minigemma.load(checkpoint), [1], 2, top_k=-3)


def test_stop_ids_of_config_json_are_blamed_on_config_json(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text()) | {"eos_token_id": "x"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(Error, match=r"[/\\]config\.json: eos_token_id must be"):
        drawn(minigemma.load(checkpoint), [1], 2)


def noted(generation_config, **options):
    """The notes of three draws with these settings."""
    model = model_of("E2B", generation_config=generation_config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn(model, [1, 2], 3, **options)
    return [str(warning.message) for warning in caught]


def test_settings_that_are_not_applied_are_noted_by_name():
    (note,) = noted({"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "num_beams": 4, "bad_words_ids": [[5]]})
    for name in ("repetition_penalty", "no_repeat_ngram_size", "num_beams", "bad_words_ids"):
        assert name in note
    assert "does not apply" in note


def test_settings_that_change_nothing_are_not_noted():
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "suppress_tokens": None,
               "bad_words_ids": [], "typical_p": 1.0, "min_p": None, "transformers_version": "5"}  # fmt: skip
    assert noted(neutral) == []
    assert noted({"min_p": 0.1}) == []  # greedy: no token is drawn
    assert noted({"min_p": 0.1, "do_sample": True}, temperature=0.0) == []
    assert len(noted({"min_p": 0.1, "do_sample": True}, seed=0)) == 1


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_suppressed_tokens_are_never_drawn_and_others_are_as_before(temperature):
    free = drawn(model_of("E2B"), [1, 2, 3], 30, temperature=temperature, top_k=3, seed=1)
    trace = minigemma.Trace(["logits"])
    kept = {"suppress_tokens": [free[4], 10**6]}  # as in transformers, ids that the vocabulary lacks do not matter
    ours = drawn(model_of("E2B", generation_config=kept), [1, 2, 3], 30, temperature=temperature, top_k=3, seed=1)
    assert free[4] not in ours
    before = free.index(free[4])
    assert temperature or ours[:before] == free[:before]
    drawn(model_of("E2B", generation_config=kept), [1, 2, 3], 2, tap=trace)
    assert np.isfinite(trace["logits"]).all()  # a tap sees the model's own
    with pytest.raises(Error, match=r"suppress_tokens must be an id or a list of them, not 'x'"):
        drawn(model_of("E2B", generation_config={"suppress_tokens": ["x"]}), [1, 2], 2)


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
