"""G: the sliding window."""

import numpy as np

from ...config import SLIDING
from ...ops import visible
from .changes import edited, layer_facts, masked_softmax
from .entry import Fault
from .sharing import last_keys_only


def short_cache(port):
    windows = {layer.index: layer.window for layer, _ in port.layers(SLIDING)}

    def cut(cache):  # so that the shorter cache fits: from the second call on the window is one shorter
        port.change_layers(lambda layer: {"window": windows[layer.index] - 1}, SLIDING)
        entries = {i: e.trim(windows[i] - 1) if i in windows else e for i, e in cache.entries.items()}
        return cache._replace(entries=entries)

    port.after_call = cut


def mask_of_the_next_position(at, x):
    if at.layer.window is None:
        return x
    T, S = x.shape[1:]
    after, last = at.positions[-T:] + 1, at.last[-T:]  # [T] each
    return masked_softmax(at, visible(after, S, at.layer.window, at.positions[-1] + 1, np.maximum(after, last)))


ENTRIES = (
    Fault("G1", "no window", first="layers.*.attn.pattern", probe="window",
          symptom="prompts shorter than the window are right",
          remedy="pass sliding_window to the attention of sliding layers", seen="vllm-project/vllm-metal#282",
          changes=layer_facts(lambda layer: {"window": None}, SLIDING)),
    Fault("G2", "the window does not count the current token: one key too many", first="layers.*.attn.pattern",
          probe="window", symptom="right up to sliding_window tokens, wrong from the next one on",
          remedy="the window counts the current token: pass window - 1 to kernels that count the keys before it",
          seen="sglang#26147; Megatron-Bridge#4683; zml/zml#763; pegainfer#818",
          changes=layer_facts(lambda layer: {"window": layer.window + 1}, SLIDING)),
    Fault("G2b", "the window is one key too short", first="layers.*.attn.pattern", probe="window",
          symptom="right up to sliding_window - 1 tokens",
          remedy="the window is sliding_window keys, the current token's included", seen="sglang#26147",
          changes=layer_facts(lambda layer: {"window": max(1, layer.window - 1)}, SLIDING)),
    Fault("G2c", "the cache of sliding layers is cut one key too short", first="layers.*.attn.z", probe="cached",
          symptom="the prompt is right; decoding beyond the window is slightly wrong",
          remedy="keep window - 1 keys: with the new key the window is full", seen="a near relative of G2",
          needs=("cached",), changes=short_cache),
    Fault("G3", "the mask of sliding layers is built from position + 1", first="layers.*.attn.pattern", probe="nine",
          symptom="each query sees the token after it", remedy="build the mask from the query's own position",
          seen="quic/efficient-transformers#1250", changes=edited("attn.pattern", mask_of_the_next_position)),
    Fault("G4", "sliding layers read only the last sliding_window keys of a call",
          first="layers.*.attn.pattern", probe="window", symptom="the first queries of a long call see no key",
          remedy="a call of n tokens needs the n + sliding_window - 1 last keys",
          seen="mlxcel#405, #678, #885",
          changes=(
              edited("attn.pattern", last_keys_only),
              edited("attn.pattern", lambda at, x: last_keys_only(at, x, 1)))),
)  # fmt: skip
