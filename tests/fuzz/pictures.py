"""Hostile pictures: truncated, with lying headers, bombs, under a wrong name, of any mode, or no pictures at all."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from minigemma.inputs import BUDGETS, FORMATS, fit_image, read_image

from .harness import REFUSED, SAME, SAME_OR_REFUSED, SOUND, Broken, Case, make_link, make_pipe, pick

SIDE = 48
LOSSLESS = {"PNG", "BMP", "TIFF", "PPM"}
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F"]
OTHERS = {  # what is no picture that may be opened
    "text": b"a picture of a cat\n", "a program": b"#!/bin/sh\necho hello\n", "HTML": b"<html><img src=x></html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "PDF": b"%PDF-1.7\n1 0 obj\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch x) (w) file\n",
    "zip": b"PK\3\4" + bytes(40),
    "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os\x94.", "nothing": b"", "ELF": b"\x7fELF" + bytes(60),
    "safetensors": struct.pack("<Q", 2) + b"{}", "a wave": b"RIFF\x24\0\0\0WAVEfmt ", "Windows bitmap": b"BM",
    "an icon": b"\0\0\1\0\1\0\x10\x10", "Photoshop": b"8BPS\0\1" + bytes(30), "XPM": b"/* XPM */\nstatic char *x[] = {",
}  # fmt: skip


def see(source, budget):
    """A picture's colours, and the picture in the size of its grid. Raises Broken where they are none."""
    colours = read_image(source)
    fitted = fit_image(colours, budget, SIDE)
    for image in (colours, fitted):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise Broken(f"{image.dtype} of shape {image.shape}")
    rows, columns = (n / SIDE for n in fitted.shape[:2])
    if rows % 1 or columns % 1 or not 1 <= rows * columns <= budget:
        raise Broken(f"{fitted.shape} at a budget of {budget}")
    return colours, fitted


def a_picture(rng, modes=("RGB", "L", "P", "RGBA", "CMYK", "1", "LA")):
    """A PIL image of random colours."""
    height, width = (int(n) for n in pick(rng, [(1, 1), (1, 300), (7, 1), (33, 20), (64, 64), (3, 900), (50, 41)]))
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8), "RGBA")
    return noise.convert("RGB").convert("P") if (mode := pick(rng, modes)) == "P" else noise.convert(mode)


def saved(rng, image, **options):
    """A file's bytes in a random format that can hold the picture, and the format's name."""
    for format in rng.permutation([name for name in FORMATS if name in Image.SAVE or Image.init()]):
        file = io.BytesIO()
        try:
            image.save(file, str(format), **options)
        except (OSError, ValueError, KeyError):  # this format has no such mode
            continue
        return file.getvalue(), str(format)
    return saved(rng, image.convert("RGB"), **options)


def pictures(base, rng):
    """A picture's file, mutated, at a random budget."""
    path, budget = base.scratch / f"picture.{pick(rng, ['png', 'jpg', 'gif', 'txt', 'exe'])}", pick(rng, BUDGETS)
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    how = pick(rng, [truncated, truncated, flipped, flipped, lying, lying, bomb, not_a_picture, whole, animated,
                     oriented, odd_place, odd_array, chunk, foreign_mode])  # fmt: skip
    what, content, expect, answer, size = how(rng, path)
    if isinstance(content, bytes):
        path.write_bytes(content)
        content, size = path, max(size, len(content))
    answer = None if answer is None else (answer, fit_image(answer, budget, SIDE))
    return Case(f"{how.__name__}: {what}, {budget}", lambda: see(content, budget), expect, answer, size)


def truncated(rng, path):
    """The first part of a file: not a picture, unless only what stands behind the picture is lost."""
    raw, format = saved(rng, a_picture(rng))
    path.write_bytes(raw)
    cut = int(rng.integers(len(raw)))
    return f"{format} at {cut} of {len(raw)}", raw[:cut], SAME_OR_REFUSED, read_image(path), 0


def flipped(rng, path):
    """Bytes of a file changed: what remains a picture of some size may be accepted."""
    raw, format = saved(rng, a_picture(rng))
    changed = bytearray(raw)
    for place in rng.integers(0, len(raw), int(rng.integers(1, 9))):
        changed[place] = rng.integers(256)
    return format, bytes(changed), SOUND, None, 2**28  # a size in the header may have changed: see `lying`


def png(width, height, data, depth=8, colour=2, extra=b""):
    """A PNG file with this header, its checksums right, around any data."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def lying(rng, path):
    """A header that promises another picture than the file holds."""
    size = int(pick(rng, [0, 1, 2, 100, 9000, 2**16, 2**31 - 1, 2**32 - 1]))
    other = int(pick(rng, [1, 20, 9000, 2**16]))
    depth, colour = int(pick(rng, [8, 1, 16, 3, 255])), int(pick(rng, [2, 0, 3, 6, 1, 77]))
    files = {
        "PNG": lambda: png(size, other, bytes(1000), depth, colour),
        "GIF": lambda: b"GIF89a" + struct.pack("<HHBBB", size % 2**16, other % 2**16, 0x80, 0, 0) + bytes(20) + b";",
        "BMP": lambda: b"BM" + struct.pack("<IIIIiiHH", 1000, 0, 54, 40, size % 2**31, other, 1, 24) + bytes(924),
        "PPM": lambda: b"P6\n%d %d\n255\n" % (size, other) + bytes(1000),
        "TIFF": lambda: b"II*\0\x08\0\0\0\x03\0" + b"".join(
            struct.pack("<HHII", tag, 4, 1, value) for tag, value in ((256, size), (257, other), (273, 8))) + bytes(4),
    }  # fmt: skip
    format = pick(rng, files)
    return f"{format} of {size} x {other}", files[format](), SOUND, None, 2**28


def bomb(rng, path):
    """A small file that is a huge picture."""
    width, height = pick(rng, [(30000, 30000), (2**16 - 1, 2**16 - 1), (2**31 - 1, 1), (100_000, 1000)])
    whole = zlib.compress(bytes(2**20)) if rng.integers(2) else b""
    return f"{width} x {height}", png(width, height, whole), REFUSED, None, 0


def not_a_picture(rng, path):
    """Another file under a picture's name."""
    what = pick(rng, [*OTHERS, "noise"])
    return what, rng.bytes(500) if what == "noise" else OTHERS[what], REFUSED, None, 0


def whole(rng, path):
    """A picture under a wrong name: its first bytes say what it is, and it has the colours that were saved."""
    image = a_picture(rng)
    raw, format = saved(rng, image)
    path.write_bytes(raw)
    kept = format in LOSSLESS and image.mode in ("RGB", "L", "P", "1")  # BMP and PPM drop what is transparent
    answer = read_image(image) if kept else read_image(path)
    return format, raw, SAME, answer, 0


def animated(rng, path):
    """Of an animation the first picture counts, also where a later one is cut off."""
    frames, file = [a_picture(rng, ["RGB"]).resize((30, 20)) for _ in range(3)], io.BytesIO()
    frames[0].save(file, pick(rng, ["GIF", "WEBP", "TIFF"]), save_all=True, append_images=frames[1:])
    path.write_bytes(file.getvalue())
    cut = int(rng.integers(len(file.getvalue()) // 2, len(file.getvalue())))
    return f"cut at {cut}", file.getvalue()[:cut], SAME_OR_REFUSED, read_image(path), 0


def oriented(rng, path):
    """The camera's orientation with any value, and other tags of any kind."""
    image, exif = a_picture(rng, ["RGB"]), Image.Exif()
    exif[0x0112] = pick(rng, [0, 1, 3, 6, 8, 9, 255, 65535])
    exif[0x010E] = "\x1b[31m" * int(rng.integers(1, 200))
    raw, format = saved(rng, image, exif=exif.tobytes())
    if rng.integers(2):
        raw = raw.replace(b"Exif\0\0", b"Exif\0\0" + rng.bytes(6), 1)
    return format, raw, SOUND, None, 0


def odd_place(rng, path):
    """A path that is no file."""
    odd = {
        "a directory": path.mkdir, "a pipe": lambda: make_pipe(path), "a device": lambda: make_link(path, "/dev/zero"),
        "an empty device": lambda: make_link(path, "/dev/null"), "a link to itself": lambda: make_link(path, path.name),
        "not there": lambda: None, "empty": path.touch,
    }  # fmt: skip
    what = pick(rng, odd)
    odd[what]()
    return what, path, REFUSED, None, 0


def odd_array(rng, path):
    """An array, or another object, in place of a file."""
    shape = pick(rng, [(), (3,), (0, 3, 3), (5, 0, 3), (5, 5, 2), (5, 5, 5), (1, 5, 5, 3)])
    arrays = [np.zeros(shape, np.uint8), np.zeros((5, 5, 3)), np.zeros((5, 5, 3), bool), np.zeros((5, 5), "<u2")]
    value = pick(rng, [*arrays, None, 7, 1.5, [[1, 2], [3, 4]], object()])
    return f"{type(value).__name__} {getattr(value, 'shape', '')}", value, REFUSED, None, 0


def chunk(rng, path):
    """A PNG with a chunk of text or a colour profile that unpacks to much more than it is."""
    name = pick(rng, [b"zTXt", b"iCCP", b"iTXt", b"eXIf", b"tRNS", b"PLTE", b"acTL"])
    much = zlib.compress(bytes(int(pick(rng, [10, 2**20, 2**27]))))
    body = pick(rng, [b"a\0\0" + much, much, b"", b"a\0\0\0\0\0" + much])
    extra = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return f"{name.decode()} of {len(body)} bytes", png(20, 20, bytes(20 * 61), extra=extra), SOUND, None, 2**20


def foreign_mode(rng, path):
    """A PIL image of any mode that Pillow has."""
    mode = pick(rng, MODES)
    return mode, Image.new(mode, (int(rng.integers(1, 60)), int(rng.integers(1, 60)))), SOUND, None, 0
