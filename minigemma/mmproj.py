"""An mmproj file beside a GGUF file -> what turns pictures and sounds into soft tokens.

llama.cpp keeps the towers of Gemma 4 in a GGUF file of their own. Its conversion changes some tensors, which is undone
here: the values of a patch are ordered by colour, not by pixel; a clip bound is a list of one number; per_dim_scale is
stored after its softplus; the kernels of the depthwise convolution and the position table of 12B have other axes.
Sources: llama.cpp's conversion of gemma4 and its tools/mtmd.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import gguf
from .errors import Error
from .gguf import Block
from .packed import PackedMatrix, narrow, widen
from .tensors import BOUNDS

TOWER, UNIFIED = ("gemma4v", "gemma4a"), ("gemma4uv", "gemma4ua")  # llama.cpp's names of the two kinds
IDS = {  # fields of a config.json -> the tokens that they number
    "boi_token_id": "<|image>",
    "image_token_id": "<|image|>",
    "eoi_token_id": "<image|>",
    "boa_token_id": "<|audio>",
    "audio_token_id": "<|audio|>",
    "eoa_token_id": "<audio|>",
    "video_token_id": "<|video|>",
}
OUTSIDE = {  # modules outside the layers
    "v.patch_embd": "vision_tower.patch_embedder.input_proj",
    "v.std_bias": "vision_tower.std_bias",
    "v.std_scale": "vision_tower.std_scale",
    "mm.input_projection": "embed_vision.embedding_projection",
    "mm.a.input_projection": "embed_audio.embedding_projection",
    "a.conv1d.0": "audio_tower.subsample_conv_projection.layer0.conv",
    "a.conv1d.0.norm": "audio_tower.subsample_conv_projection.layer0.norm",
    "a.conv1d.1": "audio_tower.subsample_conv_projection.layer1.conv",
    "a.conv1d.1.norm": "audio_tower.subsample_conv_projection.layer1.norm",
    "a.input_projection": "audio_tower.subsample_conv_projection.input_proj_linear",
    "a.pre_encode.out": "audio_tower.output_proj",
}
OUTSIDE_UNIFIED = {  # of 12B, where they differ
    "v.patch_embd": "vision_embedder.patch_dense",
    "v.patch_norm.1": "vision_embedder.patch_ln1",
    "v.patch_norm.2": "vision_embedder.patch_ln2",
    "v.patch_norm.3": "vision_embedder.pos_norm",
}
VISION_LAYER = {  # modules after `v.blk.3.` -> after `vision_tower.encoder.layers.3.`
    "ln1": "input_layernorm",
    "attn_q": "self_attn.q_proj.linear",
    "attn_k": "self_attn.k_proj.linear",
    "attn_v": "self_attn.v_proj.linear",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_out": "self_attn.o_proj.linear",
    "attn_post_norm": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj.linear",
    "ffn_up": "mlp.up_proj.linear",
    "ffn_down": "mlp.down_proj.linear",
    "ffn_post_norm": "post_feedforward_layernorm",
}
AUDIO_LAYER = {  # modules after `a.blk.3.` -> after `audio_tower.layers.3.`
    "ffn_norm": "feed_forward1.pre_layer_norm",
    "ffn_up": "feed_forward1.ffw_layer_1.linear",
    "ffn_down": "feed_forward1.ffw_layer_2.linear",
    "ffn_post_norm": "feed_forward1.post_layer_norm",
    "attn_pre_norm": "norm_pre_attn",
    "attn_q": "self_attn.q_proj.linear",
    "attn_k": "self_attn.k_proj.linear",
    "attn_v": "self_attn.v_proj.linear",
    "attn_k_rel": "self_attn.relative_k_proj",
    "attn_out": "self_attn.post.linear",
    "attn_post_norm": "norm_post_attn",
    "conv_norm": "lconv1d.pre_layer_norm",  # llama.cpp has these two names the other way round
    "norm_conv": "lconv1d.conv_norm",
    "conv_pw1": "lconv1d.linear_start.linear",
    "conv_dw": "lconv1d.depthwise_conv1d",
    "conv_pw2": "lconv1d.linear_end.linear",
    "ffn_norm_1": "feed_forward2.pre_layer_norm",
    "ffn_up_1": "feed_forward2.ffw_layer_1.linear",
    "ffn_down_1": "feed_forward2.ffw_layer_2.linear",
    "ffn_post_norm_1": "feed_forward2.post_layer_norm",
    "ln2": "norm_out",
}


class Changed(NamedTuple):
    """The place of a tensor that is laid out otherwise than in a checkpoint. It has `shape`, `dtype` and `map`."""

    block: Block
    shape: tuple[int, ...]
    change: Callable  # an array of the file, bfloat16 as its bits -> the checkpoint's

    @property
    def dtype(self):
        return self.block.dtype

    def map(self):
        array = self.block.map()
        array = np.asarray(array) if isinstance(array, PackedMatrix) else array
        return np.ascontiguousarray(self.change(array)).reshape(self.shape)


def config_of(path):
    """The fields of a config.json: those of a GGUF file, and of the towers in the mmproj file beside it, if any.

    Raises Error as gguf.config_of and towers_beside do.
    """
    text = gguf.config_of(path)
    towers = towers_beside(path)
    if not towers:
        return text
    found = gguf.ids_of(gguf.read(path).keys, set(IDS.values()))
    ids = {field: found[token] for field, token in IDS.items() if token in found}
    unified = "mm_embed_dim" in towers.get("vision_config", {}) or "audio_embed_dim" in towers.get("audio_config", {})
    absent = {"vision_config": None, "audio_config": None}
    return {"model_type": f"gemma4{'_unified' * unified}", "text_config": text} | absent | towers | ids


def files_beside(path):
    """The mmproj files in a GGUF file's directory that fit it: those of a Gemma 4 whose soft tokens have its width."""
    width = gguf.read(path).tensors["token_embd.weight"].shape[-1]
    files = sorted(file for file in path.parent.glob("*.gguf") if "mmproj" in file.name.lower() and file != path)
    return [file for file in files if _width(file) == width]


def _width(file):
    """The width of an mmproj file's soft tokens; None if they are not for Gemma 4."""
    found = gguf.read_header(file)
    projection = found.tensors.get("mm.input_projection.weight") or found.tensors.get("mm.a.input_projection.weight")
    return projection.shape[0] if _kinds(found.keys) and projection else None


def _kinds(keys):
    """What a file holds, in llama.cpp's names: of TOWER, or of UNIFIED."""
    names = [keys.get(f"clip.{place}projector_type") for place in ("", "vision.", "audio.")]
    return {name for name in names if name in (*TOWER, *UNIFIED)}


def towers_beside(path):
    """vision_config and audio_config of the mmproj file beside a GGUF file; {} without one, or if there are several.

    The shapes of its tensors tell nearly all of their fields. Raises Error for a file that lacks a tensor.
    """
    files = files_beside(path)
    if len(files) != 1:
        return {}
    keys, tensors = gguf.read_header(files[0])

    def size(name, axis, axes=2):
        shape = tensors[name].shape if name in tensors else ()
        if len(shape) != axes:
            raise Error(f"{files[0]}: has no {name} of {axes} dimensions; download the file again")
        return shape[axis]

    def layers(part):
        numbers = [re.match(rf"{part}\.blk\.(\d+)\.", name) for name in tensors]
        return 1 + max((int(number[1]) for number in numbers if number), default=-1)

    pooling = keys.get("clip.vision.projector.scale_factor", 3)
    towers = {}
    if "gemma4v" in _kinds(keys):
        H = size("v.blk.0.attn_q_norm.weight", 0, 1)
        towers["vision_config"] = {
            "patch_size": size("v.patch_embd.weight", -1, 4),
            "pooling_kernel_size": pooling,
            "rms_norm_eps": gguf.decimal(keys.get("clip.vision.attention.layer_norm_epsilon", 1e-6)),
            "hidden_size": size("v.patch_embd.weight", 0, 4),
            "intermediate_size": size("v.blk.0.ffn_gate.weight", 0),
            "num_hidden_layers": layers("v"),
            "num_attention_heads": size("v.blk.0.attn_q.weight", 0) // H,
            "num_key_value_heads": size("v.blk.0.attn_k.weight", 0) // H,
            "head_dim": H,
            "position_embedding_size": size("v.position_embd.weight", 1, 3),
            "standardize": "v.std_bias" in tensors,
            "use_clipped_linears": "v.blk.0.attn_q.input_max" in tensors,
        }
    elif "gemma4uv" in _kinds(keys):
        towers["vision_config"] = {
            "patch_size": math.isqrt(size("v.patch_embd.weight", 1) // 3) // 3,
            "pooling_kernel_size": 3,
            "mm_embed_dim": size("v.patch_embd.weight", 0),
            "mm_posemb_size": size("v.position_embd.weight", 1, 3),
        }
    if "gemma4a" in _kinds(keys):
        D = size("a.input_projection.weight", 0)
        towers["audio_config"] = {
            "hidden_size": D,
            "num_hidden_layers": layers("a"),
            "num_attention_heads": D // size("a.blk.0.per_dim_scale.weight", 0, 1),
            "conv_kernel_size": size("a.blk.0.conv_dw.weight", 1),
            "subsampling_conv_channels": [size(f"a.conv1d.{i}.weight", 0, 4) for i in (0, 1)],
            "output_proj_dims": size("a.pre_encode.out.weight", 0),
            "use_clipped_linears": "a.blk.0.attn_q.input_max" in tensors,
        }
    elif "gemma4ua" in _kinds(keys):
        towers["audio_config"] = {"audio_embed_dim": size("mm.a.input_projection.weight", 1)}
    return towers


def tensors_beside(path):
    """Every tensor of the mmproj file beside a GGUF file -> Block or Changed by our names; {} as in towers_beside."""
    files = files_beside(path)
    if len(files) != 1:
        return {}
    keys, tensors = gguf.read_header(files[0])
    unified = bool(_kinds(keys) & {*UNIFIED})
    found = {}
    for name, block in tensors.items():
        ours = _our_name(name, unified)
        if ours in found:
            raise Error(f"{files[0]}: holds {ours} twice, under two names; download the file again")
        found[ours] = _our_layout(ours, block)
    return found


def _our_name(name, unified):
    """A tensor's name in a checkpoint; an unknown one keeps its own, below its tower."""
    if name == "v.position_embd.weight":
        return "vision_embedder.pos_embedding" if unified else "vision_tower.patch_embedder.position_embedding_table"
    outside = OUTSIDE | (OUTSIDE_UNIFIED if unified else {})
    if name in outside:
        return outside[name]
    part, tower = name[0], {"v": "vision_tower.", "a": "audio_tower."}.get(name.split(".")[0], "")
    module, _, last = name.rpartition(".")
    if layer := re.fullmatch(r"[va]\.blk\.(\d+)\.(.+)", module):
        inside = (VISION_LAYER if part == "v" else AUDIO_LAYER).get(layer[2], layer[2])
        if inside == "per_dim_scale":
            return f"{tower}layers.{layer[1]}.self_attn.per_dim_scale"
        inside = inside.removesuffix(".linear") if last in BOUNDS else inside
        return f"{tower}{'encoder.' if part == 'v' else ''}layers.{layer[1]}.{inside}.{last}"
    return f"{outside.get(module, tower + module)}.{last}"


def _our_layout(name, block):
    """The place of a tensor, with the change that undoes llama.cpp's."""
    shape, module = block.shape, name.split(".")[-2]
    if name.endswith("input_proj.weight") and len(shape) == 4:  # [D, 3, p, p] -> [D, p x p x 3]
        return Changed(block, (shape[0], math.prod(shape[1:])), lambda array: array.transpose(0, 2, 3, 1))
    if module in ("patch_dense", "patch_ln1") and (module, name.split(".")[-1]) != ("patch_dense", "bias"):
        side = math.isqrt(shape[-1] // 3)
        if 3 * side * side == shape[-1]:  # [..., 3 x p x p] -> [..., p x p x 3]
            return Changed(block, shape, lambda array: np.moveaxis(array.reshape(-1, 3, side, side), 1, -1))
    if name.endswith("pos_embedding") and len(shape) == 3:  # [2, positions, D] -> [positions, 2, D]
        return Changed(block, (shape[1], shape[0], shape[2]), lambda array: array.transpose(1, 0, 2))
    if module == "depthwise_conv1d" and len(shape) == 2:
        return Changed(block, (shape[0], 1, shape[1]), lambda array: array)
    if name.endswith(BOUNDS) and shape == (1,):
        return Changed(block, (), lambda array: array)
    if name.endswith("per_dim_scale"):
        return Changed(block, shape, _before_softplus)
    return block


def _before_softplus(scale):
    """softplus(p) -> p: the bfloat16 that a released checkpoint has, where one gives `scale`; else in float32."""
    scale = widen(scale)
    exact = np.log(np.expm1(scale.astype(np.float64))).astype(np.float32)
    short = widen(narrow(exact))
    return np.where(np.isclose(np.logaddexp(0, short), scale, rtol=1e-6, atol=0), short, exact)
