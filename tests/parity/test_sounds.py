"""Sounds against transformers: the log mel, and every intermediate between it and the soft tokens."""

import numpy as np
import pytest
from family import random_sound

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import Gemma4AudioFeatureExtractor

from minigemma import forward, prefill
from minigemma.audio import log_mel
from minigemma.taps import audio_names

from .case import disagreements, distance
from .sounds import Hearing, Mixed, random_hearing

PRECISIONS = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def assert_every_tap_agrees(case, dtype):
    ours = case.ours(dtype)
    assert list(ours) == audio_names(case.config.audio)
    assert set(ours) == set(case.reference(dtype))
    assert disagreements(ours, case, dtype) == {}


@PRECISIONS
@pytest.mark.parametrize("seed", range(120))
def test_every_intermediate_of_a_sound_is_transformers(seed, dtype):
    assert_every_tap_agrees(Hearing(*random_hearing(seed), seed), dtype)


def test_the_log_mel_is_transformers_bit_for_bit_at_200_lengths():
    extract, rng = Gemma4AudioFeatureExtractor(), np.random.default_rng(8)
    for length in [161, 320, 321, 16000, 480000, *rng.integers(161, 40000, 195)]:
        sound = random_sound(length, length)
        theirs = extract([sound], return_tensors="np")
        count = int(theirs["input_features_mask"][0].sum())
        ours = log_mel(sound)
        assert ours.dtype == np.float32 and len(ours) == count
        assert np.array_equal(ours, theirs["input_features"][0][:count]), length


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("member", ["E2B", "E4B", "12B", "31B"])
def test_the_logits_behind_pictures_videos_and_sounds_together_are_transformers(member, seed):
    """A 31B that hears was never released: there pictures see themselves whole, and sound is causal all the same."""
    case = Mixed(member, seed)
    theirs, soft = case.logits(), (case.where, case.rows)
    ours, _ = forward(case.ids, case.weights, case.config, soft_tokens=soft)
    assert distance(ours, theirs) < 1e-12
    last, _ = prefill(case.ids, case.weights, case.config, soft_tokens=soft)
    assert distance(last, theirs[-1]) < 1e-12
