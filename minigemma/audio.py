"""A sound in, soft tokens out: the audio tower of E2B and E4B, and what 12B has in its place.

    mel = log_mel(16,000 samples a second)         [R, C], a frame each 10 ms
    x = project(halve(halve(mel)))                 the residual stream, [T, D] from here on: a frame each 40 ms
    for each layer:                                a conformer block mixes time in two ways
        x += 0.5 * norm(mlp(norm(x)))
        x += norm(attention(norm(x)))              a frame sees itself and the 11 before it
        x += convolution(norm(x))                  over a frame and the 4 before it
        x += 0.5 * norm(mlp(norm(x)))
        x = norm(x)                                the residual itself is replaced
    soft tokens = project(norm(output_proj(x)))    [M, Y], in place of the token embeddings of the text model

One sound a call, so there is no padding and no mask. The reference cuts a sound into chunks of 12 frames, because
large products suit accelerators, and puts the 12 frames before it beside each chunk. Its mask then leaves a frame the
same 12 keys as here, at the same distances: plain local attention gives the same numbers. In E2B and E4B most matrices
are clipped (see ops.clipped). Source of the rules: transformers 5.23.0, models/gemma4 (Gemma4AudioModel) and
models/gemma4_unified.

Letters: R mel frames, C mel bins, A and B channels of the two convolutions, T frames of 40 ms, D hidden_size of the
tower, N heads, H head_dim, S frames that a frame sees, F MLP width, W conv_kernel_size, O output_proj_dims, X samples
of a frame (12B), M soft tokens, Y hidden_size of the text model.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .inputs import as_frames, as_mel, as_samples, as_tap, no_tap, tap_under
from .ops import (
    clipped, gated, halve, last_frames, layer_norm, linear, mel_triangles, rms_norm, silu, sinusoids, softcap, softmax,
)  # fmt: skip

K_SCALE = math.log2(1 + math.e)  # of every key; with a per_dim_scale of 0, queries have 1/sqrt(H) exactly


def log_mel(samples, bins=128):
    """Samples [n] from -1 to 1, 16,000 a second -> the log mel [R, C] in float32: what a tower hears.

    A frame of 20 ms begins each 10 ms. A bin is a sum of magnitudes (not of powers) over a band of frequencies. Raises
    Error for fewer than 161 samples, in which there is no frame.
    """
    padded = np.concatenate([np.zeros(160, np.float32), as_samples(samples, 161)])  # [n+160]
    frames = sliding_window_view(padded, 321)[::160, :320]  # [R, 320], each with one more sample behind it
    window = np.hanning(321)[:320].astype(np.float32)  # [320]
    magnitudes = np.abs(np.fft.rfft(frames * window, 512))  # [R, 257]
    return np.log(magnitudes @ mel_triangles(bins) + 1e-3).astype(np.float32)  # [R, C]


def encode_audio(mel, weights, config, *, tap=no_tap):
    """A log mel [R, C], as log_mel makes it -> soft tokens [M, Y], one for each 4 of its frames.

    weights: those of read_audio. config: of the whole model; its `audio` is an AudioTower. The tap sees every
    intermediate, as in `forward`. Raises Error for arguments that do not fit each other.
    """
    tap, audio = as_tap(tap, config), config.audio
    mel = tap("audio.mel", as_mel(mel, weights, config))  # [R, C]
    D, N, S, eps = audio.hidden_size, audio.num_attention_heads, audio.window, audio.rms_norm_eps
    H, limit, first = D // N, audio.gradient_clipping, weights.subsample_conv_projection

    half = layer_norm(halve(mel[..., None], first.layer0.conv), first.layer0.norm, 0, eps)  # [(R+1)//2, C//2, A]
    half = tap("audio.half", np.maximum(half, 0))  # [(R+1)//2, C//2, A]
    quarter = layer_norm(halve(half, first.layer1.conv), first.layer1.norm, 0, eps)  # [T, C//4, B]
    quarter = tap("audio.quarter", np.maximum(quarter, 0))  # [T, C//4, B]
    T = len(quarter)
    x = tap("audio.embed", linear(quarter.reshape(T, -1), first.input_proj_linear))  # [T, D]
    distances = sinusoids(S, D, x.dtype)  # [S, D]
    exists = np.arange(T)[:, None] >= np.arange(S)  # [T, S], is there a frame so far back?

    for i, w in enumerate(weights.layers):
        at = tap_under(tap, f"audio.layers.{i}.")
        x = at("resid_pre", x)  # [T, D]
        x = at("resid_ffn1", x + feed_forward(x, w.feed_forward1, audio, "ffn1", at))  # [T, D]

        attn_in = at("attn.in", rms_norm(x.clip(-limit, limit), w.norm_pre_attn))  # [T, D]
        q_raw = at("attn.q_raw", clipped(attn_in, w.self_attn.q_proj).reshape(T, N, H))  # [T, N, H]
        k_raw = at("attn.k_raw", clipped(attn_in, w.self_attn.k_proj).reshape(T, N, H))  # [T, N, H]
        v = at("attn.v", clipped(attn_in, w.self_attn.v_proj).reshape(T, N, H))  # [T, N, H]
        scale = np.logaddexp(0, w.self_attn.per_dim_scale) * (H**-0.5 / math.log(2))  # [H], softplus
        q = at("attn.q", q_raw * scale)  # [T, N, H], no norms and no RoPE
        k = at("attn.k", k_raw * K_SCALE)  # [T, N, H]
        rel_k = at("attn.rel_k", linear(distances, w.self_attn.relative_k_proj).reshape(S, N, H))  # [S, N, H]
        scores = np.vecdot(q[:, None], last_frames(k, S)) + np.vecdot(q[:, None], rel_k)  # [T, S, N]
        scores = at("attn.scores", softcap(scores.transpose(2, 0, 1), audio.attention_logit_cap))  # [N, T, S]
        pattern = at("attn.pattern", softmax(np.where(exists, scores, -np.inf)))  # [N, T, S]
        z = at("attn.z", np.einsum("nts,tsnh->tnh", pattern, last_frames(v, S)))  # [T, N, H]
        o = at("attn.o", clipped(z.reshape(T, D), w.self_attn.post))  # [T, D]
        attn_out = at("attn_out", rms_norm(o.clip(-limit, limit), w.norm_post_attn))  # [T, D]
        x = at("resid_mid", x + attn_out)  # [T, D]

        conv_in = at("conv.in", rms_norm(x, w.lconv1d.pre_layer_norm, eps))  # [T, D]
        start = at("conv.start", clipped(conv_in, w.lconv1d.linear_start))  # [T, 2*D]
        gate = at("conv.gated", gated(start[:, :D], start[:, D:]))  # [T, D]
        kernel = w.lconv1d.depthwise_conv1d[:, 0, ::-1].T  # [W, D], of the frame itself first
        mixed = at("conv.mixed", (last_frames(gate, len(kernel)) * kernel).sum(1))  # [T, D]
        act = at("conv.act", silu(rms_norm(mixed.clip(-limit, limit), w.lconv1d.conv_norm, eps)))  # [T, D]
        conv_out = at("conv_out", clipped(act, w.lconv1d.linear_end))  # [T, D], no norm after it
        x = at("resid_conv", x + conv_out)  # [T, D]

        x = at("resid_ffn2", x + feed_forward(x, w.feed_forward2, audio, "ffn2", at))  # [T, D]
        x = at("resid_post", rms_norm(x.clip(-limit, limit), w.norm_out))  # [T, D]

    encoded = tap("audio.encoded", linear(x, weights.output_proj) + weights.output_proj_bias)  # [T, O], E2B's only bias
    return project(encoded, weights, eps, tap)  # [M, Y]


def feed_forward(x, w, audio, name, at):
    """x [T, D] -> half of a normed MLP's output [T, D], which is added to x."""
    limit = audio.gradient_clipping
    ffn_in = at(f"{name}.in", rms_norm(x.clip(-limit, limit), w.pre_layer_norm))  # [T, D]
    hidden = at(f"{name}.hidden", clipped(ffn_in, w.ffw_layer_1))  # [T, F]
    act = at(f"{name}.act", silu(hidden))  # [T, F], no gate
    down = at(f"{name}.down", clipped(act, w.ffw_layer_2))  # [T, D]
    out = rms_norm(down.clip(-limit, limit), w.post_layer_norm)  # [T, D]
    return at(f"{name}_out", out * audio.residual_weight)  # [T, D]


def embed_sound(samples, weights, config, *, tap=no_tap):
    """12B: samples [n] from -1 to 1, 16,000 a second -> soft tokens [M, Y], with no mel and no tower.

    A frame is 40 ms of the wave itself. As encode_audio otherwise; config.audio is an AudioEmbedder.
    """
    tap = as_tap(tap, config)
    frames = tap("audio.frames", as_frames(samples, weights, config))  # [T, X]
    return project(frames, weights, config.audio.rms_norm_eps, tap)  # [M, Y], the norm takes the loudness away


def project(x, weights, eps, tap):
    """x [T, O] or [T, X] -> soft tokens [M, Y]: a norm without a weight, then one matrix. Not multiplied by sqrt(Y)."""
    return tap("audio.soft_tokens", linear(rms_norm(x, None, eps), weights.embedding_projection))  # [M, Y]
