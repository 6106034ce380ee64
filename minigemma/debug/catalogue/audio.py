"""S: sounds, in the audio tower and in the text model behind it. Most of them only the prompt or the load shows."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ...audio import log_mel
from ...config import GLOBAL, SLIDING
from ...ops import halve, horizon, last_frames, linear, mel_triangles, sinusoids, softmax
from .changes import edited, layer_weights, passes, scaled, together, zeroed
from .entry import Fault
from .vision import sees

# ----------------------------------------------------------------------------------------------------- the log mel


def heard_otherwise(mel):
    """A change: the tower gets mel(samples, how many bins), as far as it has as many frames."""

    def change(port):
        port.heard = mel(port.samples, port.config.audio.bins)[: len(port.heard)]

    return change


def magnitudes(samples, size):
    """Magnitudes of each frame by an FFT of this size: [R, size/2 + 1]."""
    padded = np.concatenate([np.zeros(160, np.float32), samples])
    frames = sliding_window_view(padded, 321)[::160, :320] * np.hanning(321)[:320].astype(np.float32)  # [R, 320]
    return np.abs(np.fft.rfft(frames, size))


def longer_fft(samples, bins):
    return np.log(magnitudes(samples, 1024) @ mel_triangles(bins, 513) + 1e-3).astype(np.float32)  # [R, C]


def hard_floor(samples, bins):
    return np.log(np.maximum(magnitudes(samples, 512) @ mel_triangles(bins), 1e-3)).astype(np.float32)  # [R, C]


def padded_left(samples, bins):
    return log_mel(np.concatenate([np.zeros(-len(samples) % 128, np.float32), samples]), bins)


# ------------------------------------------------------------------------------------------------------ in the tower


def cumulative_norm(x, weight, eps):
    """Gemma 3n's norm of x [T, C, A]: mean and variance over all channels, bins and frames so far."""
    count = np.arange(1, len(x) + 1) * x[0].size  # [T]
    centred = x - (x.sum((1, 2)).cumsum() / count)[:, None, None]
    variance = (centred**2).sum((1, 2)).cumsum() / count  # [T]
    return centred / np.sqrt(variance + eps)[:, None, None] * weight


def uncentred_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def subsampled_with(norm):
    """Both convolutions get another norm over their channels."""

    def edit(of, layer):
        def half(at, x):
            w, below = getattr(at.w.subsample_conv_projection, layer), at[of]
            places = halve(below[..., None] if below.ndim == 2 else below, w.conv)
            return np.maximum(norm(places, w.norm, at.config.audio.rms_norm_eps), 0).astype(x.dtype)

        return half

    return together(edited("half", edit("mel", "layer0")), edited("quarter", edit("half", "layer1")))


def unclipped(layer, w):
    """All matrices of a layer without their bounds."""
    groups = {name: group for name, group in vars(w).items() if isinstance(group, SimpleNamespace)}
    return {
        name: SimpleNamespace(**{
            key: value._replace(bounds=None) if hasattr(value, "bounds") else value
            for key, value in vars(group).items()
        })
        for name, group in groups.items()
    }  # fmt: skip


def one_more_frame(at):
    """The pattern of frames that see themselves and the twelve before: [N, T, S + 1]."""
    S, (T, _, H) = at.config.audio.window + 1, at["attn.q"].shape
    distances = sinusoids(S, at.config.audio.hidden_size, at["attn.q"].dtype)  # [S, D]
    rel_k = linear(distances, at.w.self_attn.relative_k_proj).reshape(S, -1, H)
    q, cap = at["attn.q"][:, None], at.config.audio.attention_logit_cap
    scores = np.vecdot(q, last_frames(at["attn.k"], S)) + np.vecdot(q, rel_k)  # [T, S, N]
    scores = cap * np.tanh(scores.transpose(2, 0, 1) / cap)  # [N, T, S]
    return softmax(np.where(np.arange(T)[:, None] >= np.arange(S), scores, -np.inf))


def mix_of_one_more(at, x):
    return np.einsum("nts,tsnh->tnh", one_more_frame(at), last_frames(at["attn.v"], at.config.audio.window + 1))


def from_the_nearest(at, x):
    """Relative keys in the reverse order: the distances are counted from the nearest frame."""
    distances = sinusoids(len(x) + 1, at.config.audio.hidden_size, x.dtype)[::-1][: len(x)]  # [S, D]
    return linear(distances, at.w.self_attn.relative_k_proj).reshape(x.shape)


def centred(at, x):
    """The depthwise convolution looks as far ahead as back."""
    gate, kernel = at["conv.gated"], at.w.lconv1d.depthwise_conv1d[:, 0, ::-1].T
    ahead = len(kernel) // 2
    longer = np.concatenate([gate, np.zeros((ahead, gate.shape[1]), gate.dtype)])
    return (last_frames(longer, len(kernel)) * kernel).sum(1)[ahead:]


def uncapped(at, x):
    q = at["attn.q"][:, None]
    scores = np.vecdot(q, last_frames(at["attn.k"], x.shape[-1])) + np.vecdot(q, at["attn.rel_k"])
    return scores.transpose(2, 0, 1)


def whole_mlp(port):
    port.config = replace(port.config, audio=replace(port.config.audio, residual_weight=1.0))


def ahead_in_sound(at, positions, keys):
    """In the text model: up to the end of the sound, as if it were a picture."""
    ids = np.where(at.ids == at.config.audio_token_id, at.config.image_token_id, at.ids)
    ends = horizon(ids, at.positions, replace(at.config, use_bidirectional_attention="vision"))
    return (keys <= ends[-len(positions) :, None]) & (keys > positions - (at.layer.window or len(keys)))


EARS = ("ears",)
ENTRIES = (
    Fault("S1", "the log mel of the generation before: an FFT of 1,024, or max(mel, 0.001)", first="audio.mel",
          probe="sound", symptom="E2B and E4B hear nonsense, 12B hears well",
          remedy="an FFT of 512, and 0.001 is added before the logarithm", seen="lablup/mlxcel#782, #796",
          needs=("samples", *EARS), changes=(heard_otherwise(longer_fft), heard_otherwise(hard_floor))),
    Fault("S2", "per_dim_scale's softplus is a buffer that is never filled", first="audio.layers.*.attn.q",
          probe="sound", symptom="attention sees all frames alike", remedy="compute it from per_dim_scale",
          seen="ggml-org/llama.cpp#21421", needs=EARS, changes=zeroed("attn.q")),
    Fault("S3", "a tensor that is there twice overwrites weights with zeros", probe="sound", symptom="nonsense",
          remedy="refuse a name that is there twice", seen="ggml-org/llama.cpp#21348"),
    Fault("S4", "Gemma 3n's norm behind the first convolutions, or one that does not subtract the mean",
          first="audio.half", probe="sound", symptom="words are misheard",
          remedy="LayerNorm over the channels of each place", seen="noted in ggml-org/llama.cpp#21348", needs=EARS,
          changes=(subsampled_with(cumulative_norm), subsampled_with(uncentred_norm))),
    Fault("S5", "the audio tower is quantised", probe="sound", symptom="transcripts get worse",
          remedy="keep it in bfloat16", seen="ggml-org/llama.cpp#21421, #23688"),
    Fault("S6", "the placeholder stands outside the user's turn, or nowhere", probe="ids", symptom="no answer",
          remedy="print the prompt's ids", seen="lablup/mlxcel#436"),
    Fault("S7", "the sound stands before the text", probe="ids", symptom="12B answers instead of transcribing",
          remedy="sound after the text", seen="lablup/mlxcel#798"),
    Fault("S8", "the sound is padded on the left", first="audio.mel", probe="sound",
          symptom="one soft token too many, and a crash", remedy="pad on the right, or not at all",
          seen="unsloth-zoo#747; unsloth#6157", needs=("samples", *EARS), changes=heard_otherwise(padded_left)),
    Fault("S9", "the sound is silently left out", probe="ids", symptom="a transcript of nothing",
          remedy="compare the prompt's length with and without the sound", seen="mlx-vlm#903"),
    Fault("S10", "12B's sound is prepared as for E2B", probe="ids", symptom="another number of soft tokens",
          remedy="640 samples are one soft token", seen="transformers#48887"),
    Fault("S11", "a video's sound is dropped, or sound switches off what pictures see", probe="ids",
          symptom="invented speech", remedy="decide by the ids which positions are pictures", seen="mlx-vlm#1727"),
    Fault("S12", "sounds look ahead in the text model", first="layers.*.attn.pattern", probe="soft",
          symptom="an assertion, or wrong masks", remedy="sound is causal in every model",
          seen="ggml-org/llama.cpp#21816", needs=("soft", "sounds"),
          changes=(sees(ahead_in_sound, SLIDING), sees(ahead_in_sound, SLIDING, GLOBAL))),
    Fault("S13", "the sound is cut inside a word", probe="ids", symptom="lost words", remedy="cut where nobody speaks",
          seen="ollama#18079"),
    Fault("S14", "soft tokens are not counted from the sound's length", probe="ids", symptom="a crash",
          remedy="the mel's frames divided by 4, rounded up", seen="transformers#46416"),
    Fault("S15", "a video's times or counts are not the processor's", probe="ids", symptom="wrong times, or a crash",
          remedy="mm:ss, a space, and a picture of at most 70 soft tokens for each frame",
          seen="vllm#46988; sglang#29171; TensorRT-LLM#18274; mlx-swift-lm#256, #391"),
    Fault("S16", "clip bounds of the audio tower are not used", first="audio.layers.*.ffn1.hidden", probe="sound",
          symptom="close but wrong", remedy="read the four bounds of every matrix: 480 numbers",
          seen="a near relative of V4", needs=("ears", "ears clipped"), changes=layer_weights(unclipped)),
    Fault("S17", "a frame sees the twelve before it, not eleven", first="audio.layers.*.attn.pattern", probe="sound",
          symptom="small", remedy="attention_context_left is 13, and the distance must be below 12",
          seen="a trap of the field's name", needs=EARS,
          changes=together(edited("attn.pattern", lambda at, x: one_more_frame(at)[..., :-1]),
                           edited("attn.z", mix_of_one_more))),
    Fault("S18", "norm_out is left out", first="audio.layers.*.resid_post", probe="sound", symptom="nothing is heard",
          remedy="the norm replaces the residual itself", seen="a near relative of S4", needs=EARS,
          changes=passes("resid_post", of="resid_ffn2")),
    Fault("S19", "relative keys in the reverse order", first="audio.layers.*.attn.rel_k", probe="sound",
          symptom="words are misheard", remedy="the first of the reference's distances is the farthest",
          seen="a trap of its relative shift", needs=EARS, changes=edited("attn.rel_k", from_the_nearest)),
    Fault("S20", "output_proj without its bias", first="audio.encoded", probe="sound", symptom="small",
          remedy="load the only bias of the file", seen="a trap: no other matrix has one", needs=EARS,
          changes=edited("encoded", lambda at, x: x - at.w.output_proj_bias)),
    Fault("S21", "the depthwise convolution looks ahead", first="audio.layers.*.conv.mixed", probe="sound",
          symptom="words are misheard", remedy="all of its padding is in front", seen="a trap of `same` padding",
          needs=EARS, changes=edited("conv.mixed", centred)),
    Fault("S22", "the MLPs of a block are not halved", first="audio.layers.*.ffn1_out", probe="sound",
          symptom="nothing is heard", remedy="residual_weight, 0.5", seen="a trap of the conformer", needs=EARS,
          changes=whole_mlp),
    Fault("S23", "log10 for the natural logarithm", first="audio.mel", probe="sound", symptom="none",
          remedy="nothing to do", seen="a near relative of S1", needs=EARS,
          benign="the norm behind the first convolution takes a common factor back",
          changes=scaled("mel", lambda at: np.float32(1 / np.log(10)))),
    Fault("S24", "scores without their softcap", first="audio.layers.*.attn.scores", probe="sound", symptom="none",
          remedy="50 * tanh(x / 50)", seen="a near relative of A6", needs=EARS,
          benign="scores far below 50 are hardly changed", changes=edited("attn.scores", uncapped)),
)  # fmt: skip
