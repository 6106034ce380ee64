"""Pictures and sounds in a trace: a tower's arrays beside our own pass, and the soft tokens of the text model."""

import math
from typing import NamedTuple

import numpy as np

from ..audio import log_mel
from ..config import AudioTower, VisionTower
from ..errors import Error
from ..inputs import BUDGETS, check_sight, fit_image, grid_of, placeholders, read_image
from ..media import open_sound
from .catalogue import FAULTS
from .catalogue.vision import COUNTS
from .runs import PictureRun, Run, SoundRun
from .samerun import one_id_less

LEVELS = 2  # of 255, by which two bicubic filters differ


class Picture(NamedTuple):
    """A picture that a user gave, [h, w, 3] of uint8, and the most soft tokens that it may become."""

    colours: np.ndarray
    budget: int

    def grid(self, config):
        """Rows and columns of its soft tokens."""
        return grid_of(*self.colours.shape[:2], self.budget, config.vision.side)


def given_pictures(paths, budget, config):
    """The files of --image -> [Picture, ...]. Raises Error for what is not a picture, or if the model cannot see."""
    if paths:
        check_sight(config)
    return [Picture(read_image(path), config.budget(budget)) for path in paths or ()]


def given_sounds(paths, config):
    """The files of --audio -> the samples of each. Raises Error as open_sound."""
    return [open_sound(path, config) for path in paths or ()]


def heard_in(samples, config):
    """What the model hears of a sound: its log mel, in 12B the samples."""
    return log_mel(samples, config.audio.bins) if isinstance(config.audio, AudioTower) else samples


def frames_of(sounds, config):
    """How many rows the input of the tower has, if there is one sound: its mel frames, in 12B its soft tokens."""
    if len(sounds) != 1:
        return None
    heard = heard_in(sounds[0], config)
    return len(heard) if heard.ndim > 1 else config.audio.count(len(heard))


def runs_of(theirs, tokens, model, soft=None, pictures=(), unused=None, sounds=()):
    """Our side of a trace's comparison: [PictureRun, SoundRun] of the towers' arrays, and [Run] of the text model's.

    theirs: foreign.Foreign. tokens: the ids [T], None for a trace of a tower alone. soft, unused: as in Run. Raises
    Error where soft tokens, a picture or a sound are missing.
    """
    tower, text, ears, runs = theirs.part("vision"), theirs.part("text"), theirs.part("audio"), []
    if tokens is not None and text:
        where = np.flatnonzero(np.isin(tokens, placeholders(model.config)))  # [M]
        captured = _captured(text, where, len(tokens))  # [M, D], or None
        if len(pictures) == 1 and captured is not None and len(captured) == math.prod(pictures[0].grid(model.config)):
            tower.setdefault("vision.soft_tokens", captured)
        if soft is None and len(where):
            soft = where, _soft_rows(tower | ears, captured, len(where), model, pictures, sounds)
        runs.append(Run(model, tokens, text, soft, unused, theirs.own_ids, theirs.start))
        if shorter := soft is None and one_id_less(runs[0]):
            theirs.notes.append("their one row is of the id before the last, which generate() returns and never reads")
            runs = [shorter]
    if ears and (found := _sound_run(theirs, ears, model, sounds)):
        runs.insert(0, found)
    if tower and (found := _picture_run(theirs, tower, model, pictures)):
        runs.insert(0, found)
    return runs


def _captured(text, where, count):
    """Their soft tokens [M, D] as the text model got them, None if no array shows them."""
    for name in ("embed", "layers.0.resid_pre"):
        if len(where) and name in text and len(text[name]) == count:
            return text[name][where]
    return None


def _sound_run(theirs, ears, model, sounds):
    """The SoundRun of the tower's arrays, None where the sound is not known."""
    if len(sounds) > 1:
        raise Error("the arrays of an audio tower are of one sound; give that one with --audio")
    samples = sounds[0] if sounds else None
    if sounds:
        heard = heard_in(samples, model.config)
    elif "audio.mel" in ears or "audio.frames" in ears:
        heard = ears["audio.mel"] if "audio.mel" in ears else ears["audio.frames"].reshape(-1)
    else:
        theirs.unread["audio.*"] = "the sound is not known; give it with --audio"
        return None
    frames = -(-theirs.frames // 4) if isinstance(model.config.audio, AudioTower) else theirs.frames
    return SoundRun(model, np.arange(frames), ears, own_ids=True, heard=heard, samples=samples)


def _soft_rows(towers, captured, count, model, pictures, sounds):
    """The rows that the text model was given, [M, D]: what a tower made, what the text model got, or our own."""
    for name in ("vision.soft_tokens", "audio.soft_tokens"):
        if name in towers and len(towers[name]) == count:
            return towers[name]
    if captured is not None:
        return captured
    if not (pictures or sounds):
        advice = "give the picture with --image, the sound with --audio"
        raise Error(f"the prompt has {count} soft tokens, and the trace holds none; {advice}")
    if pictures and sounds:
        raise Error("the prompt has pictures and sounds; give their soft tokens with --soft, or capture embed")
    if sounds:
        return np.concatenate([model.hear(samples) for samples in sounds])
    return np.concatenate([model.see(picture.colours, picture.budget) for picture in pictures])


def _picture_run(theirs, tower, model, pictures):
    """The PictureRun of the tower's arrays, None where the picture is not known."""
    vision, image, source = model.config.vision, None, None
    if "vision.patches" in tower and theirs.grid:
        image = _image_of(tower["vision.patches"], theirs.grid, vision)
    if same := [picture for picture in pictures if theirs.grid in (None, picture.grid(model.config))]:
        source = same[-1]  # of several pictures a trace keeps the last
        right = fit_image(*source, vision.side)
        levels = 0 if image is None else np.abs(image.astype(int) - right).max()
        if 0 < levels <= LEVELS:
            theirs.notes.append(f"{FAULTS['V28'].title}, which is harmless: {FAULTS['V28'].benign}")
        else:
            image = right
    if image is None:
        theirs.unread["vision.*"] = "the picture is not known; give it with --image"
        return None
    patches = math.prod(image.shape[:2]) // vision.patches[0] ** 2
    return PictureRun(model, np.arange(patches), tower, own_ids=True, image=image, source=source)


def _image_of(patches, grid, vision):
    """The picture whose patches these are, [T, X] -> [h, w, 3] of uint8. What no pixel has is moved to one that is."""
    size, k = vision.patches[0], vision.side // vision.patches[0]
    rows, columns = (n * k for n in grid)
    values = (patches + 1) / 2 if isinstance(vision, VisionTower) else patches
    pixels = np.rint(np.nan_to_num(values) * 255).clip(0, 255).astype(np.uint8)
    return pixels.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)


def miscounted(theirs, tokens, pictures, config):
    """Whether a picture became as many soft tokens as it should -> None, or a sentence and the faults that explain it.

    The counts are those of the ids; in a trace of the tower alone those of its arrays. Raises Error where the ids are
    of another number of pictures.
    """
    if not pictures:
        return None
    if tokens is None:
        found = [theirs.rows[name] for name in theirs.rows if name in ("vision.soft_tokens", "vision.pooled")][:1]
    else:
        inside = np.asarray(tokens) == config.image_token_id  # [T]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], inside, [0]]).astype(int)))
        found = np.diff(edges)[::2].tolist()
        if len(found) != len(pictures):
            raise Error(f"the ids have {len(found)} pictures, and {len(pictures)} are given with --image")
    for number, (count, picture) in enumerate(zip(found, pictures, strict=False), 1):
        if count != (right := math.prod(picture.grid(config))):
            return _explained(number, count, right, picture, config.vision.side)
    return None


def _explained(number, count, right, picture, side):
    """As `miscounted`."""
    size = picture.colours.shape[:2]
    sentence = f"picture {number}, {size[1]} x {size[0]} pixels, has {count} soft tokens and should have {right}"
    ids = [id for id, rules in COUNTS.items()
           if any(math.prod(rule(*size, picture.budget, side)) == count for rule in rules)]  # fmt: skip
    budgets = [budget for budget in BUDGETS if math.prod(grid_of(*size, budget, side)) == count]
    if budgets:
        sentence += f"; {count} is right with a budget of {budgets[0]}: give --budget {budgets[0]}"
    return sentence, [] if budgets else [FAULTS[id] for id in ids]
