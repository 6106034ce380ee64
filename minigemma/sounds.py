"""Sound files and arrays -> what Gemma 4 hears: one channel of samples from -1 to 1, 16,000 a second.

Of files only WAV is read: it needs no decoder. transformers leaves files and other rates to other libraries. Like
transformers, we cut what is longer than a tower hears. The log mel that follows is in audio.py.
"""

import math
import os
import struct
import warnings

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .errors import Error
from .files import check_file
from .inputs import as_samples

RATE = 16000  # samples a second
RATES = 1000, 384_000  # the lowest and the highest that are resampled
CONVERT = "convert it: ffmpeg -i YOURS -ac 1 -ar 16000 sound.wav"
FLOAT, EXTENSIBLE = 3, 0xFFFE  # codes of a WAV header; an extensible one holds the code of its samples further behind
FORMS = {(1, 8): "u1", (1, 16): "<i2", (1, 24): "V3", (1, 32): "<i4", (FLOAT, 32): "<f4", (FLOAT, 64): "<f8"}
MOST_CHUNKS = 1000  # parts of a WAV file before its samples
CROSSINGS, PASSED = 64, 0.95  # of `resample`


def read_sound(source, least=1, most=None):
    """A WAV file by its path, an array of samples, or a pair (array, rate) -> samples [n], float32, 16,000 a second.

    An array is [n] or [n, channels], of real numbers from -1 to 1 or of int16; without a rate it has 16,000 samples a
    second. Channels are averaged, other rates resampled. What lies beyond `most` samples is cut off, and a warning says
    so. Raises Error for what is not a sound, or for fewer than `least` samples.
    """
    if isinstance(source, str | os.PathLike):
        name, (samples, rate) = source, _read_wav(source)
    else:
        name, pair = "the sound", isinstance(source, tuple) and len(source) == 2
        samples, rate = source if pair else (source, RATE)
        samples = _as_array(samples)
    if not isinstance(rate, int | np.integer) or not RATES[0] <= rate <= RATES[1]:
        raise Error(f"{name}: {rate!r} samples a second are not from {RATES[0]:,} to {RATES[1]:,}; {CONVERT}")
    if most is not None and len(samples) * RATE > most * rate:
        warnings.warn(
            f"{name}: has {len(samples) / rate:.1f} s, and the model hears the first {most / RATE:g}; cut it where "
            "nobody speaks, and give the parts one by one",
            stacklevel=2,
        )
        samples = samples[: most * rate // RATE + rate]  # with a second more, for the filter
    samples = _scaled(samples)
    samples = resample(samples.mean(-1) if samples.ndim > 1 else samples, int(rate))
    try:
        return as_samples(samples[:most], least)  # [n]
    except Error as error:
        raise Error(f"{name}: {error}") from None


def _as_array(samples):
    """What a caller hands in -> an array [n] or [n, channels] that `_scaled` knows. Raises Error for anything else."""
    try:
        samples = np.asarray(samples)
    except ValueError:  # a ragged list
        samples = np.array(None)
    known = samples.dtype.kind == "f" or samples.dtype == np.int16
    if not known or samples.ndim not in (1, 2) or 0 in samples.shape[1:]:
        what = f"{samples.dtype} of shape {list(samples.shape)}"
        raise Error(f"a sound is a path, or an array [n] of real numbers from -1 to 1 or of int16, not {what}")
    return samples


def _scaled(samples):
    """Samples as a file holds them -> real numbers from -1 to 1, float64."""
    if samples.dtype.kind == "V":  # 24 bits: as the upper ones of 32
        wide = np.zeros((samples.size, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(samples.tobytes(), np.uint8).reshape(-1, 3)
        samples = wide.view("<i4").reshape(samples.shape)
    if samples.dtype == np.uint8:
        return samples / 128 - 1
    return samples.astype(float) / (2 ** (8 * samples.itemsize - 1) if samples.dtype.kind == "i" else 1)


def _read_wav(path):
    """A WAV file -> samples [n, channels] as they lie in the file, and their rate. Raises Error for any other file."""
    check_file(path)
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF" or file.read(8)[4:] != b"WAVE":
            raise Error(f"{path}: not a WAV file; {CONVERT}")
        form = b""
        for _ in range(MOST_CHUNKS):
            name, size = file.read(4), int.from_bytes(file.read(4), "little")
            if name in (b"data", b""):
                break
            start = file.tell()
            form = file.read(min(size, 40)) if name == b"fmt " else form
            file.seek(start + size + size % 2)
        start, there = file.tell(), os.fstat(file.fileno()).st_size - file.tell()
    if name != b"data" or len(form) < 16:
        raise Error(f"{path}: the WAV file ends before its samples, or does not say how they are written; {CONVERT}")
    code, channels, rate, _, block, bits = struct.unpack("<HHIIHH", form[:16])
    code = int.from_bytes(form[24:26], "little") if code == EXTENSIBLE else code
    if (code, bits) not in FORMS:
        known = "whole numbers of 8, 16, 24 or 32 bits, or floats of 32 or 64"
        raise Error(f"{path}: its samples have format {code} and {bits} bits, not {known}; {CONVERT}")
    if not channels or block != channels * bits // 8 or size % block or size > there:
        raise Error(
            f"{path}: the header contradicts the file: {channels} channels of {bits} bits, {block} bytes for one of "
            f"each, {size} bytes in all, and {there} bytes follow; {CONVERT}"
        )
    shape = size // block, channels
    return np.memmap(path, FORMS[code, bits], "r", start, shape) if size else np.zeros(shape), rate


def resample(samples, rate):
    """Samples [n] of this rate -> [m] at 16,000 a second, float64: weighted sums of old ones around each time.

    The weights are a sinc that passes what lies below 0.95 of half of the lower rate, under a Blackman window of 64
    zero crossings on either side. They repeat: from 48,000 all new samples have the same ones, from 44,100 each 160th.
    """
    up, down = RATE // math.gcd(rate, RATE), rate // math.gcd(rate, RATE)
    if up == down:
        return samples
    cutoff = PASSED * min(1, up / down)  # in units of half of the old rate
    reach = math.ceil(CROSSINGS / cutoff)
    around = sliding_window_view(np.pad(samples, reach), 2 * reach + 1)  # [n, 2*reach+1]
    out = np.empty(-(-len(samples) * up // down))
    for phase in range(min(up, len(out))):
        whole, part = divmod(phase * down, up)
        t = np.arange(-reach, reach + 1) - part / up
        angle = np.pi * t / (reach + 1)
        weights = cutoff * np.sinc(cutoff * t) * (0.42 + 0.5 * np.cos(angle) + 0.08 * np.cos(2 * angle))
        out[phase::up] = np.vecdot(around[whole::down], weights)
    return out
