"""What a caller hands to the passes, checked before any work. Every function raises Error with one line: what to mend.

This is the only file that opens pictures, with Pillow. Source of the rules for pictures: transformers 5.23.0,
models/gemma4/image_processing_pil_gemma4.py.

Letters: T new tokens, or patches of a picture, or frames of a sound; D hidden_size, N query heads, P
hidden_size_per_layer_input, M soft tokens, X values of a patch or samples of a frame, R mel frames, C mel bins.
"""

import logging
import math
import os
import re
import warnings
from contextlib import contextmanager

import numpy as np

from .errors import Error
from .files import check_file

BUDGETS = (70, 140, 280, 560, 1120)  # how many soft tokens a picture may become; the caller's choice, not the model's
FRAMES, FRAME_BUDGET, FPS = 32, 70, 24  # most frames of a video, most soft tokens of each, frames a second if unknown
LONGEST_VIDEO = 10**10  # pixels of all frames, each of which must be decoded
LOUDEST = 32  # samples go from -1 to 1; 30 dB louder is a mistake
# What Pillow may open. It reads more formats, but runs another program for one of them (EPS).
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def no_tap(name, array):
    """A pass calls its tap on every intermediate, in order, and goes on with the result. This tap changes nothing."""
    return array


def tap_under(tap, prefix):
    """The tap of a part: with prefix "layers.3.", at("attn.q", array) is tap("layers.3.attn.q", array)."""
    return lambda name, array: tap(prefix + name, array)


def check_model(weights, config, logits):
    """Raise Error where the weights are not those of this config, or `logits` is not a choice that `forward` has."""
    if logits not in ("all", "last", None):
        raise Error(f'logits must be "all", "last" or None, not {logits!r}')
    if not hasattr(weights, "layers") or not hasattr(config, "vocab_size"):
        raise Error("forward takes tokens, weights and config, in this order")
    D, N, P = config.hidden_size, config.num_attention_heads, config.hidden_size_per_layer_input
    if len(weights.layers) != config.num_hidden_layers:
        raise Error(f"the weights have {len(weights.layers)} layers and the config {config.num_hidden_layers}")
    _check_shapes("", weights, {"embed_tokens": (config.vocab_size, D)})
    for layer, w in zip(config.layers, weights.layers, strict=True):
        shapes = {"q_proj": (N * layer.head_dim, D)}
        if not layer.shares_kv:
            shapes["k_proj"] = layer.num_key_value_heads * layer.head_dim, D
        if P:
            shapes["per_layer_input_gate"] = P, D
        if config.enable_moe_block:
            shapes["router_proj"] = config.num_experts, D
        _check_shapes(f"layers.{layer.index}.", w, shapes)


def _check_shapes(prefix, owner, shapes):
    for name, shape in shapes.items():
        found = getattr(owner, name, None)
        if found is None or found.shape != shape:
            held = "are missing" if found is None else f"have shape {list(found.shape)}"
            raise Error(f"these weights belong to another config: {prefix}{name} must have {list(shape)} and {held}")


def as_tokens(tokens, cache, config):
    """Token ids as a new array [T] of int64. Raises Error for none, for ids outside the vocabulary, for too many."""
    try:
        ids = np.asarray(tokens)
    except ValueError:  # a ragged list
        ids = np.empty((0, 0))
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise Error(f"tokens must be a non-empty list of ids, not {type(tokens).__name__} of shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        wrong = ids[(ids < 0) | (ids >= config.vocab_size)][0]
        raise Error(f"token id {wrong} is outside the vocabulary, 0 to {config.vocab_size - 1}")
    if cache.length + len(ids) > config.max_position_embeddings:
        raise Error(
            f"{cache.length} cached and {len(ids)} new tokens are more than the model's "
            f"{config.max_position_embeddings} positions (max_position_embeddings)"
        )
    return ids.astype(np.int64)  # [T]


def placeholders(config):
    """The ids that stand once for each soft token: of a picture, of a sound, of a video."""
    return config.image_token_id, config.audio_token_id, config.video_token_id


def as_soft_tokens(soft_tokens, ids, config):
    """(positions [M], rows [M, D]) as arrays. Raises Error where they do not fit these ids [T] of this model."""
    count = len(ids)
    try:
        where, rows = (np.asarray(part) for part in soft_tokens)  # [M], [M, D]
    except (TypeError, ValueError):  # not a pair, or a ragged list in it
        raise Error("soft tokens: give a pair, positions [M] and rows [M, hidden_size]") from None
    if where.ndim != 1 or (where.size and where.dtype.kind not in "iu"):
        raise Error(f"soft tokens: positions are a list of integers, not {where.dtype} of shape {list(where.shape)}")
    if rows.shape != (where.size, config.hidden_size) or rows.dtype.kind not in "fiu":
        raise Error(
            f"soft tokens: {where.size} position(s) need rows of {config.hidden_size} numbers, "
            f"not {rows.dtype} of shape {list(rows.shape)}"
        )
    for position in where:
        if not 0 <= position < count:
            raise Error(f"soft tokens: position {position} is outside this call's {count} tokens")
    if len(np.unique(where)) != len(where):
        raise Error("soft tokens: a position is given twice")
    where, known = where.astype(np.int64), placeholders(config)  # [M]
    if config.use_bidirectional_attention and not np.isin(ids[where], known).all():
        wrong = next(position for position in where if ids[position] not in known)
        image, audio, video = known
        raise Error(
            f"soft tokens: position {wrong} holds id {ids[wrong]}; in this model the ids say what is a picture, so it "
            f"must be a placeholder: {image} (image), {audio} (audio) or {video} (video)"
        )
    return where, rows  # [M], [M, D]


def grid_of(height, width, budget, side):
    """The rows and columns of soft tokens that a picture of this size becomes; their product is at most the budget.

    side: pixels of a soft token's side. The picture is scaled, a small one up, until the budget is filled as far as
    whole rows and columns allow. The shape of the picture changes a little: 1080 x 1920 becomes 12 x 22.
    """
    if not isinstance(budget, int | np.integer) or budget not in BUDGETS:
        raise Error(f"the budget of a picture is one of {', '.join(map(str, BUDGETS))} soft tokens, not {budget!r}")
    factor = math.sqrt(budget * side**2 / (height * width))
    rows, columns = math.floor(factor * height / side), math.floor(factor * width / side)
    if rows == 0:  # a thin picture keeps one row, and as many columns as its shape and the budget allow
        return 1, min(width // height, int(budget))
    if columns == 0:
        return min(height // width, int(budget)), 1
    return rows, columns


def read_image(source):
    """A picture, given by its path, as a PIL image or as an array of uint8 -> its colours [h, w, 3], uint8.

    Of an animation the first frame. The camera's orientation (EXIF) is applied, and transparency laid on white. Here
    transformers differs with the way it is given a picture: from a path it drops the transparency, of a PIL image it
    ignores the orientation. Grey in 16 bits keeps its upper 8; transformers turns most of it white.
    """
    from PIL import Image, ImageOps

    if isinstance(source, np.ndarray):
        channels = source.shape[2:]
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or channels not in ((), (1,), (3,), (4,)):
            shape = f"{source.dtype} of shape {list(source.shape)}"
            raise Error(f"a picture as an array is [height, width, 3] of uint8 (0 to 255), not {shape}")
        if source.size == 0:
            raise Error(f"the picture is empty: {list(source.shape)}")
        return _colours(Image.fromarray(source[..., 0] if channels == (1,) else source))
    if isinstance(source, Image.Image):
        return _decoded(source, "the picture", ImageOps)
    if not isinstance(source, str | os.PathLike):
        raise Error(f"a picture is a path, a PIL image or an array, not {type(source).__name__}")
    check_file(source)
    with open(source, "rb") as file:
        return _decoded(file, source, ImageOps)


def _decoded(source, name, operations):
    """A PIL image or an open file -> [h, w, 3] of uint8."""
    with _opened(source, name) as image:
        return _colours(operations.exif_transpose(image))


@contextmanager
def _opened(source, name):
    """A PIL image, or an open file as one. Whatever Pillow raises inside becomes one line with the name."""
    from PIL import Image, UnidentifiedImageError

    log = logging.getLogger("PIL")
    if not log.hasHandlers():  # then Python prints what Pillow logs of a broken file
        log.addHandler(logging.NullHandler())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is not as it should be, but that can be read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()  # tells Pillow of all its formats
            known = [name for name in FORMATS if name in Image.OPEN]  # an old Pillow lacks AVIF
            yield source if isinstance(source, Image.Image) else Image.open(source, formats=known)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = Image.MAX_IMAGE_PIXELS // 10**6
        raise Error(f"{name}: the picture has more than {most} million pixels; make it smaller first") from None
    except Error as error:
        raise Error(f"{name}: {error}") from None
    except Exception as error:  # of a broken file Pillow's readers raise nearly anything
        why = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        advice = f"give a whole file: {', '.join(FORMATS)}"
        raise Error(f"{name}: not a picture that can be read ({why}); {advice}") from None


def _colours(image):
    """A PIL image of any mode -> [h, w, 3] of uint8."""
    from PIL import Image

    if image.mode.startswith("I"):  # grey in 16 bits; 32-bit files are not told apart from it by their mode
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise Error("the picture holds numbers of more than 16 bits; save it with 8 bits a colour")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    if image.mode == "F":
        raise Error("the picture holds real numbers, not colours; save it with 8 bits a colour")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def fit_image(image, budget, side, filter="BICUBIC"):
    """The colours of a picture [h, w, 3] -> the same picture in the size that its grid has, uint8.

    filter: of Pillow's; the model was trained with the bicubic one. A picture that has the size already is not
    resampled.
    """
    from PIL import Image

    rows, columns = grid_of(*image.shape[:2], budget, side)
    if image.shape[:2] == (rows * side, columns * side):
        return image
    return np.array(Image.fromarray(image).resize((columns * side, rows * side), Image.Resampling[filter]))


def read_frames(source, side):
    """A video -> [(seconds, pixels), ...]: at most 32 frames, taken evenly, each of at most 70 soft tokens.

    source: an animation (GIF, WebP, PNG), or pictures: a folder, in the order of their names, or a list. In a pair
    (source, fps) fps is how many there are in a second; else an animation says how long each frame stays, and of
    pictures there are 24 in a second, as in transformers. side: pixels of a soft token's side.
    """
    video, fps = source if isinstance(source, tuple) and len(source) == 2 else (source, None)
    if fps is not None and not (isinstance(fps, int | float) and 0 < fps < math.inf):
        raise Error(f"the frames in a second of a video must be a number above 0, not {fps!r}")
    if not isinstance(video, str | os.PathLike | list):
        raise Error(f"a video is a path or a list of pictures, not {type(video).__name__}")
    if not isinstance(video, list) and os.path.isdir(video):
        names = [entry.path for entry in os.scandir(video) if entry.is_file() and not entry.name.startswith(".")]
        video = sorted(names, key=lambda name: [int(x) if x.isdecimal() else x for x in re.split("([0-9]+)", name)])
    if not isinstance(video, list):
        starts, frames = _animation(video, side)
    elif video:
        starts, frames = None, {i: fit_image(read_image(video[i]), FRAME_BUDGET, side) for i in _evenly(len(video))}
    else:
        raise Error("the video has no frames; a folder must hold pictures, such as 0001.png")
    if fps is None and starts is None:
        warnings.warn(f"nothing says how long a frame of the video stays; taken as 1/{FPS} s", stacklevel=2)
    return [(i / (fps or FPS) if fps or starts is None else starts[i], pixels) for i, pixels in frames.items()]


def _evenly(count):
    """The numbers of the frames that are taken of so many."""
    taken = min(FRAMES, count)
    return [i * count // taken for i in range(taken)]


def _animation(path, side):
    """When each frame starts, in seconds, None where nothing says it; and by number the pixels of those taken."""
    check_file(path)
    starts, frames = [0], {}  # starts in milliseconds
    with open(path, "rb") as file, _opened(file, path) as image:
        count = getattr(image, "n_frames", 1)
        if count * image.width * image.height > LONGEST_VIDEO:
            raise Error(f"{count} frames of {image.width} x {image.height} pixels are too many; cut the video")
        for i in range(count):
            image.seek(i)
            image.load()  # a WebP says only now how long the frame stays
            starts.append(starts[-1] + image.info.get("duration", 0))
            if i in _evenly(count):
                frames[i] = fit_image(_colours(image), FRAME_BUDGET, side)
    return [start / 1000 for start in starts] if starts[-1] else None, frames


def check_sight(config):
    """Raise Error for a model without vision."""
    if config.vision is None:
        raise Error("this model cannot see: its config.json has no vision_config; use a whole checkpoint")


def as_patches(image, weights, config, first):
    """A picture that fits (fit_image) -> patches [T, X] with values from 0 to 1, and column and row of each, [T].

    Patches go row by row; inside a patch rows of pixels, then pixels, then red, green, blue. first: the name of the
    matrix that reads them. Raises Error where picture, weights and config do not belong together.
    """
    check_sight(config)
    vision = config.vision
    size, width, positions = vision.patches
    X, Y = 3 * size**2, config.hidden_size
    _check_shapes("", weights, {first: (width, X), "embedding_projection": (Y, width)})
    image = np.asarray(image)
    sides = image.shape[:2]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not all(sides):
        raise Error(f"the picture must be [h, w, 3] of uint8, not {image.dtype} of shape {list(image.shape)}")
    if sides[0] % vision.side or sides[1] % vision.side:
        raise Error(f"the picture has {sides[0]} x {sides[1]} pixels, not multiples of {vision.side}; use fit_image")
    rows, columns = sides[0] // size, sides[1] // size
    if max(rows, columns) > positions:
        raise Error(f"the picture has {rows} x {columns} patches, and the model has {positions} positions")
    cut = image.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, X)  # [T, X]
    norm = weights.layers[0].input_layernorm if weights.layers else weights.patch_ln1
    patches = (cut * (1 / 255)).astype(norm.dtype)  # [T, X]
    return patches, np.tile(np.arange(columns), rows), np.repeat(np.arange(rows), columns)  # [T, X], [T], [T]


def as_samples(samples, least=1):
    """The samples of a sound [n] as float32. Raises Error unless they are finite numbers from -1 to 1, `least` or more.

    A little beyond 1 is accepted, as loud sounds are; whole numbers are not, which other programs keep in 16 bits.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise Error(f"a sound is a list [n] of samples from -1.0 to 1.0, not {samples.dtype} of shape {samples.shape}")
    if len(samples) < least:
        raise Error(f"the sound has {len(samples)} samples; at least {least} are needed, at 16,000 a second")
    peak = np.abs(samples).max()
    if not peak <= LOUDEST:
        what = f"reach {peak:g}; divide them, so that they go from -1 to 1" if peak > LOUDEST else "hold NaN"
        raise Error(f"the samples of the sound {what}")
    return samples.astype(np.float32)  # [n]


def check_hearing(config):
    """Raise Error for a model that hears nothing."""
    if config.audio is None:
        raise Error("this checkpoint has no audio tower (its config has no audio_config): E2B, E4B and 12B hear")


def as_mel(mel, weights, config):
    """A log mel [R, C] in the precision of the weights. Raises Error where the three do not belong together."""
    check_hearing(config)
    audio, mel = config.audio, np.asarray(mel)
    if not hasattr(audio, "bins"):
        raise Error("this model has no audio tower: 12B hears without one, by embed_sound")
    _check_shapes("", weights, {"output_proj": (audio.output_proj_dims, audio.hidden_size)})
    _check_shapes("", weights, {"embedding_projection": (config.hidden_size, audio.output_proj_dims)})
    if mel.ndim != 2 or mel.dtype.kind != "f" or not len(mel) or mel.shape[1] != audio.bins:
        raise Error(f"a log mel is [R, {audio.bins}] of real numbers, not {mel.dtype} of shape {list(mel.shape)}")
    return mel.astype(weights.output_proj_bias.dtype)  # [R, C]


def as_frames(samples, weights, config):
    """The samples of a sound [n] -> frames [T, X] for 12B; the last one is filled with zeros. Raises Error likewise."""
    check_hearing(config)
    samples, X = as_samples(samples), getattr(config.audio, "audio_embed_dim", None)
    if X is None:
        raise Error("this model has an audio tower, see encode_audio; only 12B hears the samples themselves")
    _check_shapes("", weights, {"embedding_projection": (config.hidden_size, X)})
    frames = np.append(samples, np.zeros(-len(samples) % X, np.float32)).reshape(-1, X)  # [T, X]
    return frames.astype(getattr(weights.embedding_projection, "dtype", np.float32))  # [T, X]


def check_tap(tap, config):
    """Raise Error where `tap` is no function of a name and an array, or names a tap that this model does not have.

    A tap that knows the names it waits for (Trace, Edit, the interventions) has a method `check(config)`.
    """
    if not callable(tap) or isinstance(tap, type):
        raise Error(f"tap must be a function of a name and an array, such as Trace(), not {tap!r}")
    if hasattr(tap, "check"):
        tap.check(config)


def as_tap(tap, config):
    """`tap`, checked here against the model, and at each call: it must return the dtype and the shape it was given."""
    check_tap(tap, config)

    def checked(name, array):
        result = tap(name, array)
        if result is array:
            return result
        if not isinstance(result, np.ndarray):
            raise Error(f"{name}: the tap returned {type(result).__name__}, not an array; it must return one")
        if result.dtype != array.dtype or result.shape != array.shape:
            raise Error(
                f"{name}: the tap returned {result.dtype} of shape {list(result.shape)} "
                f"and must return {array.dtype} of shape {list(array.shape)}"
            )
        return result

    return checked


def free_memory():
    """Bytes of memory that this machine can still give; None where the system does not tell it as Linux does."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable")), None)
    except OSError:
        return None


def check_memory(need, what, advice):
    """Raise Error if `need` bytes are more than this machine can give. what: that takes them; advice: what to do."""
    free = free_memory()
    if free is not None and need > free:
        raise Error(f"{what} takes {need / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free; {advice}")
