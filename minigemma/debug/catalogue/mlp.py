"""M: the MLP and the norms around it."""

from .changes import edited, layer_weights, passes
from .entry import Fault


def no_post_norm(at, x):
    return at["mlp.dense_out"] + at["mlp.moe_out"] if at.config.enable_moe_block else at["mlp.down"]


ENTRIES = (
    Fault("M1", "gate_proj and up_proj are swapped", first="layers.*.mlp.gate", probe="one", symptom="random text",
          remedy="apply gelu to gate_proj's output; a fused gate_up matrix has the gate first",
          seen="a near relative of A8",
          changes=layer_weights(lambda layer, w: {"gate_proj": w.up_proj, "up_proj": w.gate_proj})),
    Fault("M2", "post_attention_layernorm is left out", first="layers.*.attn_out", probe="one",
          symptom="attention adds too much or too little",
          remedy="norm attention's output before it is added: each layer has four norms", seen="a near relative of A11",
          changes=passes("attn_out", of="attn.o")),
    Fault("M3", "post_feedforward_layernorm is left out", first="layers.*.mlp_out", probe="one",
          symptom="the MLP adds too much or too little",
          remedy="norm the MLP's output before it is added: each layer has four norms", seen="a near relative of A11",
          changes=edited("mlp_out", no_post_norm)),
)  # fmt: skip
