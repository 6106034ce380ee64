"""Pictures, sounds and videos in a prompt: what their placeholder becomes, and the soft tokens for `forward`.

A chat template writes one <|image|> where a picture stands. The model reads <|image>, then <|image|> once for each soft
token, then <image|>; of a sound <|audio>, <|audio|> and <audio|>. A video is pictures, each with its time before it. A
kind of medium is an entry of KINDS. Source: transformers 5.23.0, Gemma4Processor.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .audio import embed_sound, encode_audio, log_mel
from .config import AudioEmbedder, VisionEmbedder
from .errors import Error
from .inputs import check_hearing, check_sight, fit_image, no_tap, placeholders, read_frames, read_image
from .sounds import read_sound
from .tokenizer import AUDIO, END_OF_AUDIO, END_OF_IMAGE, IMAGE, START_OF_AUDIO, START_OF_IMAGE, VIDEO, Mark
from .vision import embed_image, encode_image


class Media(Mark):
    """One placeholder of the chat template, with its source: what a user handed in."""

    def __new__(cls, kind, source):
        mark = super().__new__(cls, KINDS[kind].mark)
        mark.kind, mark.source = kind, source
        return mark


class Soft(Mark):
    """A placeholder that stands several `times`, once for each soft token that `encode` makes of an array."""

    def __new__(cls, kind, array, times):
        mark = super().__new__(cls, KINDS[kind].mark)
        mark.kind, mark.array, mark.times = kind, array, times
        return mark


class Kind(NamedTuple):
    """A kind of medium."""

    sense: str  # what a model's config needs for it, "vision" or "audio"
    mark: Mark  # its placeholder
    start: Mark  # what stands before its soft tokens
    end: Mark  # and behind them
    leads: bool  # whether it stands before a text that has no place for it, or behind
    open: Callable  # (source, config) -> what `fit` takes, and `open` again. Raises Error for what cannot be used
    fit: Callable  # (array, config, budget) -> [(text before it, array for encode, count of its soft tokens), ...]
    encode: Callable  # (array, model, tap) -> soft tokens [M, D]


def open_picture(source, config):
    """A path, a PIL image or an array -> its colours [h, w, 3]. Raises Error, first of all if the model cannot see."""
    check_sight(config)
    return read_image(source)


def fit_picture(colours, config, budget):
    """Colours [h, w, 3] -> one run: no text, the picture in the size that its grid has, and its soft tokens."""
    pixels = fit_image(colours, config.budget(budget), config.vision.side)
    return [("", pixels, pixels.size // (3 * config.vision.side**2))]


def encode_picture(pixels, model, tap=no_tap):
    """Pixels of fit_image -> soft tokens [M, D], by the model's tower or what 12B has in its place."""
    encode = embed_image if isinstance(model.config.vision, VisionEmbedder) else encode_image
    return encode(pixels, model.vision, model.config, tap=tap)


def open_sound(source, config):
    """What read_sound takes -> samples [n]. Raises Error, first of all if the model does not hear."""
    check_hearing(config)
    return read_sound(source, *config.audio.heard)


def fit_sound(samples, config, budget):
    """Samples [n] -> one run: no text, the samples, and how many soft tokens they become. There is no budget."""
    return [("", samples, config.audio.count(len(samples)))]


def encode_sound(samples, model, tap=no_tap):
    """Samples [n] -> soft tokens [M, D], by the model's tower or what 12B has in its place."""
    audio = model.config.audio
    if isinstance(audio, AudioEmbedder):
        return embed_sound(samples, model.audio, model.config, tap=tap)
    return encode_audio(log_mel(samples, audio.bins), model.audio, model.config, tap=tap)


class Frames(list):
    """The frames of a video, as read_frames gives them."""


def open_video(source, config):
    """What read_frames takes -> Frames. Raises Error, first of all if the model cannot see."""
    check_sight(config)
    return source if isinstance(source, Frames) else Frames(read_frames(source, config.vision.side))


def fit_video(frames, config, budget):
    """Frames -> a run for each: minutes and seconds, its pixels, and its soft tokens. There is no budget."""
    runs, space = [], ""
    for seconds, pixels in frames:
        time = f"{space}{int(seconds // 60):02d}:{int(seconds % 60):02d} "
        runs.append((time, pixels, pixels.size // (3 * config.vision.side**2)))
        space = " "
    return runs


KINDS = {
    "image": Kind("vision", IMAGE, START_OF_IMAGE, END_OF_IMAGE, True, open_picture, fit_picture, encode_picture),
    "audio": Kind("audio", AUDIO, START_OF_AUDIO, END_OF_AUDIO, False, open_sound, fit_sound, encode_sound),
    "video": Kind("vision", VIDEO, START_OF_IMAGE, END_OF_IMAGE, True, open_video, fit_video, encode_picture),
}


def lay_out(pieces, config, budget=None):
    """Pieces of `turns.render` -> pieces in which each Media is what the model reads. No encoder runs.

    Raises Error for a medium that cannot be used, or that is longer than the context.
    """
    laid = []
    for piece in pieces:
        if not isinstance(piece, Media):
            laid.append(piece)
            continue
        kind, limit = KINDS[piece.kind], config.max_position_embeddings
        for text, array, count in kind.fit(kind.open(piece.source, config), config, budget):
            if count + 2 > limit:
                what = f"the {piece.kind} becomes {count} soft tokens"
                advice = "ask for a smaller budget" if piece.kind == "image" else "cut it into shorter ones"
                raise Error(f"{what}, and the model has {limit} positions; {advice}")
            laid += [text, kind.start, Soft(piece.kind, array, count), kind.end]
    return laid


class Prompt(NamedTuple):
    """What the model reads."""

    ids: list[int]
    keys: list  # equal keys, equal K and V: the ids, and at a soft token what it is made of
    runs: list[tuple[int, Soft]]  # where soft tokens begin

    def soft_tokens(self, model, start=0, tap=no_tap):
        """For `forward` of ids[start:]: (positions [M], rows [M, D]), None if there are none. The encoders run here."""
        runs = [(at - start, run) for at, run in self.runs if at >= start]
        if not runs:
            return None
        where = np.concatenate([np.arange(at, at + run.times) for at, run in runs])  # [M]
        return where, np.concatenate([KINDS[run.kind].encode(run.array, model, tap) for _, run in runs])  # [M], [M, D]


def make_prompt(pieces, ids, config):
    """Pieces of `lay_out` and their ids -> Prompt. Raises Error where a placeholder stands for nothing."""
    runs, keys = [], list(ids)
    softs = [piece for piece in pieces if isinstance(piece, Soft)]
    where = [i for i, id in enumerate(ids) if id in placeholders(config)]
    if len(where) != sum(soft.times for soft in softs):
        raise Error(
            'a placeholder stands for nothing; give each file, as in {"type": "image", "image": "photo.jpg"}, also for '
            "audio and video"
        )
    for soft in softs:
        at, where = where[0], where[soft.times :]
        made_of = soft.array.shape, hash(soft.array.tobytes())
        keys[at : at + soft.times] = [(made_of, i) for i in range(soft.times)]
        runs.append((at, soft))
    return Prompt(ids, keys, runs)


def place_files(text, files):
    """A prompt, and its files by kind -> parts as a message has them; the text alone where there is no file.

    Where the text says {image}, the pictures stand there in their order; else before the text. Raises Error where
    places and files are not equally many.
    """
    files = {kind: [*sources] for kind, sources in files.items() if sources}
    if not files:
        return text
    words = re.split("{(" + "|".join(files) + ")}", text)  # text, the kind of a place, text, ...
    before, behind = [], []
    for kind, sources in files.items():
        places, given = words[1::2].count(kind), [{"type": kind, kind: source} for source in sources]
        if places and places != len(given):
            raise Error(f"the prompt has {places} places {{{kind}}}, and {len(given)} files are given")
        if not places:
            (before if KINDS[kind].leads else behind).extend(given)
    sources = {kind: iter(sources) for kind, sources in files.items()}
    parts = [
        {"type": word, word: next(sources[word])} if i % 2 else {"type": "text", "text": word}
        for i, word in enumerate(words)
        if word
    ]
    return [*before, *parts, *behind]
