"""F: KV sharing."""

from functools import partial

import numpy as np

from ...cache import Buffer, Entry
from ...config import SLIDING
from ...ops import attention_scores, attention_values, linear, rope, softmax, visible
from ...packed import HalfMatrix
from .changes import edited, layer_facts, layer_weights, together
from .entry import Fault
from .rope import placed


def own_matrices(port):
    """Sharing layers get their copies of k_proj, v_proj and k_norm, which Google's files still hold."""
    for layer, w in port.layers(sharing=True):
        for part in ("k_proj", "v_proj", "k_norm"):
            name = f"layers.{layer.index}.self_attn.{part}.weight"
            if name in port.unused:
                setattr(w, part, port.unused[name])


def overwrite_donors(port, reading=False):
    """Each sharing layer writes its K and V over its donor's of this call: the last one's stay in the cache.

    reading: the sharing layers attend to what they wrote.
    """
    own_matrices(port)
    last = {layer.kv_from: layer.index for layer, _ in port.layers(sharing=True)}  # donor: the last to overwrite it
    call, written = {}, {}  # layer: (k, v) of this call; donor: (k, v) of all calls so far

    def write(at, x):
        if at.layer.shares_kv:
            shape = len(x), at.layer.num_key_value_heads, at.layer.head_dim
            k = at.norm(linear(at["attn.in"], at.w.k_proj).reshape(shape), at.w.k_norm)  # [T, K, H]
            v = at.norm(linear(at["attn.in"], at.w.v_proj).reshape(shape))  # [T, K, H]
            call[at.i] = rope(k, *at.rotation(x)), v
        return x

    def stored(at, which, length):
        """K (0) or V (1) in the donor's slots when this layer reads them: [S, K, H]."""
        before = written[at.layer.kv_from][which] if at.decoding else call[at.i][which][:0]
        return np.concatenate([before, call[at.i][which]])[-length:]

    def scores(at, x):
        return attention_scores(at["attn.rot_q"], stored(at, 0, x.shape[-1])) if at.layer.shares_kv else x

    def z(at, x):
        pattern = at["attn.pattern"]  # [N, T, S]
        return attention_values(pattern, stored(at, 1, pattern.shape[-1])) if at.layer.shares_kv else x

    def after_call(cache):
        entries = dict(cache.entries)
        for donor, writer in last.items():
            parts = [written[donor], call[writer]] if donor in written else [call[writer]]
            written[donor] = k, v = [np.concatenate(both) for both in zip(*parts, strict=True)]
            entries[donor] = Entry(Buffer(k, v, len(k)), 0, len(k)).trim(port.config.layers[donor].window)
        return cache._replace(entries=entries)

    port.edit("attn.q_raw", write)
    if reading:
        port.edit("attn.scores", scores)
        port.edit("attn.z", z)
    port.after_call = after_call


def first_of_the_kind(port):
    first = {layer.kind: layer.index for layer in reversed(port.config.layers)}
    port.change_layers(lambda layer: {"kv_from": first[layer.kind]}, sharing=True)


def last_but_one_of_the_kind(port):
    def before(layer):
        same = [o.index for o in port.config.layers[: layer.kv_from] if o.kind == layer.kind]
        return {"kv_from": same[-1] if same else layer.kv_from}

    port.change_layers(before, SLIDING, sharing=True)


def top_left(matrix, rows, columns):
    """The first rows and columns of a matrix; None: all."""
    if isinstance(matrix, HalfMatrix):
        return HalfMatrix(np.ascontiguousarray(matrix.bits[:rows, :columns]))
    return np.asarray(matrix)[:rows, :columns]


def single_wide(layer, w):
    F = layer.intermediate_size // 2
    halves = {name: top_left(getattr(w, name), F, None) for name in ("gate_proj", "up_proj")}
    return {**halves, "down_proj": top_left(w.down_proj, None, F)}


def behind_the_call(at, by):
    """The positions of q where the donor has already moved on the offset that sharing layers read: [T]."""
    return at.positions + by * at.layer.shares_kv


def last_keys_only(at, x, fewer=0):
    """The pattern [N, T, S] of a sliding layer that reads the last keys of a call only, a window of them or fewer."""
    if at.layer.window is None or x.shape[-1] < at.layer.window:
        return x
    kept = np.arange(x.shape[-1]) >= x.shape[-1] - at.layer.window + fewer  # [S]
    seen = kept & visible(at.positions[-x.shape[1] :], x.shape[-1], at.layer.window, at.positions[-1] + 1)  # [T, S]
    blind = ~seen.any(-1, keepdims=True) & kept  # [T, S]: all keys masked alike, softmax is uniform over them
    return softmax(np.where(seen, at["attn.scores"], np.where(blind, 0, -np.inf))).astype(x.dtype)


ENTRIES = (
    Fault("F1", "K and V are not shared: the unused k_proj and v_proj of the last layers are used",
          first="layers.*.attn.scores", probe="one",
          symptom="without a cache the logits are garbage, with a cache they are right; a loss of 16 instead of 7",
          remedy="share K and V by layer index, with and without a cache",
          seen="transformers#45242; mlx-swift-lm#333; unsloth-zoo#813", needs=("sharing", "unused"),
          changes=together(own_matrices, layer_facts(lambda layer: {"kv_from": layer.index}, sharing=True))),
    Fault("F3", "sharing layers write their own K and V into the donor's cache", first="layers.*.attn.z",
          probe="cached", symptom="the prompt is right, decoding is garbage",
          remedy="sharing layers never write to the cache", seen="vllm-ascend#11791; maxtext#4053",
          needs=("sharing", "unused", "cached"), changes=(overwrite_donors, partial(overwrite_donors, reading=True))),
    Fault("F5", "sharing layers read from the first layer of their kind, not the last", first="layers.*.attn.scores",
          probe="one", symptom="the first sharing layer is wrong",
          remedy="the donor is the last non-sharing layer of the same kind (E2B: 13 and 14)",
          seen="Alberto-Codes/turboquant-vllm#79; axolotl#3701", needs=("sharing",), changes=first_of_the_kind),
    Fault("F5b", "sharing layers read from the second-to-last layer of their kind", first="layers.*.attn.scores",
          probe="one", symptom="the first sharing layer is wrong",
          remedy="the donor is the last non-sharing layer of the same kind (E2B: 13 and 14)",
          seen="Alberto-Codes/turboquant-vllm#79", needs=("sharing",), changes=last_but_one_of_the_kind),
    Fault("F9", "the MLP of sharing layers is not double-wide", first="layers.*.mlp.gate", probe="one",
          symptom="shapes do not fit from the first sharing layer on, or half of each matrix is not read",
          remedy="use_double_wide_mlp doubles intermediate_size where K and V are shared",
          seen="huggingface/candle#3448", needs=("wide",), changes=layer_weights(single_wide, sharing=True)),
    Fault("F11", "sharing layers read the donor's trimmed cache, not all K and V of this call",
          first="layers.*.attn.pattern", probe="window", symptom="prompts shorter than the window are right",
          remedy="hand over all K and V of the call, then trim the donor's cache", seen="transformers#45312",
          needs=("sharing",),
          changes=edited("attn.pattern", lambda at, x: last_keys_only(at, x, 1) if at.layer.shares_kv else x)),
    Fault("F12", "sharing layers rotate q by the positions after the call, as the donor has moved the shared offset",
          first="layers.*.attn.rot_q", probe="nine", symptom="only the KV-sharing layers are wrong",
          remedy="read the offset once, before the first layer of the call", seen="mlx-lm#1702", needs=("sharing",),
          changes=(
              placed(lambda at: behind_the_call(at, len(at.positions)), ["attn.rot_q"]),
              placed(lambda at: behind_the_call(at, 1), ["attn.rot_q"]))),
    Fault("F12b", "while decoding, sharing layers rotate q by the position after the token", probe="cached",
          first="layers.*.attn.rot_q", symptom="only the KV-sharing layers are wrong",
          remedy="read the offset once, before the first layer of the call", seen="mlx-lm#1702",
          needs=("sharing", "cached"),
          changes=placed(lambda at: behind_the_call(at, len(at.positions)), ["attn.rot_q"])),
)  # fmt: skip
