"""Every shape comment of the passes and of their operations is held against the arrays of real runs.

A run is traced line by line. After each statement that ends in a comment such as `# [T, N, H]`, the test looks at the
arrays that the statement has assigned or returned, and compares their shapes with the comment.
"""

import ast
import inspect
import re
import sys
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from family import (
    HEARING,
    MEMBERS,
    VISION,
    hearing,
    random_audio,
    random_picture,
    random_sound,
    random_vision,
    seeing,
)

from minigemma import EMPTY, Config, audio, forward, inputs, model, ops, random_weights, vision

MODULES = {module.__file__: module for module in (model, vision, audio, ops, inputs)}
PASSES = {model.__file__, vision.__file__, audio.__file__}
COMMENT = re.compile(r"#\s*(\[[^]]*\](?:, \[[^]]*\])*)( each)?")
LETTERS = set("TSDNKHFPLVEkMXYRCABOW")  # as the docstrings of model.py, vision.py and audio.py have them


def shapes_of(line):
    """The shapes that a line of source ends in, each a list of dimensions, and whether `each` follows; or None."""
    found = COMMENT.search(line)
    if not found or line.lstrip().startswith("#"):
        return None
    return [shape.split(", ") for shape in re.findall(r"\[([^]]*)\]", found[1])], bool(found[2])


def statements(path):
    """The statements of a file that may have a shape comment: last line -> node."""
    nodes = ast.walk(ast.parse(inspect.getsource(MODULES[path])))
    return {node.end_lineno: node for node in nodes if isinstance(node, ast.Assign | ast.Return)}


LINES = {path: inspect.getsource(module).splitlines() for path, module in MODULES.items()}
STATEMENTS = {path: statements(path) for path in MODULES}
COMMENTS = {
    (path, number): shapes_of(line) for path in MODULES for number, line in enumerate(LINES[path], 1) if shapes_of(line)
}


def letters_of(frame, config, tokens, cached, logits, soft):
    """The number behind each letter where a frame of model.py stands."""
    layer = frame.f_locals.get("layer")
    sizes = {
        "T": tokens, "D": config.hidden_size, "N": config.num_attention_heads, "P": config.hidden_size_per_layer_input,
        "L": config.num_hidden_layers, "V": config.vocab_size, "E": config.num_experts, "k": config.top_k_experts,
        "M": soft,
    }  # fmt: skip
    if layer is not None:
        kept = cached if layer.window is None else min(cached, layer.window - 1)
        sizes |= {"S": kept + tokens, "K": layer.num_key_value_heads, "H": layer.head_dim, "F": layer.intermediate_size}
        behind = "new_cache" in frame.f_locals  # after the loop over the layers
        if logits == "last" and (layer.shares_kv or behind):
            sizes["T"] = 1
    return sizes


def values_of(node, frame, returned):
    """The values that a statement has just assigned or returned; [] if not by name."""
    if isinstance(node, ast.Return):
        return list(returned) if isinstance(returned, tuple) else [returned]
    target = node.targets[0]
    names = target.elts if isinstance(target, ast.Tuple) else [target]
    values = [frame.f_locals.get(name.id) for name in names if isinstance(name, ast.Name)]
    return [part for value in values for part in (value if isinstance(value, tuple) else [value])]


def picture_letters(config, grid):
    """The number behind each letter of vision.py, for a picture of a grid of soft tokens."""
    see, k = config.vision, config.vision.pooling_kernel_size
    size, D, positions = see.patches
    sizes = {"M": grid[0] * grid[1], "X": 3 * size**2, "D": D, "Y": config.hidden_size}
    sizes |= {"positions": positions, "V": config.vocab_size}
    if not hasattr(see, "head_dim"):
        return sizes | {"T": sizes["M"]}
    sizes |= {"T": sizes["M"] * k * k, "k": k, "rows": grid[0], "columns": grid[1], "F": see.intermediate_size}
    return sizes | {"N": see.num_attention_heads, "K": see.num_key_value_heads, "H": see.head_dim}


def sound_letters(config, samples):
    """The number behind each letter of audio.py, for a sound of so many samples."""
    hear = config.audio
    sizes = {"n": samples, "Y": config.hidden_size, "V": config.vocab_size}
    if not hasattr(hear, "window"):
        T = -(-samples // hear.audio_embed_dim)
        return sizes | {"T": T, "M": T, "X": hear.audio_embed_dim, "O": hear.audio_embed_dim}
    R, N, D = (samples - 161) // 160 + 1, hear.num_attention_heads, hear.hidden_size
    sizes |= {"R": R, "T": -(-R // 4), "M": -(-R // 4), "D": D, "N": N, "H": D // N, "S": hear.window, "F": 4 * D}
    sizes |= dict(zip("AB", hear.subsampling_conv_channels, strict=True))
    return sizes | {"C": hear.bins, "W": hear.conv_kernel_size, "O": hear.output_proj_dims}


def watch(seen, letters, sizes=None):
    """The trace function that puts (shapes, letters) of each finished statement into `seen`.

    letters: a function of a frame of `forward`; sizes: the letters of a picture's or a sound's pass.
    """
    picture = sizes is not None

    def enter(frame, event, arg):
        path = frame.f_code.co_filename
        if path not in MODULES:
            return None
        last = None

        def step(frame, event, arg):
            nonlocal last, sizes
            if path == model.__file__ and frame.f_code.co_name == "forward":
                sizes = letters(frame)
            node = STATEMENTS[path].get(last)
            if node is not None and event != "exception" and isinstance(node, ast.Return) == (event == "return"):
                arrays = values_of(node, frame, arg)
                shapes = tuple(a.shape if isinstance(a, np.ndarray) else None for a in arrays)
                known = dict(sizes)
                if path == ops.__file__:  # a function of any heads says itself what N, K, ... are
                    known = {letter: known[letter] for letter in "TSDHVEk" if letter in known}
                    known |= {name: n for name, n in frame.f_locals.items() if name in LETTERS and isinstance(n, int)}
                    if picture and frame.f_code.co_name in ("rope", "rotation"):  # they get one half of a head
                        known["H"] = sizes["H"] // 2
                seen[path, last].add((shapes, tuple(known.items())))
            if event == "line":
                last = end_of(path, frame.f_lineno)
            return step

        return step

    return enter


def end_of(path, number):
    """The last line of the statement that a line belongs to."""
    ends = (end for end, node in STATEMENTS[path].items() if node.lineno <= number <= end)
    return min(ends, default=number)


@pytest.fixture(scope="module")
def seen():
    """What each statement assigned or returned, over all members, choices of logits, cached and not, soft tokens."""
    found = defaultdict(set)
    for member, logits, cached, soft in product(MEMBERS, ["all", "last", None], [0, 7], [0, 3]):
        config, ids = Config.from_dict(seeing(member)), np.arange(11)
        weights = random_weights(config)
        cache = forward(np.arange(cached), weights, config)[1] if cached else EMPTY
        rows = ([1, 4, 5], np.ones((3, config.hidden_size))) if soft else None
        ids[[1, 4, 5]] = config.image_token_id
        with watched(found, partial(letters_of, config=config, tokens=11, cached=cached, logits=logits, soft=soft)):
            forward(ids, weights, config, cache, logits=logits, soft_tokens=rows)
    for member, grid in product(VISION, [(2, 3), (5, 1)]):
        config = Config.from_dict(seeing(member))
        image, weights = random_picture(*(config.vision.side * n for n in grid)), random_vision(config)
        see = vision.embed_image if member == "12B" else vision.encode_image
        with watched(found, None, picture_letters(config, grid)):
            see(image, weights, config)
    for member, samples in product(HEARING, [161, 3000]):
        config, sound = Config.from_dict(hearing(member)), random_sound(samples)
        weights = random_audio(config)
        with watched(found, None, sound_letters(config, samples)):
            if member == "12B":
                audio.embed_sound(sound, weights, config)
            else:
                audio.encode_audio(audio.log_mel(sound), weights, config)
    return found


@contextmanager
def watched(*arguments):
    """Inside, every statement is seen by `watch`."""
    before = sys.gettrace()
    sys.settrace(watch(*arguments))
    try:
        yield
    finally:
        sys.settrace(before)


def wrong(comment, observations):
    """The shapes that a comment does not describe; a list with None if it was never seen with an array."""
    shapes, each = comment
    bad, arrays = [], 0
    for values, letters in observations:
        found = [shape for shape in values if shape is not None]
        arrays += len(found)
        expected = shapes * len(found) if each or len(found) > len(shapes) == 1 else shapes
        known = dict(letters)
        for dims, shape in zip(expected, found, strict=False):
            bind(known, dims, shape)
        if found and (
            len(expected) != len(found)
            or not all(fits(dims, shape, known) for dims, shape in zip(expected, found, strict=True))
        ):
            bad.append(found)
    return bad if arrays else [None]


def bind(letters, dims, shape):
    """Give a letter that has no number yet, such as N in an operation of any heads, the size it stands for here."""
    for dim, size in zip(dims, shape, strict=False):
        if dim in LETTERS:
            letters.setdefault(dim, size)


def fits(dims, shape, letters):
    """Whether dimensions such as N/K*T or H/2 are those of a shape."""
    if len(dims) != len(shape) or set(re.findall("[A-Za-z]+", " ".join(dims))) - letters.keys():
        return False
    return all(eval(dim, {}, dict(letters)) == size for dim, size in zip(dims, shape, strict=True))


@pytest.mark.parametrize("place", COMMENTS, ids=lambda place: f"{Path(place[0]).name}:{place[1]}")
def test_a_shape_comment_is_what_the_arrays_of_every_run_are(seen, place):
    assert place in {(path, end) for path in MODULES for end in STATEMENTS[path]}, "not a statement's last line"
    assert not wrong(COMMENTS[place], seen[place]), LINES[place[0]][place[1] - 1].strip()


def test_a_wrong_shape_comment_is_found(seen):
    """Each dimension in turn becomes another, each is left out, and one is added."""
    for place, (shapes, each) in COMMENTS.items():
        for i, dims in enumerate(shapes):
            false = [[*dims, "1"]]
            for j, dim in enumerate(dims):
                false += [dims[:j] + dims[j + 1 :], [*dims[:j], "D" if "V" in dim else "V", *dims[j + 1 :]]]
            for other in false:
                assert wrong(([*shapes[:i], other, *shapes[i + 1 :]], each), seen[place]), (place, other)


def test_a_comment_on_a_line_that_never_ran_is_found():
    assert wrong(([["T", "D"]], False), []) == [None]


def test_every_statement_of_the_passes_that_makes_an_array_ends_in_its_shape(seen):
    made = {place for place, found in seen.items() if any(shape for shapes, _ in found for shape in shapes)}
    lacking = [place for place in made if place[0] in PASSES and place not in COMMENTS]
    returned = [(path, number) for path, number in lacking if isinstance(STATEMENTS[path][number], ast.Return)]
    assert set(lacking) == set(returned), [LINES[path][number - 1] for path, number in sorted(lacking)]
