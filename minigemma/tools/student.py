"""A student's functions, called inside our pass, in a process of their own: grade.py starts it and reads its files.

Each function makes some taps of the pass. Our pass runs with the student's results in their place, so its trace is that
of a port whose only own op is this function. `layer` and `forward` run alone; what the student's other functions get
and give inside them is written down too, under the taps' names.
"""

import contextlib
import importlib.util
import inspect
import io
import json
import traceback
from collections import defaultdict
from functools import wraps
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from .. import TINY, Config, Error, Trace, load, random_weights
from ..config import GLOBAL, ROPE_DEFAULTS, SLIDING
from ..debug.catalogue.changes import masked_softmax
from ..debug.catalogue.embedding import last_residual
from ..debug.catalogue.ple import projected
from ..debug.port import Port
from ..ops import visible

NAMES = ("rms_norm", "rope", "visible", "attention", "mlp", "ple", "layer", "forward")
SHOWN = 200  # characters of what a function prints

# A model in miniature with what weights/tiny lacks: two kv heads, and an eps that shows.
MINIATURE = {
    "vocab_size": 120, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "global_head_dim": 16, "sliding_window": 5, "max_position_embeddings": 256, "rms_norm_eps": 1e-3,
    "final_logit_softcapping": 30.0, "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 120,
    "num_hidden_layers": 9, "layer_types": [SLIDING, SLIDING, GLOBAL] * 3, "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True, "rope_parameters": ROPE_DEFAULTS,
}  # fmt: skip

# A tap that a norm makes -> the tap that it norms, and the weight's name.
NORMS = {
    "attn.in": ("resid_pre", "input_layernorm"), "attn.q": ("attn.q_raw", "q_norm"), "attn.k": ("attn.k_raw", "k_norm"),
    "attn.v": ("attn.v_raw", None), "attn_out": ("attn.o", "post_attention_layernorm"),
    "mlp.in": ("resid_mid", "pre_feedforward_layernorm"), "mlp_out": ("mlp.down", "post_feedforward_layernorm"),
    "ple_out": ("ple.proj", "post_per_layer_input_norm"),
}  # fmt: skip


class Case(NamedTuple):
    """A model and a prompt; pieces: (start, end) of each call, those after the first with a cache."""

    name: str
    config: Config
    weights: object
    tokens: np.ndarray  # [T]
    pieces: tuple


def cases():
    """The cases that functions are tried on. Each prompt is longer than the window: both of its edges show."""
    small = Config.from_dict(MINIATURE)
    weights, tokens = _locked(random_weights(small, 1)), np.random.default_rng(7).integers(0, small.vocab_size, 13)
    alone = ((0, 9), (9, 10), (10, 11), (11, 12), (12, 13))
    tiny = load(TINY, "float32")
    tiny.weights.embed_tokens_per_layer = np.asarray(tiny.weights.embed_tokens_per_layer)
    long = np.random.default_rng(8).integers(0, 500, tiny.config.sliding_window + 3)
    return (
        Case("two kv heads", small, weights, tokens, ((0, 13),)),
        Case("two kv heads, with a cache", small, weights, tokens, alone),
        Case("weights/tiny", tiny.config, _locked(tiny.weights), long, ((0, len(long)),)),
    )


def _locked(weights):
    """These weights, so that nobody can write to them."""
    for owner in (weights, *weights.layers):
        for array in vars(owner).values():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
    return weights


class Open(Exception):
    """A function is not written yet."""


class Student:
    """The module of a student's file. Calls check what comes back."""

    def __init__(self, module):
        self.module = module

    def call(self, name, shape, *arguments):
        """What a function makes of copies of these arguments: numbers of this shape. Raises Open, or Error."""
        own = [a.copy() if isinstance(a, np.ndarray) and a.flags.writeable else a for a in arguments]
        return numbers(name, getattr(self.module, name)(*own), shape)


def numbers(name, made, shape):
    """What a student's function made, as an array of this shape. Raises Open for nothing, Error for another shape."""
    if made is None or made is ...:
        raise Open
    try:
        made = np.asarray(made)
    except ValueError:
        raise Error(f"{name} returns rows that differ in length") from None
    if made.dtype.kind not in "biuf":
        raise Error(f"{name} returns {type(made).__name__} of {made.dtype}, not real numbers")
    if made.shape != shape:
        raise Error(f"{name} returns the shape {list(made.shape)}; it should be {list(shape)}")
    return made.astype(np.float32) if made.dtype != bool else made


def rope_rule(layer, config):
    """theta, the number of pairs that turn, and what their exponents divide by."""
    theta = config.source["rope_parameters"][layer.kind]["rope_theta"]
    return theta, int((layer.inv_freq > 0).sum()), layer.head_dim


def edits(name, call, pieces):
    """The taps that a function makes: name without the layer -> function(at, x), as Port.edit takes it.

    call: Student.call with the name. pieces: of the case.
    """

    def normed(of, weight):
        return lambda at, x: call(x.shape, at[of], weight and getattr(at.w, weight), at.port.eps)

    def turned(of):
        def turn(at, x):
            rule, positions = rope_rule(at.layer, at.config), at.positions
            return np.concatenate([call(at[of][s:e].shape, at[of][s:e], positions[s:e], *rule) for s, e in pieces])

        return turn

    def seen(at, x):
        positions, window, mask = at.positions, at.layer.window, np.zeros(x.shape[1:], bool)
        for s, e in pieces:
            first = 0 if window is None else max(0, s - window + 1)
            mask[s:e, first:e] = call((e - s, e - first), positions[s:e], positions[first:e], window)
        return masked_softmax(at, mask).astype(x.dtype)

    def mixed(at, x):
        q, k, v, T = at["attn.rot_q"], at.from_donor("attn.rot_k"), at.from_donor("attn.v"), len(x)
        mask = visible(at.positions, T, at.layer.window, T)  # [T, T]
        return np.concatenate([call(q[s:e].shape, q[s:e], k[:e], v[:e], mask[s:e, :e]) for s, e in pieces])

    def gated(at, x):
        return call(x.shape, at["mlp.in"], at.w.gate_proj, at.w.up_proj, at.w.down_proj)

    def context(at, x):
        before = projected(at, x.shape) * at.config.hidden_size**-0.5  # [T, L, P]
        return call(x.shape, before, at.w.per_layer_projection_norm, at.port.eps)

    def final(at, x):
        return call(x.shape, last_residual(at), at.w.norm, at.port.eps)

    norms = {tap: normed(*source) for tap, source in NORMS.items()} | {"ple.context": context, "final_norm": final}
    return {
        "rms_norm": norms,
        "rope": {"attn.rot_q": turned("attn.q"), "attn.rot_k": turned("attn.k")},
        "visible": {"attn.pattern": seen},
        "attention": {"attn.z": mixed},
        "mlp": {"mlp.down": gated},
        "ple": {"ple": lambda at, x: call(x.shape, at.ids, at["embed"], at.w, at.config)},
    }[name]


def trace_of(name, student, case):
    """What our pass of this case makes with a student's function in it: tap -> array."""
    with np.errstate(all="ignore"):
        if name in ("layer", "forward"):
            with Watch(student.module, case) as watch:
                last = (through_layers if name == "layer" else whole_pass)(student, case)
            return watch.arrays() | last
        port, trace = Port(case.config, case.weights, case.tokens), Trace()
        for tap, edit in edits(name, lambda *given: student.call(name, *given), case.pieces).items():
            port.edit(tap, edit)
        port.run(trace)
        return dict(trace)


def through_layers(student, case):
    """The student's layers one after the other -> the taps that they give back."""
    config, start = case.config, Trace(["embed", "ple"])
    Port(config, case.weights, case.tokens).run(start)
    kv, states = {}, defaultdict(list)
    for s, e in case.pieces:
        x = start["embed"][s:e]
        for layer, w in zip(config.layers, case.weights.layers, strict=True):
            i, shape = layer.index, (layer.num_key_value_heads, layer.head_dim)
            before = kv.get(layer.kv_from) or (np.zeros((0, *shape), x.dtype),) * 2
            own = [a.copy() for a in (x, start["ple"][s:e, i], *before)]
            made = student.module.layer(own[0], own[1], tuple(own[2:]), layer, w, config)
            if made is None or made is ...:
                raise Open
            if not (isinstance(made, tuple | list) and len(made) == 2):
                raise Error(f"layer returns {type(made).__name__}; it should be a pair, x and kv")
            x = numbers("layer", made[0], x.shape)
            states[f"layers.{i}.resid_post"].append(x)
            if not layer.shares_kv:
                if not (isinstance(made[1], tuple | list) and len(made[1]) == 2):
                    raise Error(f"the kv that layer returns is {type(made[1]).__name__}; it should be a pair, k and v")
                kv[i] = tuple(numbers("layer", a, (e, *shape)) for a in made[1])
    states = {tap: np.concatenate(parts) for tap, parts in states.items()}
    cached = {f"layers.{i}.{part}": a for i, both in kv.items() for part, a in zip(CACHED, both, strict=True)}
    return dict(start) | states | cached


CACHED = ("attn.rot_k", "attn.v")


def whole_pass(student, case):
    """The student's logits."""
    shape = len(case.tokens), case.config.vocab_size
    return {"logits": student.call("forward", shape, case.tokens, case.weights, case.config)}


class Watch:
    """While it is open, what a student's own functions get and give is written down, under the taps' names.

    A norm is known by its weight. The others are called once a layer, so the number of calls says which layer it is.
    """

    def __init__(self, module, case):
        self.module, self.case, self.pieces, self.calls = module, case, defaultdict(list), defaultdict(int)
        self.norms = {self._key(case.weights.norm): ("", "final_norm", None)}
        for i, w in enumerate(case.weights.layers):
            for tap, (of, weight) in NORMS.items():
                if weight and hasattr(w, weight):
                    self.norms[self._key(getattr(w, weight))] = f"layers.{i}.", tap, of

    @staticmethod
    def _key(weight):
        return np.asarray(weight, np.float32).tobytes()

    def __enter__(self):
        names = [name for name in NAMES if callable(getattr(self.module, name, None)) and hasattr(self, f"_{name}")]
        self.patch = mock.patch.multiple(self.module, **{name: self._watched(name) for name in names})
        self.patch.__enter__()
        return self

    def __exit__(self, *error):
        return self.patch.__exit__(*error)

    def _watched(self, name):
        function, write = getattr(self.module, name), getattr(self, f"_{name}")
        parameters = inspect.signature(function)

        @wraps(function)
        def watched(*arguments, **named):
            given = [np.array(a) if isinstance(a, np.ndarray) else a for a in parameters.bind(*arguments, **named).args]
            made = function(*arguments, **named)
            with contextlib.suppress(Exception):  # of other shapes than ours: then it is not a tap
                write(made, *given)
            return made

        return watched

    def _keep(self, prefix, **found):
        for tap, array in found.items():
            self.pieces[prefix + tap.replace("__", ".")].append(np.array(array, np.float32))

    def _layer_of(self, name, count=1):
        """The layer of this call of a function, which the call ends with count 1."""
        self.calls[name] += count
        return f"layers.{(self.calls[name] - count) % self.case.config.num_hidden_layers}."

    def _rms_norm(self, made, x, weight=None, eps=None):
        if weight is None and x.ndim == 3:
            prefix, tap, of = self._layer_of("attention", 0), "attn.v", "attn.v_raw"
        else:
            prefix, tap, of = self.norms[self._key(weight)]
        self._keep(prefix, **{tap: made}, **({of: x} if of else {}))

    def _attention(self, made, q, k, v, mask):
        prefix = self._layer_of("attention")
        self._keep(prefix, attn__rot_q=q, attn__rot_k=k[-len(q) :], attn__v=v[-len(q) :], attn__z=made)

    def _mlp(self, made, x, gate, up, down):
        self._keep(self._layer_of("mlp"), mlp__in=x, mlp__down=made)

    def _ple(self, made, *given):
        self._keep("", ple=made)

    def _layer(self, made, x, *given):
        self._keep(self._layer_of("layer"), resid_pre=x, resid_post=made[0])

    def arrays(self):
        """tap -> array, of all calls; those of the shape that our pass has."""
        ours, found = Trace(), {}
        Port(self.case.config, self.case.weights, self.case.tokens).run(ours)
        for tap, parts in self.pieces.items():
            with contextlib.suppress(ValueError):  # parts that do not fit together
                array = np.concatenate(parts)
                if tap in ours and array.shape == ours[tap].shape:
                    found[tap] = array
        return found


class Printed(io.TextIOBase):
    """A stream that keeps the beginning of what is printed."""

    def __init__(self):
        self.text, self.lines = "", 0

    def write(self, text):
        self.text, self.lines = (self.text + text)[:SHOWN], self.lines + text.count("\n")
        return len(text)


def attempt(what, path, function):
    """Call the function -> what happened, for JSON: `state` (ran, open, wrong, raised), a line, what was printed."""
    printed, state, line = Printed(), "ran", ""
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            function()
        except Open:
            state = "open"
        except Error as error:
            state, line = "wrong", str(error)
        except BaseException as error:  # SystemExit and KeyboardInterrupt too
            holes = isinstance(error, TypeError | AttributeError) and "ellipsis" in str(error)
            state = "open" if holes or isinstance(error, NotImplementedError) else "raised"
            frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
            where = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else frames and frames[-1]
            line = f"{what} raises {type(error).__name__}{f' at line {where}' if where else ''}: {error}"
    return {"state": state, "line": line[:1000], "printed": printed.lines, "shown": printed.text}


def imported(path):
    """The module of a student's file."""
    spec = importlib.util.spec_from_file_location("student_of_minigemma", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(path, folder, names):
    """Import a student's file and run these of its functions; each leaves NAME.json, and an .npz for each case."""
    folder, found, tried = Path(folder), {}, cases()
    result = attempt("the file", path, lambda: found.update(student=Student(imported(path))))
    _write(folder, "file", result)
    if result["state"] != "ran":
        return
    for name in names:

        def each(name=name):
            if not callable(getattr(found["student"].module, name, None)):
                raise Open
            for number, case in enumerate(tried):
                if len(case.pieces) == 1 or name in ("rope", "visible", "attention", "layer"):
                    np.savez(folder / f"{name}.{number}.npz", **trace_of(name, found["student"], case))

        _write(folder, name, attempt(name, path, each))


def _write(folder, name, result):
    """Write JSON under its name once it is whole."""
    part = folder / f"{name}.part"
    part.write_text(json.dumps(result), encoding="utf-8")
    part.replace(folder / f"{name}.json")
