"""Gemma 4 whole: tokens in, logits out, every step named. Start reading here.

    x = embed_tokens[ids] * sqrt(D)                the residual stream, [T, D] from here to the end
    ple = per_layer_inputs(x, ids)                 a small vector for each token and each layer (E2B and E4B)
    for each layer:
        x += norm(attention(norm(x)))              sliding or global, with its own K and V or a donor's
        x += norm(mlp(norm(x)))                    a gated MLP; beside it experts (26B-A4B)
        x += norm(project(gate(x) * ple[layer]))   (E2B and E4B)
        x *= layer_scalar
    logits = softcap(norm(x) @ embed_tokens.T)

12B and 31B run only the lines without a model's name. `linear` takes nearly all of the time, most of it in the MLP.

Letters: T new tokens, S visible positions, D hidden_size, N query heads, K kv heads, H head_dim, F MLP width,
P hidden_size_per_layer_input, L layers, V vocabulary, E experts, k experts a token, M soft tokens. No batch axis.
"""

import numpy as np

from .cache import EMPTY, Cache, check_cache
from .inputs import as_soft_tokens, as_tap, as_tokens, check_model, no_tap, tap_under
from .ops import (
    attention_scores, attention_values, experts, gelu, horizon, linear, rms_norm, rope, rotation, softcap, softmax,
    top_k, visible,
)  # fmt: skip


def forward(tokens, weights, config, cache=EMPTY, *, tap=no_tap, logits="all", soft_tokens=None):
    """tokens [T] -> logits [T, V] and the cache for the next call. Pure: `cache` is a value and stays valid.

    logits: "all" positions; "last" position only -> [1, V]; None: no logits, for the earlier chunks of a prompt.
    soft_tokens: (positions [M], rows [M, D]), image or audio embeddings that replace the embeddings of these tokens;
    their ids are placeholders. A picture must lie in one call whole.
    Raises Error for arguments that do not fit each other.
    """
    check_model(weights, config, logits)
    check_cache(cache, config, weights.norm.dtype)
    ids = as_tokens(tokens, cache, config)  # [T]
    tap = as_tap(tap, config)
    D, N, P = config.hidden_size, config.num_attention_heads, config.hidden_size_per_layer_input
    eps, end = config.rms_norm_eps, cache.length + len(ids)
    positions = last = np.arange(cache.length, end)  # [T] each

    x = weights.embed_tokens[ids] * D**0.5  # [T, D]
    if soft_tokens is not None:
        where, rows = as_soft_tokens(soft_tokens, ids, config)  # [M], [M, D]
        last = horizon(ids, positions, config)  # [T], where a picture may look ahead on sliding layers
        x[where] = rows  # not multiplied by sqrt(D): only the table's rows are
        ids[where] = config.pad_token_id  # the PLE table has no row for an image: PLE looks up the pad token
    x = tap("embed", x)  # [T, D]
    ple = per_layer_inputs(x, ids, weights, config, tap) if P else None  # [T, L, P]

    kv = {}  # keys and values, cached and new, by the layer that wrote them
    for layer, w in zip(config.layers, weights.layers, strict=True):
        i, K, H = layer.index, layer.num_key_value_heads, layer.head_dim
        if i == config.first_kv_shared_layer and logits != "all":
            # From here on no layer writes K and V, so earlier positions are not needed: keep the last one, or stop.
            if logits is None:
                break
            x, positions, last = x[-1:], positions[-1:], last[-1:]  # [1, D], [1], [1]
        T, at = len(x), tap_under(tap, f"layers.{i}.")
        x = at("resid_pre", x)  # [T, D]

        # Attention, sliding or global
        attn_in = at("attn.in", rms_norm(x, w.input_layernorm, eps))  # [T, D]
        q_raw = at("attn.q_raw", linear(attn_in, w.q_proj).reshape(T, N, H))  # [T, N, H]
        q = at("attn.q", rms_norm(q_raw, w.q_norm, eps))  # [T, N, H]
        cos, sin = rotation(positions, layer.inv_freq, x.dtype)  # [T, 1, H/2] each
        rot_q = at("attn.rot_q", rope(q, cos, sin))  # [T, N, H]
        if not layer.shares_kv:
            k_raw = at("attn.k_raw", linear(attn_in, w.k_proj).reshape(T, K, H))  # [T, K, H]
            v_raw = k_raw.copy() if layer.k_eq_v else linear(attn_in, w.v_proj).reshape(T, K, H)  # [T, K, H]
            v_raw = at("attn.v_raw", v_raw)  # [T, K, H]
            k = at("attn.k", rms_norm(k_raw, w.k_norm, eps))  # [T, K, H]
            rot_k = at("attn.rot_k", rope(k, cos, sin))  # [T, K, H]
            v = at("attn.v", rms_norm(v_raw, None, eps))  # [T, K, H], normed without a learned weight
            kv[i] = cache.extended(i, rot_k, v)
        keys, values = kv[layer.kv_from].k, kv[layer.kv_from].v  # [S, K, H] each, this layer's own or its donor's
        scores = at("attn.scores", attention_scores(rot_q, keys))  # [N, T, S], not divided by sqrt(H)
        scores = np.where(visible(positions, len(keys), layer.window, end, last), scores, -np.inf)  # [N, T, S], masked
        pattern = at("attn.pattern", softmax(scores))  # [N, T, S]
        z = at("attn.z", attention_values(pattern, values))  # [T, N, H]
        o = at("attn.o", linear(z.reshape(T, N * H), w.o_proj))  # [T, D]
        attn_out = at("attn_out", rms_norm(o, w.post_attention_layernorm, eps))  # [T, D]
        x = at("resid_mid", x + attn_out)  # [T, D]

        # MLP, and beside it the mixture of experts where the model has one
        mlp_in = at("mlp.in", rms_norm(x, w.pre_feedforward_layernorm, eps))  # [T, D]
        gate = at("mlp.gate", linear(mlp_in, w.gate_proj))  # [T, F]
        up = at("mlp.up", linear(mlp_in, w.up_proj))  # [T, F]
        act = at("mlp.act", gelu(gate) * up)  # [T, F]
        down = at("mlp.down", linear(act, w.down_proj))  # [T, D]
        ffn = add_experts(down, x, w, config, at) if config.enable_moe_block else down  # [T, D]
        mlp_out = at("mlp_out", rms_norm(ffn, w.post_feedforward_layernorm, eps))  # [T, D]
        x = at("resid_ffn", x + mlp_out)  # [T, D]

        # PLE's gate: the hidden state decides how much of the token's own vector comes back
        if P:
            ple_gate = at("ple.gate", gelu(linear(x, w.per_layer_input_gate)))  # [T, P]
            ple_gated = at("ple.gated", ple_gate * ple[-T:, i])  # [T, P], the rows of x are the last ones
            ple_proj = at("ple.proj", linear(ple_gated, w.per_layer_projection))  # [T, D]
            ple_out = at("ple_out", rms_norm(ple_proj, w.post_per_layer_input_norm, eps))  # [T, D]
            x = x + ple_out  # [T, D]
        x = at("resid_post", x * w.layer_scalar)  # [T, D], the whole residual is scaled

    new_cache = Cache(end, {i: entry.trim(config.layers[i].window) for i, entry in kv.items()})
    if logits is None:
        return None, new_cache
    x = x[-1:] if logits == "last" else x  # [T, D], not cut above if no layer shares K and V
    final = tap("final_norm", rms_norm(x, weights.norm, eps))  # [T, D]
    capped = softcap(linear(final, weights.embed_tokens), config.final_logit_softcapping)  # [T, V], tied weights
    return tap("logits", capped), new_cache


def per_layer_inputs(embed, ids, weights, config, tap):
    """Per-Layer Embeddings: embed [T, D] and ids [T] -> a vector for each token and each layer, [T, L, P].

    They are a sum. One term is looked up by the token's id. The other is called context, and often misread as the text
    before the token. It is a projection of the token's own *embedding*: for text it depends on this token alone.
    """
    D, P, L = config.hidden_size, config.hidden_size_per_layer_input, config.num_hidden_layers
    token = (weights.embed_tokens_per_layer[ids] * P**0.5).reshape(-1, L, P)  # [T, L, P]
    token = tap("ple.token", token)  # [T, L, P]
    projected = (linear(embed, weights.per_layer_model_projection) * D**-0.5).reshape(-1, L, P)  # [T, L, P]
    context = rms_norm(projected, weights.per_layer_projection_norm, config.rms_norm_eps)  # [T, L, P]
    context = tap("ple.context", context)  # [T, L, P]
    return tap("ple", (context + token) * 2**-0.5)  # [T, L, P]


def add_experts(down, x, w, config, at):
    """The dense MLP's output `down` [T, D] plus the mixture of experts', which reads the residual x [T, D] -> [T, D].

    The router norms the residual by itself: it does not read the MLP's normed input. Each output has its own norm.
    """
    D, eps = config.hidden_size, config.rms_norm_eps
    router_in = rms_norm(x, None, eps) * w.router_scale * D**-0.5  # [T, D]
    probs = at("router.probs", softmax(linear(router_in, w.router_proj)))  # [T, E]
    router_experts = top_k(probs, config.top_k_experts)  # [T, k]
    best = np.take_along_axis(probs, router_experts, axis=-1)  # [T, k]
    router_weights = best / best.sum(-1, keepdims=True) * w.per_expert_scale[router_experts]  # [T, k]
    router_weights = at("router.weights", router_weights)  # [T, k]
    router_experts = at("router.experts", router_experts)  # [T, k]
    moe_in = rms_norm(x, w.pre_feedforward_layernorm_2, eps)  # [T, D]
    moe = experts(moe_in, w.experts_gate_up_proj, w.experts_down_proj, router_experts, router_weights)  # [T, D]
    dense_out = at("mlp.dense_out", rms_norm(down, w.post_feedforward_layernorm_1, eps))  # [T, D]
    moe_out = at("mlp.moe_out", rms_norm(moe, w.post_feedforward_layernorm_2, eps))  # [T, D]
    return dense_out + moe_out  # [T, D]
