"""Mistakes with sounds, made in transformers' audio tower and feature extractor.

As in port.py each is made in PyTorch, as a porter makes it, and knows nothing of minigemma's catalogue.
"""

from functools import partial
from unittest import mock

import numpy as np
import torch
from torch import nn
from transformers import Gemma4AudioFeatureExtractor
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4.modeling_gemma4 import Gemma4ClippableLinear

from .picture_port import fault
from .port import wrap

TOWER = []  # functions of the tower
MELS = []  # functions of samples: another mel
tower, mel = (partial(fault, list, member="E2B") for list in (TOWER, MELS))


def extracted(samples, **options):
    """The log mel of transformers' feature extractor, without what it masks: [R, C]."""
    found = Gemma4AudioFeatureExtractor(**options)([samples], return_tensors="np")
    return found["input_features"][0][found["input_features_mask"][0]]


@mel("S1", first="audio.mel")
def _(samples):
    return extracted(samples, fft_overdrive=True)


@mel("S1", first="audio.mel")
def _(samples):
    log = np.log
    with mock.patch.object(np, "log", lambda x: log(np.maximum(x, 1e-3))):
        return extracted(samples, mel_floor=0.0)


@mel("S8", first="audio.mel")
def _(samples):
    return extracted(np.pad(samples, (-len(samples) % 128, 0)))


@mel("S23", first="audio.mel")
def _(samples):
    return extracted(samples) / np.float32(np.log(10))


@tower("S2", first="audio.layers.*.attn.q")
def _(tower):
    for layer in tower.layers:
        layer.self_attn.per_dim_scale.data.fill_(-torch.inf)


class CumulativeGroupNorm(nn.Module):
    def __init__(self, plain):
        super().__init__()
        self.weight, self.eps = plain.weight, plain.eps

    def forward(self, x):  # [1, T, bins, channels]
        count = torch.arange(1, x.shape[1] + 1)[None, :, None, None] * x.shape[2] * x.shape[3]
        mean = x.sum((2, 3), keepdim=True).cumsum(1) / count
        variance = (x - mean).square().sum((2, 3), keepdim=True).cumsum(1) / count
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight


class WithoutMean(CumulativeGroupNorm):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def other_norm(norm):
    def install(tower):
        for layer in (tower.subsample_conv_projection.layer0, tower.subsample_conv_projection.layer1):
            layer.norm = norm(layer.norm)

    return install


tower("S4", first="audio.half")(other_norm(CumulativeGroupNorm))
tower("S4", first="audio.half")(other_norm(WithoutMean))


@tower("S16", first="audio.layers.*.ffn1.hidden")
def _(tower):
    for module in tower.modules():
        if isinstance(module, Gemma4ClippableLinear):
            module.use_clipped_linears = False


@tower("S17", first="audio.layers.*.attn.pattern")
def _(tower):
    plain = modeling_gemma4.sliding_window_mask_function

    def forward(inner, *args, **options):
        with mock.patch.object(modeling_gemma4, "sliding_window_mask_function", lambda reach: plain((13, 0))):
            return inner(*args, **options)

    wrap(tower, "forward", forward)


@tower("S18", first="audio.layers.*.resid_post")
def _(tower):
    for layer in tower.layers:
        layer.norm_out = nn.Identity()


@tower("S19", first="audio.layers.*.attn.rel_k")
def _(tower):
    wrap(tower.rel_pos_enc, "forward", lambda plain, states: plain(states).flip(-2))


@tower("S20", first="audio.encoded")
def _(tower):
    tower.output_proj.bias.data.zero_()


@tower("S21", first="audio.layers.*.conv.mixed")
def _(tower):
    for layer in tower.layers:
        conv = layer.lconv1d.depthwise_conv1d
        conv.forward = lambda x, conv=conv: nn.functional.conv1d(x, conv.weight, padding=2, groups=conv.groups)


@tower("S22", first="audio.layers.*.ffn1_out")
def _(tower):
    for layer in tower.layers:
        layer.feed_forward1.post_layer_scale = layer.feed_forward2.post_layer_scale = 1.0


@tower("S24", first="audio.layers.*.attn.scores")
def _(tower):
    for layer in tower.layers:
        layer.self_attn.softcap.fill_(1e4)
