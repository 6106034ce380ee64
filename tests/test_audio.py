"""A sound becomes soft tokens: the pass, its taps, and the tensors it reads. parity/ compares with transformers."""

import numpy as np
import pytest
from family import HEARING, hearing, random_audio, random_sound, random_vision, seeing, small, write_tower

from minigemma import Config, Edit, Error, Finite, Trace, embed_sound, encode_audio, forward, log_mel, random_weights
from minigemma.checkpoint import read_audio
from minigemma.config import AudioTower
from minigemma.taps import AUDIO_TAPS, audio_names, tap_kind


def hear(config, weights, samples=3000, seed=0, **options):
    """The soft tokens of a sound of so many samples."""
    sound = random_sound(samples, seed)
    if hasattr(config.audio, "bins"):
        return encode_audio(log_mel(sound), weights, config, **options)
    return embed_sound(sound, weights, config, **options)


@pytest.fixture(params=HEARING)
def hearer(request):
    """Config and float64 weights of each kind of hearing in turn."""
    config = Config.from_dict(hearing(request.param))
    return config, random_audio(config, dtype=np.float64)


@pytest.fixture(scope="module")
def tower():
    config = Config.from_dict(hearing("E2B"))
    return config, random_audio(config, dtype=np.float64)


def test_a_tap_must_fit_a_sound_and_give_back_what_it_gets(hearer):
    config, weights = hearer
    with pytest.raises(Error, match="fits no tap"):
        hear(config, weights, tap=Trace("audio.no_such_tap"))
    with pytest.raises(Error, match="the tap returned NoneType"):
        hear(config, weights, tap=lambda name, array: None)


def test_a_sound_has_exactly_the_taps_of_the_table_with_its_shapes(hearer):
    config, weights = hearer
    trace, audio = Trace(), config.audio
    soft = hear(config, weights, tap=trace)
    sizes = {"Y": config.hidden_size}
    if hasattr(audio, "bins"):
        D, N = audio.hidden_size, audio.num_attention_heads
        sizes |= {"R": 18, "R/2": 9, "T": 5, "M": 5, "C": 128, "C/2": 64, "C/4": 32, "A": 128, "B": 3}
        sizes |= {"D": D, "2D": 2 * D, "N": N, "H": D // N, "F": 4 * D, "S": 12, "O": audio.output_proj_dims}
    else:
        sizes |= {"T": 75, "M": 75, "X": audio.audio_embed_dim}
    assert list(trace) == audio_names(audio)
    for name, array in trace.items():
        assert array.shape == tuple(sizes[axis] for axis in AUDIO_TAPS[tap_kind(name)].axes.split()), name
    assert np.array_equal(soft, trace["audio.soft_tokens"])


def test_every_part_of_a_block_is_added_to_the_residual_and_the_sum_is_normed(tower):
    trace = Trace()
    hear(*tower, tap=trace)
    for i in range(tower[0].audio.num_hidden_layers):
        at, parts = f"audio.layers.{i}.", ("ffn1_out", "attn_out", "conv_out", "ffn2_out")
        total = trace[at + "resid_pre"] + sum(trace[at + part] for part in parts)
        np.testing.assert_allclose(trace[at + "resid_ffn2"], total, rtol=1e-13, atol=1e-13)
        normed = trace[at + "resid_post"] / tower[1].layers[i].norm_out
        np.testing.assert_allclose((normed**2).mean(-1), 1, rtol=1e-5)


def test_a_frame_attends_to_itself_and_the_eleven_before_it(tower):
    trace = Trace("audio.layers.0.attn.pattern")
    hear(*tower, samples=16000, tap=trace)
    pattern = trace["audio.layers.0.attn.pattern"]  # [N, T, S]
    assert pattern.shape[-1] == 12
    np.testing.assert_allclose(pattern.sum(-1), 1)
    for t in range(pattern.shape[1]):
        assert (pattern[:, t, : t + 1] > 0).all() and not pattern[:, t, t + 1 :].any()


def test_a_frame_knows_nothing_of_what_comes_later(tower):
    """Only the first two convolutions look ahead, by three mel frames."""
    config, weights = tower
    mel = log_mel(random_sound(16000))
    changed = mel.copy()
    changed[64:] += 1
    first, second = (encode_audio(x, weights, config) for x in (mel, changed))
    np.testing.assert_allclose(first[:16], second[:16], rtol=1e-12)
    assert not np.allclose(first[16], second[16])


@pytest.mark.parametrize(("samples", "count"), [(161, 1), (800, 1), (801, 2), (16000, 25), (80000, 125), (480000, 750)])
def test_a_second_of_sound_is_25_soft_tokens(samples, count):
    frames = len(log_mel(np.zeros(samples, np.float32)))
    assert -(-frames // 4) == count == AudioTower.count(samples)


def test_a_common_factor_on_the_mel_changes_nothing(tower):
    """So log10 in place of ln is harmless: LayerNorm without bias follows the first convolution."""
    config, weights = tower
    mel = log_mel(random_sound(4000))
    a, b = (encode_audio(x, weights, config) for x in (mel, mel / np.float32(np.log(10))))
    assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(a)


def test_12b_does_not_hear_how_loud_a_sound_is_and_the_others_do():
    for member, deaf in (("12B", True), ("E2B", False)):
        config = Config.from_dict(hearing(member))
        weights, sound = random_audio(config, dtype=np.float64), random_sound(4000)
        soft = [
            embed_sound(x, weights, config) if deaf else encode_audio(log_mel(x), weights, config)
            for x in (sound, sound * np.float32(0.5))
        ]
        assert np.allclose(*soft, rtol=1e-2) == deaf


def test_silence_is_a_sound(hearer):
    config, weights = hearer
    samples = np.zeros(2000, np.float32)
    sound = log_mel(samples) if hasattr(config.audio, "bins") else samples
    encode = encode_audio if hasattr(config.audio, "bins") else embed_sound
    assert np.isfinite(encode(sound, weights, config)).all()


def test_the_first_nan_of_a_sound_is_named(tower):
    config, weights = Config.from_dict(hearing("E2B")), random_audio(tower[0])
    weights.layers[1].lconv1d.conv_norm[3] = np.nan
    with pytest.raises(Error, match=r"audio\.layers\.1\.conv\.act: .*T D"):
        hear(config, weights, tap=Finite())


def test_an_edit_of_a_sounds_tap_reaches_the_soft_tokens(tower):
    silent = Edit({"audio.layers.*.conv_out": np.zeros_like})
    assert not np.allclose(hear(*tower), hear(*tower, tap=silent))


def test_the_soft_tokens_are_the_embedding_of_their_positions(tower):
    config, weights = Config.from_dict(hearing("E2B")), random_audio(tower[0])
    trace = Trace(["audio.soft_tokens", "embed"])
    soft = hear(config, weights, tap=trace)
    where = np.arange(len(soft)) + 2
    forward([2, 106, *[104] * len(soft), 107], random_weights(config), config, tap=trace, soft_tokens=(where, soft))
    assert np.array_equal(trace["embed"][where], trace["audio.soft_tokens"])


@pytest.mark.parametrize("member", HEARING)
@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_hearing_of_a_checkpoint_is_read_whole(tmp_path, member, prefix, dtype):
    config = Config.from_dict(hearing(member))
    write_tower(tmp_path / "model.safetensors", config, "audio", random_audio(config), prefix)
    again = random_audio(config, dtype="float64" if dtype == "float64" else "float32")
    assert np.array_equal(hear(config, read_audio(tmp_path, config, dtype)), hear(config, again))


def test_a_missing_clip_bound_of_a_sound_is_refused_by_name(tmp_path, tower):
    bound = "layers.1.lconv1d.linear_end.output_max"
    write_tower(tmp_path / "model.safetensors", tower[0], "audio", tower[1], leave_out=(bound,))
    with pytest.raises(Error, match=f"1 missing .*{bound}"):
        read_audio(tmp_path, tower[0])


def test_weights_of_another_model_are_refused_before_a_sound_is_read():
    tower, embedder = (Config.from_dict(hearing(member)) for member in ("E2B", "12B"))
    mel, sound = log_mel(random_sound(2000)), random_sound(2000)
    for config, weights in ((tower, random_audio(embedder)), (tower, random_vision(tower))):
        with pytest.raises(Error, match="belong to another config"):
            encode_audio(mel, weights, config)
    with pytest.raises(Error, match="belong to another config"):
        embed_sound(sound, random_vision(embedder), embedder)
    text, _ = small("E2B")
    for config in (text, Config.from_dict(seeing("31B"))):
        for encode, heard in ((encode_audio, mel), (embed_sound, sound)):
            with pytest.raises(Error, match=r"no audio tower .*: E2B, E4B and 12B hear"):
                encode(heard, random_audio(tower), config)
    with pytest.raises(Error, match="12B hears without one"):
        encode_audio(mel, random_audio(embedder), embedder)
    with pytest.raises(Error, match="only 12B hears the samples"):
        embed_sound(sound, random_audio(tower), tower)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(160, np.float32), "160 samples; at least 161"), (np.zeros((2, 800), np.float32), "shape"),
        (np.zeros(800, np.int16), "int16"), (np.full(800, np.nan), "NaN"), (np.full(800, 3000.0), "divide"),
    ],
)  # fmt: skip
def test_samples_that_are_no_sound_are_refused(samples, words):
    with pytest.raises(Error, match=words):
        log_mel(samples)


@pytest.mark.parametrize("mel", [np.zeros((5, 64)), np.zeros((0, 128)), np.zeros(128), np.zeros((5, 128), int)])
def test_what_is_no_log_mel_is_refused(tower, mel):
    with pytest.raises(Error, match=r"log mel is \[R, 128\]"):
        encode_audio(mel, tower[1], tower[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 25), ("num_attention_heads", 5), ("num_hidden_layers", 0), ("hidden_act", "relu"),
        ("attention_context_right", 1), ("attention_chunk_size", 24), ("attention_context_left", 1),
        ("attention_invalid_logits_value", 1e-9), ("subsampling_conv_channels", [128]), ("rms_norm_eps", 0),
        ("subsampling_conv_channels", [126, 3]), ("use_clipped_linears", 1), ("gradient_clipping", -1),
    ],
)  # fmt: skip
def test_an_audio_config_that_the_pass_cannot_do_is_refused_by_its_field(field, value):
    with pytest.raises(Error, match=f"audio_config.*{field}"):
        Config.from_dict(hearing("E2B", {field: value}))


def test_both_spellings_of_the_id_behind_a_sound_are_read():
    raw = hearing("E2B")
    del raw["eoa_token_id"]
    assert Config.from_dict(raw).eoa_token_id == 258883
    assert Config.from_dict(raw | {"eoa_token_index": 109}).eoa_token_id == 109
