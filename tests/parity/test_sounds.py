"""Sounds against transformers: the log mel, and every intermediate between it and the soft tokens."""

from types import SimpleNamespace

import numpy as np
import pytest
from family import random_sound, seeing

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import Gemma4AudioFeatureExtractor, Gemma4Processor
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from minigemma import Config, forward, load, prefill, save
from minigemma.audio import log_mel
from minigemma.config import AudioTower
from minigemma.debug.diff import diff_file
from minigemma.inputs import FRAMES, read_frames
from minigemma.media import fit_video
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


@pytest.mark.parametrize("seed", range(120))
def test_float32_is_at_most_five_times_as_far_from_double_as_transformers_float32(seed):
    case, name = Hearing(*random_hearing(seed), seed), "audio.soft_tokens"
    double = case.reference(np.float64)[name]
    ours, theirs = (distance(taps(np.float32)[name], double) for taps in (case.ours, case.reference))
    assert ours < 5 * theirs


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


def test_the_count_of_soft_tokens_is_the_processors_at_every_length():
    processor = SimpleNamespace(feature_extractor=Gemma4AudioFeatureExtractor(), audio_seq_length=750)
    for length in [*range(161, 3000), 479_999, 480_000]:
        theirs = Gemma4Processor._compute_audio_num_tokens(processor, np.empty(length), 16000)
        assert AudioTower.count(length) == theirs, length


@pytest.mark.parametrize(("count", "fps"), [(1, 24), (31, 24), (32, 2), (33, 2), (500, 24), (5000, 30), (7001, 1)])
def test_the_frames_of_a_video_and_their_times_are_the_processors(count, fps):
    config = Config.from_dict(seeing("E2B"))
    frames = read_frames(([np.zeros((30, 40, 3), np.uint8)] * count, fps), config.vision.side)
    video = VideoMetadata(total_num_frames=count, fps=fps)
    video.frames_indices = default_sample_indices_fn(video, min(count, FRAMES))
    marks = {"boi_token": "<|image>", "video_token": "<|video|>", "eoi_token": "<image|>"}
    inputs = {"num_soft_tokens_per_video": [63], "video_metadata": [video]}
    theirs = Gemma4Processor.replace_video_token(SimpleNamespace(**marks), inputs, 0)
    runs = fit_video(frames, config, None)
    assert "".join(f"{time}<|image>{'<|video|>' * soft}<image|>" for time, _, soft in runs) == theirs


@pytest.mark.parametrize("member", ["E2B", "12B"])
def test_what_the_readmes_function_dumps_of_a_sound_is_read_and_agrees_op_by_op(member, tmp_path):
    case = Mixed(member, 3, ["audio"])
    case.dump(tmp_path / "dump")
    save(tmp_path / "model", case.weights, case.config, "float32", vision=case.vision, audio=case.audio)
    found = diff_file(tmp_path / "dump", load(tmp_path / "model"), sounds=case.media["audio"])
    heard = {row.name for row in found.rows if row.name.startswith("audio.") and row.verdict == "OK"}
    assert found.clean and heard >= {"audio.soft_tokens"}
    if member == "E2B":
        parts = ("ffn1.act", "resid_ffn1", "attn.q_raw", "attn.z", "resid_mid", "conv.act", "resid_conv", "resid_post")
        assert heard >= {f"audio.layers.{i}.{part}" for i in range(2) for part in parts} | {"audio.mel"}
