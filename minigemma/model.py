"""Gemma 4, whole: tokens in, logits out, every step named. Start reading here.

Letters: T new tokens, S visible positions, D hidden_size, N query heads, K kv heads, H head_dim, F MLP width,
P hidden_size_per_layer_input, L layers, V vocabulary, E experts, k experts a token. There is no batch axis.
"""

import numpy as np

from .cache import EMPTY, Cache, check_cache
from .errors import Error
from .ops import (
    as_soft_tokens, as_tokens, attention_scores, attention_values, experts, gelu, linear, rms_norm, rope, rotation,
    softcap, softmax, top_k, visible,
)  # fmt: skip


def no_tap(name, array):
    """A tap is called on every intermediate, in order, and its result is used. This one changes nothing."""
    return array


def forward(tokens, weights, config, cache=EMPTY, *, tap=no_tap, logits="all", soft_tokens=None):
    """tokens [T] -> logits [T, V] and the cache for the next call. Pure: `cache` is a value and stays valid.

    logits: "all" positions; "last", where the KV-sharing layers run for the last position only -> [1, V]; None, where
    they do not run at all: all that a prompt's earlier part needs, because these layers write no K and V.
    soft_tokens: (positions [M], rows [M, D]), image or audio embeddings that take the place of the tokens' own.
    """
    if logits not in ("all", "last", None):
        raise Error(f'logits must be "all", "last" or None, not {logits!r}')
    check_cache(cache, config, weights.norm.dtype)
    ids = as_tokens(tokens, cache, config)  # [T]
    T, D, N, P = len(ids), config.hidden_size, config.num_attention_heads, config.hidden_size_per_layer_input
    eps, end = config.rms_norm_eps, cache.length + len(ids)
    positions = np.arange(cache.length, end)  # [T]

    x = weights.embed_tokens[ids] * D**0.5  # [T, D]
    if soft_tokens is not None:
        where, rows = as_soft_tokens(soft_tokens, T, config)  # [M], [M, D]
        x[where] = rows  # not multiplied by sqrt(D): only the table's rows are
        ids[where] = config.pad_token_id  # PLE has no row for an image: it looks up the pad token's
    x = tap("embed", x)  # [T, D]

    if P:  # Per-Layer Embeddings: a small vector for each token and each layer, made once, here
        token = (weights.embed_tokens_per_layer[ids] * P**0.5).reshape(T, -1, P)  # [T, L, P]
        token = tap("ple.token", token)  # [T, L, P], what the table says of this token's identity
        context = linear(x, weights.per_layer_model_projection) * D**-0.5  # [T, L*P]
        context = rms_norm(context.reshape(T, -1, P), weights.per_layer_projection_norm, eps)  # [T, L, P]
        context = tap("ple.context", context)  # [T, L, P], projected from its embedding: a second view
        ple = tap("ple", (context + token) * 2**-0.5)  # [T, L, P]

    kv = {}  # this call's K and V by the layer that wrote them
    layers = config.layers if logits is not None else config.layers[: config.first_kv_shared_layer]
    for layer in layers:
        i, w = layer.index, weights.layers[layer.index]

        def at(name, array, i=i):
            return tap(f"layers.{i}.{name}", array)

        if i == config.first_kv_shared_layer and logits == "last":
            x, positions = x[-1:], positions[-1:]  # [1, D], [1]
        T = len(x)
        x = at("resid_pre", x)  # [T, D]

        # Attention, sliding or global
        cos, sin = rotation(positions, layer.inv_freq, x.dtype)  # [T, 1, H/2]
        h = at("attn.in", rms_norm(x, w.input_layernorm, eps))  # [T, D]
        q = at("attn.q_raw", linear(h, w.q_proj).reshape(T, N, -1))  # [T, N, H]
        q = at("attn.q", rms_norm(q, w.q_norm, eps))  # [T, N, H]
        q = at("attn.rot_q", rope(q, cos, sin))  # [T, N, H]
        if layer.kv_from == i:
            k_raw = at("attn.k_raw", linear(h, w.k_proj).reshape(T, -1, layer.head_dim))  # [T, K, H]
            v_raw = k_raw if layer.k_eq_v else linear(h, w.v_proj).reshape(k_raw.shape)  # [T, K, H]
            v_raw = at("attn.v_raw", v_raw)  # [T, K, H]
            k = at("attn.k", rms_norm(k_raw, w.k_norm, eps))  # [T, K, H]
            k = at("attn.rot_k", rope(k, cos, sin))  # [T, K, H]
            v = at("attn.v", rms_norm(v_raw, None, eps))  # [T, K, H], normed without a learned weight
            kv[i] = cache.extended(i, k, v)
        k, v = kv[layer.kv_from].k, kv[layer.kv_from].v  # [S, K, H], its own or its donor's
        scores = at("attn.scores", attention_scores(q, k))  # [N, T, S], not scaled, not yet masked
        scores = np.where(visible(positions, len(k), layer.window, end), scores, -np.inf)  # [N, T, S]
        pattern = at("attn.pattern", softmax(scores))  # [N, T, S]
        z = at("attn.z", attention_values(pattern, v))  # [T, N, H]
        o = at("attn.o", linear(z.reshape(T, -1), w.o_proj))  # [T, D]
        attn_out = at("attn_out", rms_norm(o, w.post_attention_layernorm, eps))  # [T, D]
        x = at("resid_mid", x + attn_out)  # [T, D]

        # MLP, and beside it the mixture of experts where the model has one
        h = at("mlp.in", rms_norm(x, w.pre_feedforward_layernorm, eps))  # [T, D]
        gate, up = at("mlp.gate", linear(h, w.gate_proj)), at("mlp.up", linear(h, w.up_proj))  # [T, F] each
        mlp = at("mlp.down", linear(at("mlp.act", gelu(gate) * up), w.down_proj))  # [T, D]
        if config.enable_moe_block:
            h = rms_norm(x, None, eps) * w.router_scale * D**-0.5  # [T, D], from the raw residual
            probs = at("router.probs", softmax(linear(h, w.router_proj)))  # [T, E]
            chosen = top_k(probs, config.top_k_experts)  # [T, k]
            share = np.take_along_axis(probs, chosen, axis=-1)  # [T, k]
            share = share / share.sum(-1, keepdims=True) * w.per_expert_scale[chosen]  # [T, k]
            share, chosen = at("router.weights", share), at("router.experts", chosen)  # [T, k] each
            h = rms_norm(x, w.pre_feedforward_layernorm_2, eps)  # [T, D], the experts' own pre-norm
            moe = experts(h, w.experts_gate_up_proj, w.experts_down_proj, chosen, share)  # [T, D]
            dense_out = at("mlp.dense_out", rms_norm(mlp, w.post_feedforward_layernorm_1, eps))  # [T, D]
            mlp = dense_out + at("mlp.moe_out", rms_norm(moe, w.post_feedforward_layernorm_2, eps))  # [T, D]
        mlp_out = at("mlp_out", rms_norm(mlp, w.post_feedforward_layernorm, eps))  # [T, D]
        x = at("resid_ffn", x + mlp_out)  # [T, D]

        # PLE's gate: context decides how much of the token's own vector comes back, here and now
        if P:
            gate = at("ple.gate", gelu(linear(x, w.per_layer_input_gate)))  # [T, P]
            gated = at("ple.gated", gate * ple[-T:, i])  # [T, P]
            proj = at("ple.proj", linear(gated, w.per_layer_projection))  # [T, D]
            x = x + at("ple_out", rms_norm(proj, w.post_per_layer_input_norm, eps))  # [T, D]
        x = at("resid_post", x * w.layer_scalar)  # [T, D], the whole residual is scaled

    entries = {i: entry.trim(config.layers[i].window) for i, entry in kv.items()}
    if logits is None:
        return None, Cache(end, entries)
    x = tap("final_norm", rms_norm(x[-1:] if logits == "last" else x, weights.norm, eps))  # [T, D]
    out = softcap(linear(x, weights.embed_tokens), config.final_logit_softcapping)  # [T, V], tied to the token table
    return tap("logits", out), Cache(end, entries)
