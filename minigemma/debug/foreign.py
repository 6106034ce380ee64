"""Traces that other engines captured -> arrays under our taps' names, in our axes.

A foreign file differs in names (transformers' module paths, or anything through a mapping file) and in layout (a batch
axis, heads before positions, flattened heads, 16 bits a value, the last position only). Names are looked up in a table.
Layouts are recognised from shapes: the config gives the length of every axis but T. An array whose layout stays unclear
is refused with a reason; nothing is guessed.
"""

import contextlib
import json
import math
import re
import zipfile
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..cache import EMPTY
from ..checkpoint import Stored, read_header
from ..config import AudioTower, VisionTower
from ..errors import Error
from ..files import check_file, read_json
from ..inputs import as_tokens, check_memory, placeholders
from ..ops import softcap, softmax
from ..packed import widen
from ..taps import AUDIO_TAPS, TAPS, VISION_TAPS, audio_names, layer_of, names_of, part_of, tap_kind, vision_names

ALL_TAPS = TAPS | VISION_TAPS | AUDIO_TAPS
EARS = "audio_tower.layers.*"
TOWER = "vision_tower.encoder.layers.*"  # mlx-vlm has transformers' names, but for an underscore
# Values of transformers' modules that become a tap on the way: each layer's part of ple, logits before the softcap, the
# patterns of all heads of the vision tower, and what the last norm of a tower reads. Of a tuple the parts are joined on
# the last axis, as in vLLM.
DERIVED = {
    ("layers.*.self_attn.qkv_proj", True, 0): "layers.*.attn.in",
    ("layers.*.self_attn.qkv_proj", False, 0): tuple(f"layers.*.attn.{letter}_raw" for letter in "qkv"),
    ("layers.*.self_attn.attn", True, 0): "layers.*.attn.rot_q",
    ("layers.*.self_attn.attn", True, 1): "layers.*.attn.rot_k",
    ("layers.*.self_attn.attn", True, 2): "layers.*.attn.v",
    ("layers.*.self_attn.attn", False, 0): "layers.*.attn.z",
    ("layers.*.mlp.gate_up_proj", True, 0): "layers.*.mlp.in",
    ("layers.*.mlp.gate_up_proj", False, 0): ("layers.*.mlp.gate", "layers.*.mlp.up"),
    ("layers.*", True, 1): "layers.*.ple",
    ("norm", True, 0): "layers.{last}.resid_post",
    ("lm_head", False, 0): "uncapped",
    (f"{TOWER}.self_attn", False, 1): "vision.layers.*.attn.patterns",
    (f"{TOWER}.self_attn._v_norm", False, 0): "vision.layers.*.attn.v",
    ("embed_vision.embedding_pre_projection_norm", True, 0): "vision.{pooled}",
    ("embed_audio.embedding_pre_projection_norm", True, 0): "audio.{encoded}",
}
# What modules of vLLM are given in the place of what transformers' modules are given: told apart by its width.
OTHERWISE = {
    ("layers.*.mlp.act_fn", True, 0): ("layers.*.mlp.gate", "layers.*.mlp.up"),
    ("layers.*", True, 1): ("layers.*.resid_pre",),
}
NO_TAP = (  # modules of which no tap holds a value
    "rotary_emb", "layers.*.self_attn.rotary_emb", "layers.*.self_attn.rope", "layers.*.router.proj",
    "layers.*.experts.act_fn", "layers.*.experts.switch_glu", "layers.*.moe", "layers.*.moe.experts",
    "logits_processor", "self_decoder", "cross_decoder", "vision_tower", "vision_tower.encoder",
    "vision_tower.encoder.rotary_emb", f"{TOWER}.mlp.act_fn", "embed_vision.patch_dense",
    *(f"{TOWER}.self_attn.{letter}_proj.linear" for letter in "qkvo"),
    *(f"{TOWER}.mlp.{name}_proj.linear" for name in ("gate", "up", "down")),
    "audio_tower.rel_pos_enc", "audio_tower.subsample_conv_projection", f"{EARS}.lconv1d.depthwise_conv1d",
    f"{EARS}.lconv1d.conv_norm", f"{EARS}.self_attn.relative_k_proj",
    *(f"audio_tower.subsample_conv_projection.layer{n}{part}" for n in "01" for part in ("", ".conv", ".norm", ".act")),
    *(f"{EARS}.self_attn.{name}.linear" for name in ("q_proj", "k_proj", "v_proj", "post")),
    *(f"{EARS}.lconv1d.linear_{name}.linear" for name in ("start", "end")),
    *(f"{EARS}.feed_forward{n}.ffw_layer_{m}.linear" for n in "12" for m in "12"),
)  # fmt: skip
# The names of engines that do not have transformers', a list of tables: {"of": engine, "source": file that was read,
# "begins": what a key of such a file begins with, "experts": whether it is of models with experts; if absent, of both,
# "names": as in a mapping file}.
TABLES = Path(__file__).with_name("names.json")


def _modules():
    """module path -> {(whether the value goes in, its number): tap}, from TAPS."""
    found = {path: {} for path in NO_TAP}
    for kind, tap in ALL_TAPS.items():
        towers = {"layers.": "layers.*", "vision.layers.": TOWER, "audio.layers.": EARS}
        layer = next((path for start, path in towers.items() if kind.startswith(start)), None)
        for given, side in enumerate(tap.module.partition(">")[::2]):
            for module in side.split():
                path, _, number = module.partition(":")
                path = f"{layer}.{path}".rstrip(".") if layer else path
                found.setdefault(path, {})[bool(given), int(number or 0)] = kind
    for (path, *place), tap in DERIVED.items():
        found.setdefault(path, {})[*place] = tap
    return found


MODULES = _modules()
PREFIX = re.compile(r"((base_model|language_model|model)\.)+")
ALONE = re.compile(r"^(?=(patch_embedder|encoder|pooler)\b)")  # the tower, where somebody watches it alone
BRACKETS = re.compile(r"\[([0-9]{1,5})\]")  # layers[3] and output[0], as nnsight writes them
SIDE = re.compile(r"(.*?)([.:](in|input|inputs|out|output|outputs)([.:]([0-9]))?)?", re.DOTALL)
LISTED = re.compile(r"(hidden_state|attention)s?[._\[]([0-9]{1,5})\]?")  # as output_hidden_states=True names them
NUMBER = re.compile(r"\b(layers|heads)\.([0-9]{1,5})")

AXES = {kind: tap.axes for kind, tap in ALL_TAPS.items()}
# Values that become taps: ple[:, i], logits, and the patterns of the tower's heads one by one.
AXES |= {"layers.*.ple": "T P", "uncapped": "T V", "vision.layers.*.attn.patterns": "N T T"}
TOKENS = ("tokens", "input_ids", "ids")
INPUTS = ("attention_mask", "position_ids", "cache_position", "mm_token_type_ids")  # of a run; no tap holds them
# Column and row of each patch, (-1, -1) of padding: as an input of a run, or of a module of transformers.
POSITIONS = re.compile(r"(pixel|image)_position_ids|(.*\.)?(patch_embedder|embed_vision)\.input\.1", re.DOTALL)
SAVE = "from safetensors.numpy import save_file; save_file({}, 'theirs.safetensors')"
OTHERS = {  # the first bytes of other formats -> their name, and what saves their arrays as safetensors
    b"PK": (
        "a PyTorch file", "import torch; from safetensors.torch import save_file; "
        "save_file(torch.load(FILE, weights_only=True), 'theirs.safetensors')",
    ),
    b"\x80": ("a Python pickle", "import pickle; " + SAVE.format("pickle.load(open(FILE, 'rb'))")),
    b"{": (
        "JSON", "import json, numpy; " + SAVE.format("{k: numpy.float32(v) for k, v in json.load(open(FILE)).items()}"),
    ),
    b"GGUF": ("a GGUF file", "import gguf; " + SAVE.format("{t.name: t.data for t in gguf.GGUFReader(FILE).tensors}")),
}  # fmt: skip
FLOATS = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"}
SCALES = {"embed": "hidden_size", "ple.token": "hidden_size_per_layer_input"}  # rows of a table are times its root
MASKED = -9e3  # a score at or below this was masked: engines write -inf, -1e4 (-9984 in bfloat16) or the lowest float
ROUNDING = {"BF16": 2.0**-7, "F16": 2.0**-10}  # allowed difference of two records of one value; else 1e-5


@dataclass(eq=False)
class Foreign:
    """A trace in our terms. An array with one row on its T axis, where there are more tokens, is of the last one."""

    arrays: dict  # tap -> array in our axes, in the order of execution
    tokens: np.ndarray | None  # [T] int64; None if neither the file nor the caller gives them
    metadata: dict
    notes: list  # one line for each kind of conversion
    ignored: list  # "key: reason"
    unread: dict  # key -> reason, of those among them that were not understood; no tap holds the others
    length: int  # T: the number of tokens
    own_ids: bool = False  # whether the file holds the ids
    start: int = 0  # the position of the first rows
    grid: tuple | None = None  # rows and columns of soft tokens of the picture; None if there is none, or if unknown
    frames: int | None = None  # R of the sound, in 12B T; None likewise
    rows: dict = field(default_factory=dict)  # tap of a picture -> its rows, where they are not as many as they should

    def is_medium(self):
        """Whether it is of a picture or sound alone: it holds arrays of a tower, read or not, and none of the text."""
        return not self.part("text") and bool(self.arrays or self.rows)

    def part(self, part):
        """The arrays of the vision tower, the audio tower or the text model: part is vision, audio or text."""
        return {name: array for name, array in self.arrays.items() if part_that_has(name) == part}


class Item(NamedTuple):
    """An array of the file, or a part of it, and what is known about it so far."""

    key: str
    stored: object  # checkpoint.Stored
    tap: str | None = None
    indirect: bool = False  # recorded as a module's input, or derived; prefer a key that recorded the output
    axes: str | None = None  # as a mapping file states them
    index: tuple = ()  # which part of the array it is, as NumPy's index
    rows: int | None = None  # on its T axis
    keys: int | None = None  # on its S axis
    layouts: tuple = ()  # that fit its shape

    @property
    def shape(self):
        """Its shape. Raises Refused if the index does not fit the array."""
        shape = self.stored.shape
        try:
            return np.broadcast_to(np.float32(0), shape)[self.index].shape if self.index else shape
        except (IndexError, ValueError):
            raise Refused(f"has the shape {list(shape)}, which the slice does not fit") from None


class Refused(Exception):
    """Why one array cannot be read. The others can still be."""


class NoTap(Refused):
    """Why one array is known to belong to no tap: it is understood, and there is nothing to judge."""


def part_that_has(tap):
    """The part of the model that a tap belongs to: vision, audio or text."""
    part = tap.partition(".")[0]
    return part if part in ("vision", "audio") else "text"


def read_trace(path, config, mapping=None, ids=None, grid=None, frames=None, start=None, spare=()):
    """A file of another engine's intermediates, safetensors or NumPy's .npz or .npy -> Foreign.

    Keys are our taps' names, transformers' module paths (`model.layers.3.self_attn.q_norm`, with any usual prefix, and
    `.input` or `.output`), names of other engines (names.json), or what the JSON file `mapping` translates:
    {"blk.{i}.q": "layers.{i}.attn.q"}; or {"tap": ..., "axes": "1 N T H", "slice": "..., :128"} in place of the name,
    to state axes (letters of TAPS; 1 a batch axis; N*H two in one) and to take a part of the array (NumPy's index); or
    a list of these, for parts that are different taps; or null, to leave an array out. ids: the prompt's; else the
    file's `tokens`, `input_ids` or `ids`, a tensor or metadata; else of `spare`, lists of ids, the first that has as
    many as the arrays have positions. start: the position of their first row, where the file holds a later chunk of
    the prompt; its rows are then the last ones of the ids that the trace keeps. Metadata `axes`, "T N H" or "N T H",
    decides if there are as many tokens as heads. grid: rows and columns of the picture's soft tokens, where the file
    holds arrays of a vision tower; else from the positions of its patches in the file, or from metadata `grid`.
    frames: of the sound, as Foreign has them; else from our own audio.mel or audio.frames. Raises Error if no array is
    understood.
    """
    return Reader(path, config, mapping, ids, grid, frames, start, spare).read()


class Reader:
    """Reads one file into a Foreign, `trace`."""

    def __init__(self, path, config, mapping, ids, grid, frames, start, spare):
        self.path, self.config, self.start, self.spare = path, config, start, spare
        names = [*vision_names(config.vision), *audio_names(config.audio), *names_of(config)]
        self.names = dict.fromkeys(names)  # quick to look up
        self.header, self.file, metadata = _opened(path)
        tokens = _tokens(path, self.header, metadata, self.file, config, ids)
        grid = grid or _grid(self.header, self.file, metadata, config)
        own_input = self.header.get("audio.mel") or self.header.get("audio.frames")
        frames = frames or (own_input.shape[0] if own_input and own_input.shape else None)
        own = tokens is not None and ids is None
        self.trace = Foreign({}, tokens, metadata, [], [], {}, 0, own, grid=grid, frames=frames)
        self.rules = _rules(path, mapping, self.header, config, self.trace.notes)
        self.sources, self.converted = {}, Counter()  # tap -> its Item; what was converted -> of how many arrays

    def read(self):
        """All arrays of the file, each through the same steps -> Foreign."""
        trace = self.trace
        items = [item for key, stored in sorted(self.header.items()) for item in _listed(key, stored, self.config)]
        named = [item for found in self.each(self.find, items) for item in found]
        found = sorted(self.each(self.check, named), key=lambda item: item.indirect)
        self.place(found)
        items = self.each(self.fit, found)
        need = sum(4 * math.prod(item.shape) for item in items)
        check_memory(need, f"{self.path}: to read {len(items)} arrays", "capture a shorter prompt, or fewer taps")
        orders = _orders(items, self.config)
        self.each(self.keep, self.each(lambda item: _decide(item, orders, trace.metadata.get("axes")), items))
        self.join_ple()
        self.split_heads()
        if not (trace.arrays or trace.rows):
            raise Error(f"{self.path}: {self.why_nothing(found)}")
        trace.arrays = {name: trace.arrays[name] for name in self.names if name in trace.arrays}
        states = [array for name, array in trace.arrays.items() if part_of(name) in ("resid_pre", "resid_post")]
        if len(states) > 2 and all(np.array_equal(states[0], state) for state in states[1:]):
            raise Error(f"{self.path}: all layers hold one and the same array: the capture is wrong")
        counts = self.converted.items()
        trace.notes += [f"{count} {'array' if count == 1 else 'arrays'} had {what}" for what, count in counts]
        return trace

    def each(self, step, items):
        """The step's results for all items that it does not refuse."""
        results = []
        for item in items:
            try:
                results.append(step(item))
            except Refused as reason:
                self.trace.ignored.append(f"{_short(item.key)}: {reason}")
                self.trace.unread |= {} if isinstance(reason, NoTap) else {_short(item.key): str(reason)}
        return results

    def find(self, item):
        """The item with its tap, or several, each a part of the array. Raises Refused if it has none."""
        for pattern, targets in self.rules:
            if match := pattern.fullmatch(item.key):
                if not targets:
                    raise NoTap("is left out by a mapping")
                number = match[1] if match.groups() else ""
                return [
                    item._replace(tap=_ours(tap.replace("{i}", number)), axes=axes, index=index)
                    for tap, axes, index in targets
                ]
        tap, indirect = _named(item.key, item.shape, self.config)
        if isinstance(tap, tuple):
            return _joined_parts(item, tap, self.config)
        return [item._replace(tap=tap, indirect=indirect)]

    def check(self, item):
        """The item, if this model has its tap and if it holds numbers. Raises Refused."""
        _check_present(item.tap, self.config, self.names)
        return _usable(item)

    def place(self, found):
        """Decide which positions of which ids the arrays hold. found: the items that have a tap. Raises Error.

        Sets `rows`, how many positions arrays of the text have; `before`, how many ids of padding the file has in
        front; and `whole`, how many ids the file has with its padding.
        """
        trace, self.rows, start = self.trace, _positions(found, self.config), self.start
        if trace.tokens is None and len(self.spare):
            alike = [ids for ids in self.spare if len(ids) == self.rows > 1 and start is None]
            trace.tokens = _checked([*alike, self.spare[0]][0], "the ids given", self.config)
        self.whole, trace.start = (start or 0) + self.rows, start or 0
        if trace.start < 0:
            raise Error(f"--start is the position of their first row, from 0 on, not {start}")
        if start is not None and trace.tokens is not None:
            if self.whole > (count := len(trace.tokens)):
                raise Error(
                    f"{self.path}: holds {self.rows} positions; with --start {start} they need the {self.whole} ids "
                    f"from the beginning of the prompt on, and there are {count}; give all of them with --ids"
                )
            trace.tokens = trace.tokens[: self.whole]
        self.whole = self.whole if trace.tokens is None else len(trace.tokens)
        self.before = 0 if trace.tokens is None else padding(trace.tokens, self.config)
        if self.before:
            trace.tokens = trace.tokens[self.before :]
            pads = f"{self.before} ids in front are padding (id {self.config.pad_token_id})"
            trace.notes.append(f"{pads}: they are left out, and so are the rows and keys of their positions")
        trace.length = self.whole - self.before
        self.soft = trace.tokens is not None and np.isin(trace.tokens, placeholders(self.config)).any()

    def fit(self, item):
        """The item with its rows, T, those of a chunk, or 1 for the last position, and the layouts that fit its shape.

        Behind the rows of a picture there may be padding, behind the keys of a text too; a cache may have dropped keys
        that no query sees. Raises Refused.
        """
        if self.soft and item.tap == "embed" and "embed_tokens" in item.key:
            raise NoTap("holds the pad token's row where a soft token stands")
        if self.before and "attn.rot_" in item.tap and item.tap.startswith("layers."):
            raise NoTap("may be rotated by positions that count the padding; the pattern is judged")
        shape, T, part = item.shape, self.length(item.tap), part_that_has(item.tap)
        medium, thing = part != "text", {"vision": "picture", "audio": "sound", "text": "sequence"}[part]

        def layouts(shape, length, rows):
            return _layouts(item, shape, _sizes(item.tap, self.config, length, rows))

        whole = T if medium else self.whole
        chunk = whole if self.start is None else self.rows
        for rows in (whole,) if medium else dict.fromkeys((whole, chunk, 1)):
            others = {*shape} if "S" in axes_of_kind(item.tap) and not medium else ()
            for keys in (whole, *sorted(n for n in others if n != whole and n >= min(rows, 2))):
                if fitting := layouts(shape, keys, rows):
                    return item._replace(rows=rows, keys=keys, layouts=fitting)
        if shape and shape[0] > 1 and layouts(shape[1:], whole, whole):
            raise Refused(f"holds a batch of {shape[0]}; capture one {thing}")
        for other in sorted({*shape} - {1}):
            if fitting := layouts(shape, other, other):
                if medium and other > T:
                    return item._replace(rows=other, layouts=fitting)
                self.trace.rows |= {item.tap: other} if medium else {}
                what = f"rows, and the {thing} has" if medium else "positions, and the prompt has"
                raise Refused(f"holds {other} {what} {T}")
        axes = item.axes or AXES[tap_kind(item.tap)]
        expected = _lengths(axes, _sizes(item.tap, self.config, T, T))
        said = f"has the shape {list(shape)}; [{', '.join(axes.split())}] is {expected}"
        if len(shape) > 1 and layouts(shape[::-1], whole, whole):
            turned = " ".join(reversed(axes.split()))
            said += f'; it looks transposed: say so in a mapping file, {{"tap": "{item.tap}", "axes": "{turned}"}}'
        raise Refused(said)

    def length(self, tap):
        """The number of tokens, or of a medium's rows at this tap. Raises Refused if it is not known."""
        if part_that_has(tap) == "text":
            return self.trace.length
        if part_that_has(tap) == "audio":
            if self.trace.frames is None:
                raise Refused("is of a sound of unknown length; give the sound with --audio")
            rows = {"audio.mel": 1, "audio.half": 2}.get(tap, 4 if isinstance(self.config.audio, AudioTower) else 1)
            return -(-self.trace.frames // rows)
        if self.trace.grid is None:
            raise Refused("is of a picture of unknown size; give the picture with --image")
        vision, count = self.config.vision, math.prod(self.trace.grid)
        return count if axes_of_kind(tap)[0] == "M" else count * (vision.side // vision.patches[0]) ** 2

    def keep(self, item):
        """Take the item's array; a second record of one tap must agree with the first."""
        arrays, T = self.trace.arrays, self.length(item.tap)
        values = _values(self.file, item.stored)
        values = values.reshape(item.stored.shape)[item.index] if item.index else values
        tap, array = _convert(item, values, self.config, T, self.whole, self.before)
        scale = SCALES.get(tap) and getattr(self.config, SCALES[tap]) ** 0.5
        if tap in arrays and scale and _same(array, arrays[tap] * scale, 1e-2):  # the first is a row of the table
            arrays[tap], self.sources[tap] = array, item
            self.trace.notes.append(f"{tap} is {_short(item.key)}: what the table's module makes is not scaled yet")
        elif tap in arrays:
            _expect_same(tap, item, array, self.sources[tap], arrays[tap])
        else:
            arrays[tap], self.sources[tap] = array, item
            self.converted.update(_converted(item, T, self.whole))

    def join_ple(self):
        """Join the parts of `ple`: each layer's second input is one."""
        arrays, names = self.trace.arrays, [f"layers.{layer.index}.ple" for layer in self.config.layers]
        parts = {name: arrays.pop(name) for name in names if name in arrays}
        if not parts or "ple" in arrays:
            return
        if len(parts) == len(names) and len({part.shape for part in parts.values()}) == 1:
            arrays["ple"] = np.stack(list(parts.values()), axis=1)  # [T, L, P]
            return
        keys = [_short(self.sources[name].key) for name in parts]
        self.trace.ignored += [f"{key}: ple takes this of all layers, at all positions" for key in keys]

    def split_heads(self):
        """The patterns of the tower's heads, one by one."""
        arrays = self.trace.arrays
        for name in [name for name in arrays if name.endswith("attn.patterns")]:
            for n, pattern in enumerate(arrays.pop(name)):  # [T, T]
                arrays[f"{name.removesuffix('patterns')}heads.{n}.pattern"] = pattern

    def why_nothing(self, found):
        """Why no array is understood, and what the user can do. found: the items that have a tap."""
        ignored, T = self.trace.ignored, self.trace.length
        if found and (rows := self.rows) not in (1, T):
            chunk = f"; if they are its last {rows}, behind a cache, give --start {T - rows}" if rows < T else ""
            held = f"holds {rows} positions and the prompt has {T} ids"
            return f"{held}; give the ids that their run had, with --ids{chunk}"
        return (
            f"no array is understood ({'; '.join(ignored[:3]) or 'the file holds none'}). Names are ours, "
            "transformers' module paths, or translated by a mapping file, JSON such as "
            '{"blk.{i}.q_norm": "layers.{i}.attn.q"}'
        )


# Names


def _listed(key, stored, config):
    """The Items of one array: several if all hidden states, or the patterns of all layers, are stacked in it."""
    if key in TOKENS or key in INPUTS or POSITIONS.fullmatch(key):
        return []
    count = {"hidden_states": config.num_hidden_layers + 1, "attentions": config.num_hidden_layers}.get(key)
    if stored.shape[:1] != (count,) or stored.dtype not in FLOATS:
        return [Item(key, stored)]
    shape, size = stored.shape[1:], math.prod(stored.shape[1:]) * np.dtype(FLOATS[stored.dtype]).itemsize
    return [Item(f"{key}.{i}", stored._replace(shape=shape, offset=stored.offset + i * size)) for i in range(count)]


def _joined_parts(item, taps, config):
    """An array that holds several taps, joined on its last axis -> an Item of each. Raises Refused for another size."""
    widths = _widths(taps, config)
    if item.stored.shape[-1:] != (sum(widths),):
        raise Refused(f"has the shape {list(item.stored.shape)}, and {', '.join(taps)} are {sum(widths)} wide together")
    ends = np.cumsum(widths).tolist()
    parts = zip(taps, ends, widths, strict=True)
    return [item._replace(tap=tap, indirect=True, index=(..., slice(end - n, end))) for tap, end, n in parts]


def _widths(taps, config):
    """How many numbers a position has in each of these taps of a layer. Raises Refused if there is no such layer."""
    _check_layer(taps[0], config)
    sizes = _sizes(taps[0], config, 1, 1)
    return [math.prod(sizes[letter] for letter in axes_of_kind(tap)) for tap in taps]


def _usable(item):
    """The item, if it holds numbers. Raises Refused."""
    dtype = item.stored.dtype
    if item.indirect and dtype in INTEGERS and not item.tap.endswith("router.experts"):
        raise NoTap("holds integers: positions or ids")
    if dtype not in FLOATS and not (item.tap.endswith("router.experts") and dtype in INTEGERS):
        raise Refused(f"is stored as {dtype}; minigemma reads {', '.join(FLOATS)}")
    if 0 in item.shape:
        raise Refused("is empty")
    return item


def _ours(name):
    """A tap's name, `layers.03` as `layers.3`; None for any other name."""
    known = "*" not in name and NUMBER.sub(r"\1.*", name) in AXES
    return NUMBER.sub(lambda match: f"{match[1]}.{int(match[2])}", name) if known else None


def _named(key, shape, config):
    """A key -> its tap, or several that are joined in it; and whether it is indirect. Raises Refused if it has none.

    shape: of the array.
    """
    if tap := _ours(key):
        return tap, tap == "uncapped"
    key = BRACKETS.sub(r".\1", key)
    path = ALONE.sub("vision_tower.", PREFIX.sub("", key, count=1))
    last = config.num_hidden_layers - 1
    if listed := LISTED.fullmatch(path):
        i = int(listed[2])
        if listed[1] == "attention":
            return f"layers.{i}.attn.pattern", False
        # the last one is taken after the final norm, so the last layer's output is not in the list
        return "embed" if i == 0 else "final_norm" if i == last + 1 else f"layers.{i}.resid_pre", True
    path, _, side, _, index = SIDE.fullmatch(path).groups()
    layer, path = NUMBER.search(path), NUMBER.sub(r"\1.*", path)
    if path not in MODULES:
        raise Refused("is neither a tap's name nor a module path of transformers' Gemma 4")
    given = (side or "out").startswith("in")
    tap = MODULES[path].get((given, int(index or 0)))
    other = tuple(tap.replace("*", layer[2]) for tap in OTHERWISE.get((path, given, int(index or 0)), ()))
    if other and shape[-1:] == (sum(_widths(other, config)),):
        return other, True
    if tap is None:
        raise NoTap(f"no tap holds what this module {'is given' if given else 'makes'}")
    if isinstance(tap, tuple):
        return tuple(part.replace("*", str(int(layer[2]))) for part in tap), True
    tap = tap.replace("layers.*", f"layers.{int(layer[2])}") if layer else tap.replace("{last}", str(last))
    tap = tap.replace("{pooled}", "standardized" if getattr(config.vision, "standardize", False) else "pooled")
    tap = tap.replace("{encoded}", "encoded" if isinstance(config.audio, AudioTower) else "frames")
    return tap, given or tap == "uncapped"


def _check_layer(tap, config):
    """Raise Refused if the text model has no such layer."""
    if (layer_of(tap) or 0) >= config.num_hidden_layers:
        raise Refused(f"their model has more layers than the {config.num_hidden_layers} of this config")


def _check_present(tap, config, names):
    """Raise Refused if this model has no such tap. names: all taps of the model."""
    layer, kind = layer_of(tap), tap_kind(tap)
    if part_that_has(tap) != "text":
        if tap not in names and tap.replace("patterns", "heads.0.pattern") not in names:
            raise Refused("this model has no such array of a picture or sound")
        return
    _check_layer(tap, config)
    if {"layers.*.ple": "ple", "uncapped": "logits"}.get(kind, tap) in names:  # what each becomes
        return
    when = TAPS[kind].when if kind in TAPS else "ple"
    if when == "writes":
        donor = config.layers[layer].kv_from
        raise NoTap(f"this layer has no K and V of its own; it reads those of layer {donor}")
    raise Refused("this model has no per-layer embeddings" if when == "ple" else "this model has no experts")


def _rules(path, mapping, header, config, notes):
    """The lines of a mapping file, then those of TABLES that this file needs: [(pattern of the key, targets)].

    A target is a triple (tap, axes, index); null has none. Raises Error for a wrong line, or if no line matches.
    """
    rules, unused = [], []
    for theirs, target in (read_json(mapping) if mapping else {}).items():
        rules.append((_pattern(theirs), _targets(theirs, target, f"{mapping}: {_short(theirs)}")))
        unused += [] if any(map(rules[-1][0].fullmatch, header)) else [_short(theirs)]
    if mapping and len(unused) == len(rules):
        keys = ", ".join(_short(key) for key in sorted(header)[:3])
        raise Error(f"{mapping}: matches no key of {path}; the first keys there are {keys or 'none'}")
    if unused:
        notes.append(f"{len(unused)} of the mapping's names matched no key: {', '.join(unused[:3])}")
    for table in read_json(TABLES, list):
        fitting = table.get("experts") in (None, config.enable_moe_block)
        if fitting and any(key.startswith(tuple(table["begins"])) for key in header):
            rules += [(_pattern(theirs), _targets(theirs, to, theirs)) for theirs, to in table["names"].items()]
    return rules


def _targets(theirs, target, where):
    """What a mapping says of the name `theirs` -> [(tap, axes, index)]. Raises Error for what cannot be used."""
    targets = []
    if target == []:
        raise Error(f"{where}: the list is empty; null leaves an array out")
    for given in target if isinstance(target, list) else [] if target is None else [target]:
        one = given if isinstance(given, dict) else {"tap": given}
        tap, axes = one.get("tap"), one.get("axes")
        ours = _ours(str(tap).replace("layers.{i}.", "layers.0."))
        if ours is None:
            raise Error(f"{where}: {_short(str(tap))} is not a tap; names are like layers.{{i}}.attn.q, see taps.py")
        if theirs.count("{i}") != tap.count("{i}"):
            raise Error(f"{where}: the layer's number, {{i}}, must appear once on both sides, or on neither")
        if axes is not None:
            axes = str(axes) if {"T", "M", "R"} & {*str(axes)} else f"T {axes}"  # without T: the last position
            own = axes_of_kind(ours)
            if "" in re.split("[ *]", axes) or sorted(_letters(axes)) != sorted(own):
                raise Error(f"{where}: its axes are {' '.join(own)} in some order, and 1 for a batch axis")
        targets.append((tap, axes, _index(one.get("slice"), where)))
    return targets


def _index(text, where):
    """A slice such as "0, ..., :128" -> NumPy's index. Raises Error for anything else."""
    index = []
    for part in [] if text is None else str(text).split(","):
        numbers = part.split(":")
        try:
            whole = [int(number) if number.strip() else None for number in numbers] if part.strip() != "..." else []
            index.append(... if not whole else slice(*whole) if len(numbers) > 1 else int(part))
        except (ValueError, TypeError):
            raise Error(f'{where}: slice must be like "0, ..., :128", not {_short(str(text))!r}') from None
    return tuple(index)


def _pattern(theirs):
    """A name with {i} for the number of a layer -> its compiled pattern."""
    return re.compile(re.escape(theirs).replace(r"\{i\}", "([0-9]{1,5})"))


def _short(text):
    """Text from a file as one printable line."""
    text = ascii(text)[1:-1]
    return text if len(text) <= 80 else f"{text[:77]}..."


# The prompt


def _opened(path):
    """A trace's file -> its arrays as Stored by name, its bytes, and its metadata. Raises Error for other formats.

    A safetensors file is mapped. A file of NumPy's is read whole; an array of a .npy file has the file's name.
    """
    check_file(path)
    with open(path, "rb") as file:
        first = file.read(6)
    other = next((other for magic, other in OTHERS.items() if first.startswith(magic)), None)
    if first == b"\x93NUMPY" or first[:2] == b"PK":
        try:
            loaded = np.load(path, allow_pickle=False)
            arrays = {Path(path).stem: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
            if not any(isinstance(array, bytes) for array in arrays.values()):  # members that are no arrays: PyTorch's
                return _as_stored(path, arrays)
        except (OSError, ValueError, LookupError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise Error(f"{path}: not a readable file of NumPy arrays ({error})") from None
    try:
        return read_header(path), np.asarray(np.memmap(path, np.uint8, "r")), _metadata(path)
    except Error as error:
        raise Error(f"{path}: is {other[0]}; save it as safetensors: {other[1]}") if other else error from None


def _as_stored(path, arrays):
    """NumPy's arrays as if they lay in a safetensors file -> as `_opened`."""
    codes, header, parts, offset = {np.dtype(d): code for code, d in (FLOATS | INTEGERS).items()}, {}, [], 0
    for name, array in arrays.items():
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
        header[name] = Stored(Path(path), codes.get(little.dtype, str(little.dtype)), little.shape, offset)
        parts.append(np.frombuffer(little.tobytes(), np.uint8))
        offset += little.nbytes
    return header, np.concatenate([*parts, np.empty(0, np.uint8)]), {}


def _metadata(path):
    """A safetensors file's metadata; values that are JSON, as ours are, decoded."""
    import safetensors

    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
    for name, value in metadata.items():
        with contextlib.suppress(ValueError, RecursionError):  # plain text stays as it is
            metadata[name] = json.loads(value)
    return metadata


def _tokens(path, header, metadata, file, config, ids):
    """The prompt's ids [T] from the caller, else from the file, else None. Raises Error for impossible ids."""
    where = path
    if ids is not None:
        where = "the ids given"
    elif name := next((name for name in TOKENS if name in header), None):
        if header[name].dtype not in INTEGERS:
            raise Error(f"{path}: {name} is stored as {header[name].dtype}; ids are integers")
        ids = _values(file, header[name])
        if len(ids) not in header[name].shape:
            raise Error(f"{path}: {name} has the shape {list(header[name].shape)}; capture one sequence, [T] or [1, T]")
    elif name := next((name for name in TOKENS if name in metadata), None):
        ids = metadata[name]
        ids = ids[0] if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], list) else ids
    else:
        return None
    return _checked(ids, where, config)


def _checked(ids, where, config):
    """Ids as an array [T]. Raises Error, which begins with `where`, for what cannot be a prompt."""
    try:
        return as_tokens(ids, EMPTY, config)
    except ValueError as error:  # an Error, or NumPy's for a ragged list
        raise Error(f"{where}: {error}") from None


def padding(ids, config):
    """How many ids of padding are in front of <bos>, as in a row of a batch."""
    count, bos = int(np.argmax(np.asarray(ids) != config.pad_token_id)), config.source.get("bos_token_id")
    return count if bos in (None, ids[count]) else 0


def _grid(header, file, metadata, config):
    """Rows and columns of the picture's soft tokens, from the positions of its patches or the metadata; None: unknown.

    Of a batch of pictures there is no one grid.
    """
    stated, vision = metadata.get("grid"), config.vision
    if isinstance(stated, list) and len(stated) == 2 and all(type(n) is int and 0 < n < 2**15 for n in stated):
        return tuple(stated)
    for key in filter(POSITIONS.fullmatch, header):
        stored = header[key]
        if vision and stored.dtype in INTEGERS and stored.shape[-1:] == (2,) and math.prod(stored.shape[:-2]) == 1:
            columns, rows = _values(file, stored).reshape(-1, 2).max(0, initial=-1) + 1
            k = vision.side // vision.patches[0]
            return (int(rows) // k, int(columns) // k) if rows >= k and columns >= k else None
    return None


# Layouts


def axes_of_kind(tap):
    """The letters of the axes of a tap, or of a value that becomes one."""
    return AXES[tap_kind(tap)].split()


def _sizes(tap, config, T, rows):
    """The length of each axis of a tap, by its letter, for `rows` of T tokens, patches, frames, or soft tokens."""
    if tap.startswith("audio."):
        sizes = {"T": rows, "M": rows, "R": rows, "R/2": rows, "Y": config.hidden_size, "1": 1}
        if not isinstance(config.audio, AudioTower):
            return sizes | {"X": config.audio.audio_embed_dim}
        audio, D = config.audio, config.audio.hidden_size
        sizes |= dict(zip("AB", audio.subsampling_conv_channels, strict=True))
        sizes |= {"C": audio.bins, "C/2": audio.bins // 2, "C/4": audio.bins // 4, "O": audio.output_proj_dims}
        heads = {"N": audio.num_attention_heads, "H": D // audio.num_attention_heads, "S": audio.window}
        return sizes | heads | {"D": D, "2D": 2 * D, "F": 4 * D}
    if tap.startswith("vision."):
        size, width, _ = config.vision.patches
        sizes = {"T": rows, "M": rows, "X": 3 * size**2, "D": width, "Y": config.hidden_size, "1": 1}
        if isinstance(config.vision, VisionTower):
            tower = config.vision
            sizes |= {"N": tower.num_attention_heads, "K": tower.num_key_value_heads, "H": tower.head_dim}
            sizes |= {"F": tower.intermediate_size}
        return sizes
    layer = config.layers[layer_of(tap) or 0]
    return {
        "T": rows, "S": T, "D": config.hidden_size, "N": config.num_attention_heads, "K": layer.num_key_value_heads,
        "H": layer.head_dim, "F": layer.intermediate_size, "L": config.num_hidden_layers, "V": config.vocab_size,
        "P": config.hidden_size_per_layer_input, "E": config.num_experts, "k": config.top_k_experts, "1": 1,
    }  # fmt: skip


def _letters(layout):
    """A layout's axes one by one, batch axes left out."""
    return [letter for letter in layout.replace("*", " ").split() if letter != "1"]


def _lengths(layout, sizes):
    """The shape of a layout."""
    return [math.prod(sizes[letter] for letter in axis.split("*")) for axis in layout.split()]


def _layouts(item, shape, sizes):
    """The layouts, such as "N T H", that fit a shape; several only if they differ in meaning.

    Axes of length 1 may appear anywhere: they move no data.
    """
    first, *rest = AXES[tap_kind(item.tap)].split()
    layouts = [item.axes or " ".join([first, *rest])]
    if first == "T" and len(rest) == 2 and not item.axes:
        layouts += [f"{rest[0]} T {rest[1]}", f"T {rest[0]}*{rest[1]}"]
    found = {}
    for layout in layouts:
        if [n for n in shape if n != 1] == [n for n in _lengths(layout, sizes) if n != 1]:
            found.setdefault(tuple(letter for letter in _letters(layout) if sizes[letter] != 1), layout)
    return tuple(found.values())


def _positions(items, config):
    """The number of positions that most arrays have, for a trace without ids."""
    votes = Counter()
    for item in items:
        if part_that_has(item.tap) != "text":
            continue
        shape = item.shape
        fitting = [T for T in {1, *shape} if _layouts(item, shape, _sizes(item.tap, config, T, T))]
        votes.update(fitting if len(fitting) == 1 else [])
    votes.pop(1, None)  # in a prefill some layers run for the last position only
    return max(votes, key=votes.get, default=1)


def _group(tap):
    """The name of a group of arrays that an engine holds in one layout: q, k and v at the same step."""
    return re.sub(r"(attn\.(rot_)?)[qkv](_raw)?$", r"\1\3", tap_kind(tap))


def _orders(items, config):
    """group -> whether positions (True) or heads (False) come first, from the arrays with only one possible layout."""
    orders = defaultdict(set)
    for item in items:
        sizes, layout = _sizes(item.tap, config, item.rows, item.rows), item.layouts[0]
        long = [letter for letter in _letters(layout) if sizes[letter] != 1]
        if len(item.layouts) == 1 and len(long) == 3 and "*" not in layout:
            orders[_group(item.tap)].add(long[0] == "T")
    return orders


def _decide(item, orders, stated):
    """The item with one layout. Raises Refused if neither its group nor the file's metadata decides."""
    if len(item.layouts) == 1:
        return item
    said = orders.get(_group(item.tap)) or {{"T N H": True, "N T H": False}.get(str(stated))}
    if said not in ({True}, {False}):
        raise Refused(
            f"may be [{'] or ['.join(item.layouts)}], as {item.rows} is the length of both axes; capture a prompt of "
            "another length, or state the axes in a mapping file"
        )
    return item._replace(layouts=tuple(layout for layout in item.layouts if (layout[0] == "T") in said))


# Arrays


def _values(file, stored):
    """The numbers of an array in the mapped file, as one axis; copied only if they are widened to float32."""
    dtype = np.dtype((FLOATS | INTEGERS)[stored.dtype])
    values = file[stored.offset : stored.offset + math.prod(stored.shape) * dtype.itemsize].view(dtype)
    return widen(values) if stored.dtype in ROUNDING else values


def read_array(stored):
    """A checkpoint.Stored of any number format -> array; 16 bits are widened to float32."""
    if stored.dtype not in FLOATS | INTEGERS:
        raise Error(f"{stored.path}: holds {stored.dtype}; minigemma reads {', '.join(FLOATS | INTEGERS)}")
    return _values(np.asarray(np.memmap(stored.path, np.uint8, "r")), stored).reshape(stored.shape)


def keys_of(path):
    """The names of the arrays in a file of intermediates."""
    return set(_opened(path)[0])


def read_soft(path):
    """Soft tokens in a safetensors file -> their positions [M] and rows [M, D]. Raises Error if one is missing."""
    header = read_header(path)
    if not {"positions", "rows"} <= set(header):
        held = ", ".join(sorted(header)) or "none"
        raise Error(f"{path}: must hold `positions` [M] and `rows` [M, D]; it holds {held}")
    return read_array(header["positions"]), read_array(header["rows"]).astype(np.float32)


def _convert(item, values, config, T, whole, before):
    """The tap, and its array in our axes, without padding. Raises Refused for experts that do not exist, and chunks.

    whole, before: as Reader.place sets them.
    """
    sizes, theirs = _sizes(item.tap, config, item.keys or T, item.rows), _letters(item.layouts[0])
    ours = axes_of_kind(item.tap)
    array = values.reshape([sizes[letter] for letter in theirs])
    if theirs != ours:
        array = array.transpose([theirs.index(letter) for letter in ours])
    if part_that_has(item.tap) == "text":
        earlier = item.keys - whole
        seen = np.flatnonzero(array[:, 0].any(0)) if item.tap.endswith("pattern") and earlier > 0 else ()  # of query 0
        if len(seen) and seen[-1] == earlier:  # the last key that a query sees is its own
            raise Error(
                f"{item.stored.path}: {_short(item.key)} is of a later chunk, as its first query sees {earlier} keys "
                "before its own; give the position of the first row with --start, and all ids with --ids"
            )
        front = {"T": before if item.rows == whole else 0, "S": before if item.keys >= whole else 0}
        array = array[tuple(slice(front[a], front[a] + T) if a in front else slice(None) for a in ours)]
        if "S" in ours and array.shape[-1] < T:  # a cache dropped what no query sees
            fill = -np.inf if item.tap.endswith("scores") else 0
            if fill and item.rows > 1 and not (array <= MASKED).any():
                raise NoTap("is taken before the mask, and lacks keys that a cache dropped; the pattern is judged")
            array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(T - array.shape[-1], 0)], constant_values=fill)
    else:
        array = array[tuple(slice(T) if letter in ("T", "M", "R", "R/2") else slice(None) for letter in ours)]
    if item.tap == "uncapped":
        return "logits", softcap(array, config.final_logit_softcapping)
    if item.tap.endswith("router.probs") and not _ours(item.key) and (array < 0).any():
        return item.tap, softmax(array)  # the router of vLLM, and of Flax, returns its scores
    if item.tap.endswith("router.experts"):
        if not np.isin(array, np.arange(config.num_experts)).all():
            raise Refused(f"holds numbers that are not those of its experts, 0 to {config.num_experts - 1}")
        array = array.astype(np.int64)
    return item.tap, array


def _same(a, b, allowed):
    """Whether two arrays are alike up to this part of their size; values of which neither is finite are."""
    if a.shape != b.shape:
        return False
    with np.errstate(all="ignore"):
        a, b = np.where(np.isfinite(a) | np.isfinite(b), (a, b), 0).astype(np.float64)
        return bool(np.linalg.norm(a - b) <= allowed * np.linalg.norm(b))


def _expect_same(tap, item, array, first, kept):
    """Raises Error if two records of one value differ.

    Raises Refused if the second is indirect: in a port with a mistake between two modules the input of the one may
    differ from the output of the other, and the rest of the trace can still be judged.
    """
    if _same(array, kept, max(ROUNDING.get(stored.dtype, 1e-5) for stored in (item.stored, first.stored))):
        return
    if item.indirect:
        raise Refused(f"differs from {_short(first.key)}, which is {tap} too and is kept")
    raise Error(f"{_short(first.key)} and {_short(item.key)} are both {tap} and differ; leave one out")


def _converted(item, T, whole):
    """What an array had that was converted, in words that follow "43 arrays had"."""
    layout, axes, text = item.layouts[0], AXES[tap_kind(item.tap)], part_that_has(item.tap) == "text"
    if item.rows < T:
        yield "the last position only" if item.rows == 1 else f"the last {item.rows} positions only"
    if item.rows > T and not text:
        yield "rows of padding behind those of the picture"
    if text and item.keys > whole:
        yield "keys of padding behind those of the prompt"
    if text and item.keys < whole:
        yield "only the keys that a cache kept"
    if item.index:
        yield "several taps in one"
    if "1" in layout.split() or (item.shape[:1] == (1,) and len(item.shape) > len(layout.split())):
        yield "a batch axis of 1"
    if "*" in layout:
        yield "heads or layers flattened"
    elif _letters(layout) != axes.split():
        yield "heads or layers before positions"
    if item.stored.dtype in ROUNDING:
        yield f"16 bits a value ({item.stored.dtype})"
    if item.tap == "uncapped":
        yield "no softcap, as lm_head has none: it was applied"
