"""L: what looks like a mistake and is none."""

import numpy as np

from .attention import visible_keys
from .changes import edited, masked_softmax, scaled, together
from .entry import Fault
from .rope import placed, since_bos


def apart(at, x):
    """The pattern [N, T, S] of prompts in one row that do not see each other."""
    begins = (at.positions - since_bos(at))[-x.shape[1] :]  # [T], the first position of each token's prompt
    return masked_softmax(at, visible_keys(at, x) & (np.arange(x.shape[-1]) >= begins[:, None]))


ENTRIES = (
    Fault("L1", "an -it model scores a perplexity of 10,000 on raw text", probe="ids",
          symptom="the perplexity looks alarming",
          remedy="score tuned models on text inside the chat template, with <bos>",
          seen="lablup/mlxcel#686; kekzl/imp#2044; Samsung/TICO#890",
          benign="tuned checkpoints predict text only inside the chat template"),
    Fault("L3", "greedy tokens differ from those of a bfloat16 run", probe="nine",
          symptom="about one token in a hundred differs",
          remedy="compare logits, and the margin between the two largest", seen="TheCause/gemma4-zml-probe",
          benign="logits near 25 are 0.125 apart in bfloat16, so ties are common"),
    Fault("L5", "the last entry of output_hidden_states is not the last layer's output", probe="one",
          symptom="the last layer looks broken", remedy="it is after the final norm: compare it with `final_norm`",
          seen="pegainfer hf-golden.md", benign="that is how transformers fills the list"),
    Fault("L9", "hooks on the KV-sharing layers see one position", probe="nine",
          symptom="shapes differ from the first sharing layer on",
          remedy="run a plain forward, not generate(): its prefill needs these layers at the last position only",
          seen="transformers 5.23.0, _maybe_slice_kv_shared_inputs", benign="the result is the same"),
    Fault("L6", "q_proj, k_proj and o_proj are scaled by a constant", first="layers.*.attn.q_raw", probe="one",
          symptom="none", remedy="nothing to do", seen="TheCause/gemma4-zml-probe",
          benign="the norm after each of them divides the constant away",
          changes=together(
              scaled("attn.q_raw", lambda at: 2), scaled("attn.o", lambda at: 2),
              scaled("attn.k_raw", lambda at: 1 if at.layer.k_eq_v else 2))),
    Fault("L10", "positions start again at the second <bos>: two prompts in one row",
          first="layers.*.attn.rot_q", probe="far", symptom="everything from the second <bos> on is another",
          remedy="compare each prompt alone", seen="transformers#46634",
          benign="the prompts are masked apart, so each has the numbers that it has alone", needs=("packed",),
          changes=together(placed(since_bos), edited("attn.pattern", apart))),
)  # fmt: skip
