"""J: tokens and template."""

import numpy as np

from .entry import Fault
from .turns import CUE


def no_bos(port):
    port.tokens = port.tokens[1:]


def two_bos(port):
    port.tokens = np.concatenate([port.tokens[:1], port.tokens])


ENTRIES = (
    Fault("J1", "<bos> is missing", first="embed", probe="ids", symptom="degenerate text, most of all from base models",
          remedy="the tokenizer does not add <bos>: the template or your code must add it",
          seen="llama.cpp#21500; unsloth#7903; larql#179", changes=no_bos),
    Fault("J2", "<bos> is there twice", first="embed", probe="ids", symptom="all text is slightly worse",
          remedy="the chat template writes <bos>: do not add another", seen="kekzl/imp#9; ollama#15252",
          changes=two_bos),
    Fault("J3", "the generation prompt opens a thought channel", probe="ids",
          symptom="greedy decoding collapses to <pad>", remedy=CUE,
          seen="lablup/mlxcel#686"),
    Fault("J4", "SentencePiece or byte-level BPE instead of rank-merge BPE on text with U+2581", probe="ids",
          symptom="the model answers another question; decoding the ids still gives the right text",
          remedy="compare ids, not decoded text; use tokenizer.json",
          seen="llama.cpp#21343; tinygrad#15630; ariannamethod/notorch#44"),
    Fault("J5", "merges are applied although their result is not in the vocabulary", probe="ids",
          symptom="names are split into bytes", remedy="skip such merges", seen="kekzl/imp#37"),
    Fault("J6", "byte pieces are dropped or not joined", probe="ids", symptom="accented letters vanish",
          remedy="collect bytes until they form a UTF-8 character", seen="ollama#15278; cactus#684"),
    Fault("J7", "the list of stop tokens is incomplete", probe="ids",
          symptom="generation never stops, or stops where the text only mentions a stop token",
          remedy="eos_token_id of generation_config.json: 1, 106 and 50",
          seen="osaurus-ai/vmlx-swift#93; axolotl#3756"),
    Fault("J8", "placeholder ids are not suppressed", probe="ids", symptom="<audio|> inside the text",
          remedy="set the logits of image and audio ids to -inf", seen="google-deepmind/gemma#649; jundot/omlx#1670"),
)  # fmt: skip
