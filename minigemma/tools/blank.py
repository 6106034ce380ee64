"""Gemma 4 from blank: your own pass, a function at a time.

Fill in what you like, in any order, and look at it with `python -m minigemma grade FILE`. What is still `...` counts as
open, not as wrong. Your own helper functions and other names of arguments are fine; their order counts.

Letters: T tokens, S keys, D hidden_size, N query heads, K kv heads, H head_dim, F MLP width, L layers, V vocabulary,
P hidden_size_per_layer_input. `config` and `weights` are those of minigemma.load(): the names of config.json and of the
checkpoint, such as weights.embed_tokens [V, D], weights.layers[3].q_proj [N*H, D], config.layers[3].window. Matrices
are [out, in]. They cannot be written to. Do not print or import more than you need: the file runs as it is.
"""

import numpy as np


def rms_norm(x, weight=None, eps=1e-6):
    """Divide by the root of the mean of the squares plus eps, over the last axis; then multiply by the weight.

    x [..., n], such as [T, D] or [T, N, H] -> the same shape. weight [n]; None: there is none.
    """
    mean_square = ...  # [..., 1]
    normed = x / np.sqrt(mean_square + eps)  # [..., n]
    return normed if weight is None else normed * ...


def rope(x, positions, theta, rotated_pairs, exponent_dim):
    """Turn pair j of each head, which is the numbers j and j + H/2, by position * theta**(-2 * j / exponent_dim).

    x [T, N, H], positions [T] -> [T, N, H]. Only the first `rotated_pairs` of the H/2 pairs turn; the others stay.
    """
    half = x.shape[-1] // 2
    j = np.arange(half)  # [H/2]
    frequencies = ...  # [H/2]
    angles = positions[:, None, None] * np.where(j < rotated_pairs, frequencies, 0.0)  # [T, 1, H/2]
    cos, sin = np.cos(angles), np.sin(angles)  # [T, 1, H/2] each
    first, second = x[..., :half], x[..., half:]  # [T, N, H/2] each
    turned_first = first * cos - second * sin  # [T, N, H/2]
    turned_second = ...  # [T, N, H/2]
    return np.concatenate([turned_first, turned_second], axis=-1)  # [T, N, H]


def visible(positions, keys, window=None):
    """Which keys each query sees: itself and those before it; with a window, the last `window` keys, itself included.

    positions [T] of the queries, keys [S] the positions of the keys -> bool [T, S]. window None: all keys before it.
    """
    away = positions[:, None] - keys  # [T, S]
    past = away >= ...  # [T, S]
    return past if window is None else past & (away < ...)  # [T, S]


def attention(q, k, v, mask):
    """Each query's mix of values, by the softmax of its products with the keys that it sees. They are not scaled.

    q [T, N, H], k and v [S, K, H], mask [T, S] -> [T, N, H]. Query head n reads kv head n // (N / K).
    """
    group = q.shape[1] // k.shape[1]
    heads = []
    for n in range(q.shape[1]):
        kv_head = n // ...
        scores = np.where(mask, q[:, n] @ k[:, kv_head].T, -np.inf)  # [T, S]
        powers = np.exp(scores - scores.max(-1, keepdims=True))  # [T, S]
        pattern = powers / ...  # [T, S]
        heads.append(pattern @ v[:, kv_head])  # [T, H]
    return np.stack(heads, axis=1)  # [T, N, H]


def gelu(x):
    """The tanh form: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3)))."""
    return x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def mlp(x, gate, up, down):
    """The gated MLP: down(gelu(gate(x)) * up(x)), with gelu in its tanh form.

    gelu(x) = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))).
    x [T, D], gate and up [F, D], down [D, F] -> [T, D].
    """
    hidden = gelu(x @ gate.T) * ...  # [T, F]
    return hidden @ down.T  # [T, D]


def ple(tokens, embed, weights, config):
    """The per-layer embeddings: (context + lookup) / sqrt(2), a vector of P numbers for each token and each layer.

    lookup: the token's row of embed_tokens_per_layer, times sqrt(P). context: embed times per_layer_model_projection,
    over sqrt(D), then rms_norm with per_layer_projection_norm for each layer. Both have L * P numbers a token, those of
    layer 0 first. tokens [T], embed [T, D], which is scaled already -> [T, L, P].
    """
    D, P, L = config.hidden_size, config.hidden_size_per_layer_input, config.num_hidden_layers
    lookup = (weights.embed_tokens_per_layer[tokens] * ...).reshape(-1, L, P)  # [T, L, P]
    projected = (embed @ weights.per_layer_model_projection.T * ...).reshape(-1, L, P)  # [T, L, P]
    context = rms_norm(projected, weights.per_layer_projection_norm, config.rms_norm_eps)  # [T, L, P]
    return (context + lookup) * ...  # [T, L, P]


def layer(x, ple_i, kv, layer, weights, config):
    """One decoder layer: three branches, each with a norm before and behind it, and the scalar at the end.

    x [T, D], ple_i [T, P], layer: config.layers[i], weights: weights.layers[i] -> x [T, D] and kv.
    kv: (k, v), each [S, K, H], with RoPE and norms done, of all positions before x; S is 0 at first. Return it with
    those of x added. Where layer.shares_kv, it is the donor's, and has those of x already: return it as it is.
    So x stands at the last T positions. RoPE: config.source["rope_parameters"][layer.kind] has rope_theta, and on
    global layers partial_rotary_factor, the part of the pairs that turn; exponents are over the whole head.
    Norms: q_norm, k_norm (before RoPE); v has one without a weight. PLE's gate reads x behind the MLP's branch:
    gelu(per_layer_input_gate x) * ple_i, then per_layer_projection; it has a norm behind it only.
    """
    T, N, H, eps = len(x), config.num_attention_heads, layer.head_dim, config.rms_norm_eps
    rule = config.source["rope_parameters"][layer.kind]
    turning = int(rule.get("partial_rotary_factor", 1) * H // 2)
    end = len(kv[0]) if layer.shares_kv else len(kv[0]) + T
    positions = np.arange(end - T, end)  # [T]

    inside = rms_norm(x, weights.input_layernorm, eps)  # [T, D]
    q = rms_norm((inside @ weights.q_proj.T).reshape(T, N, H), weights.q_norm, eps)  # [T, N, H]
    q = rope(q, positions, rule["rope_theta"], turning, H)  # [T, N, H]
    if not layer.shares_kv:
        K = layer.num_key_value_heads
        k = rope(..., positions, rule["rope_theta"], turning, H)  # [T, K, H]
        v = rms_norm((inside @ weights.v_proj.T).reshape(T, K, H), None, eps)  # [T, K, H]
        kv = np.concatenate([kv[0], k]), np.concatenate([kv[1], v])  # [S, K, H] each
    mask = visible(positions, np.arange(end), layer.window)  # [T, S]
    z = attention(q, *kv, mask)  # [T, N, H]
    x = x + rms_norm(z.reshape(T, N * H) @ weights.o_proj.T, weights.post_attention_layernorm, eps)  # [T, D]

    inside = rms_norm(x, weights.pre_feedforward_layernorm, eps)  # [T, D]
    out = mlp(inside, weights.gate_proj, weights.up_proj, weights.down_proj)  # [T, D]
    x = x + rms_norm(out, ..., eps)  # [T, D]

    gated = gelu(x @ weights.per_layer_input_gate.T) * ...  # [T, P]
    x = x + rms_norm(gated @ weights.per_layer_projection.T, weights.post_per_layer_input_norm, eps)  # [T, D]
    return x * ..., kv


def forward(tokens, weights, config):
    """The whole pass without a cache: embedding times sqrt(D), PLE, all layers, the final norm, the tied head, softcap.

    Layer i reads the kv of layer config.layers[i].kv_from, which is i itself unless it shares. The head is the token
    table again. softcap: c * tanh(logits / c), where c is config.final_logit_softcapping. tokens [T] -> [T, V].
    """
    x = weights.embed_tokens[tokens] * ...  # [T, D]
    vectors = ple(tokens, x, weights, config)  # [T, L, P], those of layer i are vectors[:, i]
    kv = {}
    for facts, w in zip(config.layers, weights.layers, strict=True):
        i, none = facts.index, np.zeros((0, facts.num_key_value_heads, facts.head_dim))  # [0, K, H]
        x, kv[i] = layer(x, ..., kv.get(facts.kv_from, (none, none)), facts, w, config)  # [T, D]
    logits = rms_norm(x, weights.norm, config.rms_norm_eps) @ weights.embed_tokens.T  # [T, V]
    cap = config.final_logit_softcapping
    return cap * np.tanh(...)  # [T, V]
