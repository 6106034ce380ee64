"""A picture in, soft tokens out: the vision tower of E2B, E4B, 26B-A4B and 31B, and what 12B has in its place.

    x = input_proj(the values of each patch)       the residual stream, [T, D] from here to the pooling
    x += a row for the patch's column and a row for its row
    for each layer:
        x += norm(attention(norm(x)))              every patch sees every patch; RoPE in two directions
        x += norm(mlp(norm(x)))                    a gated MLP
    pooled = mean of 3 x 3 patches * sqrt(D)       [M, D]
    soft tokens = project(norm(pooled))            [M, Y], in place of the token embeddings of the text model

One picture a call, so there is no padding and no mask. A block is the text model's without PLE and layer_scalar. In E2B
and E4B every matrix of a block is clipped (see ops.clipped); 26B-A4B and 31B standardize what is pooled.
Source of the rules: transformers 5.23.0, models/gemma4 (Gemma4VisionModel) and models/gemma4_unified.

Letters: T patches, X values of a patch, D hidden_size of the tower, N query heads, K kv heads, H head_dim, F MLP width,
M soft tokens, Y hidden_size of the text model.
"""

import numpy as np

from .inputs import as_patches, as_tap, no_tap, tap_under
from .ops import (
    attention_scores, attention_values, clipped, gelu, layer_norm, linear, rms_norm, rope_2d, rotation, softmax,
)  # fmt: skip


def encode_image(image, weights, config, *, tap=no_tap):
    """A picture [h, w, 3] of uint8, as fit_image returns it -> soft tokens [M, Y].

    weights: those of read_vision. config: of the whole model; its `vision` is a VisionTower. The tap sees every
    intermediate, as in `forward`. Raises Error for arguments that do not fit each other.
    """
    tap, vision = as_tap(tap, config), config.vision
    patches, column, row = as_patches(image, weights, config, "input_proj")  # [T, X], [T], [T]
    D, N, K, H = vision.hidden_size, vision.num_attention_heads, vision.num_key_value_heads, vision.head_dim
    T, k, eps = len(patches), vision.pooling_kernel_size, vision.rms_norm_eps

    patches = tap("vision.patches", 2 * patches - 1)  # [T, X], from -1 to 1; the only normalisation of colours
    x = tap("vision.patch_embed", linear(patches, weights.input_proj))  # [T, D]
    table = weights.position_embedding_table  # [2, positions, D], for columns and for rows
    x = tap("vision.embed", x + (table[0, column] + table[1, row]))  # [T, D], not scaled by sqrt(D)
    by_column = rotation(column, vision.inv_freq, x.dtype)  # [T, 1, H/4] each
    by_row = rotation(row, vision.inv_freq, x.dtype)  # [T, 1, H/4] each

    for i, w in enumerate(weights.layers):
        at = tap_under(tap, f"vision.layers.{i}.")
        x = at("resid_pre", x)  # [T, D]

        attn_in = at("attn.in", rms_norm(x, w.input_layernorm, eps))  # [T, D]
        q_raw = at("attn.q_raw", clipped(attn_in, w.q_proj).reshape(T, N, H))  # [T, N, H]
        q = at("attn.q", rms_norm(q_raw, w.q_norm, eps))  # [T, N, H]
        rot_q = at("attn.rot_q", rope_2d(q, by_column, by_row))  # [T, N, H]
        k_raw = at("attn.k_raw", clipped(attn_in, w.k_proj).reshape(T, K, H))  # [T, K, H]
        v_raw = at("attn.v_raw", clipped(attn_in, w.v_proj).reshape(T, K, H))  # [T, K, H]
        keys = at("attn.k", rms_norm(k_raw, w.k_norm, eps))  # [T, K, H]
        rot_k = at("attn.rot_k", rope_2d(keys, by_column, by_row))  # [T, K, H]
        v = at("attn.v", rms_norm(v_raw, None, eps))  # [T, K, H], normed without a learned weight
        z = at("attn.z", attention(rot_q, rot_k, v, at))  # [T, N, H]
        o = at("attn.o", clipped(z.reshape(T, N * H), w.o_proj))  # [T, D]
        attn_out = at("attn_out", rms_norm(o, w.post_attention_layernorm, eps))  # [T, D]
        x = at("resid_mid", x + attn_out)  # [T, D]
        del q_raw, q, rot_q, k_raw, keys, rot_k, v_raw, v, z, o  # 0.3 GB at 1,120 soft tokens

        mlp_in = at("mlp.in", rms_norm(x, w.pre_feedforward_layernorm, eps))  # [T, D]
        gate = at("mlp.gate", clipped(mlp_in, w.gate_proj))  # [T, F]
        up = at("mlp.up", clipped(mlp_in, w.up_proj))  # [T, F]
        act = at("mlp.act", gelu(gate) * up)  # [T, F]
        down = at("mlp.down", clipped(act, w.down_proj))  # [T, D]
        del gate, up, act  # 0.4 GB at 1,120 soft tokens, which the scores of the next layer need
        mlp_out = at("mlp_out", rms_norm(down, w.post_feedforward_layernorm, eps))  # [T, D]
        x = at("resid_post", x + mlp_out)  # [T, D]; after the last layer there is no norm

    blocks = x.reshape((row[-1] + 1) // k, k, (column[-1] + 1) // k, k, D)  # [rows, k, columns, k, D]
    pooled = tap("vision.pooled", blocks.mean((1, 3)).reshape(-1, D) * D**0.5)  # [M, D]
    if vision.standardize:
        pooled = tap("vision.standardized", (pooled - weights.std_bias) * weights.std_scale)  # [M, D]
    return project(pooled, weights, eps, tap)  # [M, Y]


def embed_image(image, weights, config, *, tap=no_tap):
    """12B: a picture [h, w, 3] of uint8, as fit_image returns it -> soft tokens [M, Y], with no tower.

    A patch is a whole soft token here, so T is M. As encode_image otherwise; config.vision is a VisionEmbedder.
    """
    tap = as_tap(tap, config)
    patches, column, row = as_patches(image, weights, config, "patch_dense")  # [T, X], [T], [T]
    patches = tap("vision.patches", patches)  # [T, X], from 0 to 1: not moved to -1 to 1
    normed = layer_norm(patches, weights.patch_ln1, weights.patch_ln1_bias)  # [T, X]
    dense = linear(normed, weights.patch_dense) + weights.patch_dense_bias  # [T, D]
    x = tap("vision.patch_embed", layer_norm(dense, weights.patch_ln2, weights.patch_ln2_bias))  # [T, D]
    table = weights.pos_embedding  # [positions, 2, D], for columns and for rows
    x = x + (table[column, 0] + table[row, 1])  # [T, D]
    x = tap("vision.embed", layer_norm(x, weights.pos_norm, weights.pos_norm_bias))  # [T, D]
    return project(x, weights, config.vision.rms_norm_eps, tap)  # [M, Y]


def project(x, weights, eps, tap):
    """x [M, D] -> soft tokens [M, Y]: a norm without a weight, then one matrix. Not multiplied by sqrt(Y)."""
    return tap("vision.soft_tokens", linear(rms_norm(x, None, eps), weights.embedding_projection))  # [M, Y]


def attention(q, keys, v, at):
    """q [T, N, H], keys and v [T, K, H] -> each head's mix of the values, [T, N, H].

    Head by head in one array: all scores of E2B at 1,120 soft tokens together would take 4.9 GB, one head's take 0.4.
    A tap must copy them to keep them.
    """
    T, N, _ = q.shape
    scores, z = np.empty((T, T), q.dtype), np.empty_like(q)  # [T, T], [T, N, H]
    for n in range(N):
        kv = n * keys.shape[1] // N  # grouped queries, which no released tower has
        attention_scores(q[:, n : n + 1], keys[:, kv : kv + 1], out=scores[None])
        seen = at(f"attn.heads.{n}.scores", scores)  # [T, T], not divided by sqrt(H)
        pattern = at(f"attn.heads.{n}.pattern", softmax(seen, out=scores))  # [T, T]
        z[:, n : n + 1] = attention_values(pattern[None], v[:, kv : kv + 1])
    return z  # [T, N, H]
