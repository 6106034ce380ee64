"""Healthy engines are called healthy: transformers' tiny model with each engine's traits, in the file that it writes.

A trait is what a right engine does in its own way: names and axes, rows of a table before their scale, joined products,
number formats. Each was read in the engine's source, or seen in a file that it wrote.
"""

import json
from collections import defaultdict
from functools import cache

import gguf_files
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.numpy import save_file
from torch.nn.functional import linear

import minigemma
from minigemma.debug.diagnosis import diagnose_file
from minigemma.taps import layer_of, part_of

from . import port
from .test_diagnosis import FULL, HIDDEN, LOGITS, captured, in_float32

TEXT = "Once upon a time there was a fox who wanted to cross the river. He asked the old frog how deep it was."


# Number formats


def in_blocks_of_8_bits(x):
    """ggml's q8_0: each 32 numbers share a scale, in float16."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half().float()
    return (torch.round(blocks / scale.clamp(min=1e-30)) * scale).flatten(-2)


def in_bfloat16(x):
    return x.bfloat16().float()


def in_float16(x):
    return x.half().float()


def tables(model):
    return [model.model.embed_tokens, model.model.embed_tokens_per_layer]


def matrices(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)]


def round_weights(model, rounded):
    """All tables and matrices; those whose rows 32 does not divide stay, as in ggml."""
    for module in (*tables(model), *matrices(model)):
        if module.weight.shape[-1] % 32 == 0 and module is not model.lm_head:  # it has the token table
            module.weight.copy_(rounded(module.weight))


def round_inputs(model, rounded):
    """What a matrix multiplies is brought into the matrix's own format first, as in ggml."""
    for module in matrices(model):
        if module.weight.shape[-1] % 32 == 0:
            module.forward = lambda x, module=module: linear(rounded(x), module.weight)


def cache_in_float16(context):
    """K and V lie in float16, so what is multiplied with them becomes float16 too."""

    def attend(plain, module, query, key, value, mask, **kwargs):
        k, v = (port.modeling_gemma4.repeat_kv(in_float16(x), module.num_key_value_groups) for x in (key, value))
        scores = in_float16(query) @ k.transpose(2, 3)  # [1, N, T, S]
        context.own[f"layers.{module.layer_idx}.attn.scores"] = scores
        pattern = (scores + mask).softmax(-1)  # [1, N, T, S]
        return (in_float16(pattern) @ v).transpose(1, 2).contiguous(), pattern

    context.patch("eager_attention_forward", attend)


def llama_cpp(rounded=None):
    """The traits of llama.cpp on the CPU. rounded: x -> x in the format of its weights; None: all is float32."""

    def install(model, context):
        port.FAULTS["A9c"].install(model, context)  # its GELU is a table
        if rounded:
            cache_in_float16(context)
            round_weights(model, rounded)
            round_inputs(model, rounded)

    return install


# Names and axes: a tap and its array -> key: array. A key of None: the engine does not show it.


def named(tap, names):
    """The name of a tap; a layer's name is that of its part, and has the layer's number behind it."""
    name = names.get(tap if layer_of(tap) is None else part_of(tap))
    return name and name.format(layer_of(tap))


LLAMA_CPP = {
    "embed": "inp_scaled", "ple.token": "inp_per_layer_selected", "ple.context": "per_layer_proj",
    "ple": "inp_per_layer", "final_norm": "result_norm", "logits": "result_output", "attn.in": "attn_norm-{}",
    "attn.q_raw": "Qcur-{}", "attn.k_raw": "Kcur-{}", "attn.v_raw": "Vcur-{}", "attn.q": "Qcur_normed-{}",
    "attn.k": "Kcur_normed-{}", "attn.v": "Vcur_normed-{}", "attn.rot_q": "Qcur_pos-{}", "attn.rot_k": "Kcur_pos-{}",
    "attn.scores": "kq-{}", "attn.pattern": "kq_soft_max-{}", "attn.z": "kqv_out-{}", "attn_out": "attn_post_norm-{}",
    "resid_mid": "attn_out-{}", "mlp.in": "ffn_norm-{}", "mlp.gate": "ffn_gate-{}", "mlp.up": "ffn_up-{}",
    "mlp.act": "ffn_geglu-{}", "mlp.down": "ffn_out-{}", "mlp_out": "ffn_post_norm-{}", "resid_ffn": "pe_in-{}",
    "ple_out": "per_layer_embd_out-{}", "resid_post": "l_out-{}",
}  # fmt: skip


def as_llama_cpp(tap, array):
    """Scores and patterns have 256 keys."""
    if tap.endswith(("scores", "pattern")):
        array = np.pad(array, [(0, 0), (0, 0), (0, 256 - array.shape[-1])])  # [N, T, 256]
    return {named(tap, LLAMA_CPP): array}


TRANSFORMERS = {
    "final_norm": "norm.output", "logits": "logits", "attn.in": "input_layernorm.output", "attn.q": "self_attn.q_norm",
    "attn.q_raw": "self_attn.q_proj", "attn.k_raw": "self_attn.k_proj", "attn.v_raw": "self_attn.v_proj",
    "attn.k": "self_attn.k_norm", "attn.v": "self_attn.v_norm", "attn.z": "self_attn.o_proj.input",
    "attn.o": "self_attn", "attn_out": "post_attention_layernorm", "resid_mid": "pre_feedforward_layernorm.input",
    "mlp.in": "pre_feedforward_layernorm", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj",
    "mlp.act": "mlp.down_proj.input", "mlp.down": "mlp.down_proj", "mlp_out": "post_feedforward_layernorm",
    "resid_ffn": "per_layer_input_gate.input", "ple.gated": "per_layer_projection.input",
    "ple.proj": "per_layer_projection", "ple_out": "post_per_layer_input_norm", "resid_post": "output",
    "ple.context": "per_layer_projection_norm",
}  # fmt: skip
TABLES = {"embed": "embed_tokens", "ple.token": "embed_tokens_per_layer"}


def as_mlx_lm(tap, array):
    """Module paths, a batch axis, rows of the tables as they lie there; no scores and no pattern."""
    if tap in TABLES:
        row = array / np.float32(array.shape[-1] ** 0.5)  # [T, D], or [T, L, P]
        return {f"language_model.model.{TABLES[tap]}.output": row.reshape(1, len(array), -1)}
    name = TRANSFORMERS.get(tap if layer_of(tap) is None else part_of(tap))
    at = "" if layer_of(tap) is None else f"layers.{layer_of(tap)}."
    return {name and (name if name == "logits" else f"language_model.model.{at}{name}"): array[None]}


GATE_AND_UP = "mlp.gate_up_proj", "mlp.act_fn.input.0"
JOINED = dict.fromkeys(("attn.q_raw", "attn.k_raw", "attn.v_raw"), ("self_attn.qkv_proj",))
JOINED |= dict.fromkeys(("mlp.gate", "mlp.up"), GATE_AND_UP)


def as_vllm(tap, array):
    """As mlx-lm without the batch axis, heads in one axis; products are joined in `file_of`."""
    part, at = part_of(tap), f"model.layers.{layer_of(tap)}."
    if part in JOINED:
        return {at + name: array.reshape(len(array), -1) for name in JOINED[part]}
    if part in ("attn.rot_q", "attn.rot_k", "attn.v"):
        number = ("attn.rot_q", "attn.rot_k", "attn.v").index(part)
        return {f"{at}self_attn.attn.input.{number}": array.reshape(len(array), -1)}
    return {key: array[0].reshape(array.shape[1], -1) for key, array in as_mlx_lm(tap, array).items()}


FLAX = {
    "final_norm": "final_norm/__call__/0", "ple.context": "embedder/per_layer_projection_norm/__call__/0",
    "logits": "logits", "attn.in": "layer_{}/pre_attention_norm/__call__/0",
    "attn.q": "layer_{}/attn/query_norm/__call__/0", "attn.k": "layer_{}/attn/key_norm/__call__/0",
    "attn.v": "layer_{}/attn/value_norm/__call__/0", "attn.q_raw": "layer_{}/attn/q_einsum/__call__/0",
    "attn.rot_k": "layer_{}/attn/__call__/0/0/k", "attn.pattern": "layer_{}/attn/attention_weights/__call__/0",
    "attn.o": "layer_{}/attn/attn_vec_einsum/__call__/0", "attn.k_raw": "layer_{}/attn/kv_einsum/__call__/0",
    "attn.v_raw": "layer_{}/attn/kv_einsum/__call__/0", "attn_out": "layer_{}/post_attention_norm/__call__/0",
    "mlp.in": "layer_{}/pre_ffw_norm/__call__/0", "mlp.gate": "layer_{}/mlp/__call__/0",
    "mlp.up": "layer_{}/mlp/__call__/0", "mlp.down": "layer_{}/mlp/__call__/2",
    "mlp_out": "layer_{}/post_ffw_norm/__call__/0", "ple.proj": "layer_{}/per_layer_projection/__call__/0",
    "ple_out": "layer_{}/post_per_layer_input_norm/__call__/0", "resid_post": "layer_{}/__call__/0/1",
}  # fmt: skip


def as_flax(tap, array):
    if tap.endswith("pattern"):
        array = array.swapaxes(0, 1)  # [T, N, S]
    array = array[None]
    if part_of(tap) in ("attn.k_raw", "attn.v_raw"):
        array = array[None]  # [1, 1, T, K, H], to be joined on the first axis
    if part_of(tap) in ("mlp.gate", "mlp.up"):
        array = array[:, :, None]  # [1, T, 1, F], to be joined on the third
    return {named(tap, FLAX): array}


def as_another_port(tap, array):
    """Names of its own, which a mapping file translates."""
    return {tap.replace("layers.", "text.blocks.").replace("attn.", "attention."): array[None]}


JOINED_ON = {  # an axis
    "kv_einsum/__call__/0": 0, "mlp/__call__/0": 2, "qkv_proj": -1, "gate_up_proj": -1, "act_fn.input.0": -1,
}  # fmt: skip
ENGINES = {  # name: (traits, names and axes, number format)
    "mlx-lm": (None, as_mlx_lm, "float32"),
    "mlx-lm in bfloat16": (None, as_mlx_lm, "bfloat16"),
    "vLLM in bfloat16": (None, as_vllm, "bfloat16"),
    "Flax": (None, as_flax, "float32"),
    "Flax in bfloat16": (None, as_flax, "bfloat16"),
    "a port": (None, as_another_port, "float32"),
    "a port with a folded scale": (port.FAULTS["A14"].install, as_another_port, "float32"),
    "llama.cpp in float32": (llama_cpp(), as_llama_cpp, "float32"),
    "llama.cpp in bfloat16": (llama_cpp(in_bfloat16), as_llama_cpp, "float32"),
    "llama.cpp in q8_0": (llama_cpp(in_blocks_of_8_bits), as_llama_cpp, "float32"),
}
FORMS = {"all taps": FULL, "hidden states": HIDDEN, "logits": LOGITS}
PLAIN = [name for name in ENGINES if name not in ("llama.cpp in bfloat16", "llama.cpp in q8_0")]
TRAITS = {"a port with a folded scale": "A14", "llama.cpp in float32": "A9c"}


@pytest.fixture(scope="module")
def tiny():
    return minigemma.load(minigemma.TINY)


@cache
def recorded(engine):
    """The ids, the taps of transformers' tiny with the engine's traits, and its Config."""
    model, (install, _, precision) = minigemma.load(minigemma.TINY), ENGINES[engine]
    ids = np.array(model.tokenizer.encode(TEXT))
    traits = [port.Fault(engine, "", None, "whole", "", install)] if install else []
    source, weights = model.config.source, in_float32(model.weights)
    return ids, port.record_port(source, model.config, weights, ids, traits, precision=precision), model.config


def file_of(engine, form, folder):
    """What the engine shows of these taps, in a file of its own names -> the file, and a mapping or None."""
    (ids, taps, config), rename, parts = recorded(engine), ENGINES[engine][1], defaultdict(list)
    for tap, array in captured(taps, FORMS[form]).items():
        for key, shown in rename(tap, array).items():
            parts[key].append(shown)
    parts.pop(None, None)
    for key in [key for key, found in parts.items() if "qkv_proj" in key and len(found) == 1]:
        layer = config.layers[int(key.split(".")[2])]  # a sharing layer: it makes K and V too, and never uses them
        parts[key] += 2 * [np.ones((len(ids), layer.num_key_value_heads * layer.head_dim), np.float32)]
    arrays = {}
    for key, found in parts.items():
        axis = next((axis for ending, axis in JOINED_ON.items() if key.endswith(ending)), 0)
        arrays[key] = np.ascontiguousarray(np.concatenate(found, axis))
    save_file(arrays | {"tokens": ids}, folder / "theirs.safetensors")
    if rename is not as_another_port:
        return folder / "theirs.safetensors", None
    names = {next(iter(rename(tap, array))): tap for tap, array in taps.items() if layer_of(tap) in (None, 0)}
    names = {theirs.replace(".0.", ".{i}."): ours.replace("layers.0.", "layers.{i}.") for theirs, ours in names.items()}
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    return folder / "theirs.safetensors", folder / "names.json"


SHOWN = [(engine, form) for engine in PLAIN for form in FORMS if (engine, form) != ("llama.cpp in float32", "logits")]


@pytest.mark.parametrize("engine, form", SHOWN)
def test_a_healthy_engine_has_no_fault_or_its_trait_is_named(engine, form, tiny, tmp_path):
    path, mapping = file_of(engine, form, tmp_path)
    found = diagnose_file(path, tiny, mapping=mapping)
    assert not found.unread
    assert [fault.id for fault in found.faults] == ([TRAITS[engine]] if engine in TRAITS else [])
    assert found.verdict == ("fault" if engine in TRAITS else "healthy")
    if engine in TRAITS:
        assert "explains 100%" in found.sentence and "the rest" not in found.sentence


COARSE = [("llama.cpp in float32", "logits", "float16")]
COARSE += [("llama.cpp in bfloat16", form, "bfloat16") for form in FORMS]


@pytest.mark.parametrize("engine, form, precision", COARSE)
def test_an_engine_of_several_formats_has_no_fault_in_the_coarsest(engine, form, precision, tiny, tmp_path):
    path, _ = file_of(engine, form, tmp_path)
    assert diagnose_file(path, tiny, precision=precision).clean


def test_from_few_numbers_the_format_that_would_explain_them_is_said(tiny, tmp_path):
    path, _ = file_of("llama.cpp in bfloat16", "hidden states", tmp_path)
    found = diagnose_file(path, tiny)
    assert found.faults == []
    assert found.sentence.endswith("bfloat16 rounding would explain all: if they use it, give --precision bfloat16")


def test_a_cache_in_float16_beside_products_in_bfloat16_is_no_fault(tiny, tmp_path):
    path, _ = file_of("llama.cpp in bfloat16", "all taps", tmp_path)
    assert diagnose_file(path, tiny).clean


@pytest.mark.parametrize("form", ["all taps", "hidden states"])
def test_an_engine_with_weights_of_8_bits_is_named_as_one(form, tiny, tmp_path):
    path, _ = file_of("llama.cpp in q8_0", form, tmp_path)
    found = diagnose_file(path, tiny)
    assert found.verdict == "other-weights" and "the same weights, of about 8 bits" in found.sentence


@pytest.fixture(scope="module")
def tiny_in_8_bits(tiny, tmp_path_factory):
    """A GGUF file of tiny in q8_0."""
    keys, tensors = gguf_files.describe(tiny)
    packed = {}
    for name in [name for name, array in tensors.items() if array.ndim > 1 and array.shape[-1] % 32 == 0]:
        numbers = tensors[name].reshape(-1, 32)
        scale = (np.abs(numbers).max(-1, keepdims=True) / 127).astype(np.float16)  # [B, 1]
        whole = np.round(numbers / np.maximum(scale.astype(np.float32), 1e-30)).astype(np.int8)  # [B, 32]
        rows = np.concatenate([scale.view(np.uint8), whole.view(np.uint8)], -1)  # [B, 34]
        packed[name] = 8, rows.tobytes(), tensors[name].shape
    return minigemma.load(gguf_files.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", keys, tensors, packed))


@pytest.mark.parametrize("form", FORMS)
def test_beside_its_own_weights_an_engine_of_8_bits_has_no_fault(form, tiny_in_8_bits, tmp_path):
    """It rounds what it multiplies too, by about as much as bfloat16: of few taps that must be said."""
    path, _ = file_of("llama.cpp in q8_0", form, tmp_path)
    assert diagnose_file(path, tiny_in_8_bits, precision=None if form == "all taps" else "bfloat16").clean
