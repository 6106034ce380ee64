"""A right pass as a student may write it: loops, einsum, float64, other names. wrong_passes.py changes its lines."""

import math

import numpy as np


def rms_norm(values, scale=None, epsilon=1e-6):
    values = np.asarray(values, np.float64)
    squares = np.sum(values**2, axis=-1, keepdims=True) / values.shape[-1]
    out = values / (squares + epsilon) ** 0.5
    if scale is not None:
        out = out * scale
    return out


def rope(heads, where, base, turning, dim):
    heads = np.asarray(heads, np.float64)
    half = heads.shape[2] // 2
    out = heads.copy()
    for j in range(turning):
        angle = where * base ** (-2 * j / dim)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = heads[:, :, j], heads[:, :, j + half]
        out[:, :, j] = a * cos - b * sin
        out[:, :, j + half] = b * cos + a * sin
    return out


def visible(queries, keys, window=None):
    rows = []
    for p in queries:
        row = keys <= p
        if window is not None:
            row = row & (p - keys < window)
        rows.append(row)
    return rows


def softmax(scores):
    powers = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    return powers / np.sum(powers, axis=-1, keepdims=True)


def attention(q, keys, values, mask):
    q, keys, values = (np.asarray(a, np.float64) for a in (q, keys, values))
    count = q.shape[1] // keys.shape[1]
    keys = np.repeat(keys, count, axis=1)
    values = np.repeat(values, count, axis=1)
    scores = np.einsum("tnh,snh->nts", q, keys)
    scores = np.where(np.asarray(mask)[None], scores, -1e30)
    pattern = softmax(scores)
    return np.einsum("nts,snh->tnh", pattern, values)


def gelu(g):
    return 0.5 * g * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))


def mlp(x, w_gate, w_up, w_down):
    g = np.einsum("td,fd->tf", x, w_gate, dtype=np.float64)
    u = np.einsum("td,fd->tf", x, w_up, dtype=np.float64)
    hidden = gelu(g) * u
    return np.einsum("tf,df->td", hidden, w_down)


def ple(ids, x, model, cfg):
    size, layers = cfg.hidden_size_per_layer_input, cfg.num_hidden_layers
    rows = model.embed_tokens_per_layer[ids].astype(np.float64)
    rows = rows * size**0.5
    context = x.astype(np.float64) @ model.per_layer_model_projection.T
    context = context * cfg.hidden_size**-0.5
    out = np.zeros((len(ids), layers, size))
    for i in range(layers):
        columns = slice(i * size, (i + 1) * size)
        part = rms_norm(context[:, columns], model.per_layer_projection_norm, cfg.rms_norm_eps)
        out[:, i] = (part + rows[:, columns]) * 2**-0.5
    return out


def layer(h, vectors, cache, facts, w, cfg):
    eps, count, size = cfg.rms_norm_eps, cfg.num_attention_heads, facts.head_dim
    rules = cfg.source["rope_parameters"][facts.kind]
    base, turning = rules["rope_theta"], int(size // 2 * rules.get("partial_rotary_factor", 1.0))
    k, v = cache
    old = len(k) - len(h) if facts.shares_kv else len(k)
    where = np.arange(old, old + len(h))
    a = rms_norm(h, w.input_layernorm, eps)
    q = (a @ w.q_proj.T).reshape(len(h), count, size)
    q = rms_norm(q, w.q_norm, eps)
    q = rope(q, where, base, turning, size)
    if not facts.shares_kv:
        own_k = (a @ w.k_proj.T).reshape(len(h), -1, size)
        own_v = (a @ w.v_proj.T).reshape(len(h), -1, size)
        own_k = rms_norm(own_k, w.k_norm, eps)
        own_v = rms_norm(own_v, None, eps)
        own_k = rope(own_k, where, base, turning, size)
        k, v = np.concatenate([k, own_k]), np.concatenate([v, own_v])
    mask = visible(where, np.arange(len(k)), facts.window)
    z = attention(q, k, v, mask)
    o = z.reshape(len(h), -1) @ w.o_proj.T
    h = h + rms_norm(o, w.post_attention_layernorm, eps)
    m = rms_norm(h, w.pre_feedforward_layernorm, eps)
    m = mlp(m, w.gate_proj, w.up_proj, w.down_proj)
    h = h + rms_norm(m, w.post_feedforward_layernorm, eps)
    g = gelu(h @ w.per_layer_input_gate.T)
    p = (g * vectors) @ w.per_layer_projection.T
    h = h + rms_norm(p, w.post_per_layer_input_norm, eps)
    h = h * w.layer_scalar
    return h, (k, v)


def forward(ids, model, cfg):
    h = model.embed_tokens[ids].astype(np.float64)
    h = h * cfg.hidden_size**0.5
    vectors = ple(ids, h, model, cfg)
    caches = {}
    for facts in cfg.layers:
        nothing = np.zeros((0, facts.num_key_value_heads, facts.head_dim))
        source = facts.kv_from
        cache = caches[source] if facts.shares_kv else (nothing, nothing)
        h, caches[facts.index] = layer(h, vectors[:, facts.index], cache, facts, model.layers[facts.index], cfg)
    h = rms_norm(h, model.norm, cfg.rms_norm_eps)
    logits = h @ model.embed_tokens.T
    cap = cfg.final_logit_softcapping
    return cap * np.tanh(logits / cap)
