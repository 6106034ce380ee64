"""C: layer_scalar."""

from functools import partial

import numpy as np

from .changes import edited, ones, scaled, together
from .entry import Fault


def no_last_scalar(port):
    port.weights.layers[-1].layer_scalar = np.ones_like(port.weights.layers[-1].layer_scalar)


def scaled_additions(at, x):
    ple_out = at["ple_out"] if at.config.hidden_size_per_layer_input else 0
    return at["resid_pre"] + at.w.layer_scalar * (at["resid_ffn"] + ple_out - at["resid_pre"])


def from_neighbour(port, step):
    """Each layer has the scalar of the layer `step` further; the first and the last are neighbours."""
    scalars = [w.layer_scalar for w in port.weights.layers]
    for layer, w in port.layers():
        w.layer_scalar = scalars[(layer.index + step) % len(scalars)]


ENTRIES = (
    Fault("C1", "layer_scalar is left out", first="layers.*.resid_post", probe="one",
          symptom="the residual grows 8-fold by mid-network, float16 overflows; new random models hide it with 1.0",
          remedy="multiply the whole residual at the end of each layer",
          seen="cloudrift-ai/emmy#371; kekzl/imp#65; larql#181", changes=ones("layer_scalar")),
    Fault("C1b", "the last layer's scalar is left out", first="layers.*.resid_post", probe="one", symptom="none",
          remedy="keep it, so that the taps agree", seen="derived", benign="the final norm divides it away",
          changes=no_last_scalar),
    Fault("C2", "layer_scalar is applied before the per-layer embedding is added", first="layers.*.resid_post",
          probe="one", symptom="PLE counts more than it should",
          remedy="scale last, after all three branches are added", seen="pegainfer#874", needs=("ple",),
          changes=(
              edited("resid_post", lambda at, x: at["resid_ffn"] * at.w.layer_scalar + at["ple_out"]),
              together(  # scaled before the gate, which reads the scaled sum
                  scaled("resid_ffn", lambda at: at.w.layer_scalar),
                  edited("resid_post", lambda at, x: at["resid_ffn"] + at["ple_out"])))),
    Fault("C2b", "layer_scalar is applied to what the layer adds, not to the whole residual",
          first="layers.*.resid_post", probe="one", symptom="the residual keeps everything that earlier layers added",
          remedy="x = (x + branches) * layer_scalar", seen="pegainfer#874",
          changes=edited("resid_post", scaled_additions)),
    Fault("C3", "layer_scalar is that of a neighbouring layer", first="layers.*.resid_post", probe="one",
          symptom="each layer's output has the right direction and the size of a neighbour's",
          remedy="convert the checkpoint again: layer_scalar has lost its layer's number", seen="unsloth#6056",
          changes=(partial(from_neighbour, step=1), partial(from_neighbour, step=-1))),
)  # fmt: skip
