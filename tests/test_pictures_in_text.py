"""Soft tokens of pictures in the text model: what they may see, in one call, in chunks and behind a cache."""

import numpy as np
import pytest
from family import IDS, MEMBERS, seeing
from numpy.testing import assert_array_equal

from minigemma import Config, Error, Trace, forward, prefill, random_weights, sampling
from minigemma.config import GLOBAL
from minigemma.ops import horizon

BIG = ["12B", "26B-A4B", "31B"]
IMAGE, AUDIO, VIDEO = IDS["image_token_id"], IDS["audio_token_id"], IDS["video_token_id"]
# a picture of three soft tokens, and one of eight: longer than the window of five
PROMPT = np.array([2, 9, 101, *[IMAGE] * 3, 103, 8, 7, 101, *[IMAGE] * 8, 103, 11, 12, 13])
WHERE = np.flatnonzero(PROMPT == IMAGE)


def model_of(member, dtype=np.float64):
    config = Config.from_dict(seeing(member))
    rows = np.random.default_rng(2).standard_normal((len(WHERE), config.hidden_size)).astype(dtype)
    return config, random_weights(config, 1, dtype), rows


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_the_horizon_of_a_pictures_token_is_its_pictures_end():
    config = Config.from_dict(seeing("31B"))
    ids = np.array([IMAGE, IMAGE, 103, 5, 101, IMAGE, 103, AUDIO, AUDIO, 5, VIDEO, VIDEO, VIDEO])
    assert_array_equal(horizon(ids, np.arange(13) + 7, config) - 7, [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 12, 12])
    text = np.array([1, 2, 3])
    assert_array_equal(horizon(text, text, config), text)
    small = Config.from_dict(seeing("E2B"))
    assert_array_equal(horizon(ids, np.arange(13), small), np.arange(13))


@pytest.mark.parametrize("member", MEMBERS)
def test_a_pictures_first_token_sees_its_last_on_sliding_layers_of_the_big_members_alone(member):
    config, weights, rows = model_of(member)
    trace = Trace("layers.*.attn.pattern")
    forward(PROMPT, weights, config, soft_tokens=(WHERE, rows), tap=trace)
    first, last, marker = 10, 17, 18
    assert PROMPT[first] == PROMPT[last] == IMAGE != PROMPT[marker] == 103
    for layer in config.layers:
        pattern = trace[f"layers.{layer.index}.attn.pattern"]
        looks_ahead = member in BIG and layer.kind != GLOBAL
        assert (pattern[:, first, last] > 0).all() == looks_ahead
        assert not pattern[:, first, marker:].any()  # what stands behind the picture
        assert not pattern[:, 5, 6:].any()  # from one picture into the other
        window = layer.window or last + 1
        assert not pattern[:, last, : last + 1 - window].any()  # the window bounds the past


@pytest.mark.parametrize("member", MEMBERS)
def test_the_embedding_at_a_soft_position_is_the_soft_token_and_its_ple_row_the_pad_tokens(member):
    config, weights, rows = model_of(member)
    trace = Trace(["embed", "ple.*"] if config.hidden_size_per_layer_input else "embed")
    forward(PROMPT, weights, config, soft_tokens=(WHERE, rows), tap=trace)
    assert_array_equal(trace["embed"][WHERE], rows)
    if "ple.token" in trace:
        token, context = trace["ple.token"][WHERE], trace["ple.context"][WHERE]
        assert (token == token[0]).all()
        assert not np.allclose(context[0], context[1])


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("chunk", [1, 2, 5, 12, 100])
def test_a_prompt_in_chunks_never_cuts_a_picture_that_sees_itself_whole(member, chunk, monkeypatch):
    config, weights, rows = model_of(member)
    whole, _ = forward(PROMPT, weights, config, soft_tokens=(WHERE, rows))
    calls = []

    def watched(ids, *arguments, **options):
        calls.append(len(ids))
        return forward(ids, *arguments, **options)

    monkeypatch.setattr(sampling, "CHUNK", chunk)
    monkeypatch.setattr(sampling, "forward", watched)
    logits, cache = prefill(PROMPT, weights, config, soft_tokens=(WHERE, rows))
    assert distance(logits, whole[-1]) < 1e-12
    assert sum(calls) == len(PROMPT) == cache.length
    edges = set(np.cumsum(calls))
    inside = {4, 5, *range(11, 18)}
    assert not edges & inside or member not in BIG
    assert len(calls) > 1 or chunk == 100
    again, _ = forward([14, 15], weights, config, cache)  # the cache goes on behind the pictures
    long, _ = forward([*PROMPT, 14, 15], weights, config, soft_tokens=(WHERE, rows))
    assert distance(again, long[-2:]) < 1e-12


def test_a_picture_cut_between_two_calls_gives_other_numbers():
    """So the test above would notice a cut."""
    config, weights, rows = model_of("31B")
    whole, _ = forward(PROMPT, weights, config, soft_tokens=(WHERE, rows))
    _, cache = forward(PROMPT[:13], weights, config, soft_tokens=(WHERE[:6], rows[:6]))
    rest, _ = forward(PROMPT[13:], weights, config, cache, soft_tokens=(WHERE[6:] - 13, rows[6:]))
    assert distance(rest[-1], whole[-1]) > 1e-3


@pytest.mark.parametrize("member", BIG)
def test_without_logits_and_for_the_last_logits_a_picture_sees_the_same(member):
    config, weights, rows = model_of(member)
    whole, _ = forward(PROMPT, weights, config, soft_tokens=(WHERE, rows))
    last, _ = forward(PROMPT, weights, config, soft_tokens=(WHERE, rows), logits="last")
    assert distance(last[0], whole[-1]) < 1e-12


def test_sound_is_causal_in_every_member():
    ids = np.where(PROMPT == IMAGE, AUDIO, PROMPT)
    for member in BIG:
        config, weights, rows = model_of(member)
        trace = Trace("layers.*.attn.pattern")
        forward(ids, weights, config, soft_tokens=(WHERE, rows), tap=trace)
        assert not any(np.triu(pattern, 1).any() for pattern in trace.values())


def test_soft_tokens_at_ids_of_text_are_refused_where_the_ids_decide_what_is_seen():
    config, weights, rows = model_of("12B")
    with pytest.raises(Error, match=r"position 1 holds id 9.*102 \(image\), 104 \(audio\) or 105 \(video\)"):
        forward([2, 9, 8], weights, config, soft_tokens=([1], rows[:1]))
    with pytest.raises(Error, match="outside this call"):
        prefill([2, 9, 8], weights, config, soft_tokens=([3], rows[:1]))
