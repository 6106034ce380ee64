"""Mistakes that real engines made with Gemma 4, and their near relatives, each put into our own pass.

An id is a letter for the part of the model and a number, and a small letter where one mistake has several forms:
A embedding, norms, head; B per-layer embeddings; C layer_scalar; D attention; E RoPE; F KV sharing;
G sliding window; H mixture of experts; L what looks like a mistake and changes nothing. Left out are those that need
a real vocabulary, several devices, quantised files or training.
"""

import math
from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np

from minigemma import EMPTY, Cache, forward, model, ops
from minigemma.bf16 import narrow, widen
from minigemma.config import GLOBAL, ROPE_DEFAULTS, SLIDING, inverse_frequencies
from minigemma.ops import rms_norm, softmax
from minigemma.trace import layer_of

WHOLE, CACHED, SOFT = "one call", "a cached sequence", "soft tokens"
PREFILL = 12  # tokens before the cached sequence goes on one by one


@dataclass(frozen=True)
class Mutation:
    id: str
    what: str
    member: str  # the member of the family it is put into
    how: str  # WHOLE, CACHED or SOFT
    apply: object  # function of a Run
    benign: bool


MUTATIONS = []


def mutation(id, what, member="E2B", how=WHOLE, benign=False):
    def register(function):
        MUTATIONS.append(Mutation(id, what, member, how, function, benign))
        return function

    return register


class Run:
    """One pass of ours that a mutation may change: its config, its weights, its taps, the functions it calls."""

    def __init__(self, case, dtype, monkeypatch):
        self.case, self.dtype = case, dtype
        self.config, self.weights = case.config, deepcopy(case.weights(dtype))
        self.patch = monkeypatch.setattr  # (module, name, value), undone after the test
        self.edits = {}  # name of a tap, a layer's without its number: function(at, array) -> array
        self.seen = defaultdict(dict)  # the taps of the present call, by layer
        self.after_call = lambda cache: cache

    def tap(self, name, array):
        i = layer_of(name)
        short = name if i is None else name.split(".", 2)[2]
        if short in self.edits:
            array = self.edits[short](At(self, i), array)
        self.seen[i][short] = array
        return array

    def layers(self, kind=None, sharing=None):
        """Pairs of a layer's facts and its weights, for some of the layers."""
        for layer in self.config.layers:
            if kind in (None, layer.kind) and sharing in (None, layer.shares_kv):
                yield layer, self.weights.layers[layer.index]

    def change_layers(self, change, kind=None, sharing=None):
        """Other facts for some of the layers: change(layer) -> the fields to replace."""
        chosen = {layer.index: replace(layer, **change(layer)) for layer, _ in self.layers(kind, sharing)}
        layers = tuple(chosen.get(layer.index, layer) for layer in self.config.layers)
        self.config = replace(self.config, layers=layers)

    def logits(self, how):
        def call(tokens, cache=EMPTY, soft=None):
            self.seen.clear()
            out, cache = forward(tokens, self.weights, self.config, cache, tap=self.tap, soft_tokens=soft)
            return out, self.after_call(cache)

        if how != CACHED:
            return call(self.case.prompt, soft=self.case.soft(self.dtype))[0]
        out, cache = call(self.case.prompt[:PREFILL])
        rows = [out]
        for token in self.case.prompt[PREFILL:]:
            out, cache = call([token], cache)
            rows.append(out)
        return np.concatenate(rows)


class At:
    """Where an edit stands: at["mlp.gate"] is a tap that this layer, or the part before the layers, gave before."""

    def __init__(self, run, i):
        self.run, self.config = run, run.config
        self.layer, self.w = (None, run.weights) if i is None else (run.config.layers[i], run.weights.layers[i])
        self.decoding = len(run.seen[None]["embed"]) == 1 if None in run.seen else False

    def __getitem__(self, name):
        here = self.run.seen[self.layer.index if self.layer else None]
        return here[name] if name in here else self.run.seen[None][name]

    def norm(self, x, weight=None):
        return rms_norm(x, weight, self.config.rms_norm_eps)


def silu(x):
    return x / (1 + np.exp(-x))


def erf_gelu(x):
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return (0.5 * x * (1 + erf(x / 2**0.5))).astype(x.dtype)


def to_bfloat16(x):
    return widen(narrow(np.asarray(x, np.float32)))


# A: embedding, norms, head


@mutation("A1", "the embedding is not scaled by sqrt(D)")
def _(run):
    run.edits["embed"] = lambda at, x: x / run.config.hidden_size**0.5


@mutation("A1b", "the embedding is scaled by sqrt(D) twice")
def _(run):
    run.edits["embed"] = lambda at, x: x * run.config.hidden_size**0.5


@mutation("A2", "soft tokens are scaled by sqrt(D) as well", how=SOFT)
def _(run):
    where, rows = run.case.soft_tokens
    run.case.soft = lambda dtype: (where, rows.astype(dtype) * run.config.hidden_size**0.5)


@mutation("A3", "sqrt(D) is rounded to bfloat16 for weights that are float32")
def _(run):
    scale = np.float32(run.config.hidden_size**0.5)
    run.edits["embed"] = lambda at, x: x * (to_bfloat16(scale) / scale).astype(x.dtype)


@mutation("A4", "norms multiply by 1 + weight, as in Gemma 1 to 3")
def _(run):
    run.patch(model, "rms_norm", lambda x, w=None, eps=1e-6: rms_norm(x, None if w is None else 1 + w, eps))


@mutation("A5", "the mean square of norms is rounded to bfloat16")
def _(run):
    def norm(x, weight=None, eps=1e-6):
        normed = x / np.sqrt(to_bfloat16((x * x).mean(-1, keepdims=True)) + np.float32(eps))
        return normed if weight is None else normed * weight

    run.patch(model, "rms_norm", norm)


@mutation("A6", "the final softcap is x * tanh(x / cap)")
def _(run):
    run.patch(model, "softcap", lambda x, cap: x * np.tanh(x / cap))


@mutation("A7", "no final softcap")
def _(run):
    run.config = replace(run.config, final_logit_softcapping=None)


@mutation("A8", "SiLU in place of GELU in the MLP")
def _(run):
    run.edits["mlp.act"] = lambda at, x: silu(at["mlp.gate"]) * at["mlp.up"]


@mutation("A8b", "SiLU in place of GELU at the PLE gate")
def _(run):
    run.edits["ple.gate"] = lambda at, x: silu(at["resid_ffn"] @ at.w.per_layer_input_gate.T)


@mutation("A8c", "SiLU in place of GELU in the experts", "26B-A4B")
def _(run):
    run.patch(ops, "gelu", silu)  # the pass itself has its own name for gelu


@mutation("A9", "the erf form of GELU in the MLP")
def _(run):
    run.edits["mlp.act"] = lambda at, x: erf_gelu(at["mlp.gate"]) * at["mlp.up"]


@mutation("A9b", "the erf form of GELU at the PLE gate")
def _(run):
    run.edits["ple.gate"] = lambda at, x: erf_gelu(at["resid_ffn"] @ at.w.per_layer_input_gate.T)


@mutation("A10", "the embedding's scale is in the table, so the tied head is scaled too")
def _(run):
    run.patch(model, "softcap", lambda x, cap: ops.softcap(x * run.config.hidden_size**0.5, cap))


@mutation("A11", "pre_feedforward_layernorm is loaded from post_attention_layernorm")
def _(run):
    for _, w in run.layers():
        w.pre_feedforward_layernorm = w.post_attention_layernorm


@mutation("A12", "the dense MLP beside the experts gets its input without a norm", "26B-A4B")
def _(run):
    run.edits["mlp.in"] = lambda at, x: at["resid_mid"]


# B: per-layer embeddings


@mutation("B1", "no per-layer embeddings")
def _(run):
    run.edits["ple_out"] = lambda at, x: np.zeros_like(x)


@mutation("B2", "no per-layer embeddings and no layer_scalar while decoding", how=CACHED)
def _(run):
    run.edits["ple_out"] = lambda at, x: x * (not at.decoding)
    run.edits["resid_post"] = lambda at, x: x / at.w.layer_scalar if at.decoding else x


@mutation("B3", "the PLE lookup is not scaled by sqrt(P)")
def _(run):
    run.edits["ple.token"] = lambda at, x: x / run.config.hidden_size_per_layer_input**0.5


@mutation("B3b", "the PLE lookup is scaled by sqrt(P) twice")
def _(run):
    run.edits["ple.token"] = lambda at, x: x * run.config.hidden_size_per_layer_input**0.5


@mutation("B4", "the PLE lookup is scaled by sqrt(L * P), the width of the packed table")
def _(run):
    run.edits["ple.token"] = lambda at, x: x * run.config.num_hidden_layers**0.5


@mutation("B5", "the context projection reads each layer's hidden state")
def _(run):
    def gated(at, x):
        P, i = run.config.hidden_size_per_layer_input, at.layer.index
        rows = run.weights.per_layer_model_projection[i * P : (i + 1) * P]
        context = at["resid_pre"] @ rows.T * run.config.hidden_size**-0.5
        context = at.norm(context, run.weights.per_layer_projection_norm)
        return at["ple.gate"] * (context + at["ple.token"][:, i]) * 2**-0.5

    run.edits["ple.gated"] = gated


@mutation("B6", "the PLE constants D**-0.5 and 2**-0.5 are swapped")
def _(run):
    D = run.config.hidden_size
    run.weights.per_layer_model_projection *= (D / 2) ** 0.5
    run.edits["ple"] = lambda at, x: x * (2 / D) ** 0.5


@mutation(
    "B7", "context and lookup are added without 2**-0.5: of a constant factor, ple_out's norm leaves what eps sees"
)
def _(run):
    run.edits["ple"] = lambda at, x: x * 2**0.5


@mutation("B8", "the context projection is not scaled by D**-0.5: a norm follows, only its eps notices", benign=True)
def _(run):
    run.weights.per_layer_model_projection *= run.config.hidden_size**0.5


@mutation("B9", "every layer gets its neighbour's slice of the packed table")
def _(run):
    run.edits["ple"] = lambda at, x: np.roll(x, 1, axis=1)


@mutation("B9b", "every token gets its neighbour's per-layer embedding")
def _(run):
    run.edits["ple"] = lambda at, x: np.roll(x, 1, axis=0)


@mutation("B9c", "after the prompt, the per-layer embeddings are still the prompt's first rows", how=CACHED)
def _(run):
    first = []

    def ple(at, x):
        first.append(x)
        return first[0][: len(x)]

    run.edits["ple"] = ple


@mutation("B10", "soft tokens look up the placeholder's PLE row, not the pad token's", how=SOFT)
def _(run):
    def token(at, x):
        where = run.case.soft_tokens[0]
        P = run.config.hidden_size_per_layer_input
        x[where] = (run.weights.embed_tokens_per_layer[run.case.prompt[where]] * P**0.5).reshape(len(where), -1, P)
        return x

    run.edits["ple.token"] = token


@mutation("B10b", "the context projection reads the pad token's embedding under soft tokens", how=SOFT)
def _(run):
    def context(at, x):
        D, w = run.config.hidden_size, run.weights
        pad = w.embed_tokens[run.config.pad_token_id] * D**0.5 @ w.per_layer_model_projection.T * D**-0.5
        x[run.case.soft_tokens[0]] = at.norm(pad.reshape(x.shape[1:]), w.per_layer_projection_norm)
        return x

    run.edits["ple.context"] = context


@mutation("B11", "the second half of the layers gets no per-layer embeddings")
def _(run):
    run.edits["ple_out"] = lambda at, x: x * (at.layer.index < run.config.num_hidden_layers // 2)


@mutation("B13", "the PLE table is rounded to 4 bits")
def _(run):
    table = run.weights.embed_tokens_per_layer
    step = np.abs(table).max(-1, keepdims=True) / 7
    run.weights.embed_tokens_per_layer = np.round(table / step) * step


@mutation("B15", "soft tokens have no PLE lookup", how=SOFT)
def _(run):
    def token(at, x):
        x[run.case.soft_tokens[0]] = 0
        return x

    run.edits["ple.token"] = token


# C: layer_scalar


@mutation("C1", "layer_scalar is left out")
def _(run):
    for _, w in run.layers():
        w.layer_scalar = np.ones_like(w.layer_scalar)


@mutation("C1b", "the last layer's scalar is left out: the final norm divides it away", benign=True)
def _(run):
    run.weights.layers[-1].layer_scalar = np.ones_like(run.weights.layers[-1].layer_scalar)


@mutation("C2", "layer_scalar is applied before the per-layer embedding is added")
def _(run):
    run.edits["resid_post"] = lambda at, x: at["resid_ffn"] * at.w.layer_scalar + at["ple_out"]


@mutation("C2b", "layer_scalar is applied to what the layer adds, not to the whole residual")
def _(run):
    def scaled(at, x):
        return at["resid_pre"] + at.w.layer_scalar * (at["resid_ffn"] + at["ple_out"] - at["resid_pre"])

    run.edits["resid_post"] = scaled


# D: attention


@mutation("D1", "scores are divided by sqrt(head_dim)")
def _(run):
    run.edits["attn.scores"] = lambda at, x: x * at.layer.head_dim**-0.5


@mutation("D2", "V is not normed, because the checkpoint has no v_norm weight")
def _(run):
    run.edits["attn.v"] = lambda at, x: at["attn.v_raw"]


@mutation("D3", "V of the global layers is made from k_norm's output", "12B")
def _(run):
    run.edits["attn.v"] = lambda at, x: at.norm(at["attn.k"]) if at.layer.k_eq_v else x


@mutation("D3b", "V of the global layers is made from K after RoPE", "12B")
def _(run):
    run.edits["attn.v"] = lambda at, x: at.norm(at["attn.rot_k"]) if at.layer.k_eq_v else x


@mutation("D5", "K is used as V", "E4B")
def _(run):
    run.edits["attn.v"] = lambda at, x: at["attn.rot_k"]


@mutation("D6", "the numbers of global queries are dealt to the heads in the wrong order", "31B")
def _(run):
    def dealt(at, x):
        T, N, H = x.shape
        return x.reshape(T, H, N).swapaxes(1, 2) if at.layer.kind == GLOBAL else x

    run.edits["attn.q_raw"] = dealt


@mutation("D6b", "query head n reads kv head n mod K", "E4B")
def _(run):
    def scores(q, k):
        return np.einsum("tnh,snh->nts", q, k[:, np.arange(q.shape[1]) % k.shape[1]])

    run.patch(model, "attention_scores", scores)


@mutation("D7", "layer 1 is taken for a global one: no window, the other RoPE")
def _(run):
    wrong = run.config.layers[1]
    inv_freq = inverse_frequencies(ROPE_DEFAULTS[GLOBAL], wrong.head_dim)
    changes = {"window": None, "inv_freq": inv_freq}
    run.change_layers(lambda layer: changes if layer is wrong else {})


@mutation("D8", "every softmax is uniform")
def _(run):
    run.edits["attn.pattern"] = lambda at, x: (x > 0) / (x > 0).sum(-1, keepdims=True).astype(x.dtype)


@mutation("D9", "queries are not normed")
def _(run):
    run.edits["attn.q"] = lambda at, x: at["attn.q_raw"]


@mutation("D10", "queries are rotated first and normed then")
def _(run):
    def rotated(at, x):
        cos, sin = ops.rotation(np.arange(len(x)), at.layer.inv_freq, x.dtype)
        return at.norm(ops.rope(at["attn.q_raw"], cos, sin), at.w.q_norm)

    run.edits["attn.rot_q"] = rotated


# E: RoPE


def inverse(factor=0.25, theta=1e6, dim=None):
    """The frequencies of global layers, with something wrong in them."""

    def change(layer):
        half, rotating = layer.head_dim // 2, int(factor * layer.head_dim // 2)
        inv_freq = np.zeros(half)
        inv_freq[:rotating] = theta ** (-2.0 * np.arange(rotating) / (dim or layer.head_dim))
        return {"inv_freq": inv_freq}

    return change


@mutation("E1", "the rotating pairs are (j, j + their number), not (j, j + H/2)")
def _(run):
    rotating = {layer.head_dim: int((layer.inv_freq > 0).sum()) for layer in run.config.layers}

    def rope(x, cos, sin):
        n = rotating[x.shape[-1]]
        return np.concatenate([ops.rope(x[..., : 2 * n], cos[..., :n], sin[..., :n]), x[..., 2 * n :]], axis=-1)

    run.patch(model, "rope", rope)


@mutation("E2", "the exponents are divided by the rotating part of the head, not by the head")
def _(run):
    run.change_layers(lambda layer: inverse(dim=layer.head_dim // 4)(layer), GLOBAL)


@mutation("E3", "all pairs of global heads rotate")
def _(run):
    run.change_layers(inverse(factor=1.0), GLOBAL)


@mutation("E5", "global layers have the theta of sliding ones")
def _(run):
    run.change_layers(inverse(theta=1e4), GLOBAL)


@mutation("E5b", "sliding layers have the theta of global ones")
def _(run):
    run.change_layers(inverse(factor=1.0), SLIDING)


@mutation("E6", "sliding layers rotate a quarter of their pairs, as global ones")
def _(run):
    run.change_layers(inverse(theta=1e4), SLIDING)


@mutation("E7", "positions begin at 0 again in every call", how=CACHED)
def _(run):
    run.patch(model, "rotation", lambda positions, *rest: ops.rotation(positions - positions[0], *rest))


# F: KV sharing


def own_keys_and_values(run):
    """Sharing layers compute K and V from the copies of k_proj, v_proj, k_norm that Google's files still hold."""
    rng = np.random.default_rng(3)
    for layer, w in run.layers(sharing=True):
        shape = layer.num_key_value_heads * layer.head_dim, run.config.hidden_size
        w.k_proj, w.v_proj = (rng.standard_normal((2, *shape)) * shape[1] ** -0.5).astype(run.dtype)
        w.k_norm = rng.uniform(0.5, 1.5, layer.head_dim).astype(run.dtype)
    run.change_layers(lambda layer: {"kv_from": layer.index}, sharing=True)


@mutation("F1", "without a cache, nothing is shared: the unused k_proj and v_proj are used")
def _(run):
    own_keys_and_values(run)


@mutation("F3", "sharing layers write their own K and V into the donor's cache", how=CACHED)
def _(run):
    donors = {layer.kv_from: layer.index for layer, _ in run.layers(sharing=True)}  # the last writer of each
    right = run.config
    own_keys_and_values(run)
    writing, run.config = run.config, right

    def overwrite(cache):
        _, own = forward(run.case.prompt[: cache.length], run.weights, writing)
        return Cache(cache.length, {i: own.entries[donors.get(i, i)] for i in cache.entries})

    run.after_call = overwrite


@mutation("F5", "sharing layers read from the first layer of their kind, not the last")
def _(run):
    first = {layer.kind: layer.index for layer in reversed(run.config.layers)}
    run.change_layers(lambda layer: {"kv_from": first[layer.kind]}, sharing=True)


@mutation("F5b", "sliding sharing layers read from the last but one sliding layer")
def _(run):
    run.change_layers(lambda layer: {"kv_from": layer.kv_from - 1}, SLIDING, sharing=True)


@mutation("F9", "the MLP of sharing layers is not double-wide")
def _(run):
    for layer, w in run.layers(sharing=True):
        F = layer.intermediate_size // 2
        w.gate_proj, w.up_proj, w.down_proj = w.gate_proj[:F], w.up_proj[:F], w.down_proj[:, :F]


@mutation("F11", "sharing layers read what the donor keeps for its next call, not all it has computed in this one")
def _(run):
    def scores(at, x):
        if at.layer.shares_kv and at.layer.kind == SLIDING:
            x[..., : 1 - at.layer.window] = -1e9
        return x

    run.edits["attn.scores"] = scores


# G: sliding window


@mutation("G1", "no window")
def _(run):
    run.change_layers(lambda layer: {"window": None}, SLIDING)


@mutation("G2", "the window does not count the current token: one key too many")
def _(run):
    run.change_layers(lambda layer: {"window": layer.window + 1}, SLIDING)


@mutation("G2b", "one key too few")
def _(run):
    run.change_layers(lambda layer: {"window": layer.window - 1}, SLIDING)


@mutation("G2c", "the cache of sliding layers is cut one key too short", how=CACHED)
def _(run):
    windows = {layer.index: layer.window for layer, _ in run.layers(SLIDING)}

    def cut(cache):
        return cache._replace(
            entries={i: e.trim(windows[i] - 1) if i in windows else e for i, e in cache.entries.items()}
        )

    run.after_call = cut


@mutation("G3", "the mask of sliding layers is built from position + 1")
def _(run):
    def visible(positions, length, window, end):
        return ops.visible(positions + (window is not None), length, window, end)

    run.patch(model, "visible", visible)


# H: mixture of experts


def routed(h, at):
    scale = at.w.router_scale * at.config.hidden_size**-0.5
    return softmax(h * scale @ at.w.router_proj.T)


@mutation("H1", "the router reads the experts' normed input and norms it again", "26B-A4B")
def _(run):
    def probs(at, x):
        return routed(at.norm(at.norm(at["resid_mid"], at.w.pre_feedforward_layernorm_2)), at)

    run.edits["router.probs"] = probs


@mutation("H1b", "the router's norm is left out", "26B-A4B")
def _(run):
    run.edits["router.probs"] = lambda at, x: routed(at["resid_mid"], at)


@mutation("H2", "router.scale is left out", "26B-A4B")
def _(run):
    for _, w in run.layers():
        w.router_scale = np.ones_like(w.router_scale)


@mutation("H2b", "per_expert_scale is left out", "26B-A4B")
def _(run):
    for _, w in run.layers():
        w.per_expert_scale = np.ones_like(w.per_expert_scale)


@mutation("H3", "per_expert_scale is applied twice", "26B-A4B")
def _(run):
    for _, w in run.layers():
        w.per_expert_scale = w.per_expert_scale**2


@mutation("H4", "the experts replace the dense MLP", "26B-A4B")
def _(run):
    run.edits["mlp.dense_out"] = lambda at, x: np.zeros_like(x)


@mutation("H4b", "only the dense MLP is read", "26B-A4B")
def _(run):
    run.edits["mlp.moe_out"] = lambda at, x: np.zeros_like(x)


@mutation("H5", "one expert too few", "26B-A4B")
def _(run):
    run.config = replace(run.config, top_k_experts=run.config.top_k_experts - 1)


@mutation("H6", "the router works in float16", "26B-A4B")
def _(run):
    run.edits["router.probs"] = lambda at, x: x.astype(np.float16).astype(x.dtype)


@mutation("H7", "the router's probabilities are taken for logits", "26B-A4B")
def _(run):
    run.edits["router.probs"] = lambda at, x: softmax(x)


@mutation(
    "H8", "the chosen experts' weights are not renormalised: a factor for each token, which only eps sees", "26B-A4B"
)
def _(run):
    def shares(at, x):
        best = np.sort(at["router.probs"], axis=-1)[:, -x.shape[1] :]
        return x * best.sum(-1, keepdims=True)

    run.edits["router.weights"] = shares


# L: no mistakes


@mutation("L6", "q_proj, k_proj and o_proj are scaled by 2: the norm behind each divides it away", benign=True)
def _(run):
    for layer, w in run.layers():
        w.q_proj, w.o_proj = w.q_proj * 2, w.o_proj * 2
        if not layer.shares_kv:
            w.k_proj = w.k_proj * 2
