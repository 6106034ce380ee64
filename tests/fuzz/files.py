"""Hostile GGUF files and packed matrices: lengths, counts, types and offsets that lie."""

import struct

import gguf_files
import numpy as np
from family import HEARING, VISION

import minigemma
from minigemma import Config
from minigemma.tensors import audio_tensors, vision_tensors
from minigemma.tools import quantize

from .harness import REFUSED, SAME, SOUND, Case

IDS = [2, 5, 9]
LENGTHS = [0, 1, 2**16, 2**31, 2**40, 2**63, 2**64 - 1]


def ask(path):
    """Logits of a short prompt, and the ids of a text."""
    model = minigemma.load(path)
    return model(IDS)[0], model.tokenizer.encode("Tom put the kite")


def gguf_file(base, rng):
    """A GGUF file with a mutation in its header, or with a part missing."""
    if not hasattr(base, "gguf"):
        base.gguf = gguf_files.write(base.scratch / "sound.gguf", *gguf_files.describe(minigemma.load(base.talking)))
        base.gguf_said = ask(base.gguf)
        base.gguf_start = min(block.offset for block in minigemma.gguf.read(base.gguf).tensors.values())
    return _mutated(base.gguf, base.gguf_start, rng, base.scratch / "hostile.gguf", ask, base.gguf_said)


def mmproj_file(base, rng):
    """As gguf_file, of the towers' file beside a text model's."""
    if not hasattr(base, "mmproj"):
        folder = base.scratch / "towers"
        folder.mkdir()
        raw = minigemma.load(base.talking).config.to_dict()
        towers = {"vision_config": VISION["E2B"], "audio_config": HEARING["E2B"]}
        config = Config.from_dict({"model_type": "gemma4", "text_config": raw} | towers)
        gguf_files.write(folder / "text.gguf", *gguf_files.describe(minigemma.load(base.talking)))
        table = vision_tensors(vars(config.vision), config.hidden_size)
        table += audio_tensors(vars(config.audio), config.hidden_size)
        ones = {tensor.name: np.ones(tensor.shape, np.float32) for tensor in table}
        base.mmproj = gguf_files.write(folder / "mmproj.gguf", *gguf_files.describe_towers(config, ones))
        base.mmproj_sound = base.mmproj.read_bytes()
        base.mmproj_said = sense(base.mmproj)
        base.mmproj_start = min(block.offset for block in minigemma.gguf.read_header(base.mmproj).tensors.values())
    base.mmproj.write_bytes(base.mmproj_sound)
    return _mutated(base.mmproj, base.mmproj_start, rng, base.mmproj, sense, base.mmproj_said)


def sense(path):
    """Soft tokens of a picture and of a sound, from the mmproj file beside a text model."""
    model = minigemma.load(path.with_name("text.gguf"))
    return model.see(np.zeros((24, 24, 3), np.uint8), 70), model.hear(np.ones(2000, np.float32))


def _mutated(sound, start, rng, path, ask, said):
    """The Case of a sound GGUF file with a mutation in its header, which ends at `start`, or with a part missing."""
    raw = bytearray(sound.read_bytes())
    how = str(rng.choice(["cut", "cut header", "flip", "overwrite", "insert", "delete", "count", "length", "append"]))
    at, expect, answer = int(rng.integers(24, start)), SOUND, None
    if how == "cut":
        raw, expect = raw[: int(rng.integers(start, len(raw) - 32))], REFUSED
    elif how == "cut header":
        raw, expect = raw[: int(rng.integers(start))], REFUSED
    elif how == "flip":
        raw[at] ^= 1 << int(rng.integers(8))
    elif how == "overwrite":
        raw[at : at + 8] = rng.bytes(8)
    elif how == "insert":
        raw[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif how == "delete":
        del raw[at : at + int(rng.integers(1, 9))]
    elif how == "append":
        raw, expect, answer = raw + rng.bytes(int(rng.integers(1, 99))), SAME, said
    else:  # how many tensors and keys there are; how long a text is
        place = int(rng.choice([8, 16])) if how == "count" else _a_text(raw, rng, start)
        raw[place : place + 8] = struct.pack("<Q", LENGTHS[rng.integers(len(LENGTHS))])
    path.write_bytes(raw)
    return Case(f"{how} at {at}", lambda: ask(path), expect, answer, len(raw))


def _a_text(raw, rng, start):
    """The place of the length of one of the names that begin so."""
    places = [i - 8 for word in (b"gemma4.", b"blk.", b"v.blk.", b"a.blk.", b"clip.") for i in _all(raw, word, start)]
    return int(rng.choice(places))


def _all(raw, word, end):
    at = raw.find(word)
    while 0 <= at < end:
        yield at
        at = raw.find(word, at + 1)


def packed_file(base, rng):
    """A quantised checkpoint with bytes of its header or of its shapes changed."""
    if not hasattr(base, "packed"):
        base.packed = base.scratch / "packed"
        quantize.write(minigemma.TINY, base.packed)
        base.packed_said = minigemma.load(base.packed)(IDS)[0]
    directory = base.copy(base.packed)
    path = directory / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    how = str(rng.choice(["name", "shape", "flip", "none"]))
    expect, answer = SOUND, None
    if how == "name":
        old = str(rng.choice(["weight_packed", "weight_scale", "weight_shape"]))
        places = list(_all(raw, old.encode(), start))
        at = int(rng.choice(places))
        raw[at : at + len(old)], expect = old.replace("weight_", "wright_").encode(), REFUSED
    elif how == "shape":
        stored = minigemma.checkpoint.read_header(path)
        place = stored[str(rng.choice([name for name in stored if name.endswith("weight_shape")]))].offset
        at = place + 8 * int(rng.integers(2))
        raw[at : at + 8], expect = struct.pack("<q", int(rng.choice([-1, 0, 7, 2**31, 2**62]))), REFUSED
    elif how == "flip":
        raw[int(rng.integers(8, start))] ^= 1 << int(rng.integers(8))
    else:
        expect, answer = SAME, base.packed_said
    path.write_bytes(raw)
    return Case(how, lambda: minigemma.load(directory)(IDS)[0], expect, answer, len(raw))
