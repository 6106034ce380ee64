"""A GGUF file, as llama.cpp writes Gemma 4 -> config, tensors and tokenizer.

A GGUF file is a header (keys with typed values, then a name, a shape, a type and an offset for each tensor) and the
tensors' bytes. llama.cpp's conversion folds nothing into Gemma 4's weights and permutes nothing: they have other names
and the reversed order of dimensions, which describes the same bytes. layouts.py unpacks the blocks of 4 to 8 bits.
Every length, count and offset is checked before it is used. Sources: the format's description in ggml, llama.cpp's
conversion of gemma4.
"""

import math
import mmap
import os
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .config import GLOBAL, SLIDING
from .errors import Error
from .files import check_file
from .layouts import BLOCKS
from .packed import PackedMatrix

WHOLE = {0: ("F32", "<f4"), 1: ("F16", "<f2"), 30: ("BF16", "<u2")}  # types of one number; bfloat16 as its bits
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # of a value
STRING, ARRAY = 8, 9
LARGEST = 2**50  # bytes of a file beyond any sense
SPARE = 2**24  # bytes of memory that the header of any file may take
OUTSIDE = {
    "token_embd.weight": "embed_tokens.weight",
    "per_layer_token_embd.weight": "embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "per_layer_projection_norm.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",  # absent where the head is the token table, as in every Gemma 4
}
LAYER = {  # after `blk.3.` -> after `layers.3.`
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "inp_gate.weight": "per_layer_input_gate.weight",
    "proj.weight": "per_layer_projection.weight",
    "post_norm.weight": "post_per_layer_input_norm.weight",
    "layer_output_scale.weight": "layer_scalar",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
}
STOPS = {"<turn|>", "<|tool_response>"}  # an answer ends where its turn ends, and where a tool is to reply
ROPE = "rope_freqs.weight"  # what llama.cpp divides the global layers' frequencies by: 1, or 1e30 for pairs that stay


class Block(NamedTuple):
    """The place of one tensor. It has `shape`, `dtype` and `map`, as a tensor of a safetensors file."""

    path: Path
    kind: int  # the number of its type
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    @property
    def dtype(self):
        return WHOLE[self.kind][0] if self.kind in WHOLE else BLOCKS[self.kind].name

    def map(self):
        """A view of the file: an array, bfloat16 as its bits, or a PackedMatrix."""
        if self.kind in WHOLE:
            return np.memmap(self.path, WHOLE[self.kind][1], "r", self.offset, self.shape)
        layout, (*rows, width) = BLOCKS[self.kind], self.shape
        raw = np.memmap(self.path, np.uint8, "r", self.offset, (*rows, width // layout.columns * layout.size))
        return PackedMatrix(layout, (raw.view(np.ndarray),), self.shape)


class Gguf(NamedTuple):
    """What the header of a file says."""

    keys: dict
    tensors: dict  # name in the file -> Block


def is_gguf(path):
    """Whether a path names a GGUF file."""
    return Path(path).suffix.lower() == ".gguf"


def read(path):
    """The header of a GGUF file -> Gguf. Raises Error if the file is not whole, or not the text model of a Gemma 4."""
    found = read_header(path)
    name = found.keys.get("general.architecture")
    if name != "gemma4":
        mmproj = "; give the file of the text model, and leave this one beside it" if name == "clip" else ""
        raise Error(f"{path}: holds the architecture {name!r}; minigemma reads gemma4, the text model{mmproj}")
    return found


def read_header(path):
    """The header of any GGUF file -> Gguf. Raises Error if the file is not whole, or one part of several."""
    check_file(path, LARGEST)
    state = os.stat(path)
    return _read(Path(path), state.st_mtime_ns, state.st_size)


@lru_cache(8)  # a header of 262,144 tokens takes half a second
def _read(path, changed, size):
    if size < 24:
        raise Error(f"{path}: has {size} bytes, too few for a GGUF file; download it again")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _Header(data, path).read()
    except OSError as error:
        raise Error(f"{path}: cannot be read ({error})") from None
    if "split.count" in found.keys and found.keys["split.count"] != 1:
        raise Error(f"{path}: is one part of {found.keys['split.count']}; join them with llama-gguf-split --merge")
    return found


def nbytes_of(kind, shape):
    """Bytes of a tensor of the type of this number."""
    if kind in WHOLE:
        return math.prod(shape) * np.dtype(WHOLE[kind][1]).itemsize
    return math.prod(shape) // BLOCKS[kind].columns * BLOCKS[kind].size


class _Header:
    """Reads the header, and never beyond the file's end."""

    def __init__(self, data, path):
        self.data, self.path, self.at, self.spent = data, path, 0, 0

    def refuse(self, why):
        raise Error(f"{self.path}: {why}; download the file again")

    def spend(self, what, count, each):
        """Before `count` things of about `each` bytes of memory are made: a file cannot ask for more than its size."""
        self.spent += count * each
        if self.spent > max(SPARE, len(self.data)):
            self.refuse(f"announces {count} {what}, more than a model of {len(self.data)} bytes has")

    def take(self, size):
        if size > len(self.data) - self.at:
            self.refuse(f"ends at byte {len(self.data)}, inside its header")
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, form, count):
        return struct.unpack(f"<{count}{form}", self.take(struct.calcsize(f"<{form}") * count))

    def number(self, form):
        return self.numbers(form, 1)[0]

    def text(self):
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError:
            self.refuse("has a name or a text that is not UTF-8")

    def value(self, kind, inside=False):
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY or inside:
            self.refuse(f"has a value of the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        self.spend("values", count, 64)
        if kind in SCALARS:
            return list(self.numbers(SCALARS[kind], count))
        return [self.value(kind, inside=True) for _ in range(count)]

    def read(self):
        if self.take(4) != b"GGUF":
            self.refuse("is not a GGUF file, whatever its name says")
        version = self.number("I")
        if version not in (2, 3):
            self.refuse(f"is of GGUF version {version}, or of a machine with the other byte order; 2 and 3 are read")
        tensors, keys = self.number("Q"), self.number("Q")
        self.spend("tensors and keys", tensors + keys, 1024)
        values = {}
        for _ in range(keys):
            name = self.text()
            if name in values:
                self.refuse(f"has the key {name} twice")
            values[name] = self.value(self.number("I"))
        places = [self.place() for _ in range(tensors)]
        align = values.get("general.alignment", 32)
        if type(align) is not int or align < 8 or align & (align - 1):
            self.refuse(f"has a general.alignment of {align!r}, which must be a power of two from 8 on")
        start, end, found = -(-self.at // align) * align, 0, {}
        for name, shape, kind, offset in places:
            if name in found:
                self.refuse(f"has the tensor {name} twice")
            if offset != end:
                self.refuse(f"{name} begins at byte {offset} of the data, not at {end}, where the one before it ends")
            found[name], size = self.block(name, shape, kind, start + offset)
            end = -(-(offset + size) // align) * align
        return Gguf(values, found)

    def place(self):
        name, axes = self.text(), self.number("I")
        if not 1 <= axes <= 4:
            self.refuse(f"{name} has {axes} dimensions")
        shape = self.numbers("Q", axes)[::-1]  # the file has the row's length first
        return name, shape, self.number("I"), self.number("Q")

    def block(self, name, shape, kind, offset):
        if kind not in WHOLE and kind not in BLOCKS:
            read = ", ".join([*(name for name, _ in WHOLE.values()), *(layout.name for layout in BLOCKS.values())])
            raise Error(f"{self.path}: {name} is of type {kind}; minigemma reads {read}: take such a file")
        columns = 1 if kind in WHOLE else BLOCKS[kind].columns
        if 0 in shape or shape[-1] % columns:
            self.refuse(f"{name} of {list(shape)} does not consist of whole blocks of {columns}")
        size = nbytes_of(kind, shape)
        if offset + size > len(self.data):
            self.refuse(f"{name} ends beyond the end of the file")
        return Block(self.path, kind, shape, offset), size


def text_tensors_of(path):
    """Every tensor of the text model -> Block by our names; unknown ones keep theirs. The frequencies are left out.

    Raises Error if two have one name.
    """
    found = {}
    for name, block in read(path).tensors.items():
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        ours = OUTSIDE.get(name, name)
        if layer:
            ours = f"layers.{layer[1]}.{LAYER.get(layer[2], layer[2])}"
        if ours in found:
            raise Error(f"{path}: holds {ours} twice, under two names; download the file again")
        if name != ROPE:
            found[ours] = block
    return found


def config_of(path):
    """The fields of a config.json, from a GGUF file's keys. Raises Error if one is missing or contradicts others."""
    keys, tensors = read(path)

    def key(name, default=None, kinds=(int, float)):
        value = keys.get(f"gemma4.{name}", default)
        if value is not None and not isinstance(value, kinds):
            raise Error(f"{path}: the key gemma4.{name} cannot be {value!r:.60}; convert the model again")
        if value is None:
            raise Error(f"{path}: has no key gemma4.{name}; convert the model again with a newer llama.cpp")
        return value

    layers = key("block_count")
    pattern = key("attention.sliding_window_pattern", kinds=list)
    if len(pattern) != layers:
        raise Error(f"{path}: sliding_window_pattern must have a value for each of the {layers!r} layers")
    kinds = [SLIDING if sliding else GLOBAL for sliding in pattern]
    heads = key("attention.head_count_kv", kinds=(int, list))
    heads = heads if isinstance(heads, list) else [heads] * layers
    widths = key("feed_forward_length", kinds=(int, list))
    widths = widths if isinstance(widths, list) else [widths]
    if len(heads) != layers or not widths:
        raise Error(f"{path}: head_count_kv must have a value for each of the {layers} layers")
    by_kind = {kind: [count for count, other in zip(heads, kinds, strict=True) if other == kind] for kind in kinds}
    for kind, counts in by_kind.items():
        if len(set(counts)) > 1:
            raise Error(f"{path}: {kind} layers have different numbers of kv heads: {sorted(set(counts))}")
    table = tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise Error(f"{path}: has no token_embd.weight of two dimensions; give the file of the text model")
    for name in sorted(keys):
        if name.startswith("gemma4.rope.scaling.") and keys[name] not in ("none", 1, 0, False):
            raise Error(f"{path}: {name} is {keys[name]!r:.60}; Gemma 4's RoPE is not scaled, take the original file")
    experts, ple = key("expert_count", 0), key("embedding_length_per_layer_input", 0)
    keyed = [i for i, kind in enumerate(kinds) if kind == GLOBAL and f"blk.{i}.attn_k.weight" in tensors]
    k_eq_v = bool(keyed) and not any(f"blk.{i}.attn_v.weight" in tensors for i in keyed)
    return {
        "model_type": "gemma4_text",
        "vocab_size": table.shape[0],
        "vocab_size_per_layer_input": table.shape[0],
        "hidden_size": key("embedding_length"),
        "hidden_size_per_layer_input": ple,
        "num_hidden_layers": layers,
        "num_attention_heads": key("attention.head_count"),
        "num_key_value_heads": by_kind.get(SLIDING, heads)[0],
        "num_global_key_value_heads": by_kind.get(GLOBAL, heads)[0] if k_eq_v else None,
        "head_dim": key("attention.key_length_swa"),
        "global_head_dim": key("attention.key_length"),
        "sliding_window": key("attention.sliding_window"),
        "layer_types": kinds,
        "num_kv_shared_layers": key("attention.shared_kv_layers", 0),
        "intermediate_size": min(widths),
        "use_double_wide_mlp": max(widths) > min(widths),
        "attention_k_eq_v": k_eq_v,
        "enable_moe_block": bool(experts),
        "num_experts": experts or None,
        "top_k_experts": keys.get("gemma4.expert_used_count") if experts else None,
        "moe_intermediate_size": keys.get("gemma4.expert_feed_forward_length") if experts else None,
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": key("rope.freq_base_swa")},
            GLOBAL: {
                "rope_type": "proportional",
                "rope_theta": key("rope.freq_base"),
                "partial_rotary_factor": _rotating(path, tensors.get(ROPE)),
            },
        },
        "rms_norm_eps": decimal(key("attention.layer_norm_rms_epsilon")),
        "final_logit_softcapping": key("final_logit_softcapping"),
        "max_position_embeddings": key("context_length"),
        "use_bidirectional_attention": None if ple else "vision",  # no key says it; as in the released models
        "bos_token_id": keys.get("tokenizer.ggml.bos_token_id"),
        "pad_token_id": keys.get("tokenizer.ggml.padding_token_id", 0),
        "eos_token_id": _stops(keys),
    }


def decimal(number):
    """A float32 of a key -> the short decimal number that was meant. Another value stays as it is."""
    return float(f"{number:.6g}") if isinstance(number, float) else number


def _rotating(path, block):
    """The share of a global head's pairs that rotate, from the divisors of their frequencies."""
    if block is None or block.dtype != "F32" or len(block.shape) != 1:
        raise Error(f"{path}: has no {ROPE} of float32; convert the model again with a newer llama.cpp")
    divisors = block.map()
    rotating = np.count_nonzero(divisors == 1)
    if not (divisors[:rotating] == 1).all() or not (divisors[rotating:] >= 1e29).all():
        raise Error(f"{path}: {ROPE} holds other divisors than 1 and then 1e30: another RoPE than Gemma 4's")
    return rotating / len(divisors)


def generation_config_of(path):
    """The fields of a generation_config.json, from a GGUF file's keys."""
    keys = read(path).keys
    return {"eos_token_id": _stops(keys), "suppress_tokens": keys.get("tokenizer.ggml.suppress_tokens")}


def _stops(keys):
    """The ids that end an answer: the keys' own, the end of a turn, and where a tool's reply is to begin."""
    named = [keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    return sorted({id for id in named if isinstance(id, int)} | set(ids_of(keys, STOPS).values()))


def ids_of(keys, names):
    """The ids of tokens by name, of those that the vocabulary has."""
    tokens = keys.get("tokenizer.ggml.tokens")
    return {token: i for i, token in enumerate(tokens) if token in names} if isinstance(tokens, list) else {}


def vocabulary(path):
    """The tokens of a GGUF file, the number of each one's type, and the merges as pairs.

    Raises Error if they are missing.
    """
    keys = read(path).keys
    tokens, kinds, merges = (keys.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges"))
    whole = all(isinstance(part, list) for part in (tokens, kinds, merges)) and len(kinds) == len(tokens)
    if not whole or not all(isinstance(text, str) for text in (*tokens, *merges)):
        raise Error(f"{path}: has no tokens with types and merges; put the model's tokenizer.json beside it")
    return tokens, kinds, [_pair(merge) for merge in merges]


def chat_template(path):
    """The chat template in a GGUF file, or None."""
    template = read(path).keys.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def _pair(merge):
    """Two tokens with a space between them; the first may itself begin with one."""
    middle = merge.find(" ", 1)
    return merge[:middle], merge[middle + 1 :]
