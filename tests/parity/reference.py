"""The oracle: transformers' Gemma 4, run eagerly and without a cache, recorded under minigemma's tap names.

It runs in two precisions. float32 is transformers as it comes. "Double" is the same code with every float32 that it
names read as float64: transformers pins norms, softmax and RoPE to float32, so that `.double()` alone leaves an error
of 1e-7 in every layer, in which a small mistake of ours could hide. Nothing here is computed by minigemma.
"""

import contextlib
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from family import text_arrays
from transformers import Gemma4ForCausalLM, Gemma4TextConfig
from transformers.models.gemma4 import modeling_gemma4

torch.set_num_threads(1)


@contextlib.contextmanager
def precision(dtype):
    """Inside, float32 is what it is, or, for np.float64, a name for float64 everywhere in torch."""
    if dtype != np.float64:
        yield
        return
    single = torch.float32
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        patches.enter_context(mock.patch.object(torch, "float32", torch.float64))
        patches.enter_context(mock.patch.object(torch, "float", torch.float64))
        torch.set_default_dtype(torch.float64)  # constants such as the embedding scale are made in the default type
        try:
            yield
        finally:
            torch.set_default_dtype(single)


def state_dict(config, weights, prefix="model."):
    """minigemma's weights under the names of a checkpoint."""
    state = {prefix + name: torch.from_numpy(array) for name, array in text_arrays(config, weights).items()}
    return state | {"lm_head.weight": state[f"{prefix}embed_tokens.weight"]}


def eager(text_config):
    """The implementations that are written out in modeling_gemma4: what a person reads, and what has a double."""
    text_config._attn_implementation = "eager"
    text_config._experts_implementation = "eager"
    return text_config


def build(raw, config, weights, dtype):
    """transformers' model of a config.json (the dict; either spelling), with minigemma's weights in it."""
    with precision(dtype):
        model = Gemma4ForCausalLM(eager(Gemma4TextConfig.from_dict(raw.get("text_config", raw)))).eval()
        model.load_state_dict(state_dict(config, weights))  # strict: raises for a missing or unexpected name
    return model


def record(model, tokens, dtype, soft_tokens=None):
    """Every tap of a plain forward pass -> name: array, the batch axis left out."""
    text = model.model
    ids = torch.tensor(np.asarray(tokens))[None]
    inputs = {"input_ids": ids}
    # transformers 5.23.0 slices a None where layers share KV but there is no PLE; asking for hidden states avoids it
    quirk = text.config.num_kv_shared_layers and not text.config.hidden_size_per_layer_input
    with torch.no_grad(), precision(dtype), recording(text) as taps:
        if soft_tokens is not None:
            inputs = soft_inputs(text, ids, soft_tokens)
        taps["logits"] = model(**inputs, use_cache=False, output_hidden_states=bool(quirk)).logits[0].numpy()
    if soft_tokens is not None:
        taps["embed"] = taps["layers.0.resid_pre"]
    return taps


def soft_inputs(text, ids, soft_tokens):
    """What Gemma4Model.forward hands to the text model: merged embeddings, and the pad token's PLE rows under them."""
    where, rows = soft_tokens
    ids = ids.clone()
    ids[0, where] = text.config.pad_token_id
    merged = text.embed_tokens(ids)
    merged[0, where] = torch.from_numpy(rows)
    if not text.hidden_size_per_layer_input:
        return {"inputs_embeds": merged}
    return {"inputs_embeds": merged, "per_layer_inputs": text.get_per_layer_inputs(ids)}


@contextlib.contextmanager
def recording(text):
    """Fill a dict with the taps of the next call of a Gemma4TextModel."""
    taps, handles, ple = {}, [], {}

    def keep(name, tensor, *shape):
        array = tensor.detach().clone().numpy()  # a clone: the reference scales its residual in place
        taps[name] = array.reshape(shape) if shape else array[0]

    def on_output(module, name, *shape):
        handles.append(module.register_forward_hook(lambda _, args, out: keep(name, out, *shape)))

    def on_input(module, name, *shape):
        handles.append(module.register_forward_pre_hook(lambda _, args: keep(name, args[0], *shape)))

    def layer_input(i):
        def hook(_, args):
            keep(f"layers.{i}.resid_pre", args[0])
            if args[1] is not None:
                ple[i] = args[1].detach().clone().numpy()[0]  # [T, P], this layer's part of the combined PLE
                taps["ple"] = np.stack([ple[j] for j in sorted(ple)], axis=1)  # [T, L, P]

        return hook

    on_output(text.embed_tokens, "embed")
    on_output(text.norm, "final_norm")
    if text.hidden_size_per_layer_input:
        L, P = text.config.num_hidden_layers, text.hidden_size_per_layer_input
        on_output(text.embed_tokens_per_layer, "ple.token", -1, L, P)
        on_output(text.per_layer_projection_norm, "ple.context")
    for i, layer in enumerate(text.layers):
        handles.append(layer.register_forward_pre_hook(layer_input(i)))
        _watch_layer(layer, i, taps, SimpleNamespace(output=on_output, input=on_input, keep=keep, handles=handles))

    plain = modeling_gemma4.eager_attention_forward

    def attention(module, query, key, value, *args, **kwargs):
        out, weights = plain(module, query, key, value, *args, **kwargs)
        at = f"layers.{module.layer_idx}.attn."
        keep(at + "rot_q", query.transpose(1, 2))
        if not module.is_kv_shared_layer:
            keep(at + "rot_k", key.transpose(1, 2))
        repeated = modeling_gemma4.repeat_kv(key, module.num_key_value_groups)
        keep(at + "scores", query @ repeated.transpose(2, 3))  # before the mask, as our tap
        keep(at + "pattern", weights)
        return out, weights

    try:
        with mock.patch.object(modeling_gemma4, "eager_attention_forward", attention):
            yield taps
    finally:
        for handle in handles:
            handle.remove()


def _watch_layer(layer, i, taps, on):
    at, attn, mlp = f"layers.{i}.", layer.self_attn, layer.mlp
    on.output(layer.input_layernorm, at + "attn.in")
    heads = -1, layer.config.num_attention_heads, attn.head_dim
    on.output(attn.q_proj, at + "attn.q_raw", *heads)
    on.output(attn.q_norm, at + "attn.q")
    if not attn.is_kv_shared_layer:
        kv_heads = -1, heads[1] // attn.num_key_value_groups, attn.head_dim
        on.output(attn.k_proj, at + "attn.k_raw", *kv_heads)
        on.output(attn.v_proj or attn.k_proj, at + "attn.v_raw", *kv_heads)
        on.output(attn.k_norm, at + "attn.k")
        on.output(attn.v_norm, at + "attn.v")
    on.input(attn.o_proj, at + "attn.z", *heads)
    on.output(attn.o_proj, at + "attn.o")
    on.output(layer.post_attention_layernorm, at + "attn_out")
    on.input(layer.pre_feedforward_layernorm, at + "resid_mid")
    on.output(layer.pre_feedforward_layernorm, at + "mlp.in")
    on.output(mlp.gate_proj, at + "mlp.gate")
    on.output(mlp.up_proj, at + "mlp.up")
    on.input(mlp.down_proj, at + "mlp.act")
    on.output(mlp.down_proj, at + "mlp.down")
    on.output(layer.post_feedforward_layernorm, at + "mlp_out")
    if layer.enable_moe_block:

        def router(_, args, out):
            for name, tensor in zip(("probs", "weights", "experts"), out, strict=True):
                on.keep(f"{at}router.{name}", tensor, *tensor.shape)  # the router's rows have no batch axis

        on.handles.append(layer.router.register_forward_hook(router))
        on.output(layer.post_feedforward_layernorm_1, at + "mlp.dense_out")
        on.output(layer.post_feedforward_layernorm_2, at + "mlp.moe_out")
    if layer.hidden_size_per_layer_input:
        on.input(layer.per_layer_input_gate, at + "resid_ffn")
        on.output(layer.act_fn, at + "ple.gate")
        on.input(layer.per_layer_projection, at + "ple.gated")
        on.output(layer.per_layer_projection, at + "ple.proj")
        on.output(layer.post_per_layer_input_norm, at + "ple_out")

    def layer_output(_, args, out):
        if not layer.hidden_size_per_layer_input:  # no module receives this sum before it is scaled in place
            taps[at + "resid_ffn"] = taps[at + "resid_mid"] + taps[at + "mlp_out"]
        on.keep(at + "resid_post", out)

    on.handles.append(layer.register_forward_hook(layer_output))
