"""Sound files: formats, channels, rates and length, and one line for what is not a sound."""

import struct
import wave

import numpy as np
import pytest
from family import random_sound

from minigemma import Error
from minigemma.sounds import RATE, read_sound, resample

SOUND = random_sound(3000)
FORMS = {8: (1, "u1"), 16: (1, "<i2"), 24: (1, None), 32: (1, "<i4"), "float": (3, "<f4"), "double": (3, "<f8")}


def wav(samples, form=16, rate=RATE, channels=1, extensible=False, before=b"", **lies):
    """The bytes of a WAV file. lies: other values of the header than the true ones."""
    code, dtype = FORMS[form]
    bits = {"float": 32, "double": 64}.get(form, form)
    if code == 3:
        data = samples.astype(dtype).tobytes()
    elif bits == 24:
        data = b"".join(int(x).to_bytes(3, "little", signed=True) for x in np.round(samples * 2**23))
    else:
        data = (np.round(samples * 2.0 ** (bits - 1)) + 128 * (bits == 8)).astype(dtype).tobytes()
    block = channels * bits // 8
    true = {"code": 0xFFFE if extensible else code, "channels": channels, "rate": rate, "bytes": rate * block}
    true |= {"block": block, "bits": bits, "size": len(data)}
    head = true | lies
    size = head.pop("size")
    form = struct.pack("<HHIIHH", *head.values())
    if extensible:
        form += struct.pack("<HHIH", 22, bits, 0, code) + bytes(14)
    chunks = before + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def written(tmp_path, content):
    path = tmp_path / "sound.wav"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_gives_the_samples_that_were_saved(tmp_path, form, extensible):
    path = written(tmp_path, wav(SOUND, form, extensible=extensible, before=b"LIST\5\0\0\0abcde\0"))
    step = 2.0 ** -(form - 1) if isinstance(form, int) else 0
    for source in (path, str(path)):
        read = read_sound(source)
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, SOUND, rtol=0, atol=step / 2 + 1e-7)


def test_a_file_of_the_standard_library_is_read(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.array([[1000, 3000], [-32768, 32767]], "<i2").tobytes())
    np.testing.assert_array_equal(read_sound(tmp_path / "a.wav") * 2**15, [2000, -0.5])


def test_channels_are_averaged(tmp_path):
    both = np.stack([SOUND, -SOUND], 1)
    assert not read_sound(written(tmp_path, wav(both, 32, channels=2))).any()
    np.testing.assert_allclose(read_sound(np.stack([SOUND, 0 * SOUND], 1)), SOUND / 2, rtol=1e-6)


def test_a_path_an_array_and_a_pair_with_the_rate_are_the_same_sound(tmp_path):
    whole = np.round(SOUND * 2**15).astype(np.int16)
    path = written(tmp_path, wav(SOUND, rate=22050))
    for source in ((whole, 22050), (whole / 2**15, 22050), (whole[:, None] / 2**15, 22050)):
        np.testing.assert_allclose(read_sound(path), read_sound(source), atol=1e-7)
    np.testing.assert_array_equal(read_sound(whole), read_sound((whole, RATE)))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampling_keeps_tones_that_both_rates_have_and_drops_the_others(rate):
    t, new = np.arange(rate) / rate, np.arange(RATE) / RATE
    inner = slice(1000, -1000)  # beyond the ends of the sound there is silence
    for share in (0.01, 0.3, 0.85):
        tone = share * min(rate, RATE) / 2
        read = resample(np.sin(2 * np.pi * tone * t), rate)
        assert len(read) == RATE
        np.testing.assert_allclose(read[inner], np.sin(2 * np.pi * tone * new)[inner], atol=2e-4)
    if rate > 18000:
        above = resample(np.sin(2 * np.pi * 8500 * t), rate)
        assert np.abs(above[inner]).max() < 1e-3


def test_what_is_longer_than_thirty_seconds_is_cut_and_said():
    for rate in (RATE, 8000):
        long = np.ones(31 * rate, np.float32) / 2
        with pytest.warns(UserWarning, match=r"has 31\.0 s, and the model hears the first 30"):
            assert len(read_sound((long, rate), 1, 480_000)) == 480_000
        assert len(read_sound((long, rate))) == 31 * RATE
    exactly = read_sound((np.ones(30 * RATE, np.float32)), 161, 480_000)
    assert len(exactly) == 480_000


def test_silence_is_read_and_an_empty_sound_is_not(tmp_path):
    assert not read_sound(written(tmp_path, wav(np.zeros(500)))).any()
    assert len(read_sound(np.zeros(1))) == 1
    for source in (written(tmp_path, wav(np.zeros(0))), np.zeros(0), written(tmp_path, wav(np.zeros(100)))):
        with pytest.raises(Error, match="at least 161"):
            read_sound(source, 161)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a WAV file"), (b"ID3 an mp3", "not a WAV file"), (wav(SOUND)[:30], "ends before its samples"),
        (b"RIFF\0\0\0\0WAVE", "ends before"), (b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 2000 + b"data", "ends before"),
        (wav(SOUND)[:-2], "contradicts"), (wav(SOUND, size=2**32 - 1), "contradicts"),
        (wav(SOUND, size=1), "contradicts"), (wav(SOUND, channels=0), "contradicts"),
        (wav(SOUND, block=3), "contradicts"), (wav(SOUND, bits=12), "12 bits"), (wav(SOUND, code=85), "format 85"),
        (wav(SOUND, rate=0, bytes=0), "0 samples a second"), (wav(SOUND, rate=2**31, bytes=0), "samples a second"),
        (wav(np.full(500, np.nan), "float"), "NaN"), (wav(np.full(500, np.inf), "float"), "inf"),
        (wav(SOUND * 20000, "float"), "divide"),
    ],
)  # fmt: skip
def test_what_is_not_a_sound_gets_one_line_with_its_name(tmp_path, content, words):
    path = written(tmp_path, content)
    with pytest.raises(Error, match=words) as caught:
        read_sound(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [np.zeros(500, int), np.zeros((2, 3, 4)), np.zeros((500, 0)), 7, None, b"bytes", "no/such/file.wav", ".", "sound",
     [[1.0], [1.0, 2.0]], (np.zeros(500), 0), (np.zeros(500), 16000.5), (np.zeros(500), None), np.zeros(5, complex)],
    ids=lambda source: type(source).__name__,
)  # fmt: skip
def test_other_sources_of_sound_are_refused_in_one_line(source):
    with pytest.raises(Error) as caught:
        read_sound(source)
    assert "\n" not in str(caught.value)
