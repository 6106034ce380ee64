"""Mistakes with pictures, made in transformers' vision tower, in 12B's embedder, and in the text model behind them.

As in port.py each is made in PyTorch, as a porter makes it, and knows nothing of minigemma's catalogue.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4.modeling_gemma4 import Gemma4ClippableLinear, Gemma4RMSNorm

from .port import gelu_erf, silu, skip, wrap


@dataclass(frozen=True)
class Fault:
    """One form of a mistake. member: of family.VISION, or of the family. first: the tap at which it shows first.

    install: of the tower (tower, embedder); of the text model a function of queries, keys, the pictures' numbers and
    the window that gives what is seen on sliding and on global layers; of soft tokens (rows, pictures) -> rows.
    """

    id: str
    member: str
    first: str
    install: Any


TOWER, MASKS, ROWS = [], [], []


def fault(list, id, member, first):
    """Enter the function below as a form of this mistake."""

    def enter(install):
        list.append(Fault(id, member, first, install))
        return install

    return enter


tower = partial(fault, TOWER)


def in_16_bits(dtype):
    """Not a mistake: the tower and the embedder in this format, RoPE's frequencies in float32 as when loaded so."""

    def install(tower, embedder):
        embedder.to(dtype)
        if tower is not None:
            rotary = tower.encoder.rotary_emb
            kept = dict(rotary.named_buffers())
            tower.to(dtype)
            for name, buffer in kept.items():
                setattr(rotary, name, buffer)

    return install


# In the tower


@tower("V2", "E2B", "vision.soft_tokens")
@tower("V2", "31B", "vision.soft_tokens")
def _(tower, embedder):
    embedder.forward = lambda inputs_embeds: Gemma4RMSNorm(24, with_scale=False)(
        embedder.embedding_projection(inputs_embeds)
    )


@tower("V3", "31B", "vision.pooled")
def _(tower, embedder):
    wrap(tower.pooler, "forward", lambda plain, padding_positions, **options: plain(
        padding_positions=torch.zeros_like(padding_positions), **options))  # fmt: skip


@tower("V4", "E2B", "vision.layers.*.attn.q_raw")
def _(tower, embedder):
    for module in tower.modules():
        if isinstance(module, Gemma4ClippableLinear):
            module.use_clipped_linears = False


@tower("V4", "E2B", "vision.layers.*.attn.q_raw")
def _(tower, embedder):
    for layer in tower.encoder.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, name).use_clipped_linears = False


@tower("V11", "E2B", "vision.pooled")
def _(tower, embedder):
    def pool(states, positions, length):
        places = positions.clamp(min=0)[0]
        columns = int(places[:, 0].max()) + 1
        block = places[:, 0] // 2 + columns // 2 * (places[:, 1] // 2)
        real = (positions[0, :, 0] >= 0) & (block < length)
        count = int((positions[0, :, 0] >= 0).sum()) // 9
        out = torch.zeros(1, length, states.shape[-1])
        for patch in torch.nonzero(real)[:, 0]:
            out[0, block[patch]] += states[0, patch] / 4
        return out, (torch.arange(length) < count)[None]

    tower.pooler._avg_pool_by_positions = pool


def other_pixels(change):
    def install(tower, embedder):
        def forward(plain, pixels, *rest):
            return plain((change(pixels) + 1) / 2, *rest)  # its own step is 2 (x - 0.5)

        wrap(tower.patch_embedder, "forward", forward)

    return install


def imagenet(pixels):
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels.unflatten(-1, (-1, 3)) - mean) / deviation).flatten(-2)


tower("V16", "E2B", "vision.patches")(other_pixels(lambda pixels: pixels))
tower("V16", "E2B", "vision.patches")(other_pixels(imagenet))
tower("V16", "31B", "vision.patches")(other_pixels(lambda pixels: 2 * (2 * pixels - 1) - 1))


@tower("V16b", "12B", "vision.patches")
def _(tower, embedder):
    wrap(embedder, "forward", lambda plain, pixels, *rest, **options: plain(2 * pixels - 1, *rest, **options))


@tower("V17", "E2B", "vision.layers.*.attn.k")
def _(tower, embedder):
    for layer in tower.encoder.layers:
        layer.self_attn.k_norm.weight.data = layer.self_attn.q_norm.weight.data


def other_axes(one, other):
    def install(tower, embedder):
        wrap(tower.encoder.rotary_emb, "forward", lambda plain, x, places: plain(x, places[..., [one, other]]))

    return install


for axes in ((0, 0), (1, 1), (1, 0)):
    tower("V17b", "31B", "vision.layers.*.attn.rot_q")(other_axes(*axes))


@tower("V18", "31B", "vision.soft_tokens")  # the step has no tap
def _(tower, embedder):
    tower.config.standardize = False


@tower("V20", "E2B", "vision.layers.*.attn.heads.*.pattern")
def _(tower, embedder):
    def encode(plain, inputs_embeds, attention_mask, **options):
        for layer in tower.encoder.layers:
            mask = attention_mask[:, None, None].float()
            wrap(layer, "forward", lambda plain, x, mask=mask, **more: plain(x, **more | {"attention_mask": mask}))
        return plain(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **options)

    wrap(tower.encoder, "forward", encode)


@tower("V21", "12B", "vision.patch_embed")
def _(tower, embedder):
    wrap(embedder.patch_dense, "forward", lambda plain, x: (plain(x) * 1e5).half().float())


@tower("V22", "E2B", "vision.soft_tokens")
@tower("V22", "12B", "vision.soft_tokens")
def _(tower, embedder):
    _projection(embedder).weight.data.zero_()


@tower("V22", "31B", "vision.soft_tokens")
def _(tower, embedder):
    weight = _projection(embedder).weight
    weight.data = weight.data.flatten().view(weight.shape[1], weight.shape[0]).T


def _projection(embedder):
    return getattr(embedder, "multimodal_embedder", embedder).embedding_projection


@tower("V25", "31B", "vision.pooled")
@tower("V25b", "E2B", "vision.pooled")
def _(tower, embedder):
    tower.pooler.root_hidden_size = 1.0


@tower("V26", "E2B", "vision.layers.*.mlp.act")
def _(tower, embedder):
    for layer in tower.encoder.layers:
        layer.mlp.act_fn.forward = gelu_erf


@tower("V27", "31B", "vision.layers.*.attn.heads.*.scores")
def _(tower, embedder):
    for layer in tower.encoder.layers:
        layer.self_attn.scaling = layer.self_attn.head_dim**-0.5


@tower("A4", "E2B", "vision.layers.*.attn.in")
def _(tower, embedder):
    for module in tower.modules():
        if isinstance(module, Gemma4RMSNorm) and module.with_scale:
            module.weight.data += 1


@tower("A8", "E2B", "vision.layers.*.mlp.act")
def _(tower, embedder):
    for layer in tower.encoder.layers:
        layer.mlp.act_fn.forward = silu


def without(norm):
    def install(tower, embedder):
        for layer in tower.encoder.layers:
            skip(layer.get_submodule(norm))

    return install


tower("D2", "31B", "vision.layers.*.attn.v")(without("self_attn.v_norm"))
tower("D9", "E2B", "vision.layers.*.attn.q")(without("self_attn.q_norm"))
tower("D9b", "E2B", "vision.layers.*.attn.k")(without("self_attn.k_norm"))
tower("M2", "31B", "vision.layers.*.attn_out")(without("post_attention_layernorm"))


@tower("D5", "31B", "vision.layers.*.attn.v")
def _(tower, embedder):
    for layer in tower.encoder.layers:
        attn, seen = layer.self_attn, {}

        def turned(plain, x, cos, sin, places, seen=seen):
            seen["last"] = plain(x, cos, sin, places)  # of q, then of k
            return seen["last"]

        attn.v_norm.forward = lambda x, seen=seen: seen["last"]
        wrap(attn, "forward", _rotating(turned))


def _rotating(function):
    """A wrapper of a module's forward in which RoPE is this function."""

    def forward(plain, *args, **options):
        rope = modeling_gemma4.apply_multidimensional_rope
        modeling_gemma4.apply_multidimensional_rope = partial(function, rope)
        try:
            return plain(*args, **options)
        finally:
            modeling_gemma4.apply_multidimensional_rope = rope

    return forward


@tower("M1", "E2B", "vision.layers.*.mlp.gate")
def _(tower, embedder):
    for layer in tower.encoder.layers:
        layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj


def bilinear(colours, height, width):
    """V14: the picture in this size."""
    return np.array(Image.fromarray(colours).resize((width, height), Image.Resampling.BILINEAR))


# Behind the tower: what a query sees. same: both in one picture; picture: the number of the query's picture, -1 of none


masks = partial(fault, MASKS)


def right(q, k, same, picture, W):
    return ((k <= q) | same) & (k > q - W), k <= q


@masks("V5", "E2B", "layers.*.attn.pattern")
def _(q, k, same, picture, W):
    return right(q, k, same, picture, W)


@masks("V5", "E2B", "layers.*.attn.pattern")
def _(q, k, same, picture, W):
    return right(q, k, same, picture, W)[0], (k <= q) | same


@masks("V6", "31B", "layers.*.attn.pattern")
def _(q, k, same, picture, W):
    return (k <= q) & (k > q - W), k <= q


@masks("V7", "26B-A4B", "layers.*.attn.pattern")
def _(q, k, same, picture, W):
    return right(q, k, same, picture, W)[0], (k <= q) | same


@masks("V8", "31B", "layers.*.attn.pattern")
def _(q, k, same, picture, W):
    return ((k <= q) & (k > q - W)) | same, k <= q


@masks("V8", "31B", "layers.*.attn.pattern")
def _(q, k, same, picture, W):
    short = torch.bincount(picture[picture >= 0])[picture.clamp(min=0)] <= W
    return right(q, k, same & short[:, None], picture, W)


@masks("V8", "31B", "layers.*.attn.pattern")
def _(q, k, same, picture, W):
    return ((k <= q) | same) & ((q - k).abs() < W), k <= q


@masks("V9", "31B", "layers.*.attn.pattern")
def _(q, k, same, picture, W):
    first = int(torch.nonzero(picture == 0)[0])
    return right(q, k, same & ((q < first + 3) == (k < first + 3)), picture, W)


def seen(ids, image, window, rule):
    """What a rule lets queries see of these ids -> kind of layer: [T, T] of bool."""
    ids = torch.tensor(ids)
    inside = ids == image
    starts = inside & ~functional.pad(inside[:-1], (1, 0))
    picture = torch.where(inside, torch.cumsum(starts.int(), 0) - 1, -1)
    places = torch.arange(len(ids))
    same = (picture[:, None] == picture) & inside
    sliding, whole = rule(places[:, None], places, same, picture, window)
    return {"sliding_attention": sliding, "full_attention": whole}


# The soft tokens that reach the text model

rows = partial(fault, ROWS)


@rows("V12", "E2B", "embed")
def _(rows, pictures):
    return np.concatenate([rows[pictures[0]], np.zeros_like(rows[pictures[1]])])


@rows("V24", "31B", "embed")
def _(rows, pictures):
    first = rows[pictures[0]]
    return np.concatenate([first, first[: len(pictures[1])]])
