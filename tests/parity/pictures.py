"""The oracle for pictures: transformers' vision tower and 12B's embedder, recorded under minigemma's tap names."""

import contextlib
from functools import cache
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from family import IDS, random_picture, random_vision, seeing, tower_arrays
from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedTextConfig,
    Gemma4UnifiedVisionConfig,
    Gemma4VisionConfig,
)
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4.image_processing_pil_gemma4 import convert_image_to_patches, pad_along_first_dim
from transformers.models.gemma4_unified import modeling_gemma4_unified

from minigemma import Config, Trace
from minigemma.config import VisionEmbedder
from minigemma.vision import embed_image, encode_image

from . import reference
from .dump_transformers import dump
from .reference import eager, precision


def random_seeing(seed):
    """A random config.json that sees, and a picture whose size fits: rows and columns of soft tokens."""
    rng = np.random.default_rng([9, seed])

    def pick(*options):
        return options[rng.integers(len(options))]

    patch, pool, heads = pick(2, 3, 4), pick(2, 3), pick(1, 2, 4)  # of pool 1 transformers keeps the padding
    if pick(True, False, False):
        vision = {"mm_embed_dim": pick(12, 24, 40), "mm_posemb_size": 40, "rms_norm_eps": pick(1e-6, 1e-3)}
    else:
        vision = {
            "hidden_size": pick(12, 24, 40), "intermediate_size": pick(16, 40), "num_hidden_layers": pick(1, 2, 3),
            "num_attention_heads": heads, "num_key_value_heads": pick(*(k for k in (1, 2, 4) if heads % k == 0)),
            "head_dim": pick(8, 12, 16), "position_embedding_size": 40, "standardize": pick(True, False),
            "use_clipped_linears": pick(True, False), "rms_norm_eps": pick(1e-6, 1e-3),
            "rope_parameters": {"rope_type": pick("default", "axial"), "rope_theta": pick(100.0, 7.0)},
        }  # fmt: skip
    raw = seeing(pick("E2B", "31B"), vision | {"patch_size": patch, "pooling_kernel_size": pool})
    rows, columns = int(rng.integers(1, 7)), int(rng.integers(1, 7))
    return raw, random_picture(rows * patch * pool, columns * patch * pool, seed)


class Sight:
    """One config and picture: our taps, and the reference's; `disagreements` of case.py compares them.

    install: puts a mistake into the reference, see picture_port.py.
    """

    def __init__(self, raw, image, seed=0, install=None):
        self.raw, self.image, self.config, self.install = raw, image, Config.from_dict(raw), install
        self.seed, self.reference = seed, cache(self._reference)

    def weights(self, dtype):
        return random_vision(self.config, self.seed, dtype)

    def ours(self, dtype):
        tower = not isinstance(self.config.vision, VisionEmbedder)
        trace = Trace(["*", "*heads*"] if tower else None)
        (encode_image if tower else embed_image)(self.image, self.weights(dtype), self.config, tap=trace)
        return trace

    def _reference(self, dtype):
        weights = self.weights(dtype)
        with precision(dtype), torch.no_grad():
            if isinstance(self.config.vision, VisionEmbedder):
                return _record_embedder(self, tower_state(self.config, "vision", weights))
            return _record_tower(self, tower_state(self.config, "vision", weights))

    def patches(self, size, padding=0):
        """The picture as transformers' processor cuts it, [1, T + padding, X], and the positions of the patches."""
        pixels = self.image.transpose(2, 0, 1) * (1 / 255)
        patches = convert_image_to_patches(pixels, size)  # float64
        rows, columns = pixels.shape[1] // size, pixels.shape[2] // size
        grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
        patches, grid = pad_along_first_dim(patches, grid, len(patches) + padding)
        return torch.from_numpy(patches).to(torch.get_default_dtype())[None], torch.from_numpy(grid)[None]


def tower_state(config, part, weights):
    """Our weights of "vision" or "audio" under the names of a checkpoint."""
    arrays = tower_arrays(config, part, weights)
    return {name: torch.from_numpy(array).to(torch.get_default_dtype()) for name, array in arrays.items()}


def part_of(state, prefix):
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _record_tower(case, state):
    vision = eager(Gemma4VisionConfig.from_dict(case.raw["vision_config"]))
    tower = modeling_gemma4.Gemma4VisionModel(vision).eval()
    tower.load_state_dict(part_of(state, "vision_tower."))
    text = Gemma4TextConfig.from_dict(case.raw["text_config"])
    embedder = modeling_gemma4.Gemma4MultimodalEmbedder(vision, text).eval()
    embedder.load_state_dict(part_of(state, "embed_vision."))
    if case.install:
        case.install(tower, embedder)
    k = vision.pooling_kernel_size
    patches, grid = case.patches(vision.patch_size, padding=2 * k * k)  # padding changes nothing
    T = patches.shape[1] - 2 * k * k
    taps, handles = {}, []

    def keep(name, tensor, *shape):
        array = tensor.detach().clone().numpy()[0, :T]
        taps[name] = array.reshape(T, *shape) if shape else array

    def output(module, name, *shape):
        handles.append(module.register_forward_hook(lambda _, args, out: keep(name, out, *shape)))

    def entry(module, name, *shape):
        handles.append(module.register_forward_pre_hook(lambda _, args: keep(name, args[0], *shape)))

    entry(tower.patch_embedder.input_proj, "vision.patches")
    output(tower.patch_embedder.input_proj, "vision.patch_embed")
    output(tower.patch_embedder, "vision.embed")
    for i, layer in enumerate(tower.encoder.layers):
        _watch(layer, f"vision.layers.{i}.", entry, output)

    def pooled(_, args, out):
        taps["vision.pooled"] = out[0][out[1]].numpy()

    handles.append(tower.pooler.register_forward_hook(pooled))
    with _attention(taps, T):
        last = tower(pixel_values=patches, pixel_position_ids=grid).last_hidden_state
    if vision.standardize:
        taps["vision.standardized"] = last.numpy()
    taps["vision.soft_tokens"] = embedder(last).numpy()
    return taps


def _watch(layer, at, entry, output):
    attn, mlp, H = layer.self_attn, layer.mlp, layer.self_attn.head_dim
    entry(layer.input_layernorm, at + "resid_pre")
    output(layer.input_layernorm, at + "attn.in")
    for name in "qkv":
        output(getattr(attn, f"{name}_proj"), f"{at}attn.{name}_raw", -1, H)
        output(getattr(attn, f"{name}_norm"), f"{at}attn.{name}")
    entry(attn.o_proj, at + "attn.z", -1, H)
    output(attn.o_proj, at + "attn.o")
    output(layer.post_attention_layernorm, at + "attn_out")
    entry(layer.pre_feedforward_layernorm, at + "resid_mid")
    output(layer.pre_feedforward_layernorm, at + "mlp.in")
    output(mlp.gate_proj, at + "mlp.gate")
    output(mlp.up_proj, at + "mlp.up")
    entry(mlp.down_proj, at + "mlp.act")
    output(mlp.down_proj, at + "mlp.down")
    output(layer.post_feedforward_layernorm, at + "mlp_out")
    output(layer, at + "resid_post")


@contextlib.contextmanager
def _attention(taps, T):
    """Keep what stands inside the attention: rotated queries and keys, and each head's scores and pattern."""
    plain = modeling_gemma4.eager_attention_forward

    def attention(module, query, key, value, *args, **kwargs):
        out, weights = plain(module, query, key, value, *args, **kwargs)
        at = f"vision.layers.{module.layer_idx}.attn."
        taps[at + "rot_q"], taps[at + "rot_k"] = (x[0, :, :T].transpose(0, 1).numpy() for x in (query, key))
        scores = query @ modeling_gemma4.repeat_kv(key, module.num_key_value_groups).transpose(2, 3) * module.scaling
        for n in range(query.shape[1]):
            taps[f"{at}heads.{n}.scores"] = scores[0, n, :T, :T].numpy()
            taps[f"{at}heads.{n}.pattern"] = weights[0, n, :T, :T].numpy()
        return out, weights

    with mock.patch.object(modeling_gemma4, "eager_attention_forward", attention):
        yield


def _record_embedder(case, state):
    vision = Gemma4UnifiedVisionConfig.from_dict(case.raw["vision_config"])
    vision.output_proj_dims = vision.mm_embed_dim
    text = Gemma4UnifiedTextConfig.from_dict(case.raw["text_config"])
    embedder = modeling_gemma4_unified.Gemma4UnifiedVisionEmbedder(vision, text).eval()
    names = part_of(state, "vision_embedder.")
    names["multimodal_embedder.embedding_projection.weight"] = state["embed_vision.embedding_projection.weight"]
    embedder.load_state_dict(names)
    if case.install:
        case.install(None, embedder)
    patches, grid = case.patches(vision.model_patch_size, padding=5)
    T, taps = patches.shape[1] - 5, {}
    embedder.patch_ln1.register_forward_pre_hook(lambda _, args: taps.update({"vision.patches": args[0]}))
    embedder.patch_ln2.register_forward_hook(lambda _, args, out: taps.update({"vision.patch_embed": out}))
    out = embedder(patches, grid, return_dict=True)
    taps |= {"vision.embed": out.last_hidden_state, "vision.soft_tokens": out.pooler_output}
    return {name: tensor[0, :T].numpy() for name, tensor in taps.items()}


def logits_behind(raw, weights, ids, rows, dtype=np.float64):
    """A whole transformers model's logits [T, V]: it finds the placeholders, merges rows and makes masks."""
    with precision(dtype), torch.no_grad():
        options = {"mm_token_type_ids": _types(ids), "output_hidden_states": True}
        return _logits(whole_model(raw, weights), ids, rows, options)


def taps_behind(raw, weights, ids, rows, masks):
    """A whole transformers model's taps in float32, with other masks: kind of layer -> which keys are seen, [T, T]."""
    with torch.no_grad():
        model = whole_model(raw, weights)
        lowest = torch.finfo(torch.float32).min
        masks = {kind: torch.where(seen, 0.0, lowest)[None, None] for kind, seen in masks.items()}
        options = {"attention_mask": masks, "position_ids": torch.arange(len(ids))[None], "output_hidden_states": True}
        with reference.recording(model.model.language_model) as taps:
            taps["logits"] = _logits(model, ids, rows, options)
        return taps | {"embed": taps["layers.0.resid_pre"]}  # the table gave the pad token's rows


def whole_model(raw, weights, vision=None):
    """transformers' whole model, without its towers or with a vision_config."""
    unified = raw["model_type"] == "gemma4_unified"
    text = eager((Gemma4UnifiedTextConfig if unified else Gemma4TextConfig).from_dict(raw["text_config"]))
    made = Gemma4UnifiedConfig if unified else Gemma4Config
    whole = eager(made(text_config=text, vision_config=vision and eager(vision), audio_config=None, **IDS))
    model = Gemma4UnifiedForConditionalGeneration(whole) if unified else Gemma4ForConditionalGeneration(whole)
    return _filled(model, raw, weights)


def dump_with_picture(sight, weights, ids, path):
    """What the README's function writes of a whole model that gets a prompt and the picture, with padding."""
    raw = sight.raw
    embedder = isinstance(sight.config.vision, VisionEmbedder)
    vision = (Gemma4UnifiedVisionConfig if embedder else Gemma4VisionConfig).from_dict(raw["vision_config"])
    with torch.no_grad():
        if embedder:
            vision.output_proj_dims = vision.mm_embed_dim
        model = whole_model(raw, weights, vision)
        state = tower_state(sight.config, "vision", sight.weights(np.float32))
        if embedder:
            name = "embedding_projection.weight"
            state = {f"embed_vision.{key.rpartition('vision_embedder.')[2]}": value for key, value in state.items()}
            state[f"embed_vision.multimodal_embedder.{name}"] = state.pop(f"embed_vision.embed_vision.{name}")
        _, unexpected = model.model.load_state_dict(state, strict=False)
        assert unexpected == []
        patches, places = sight.patches(sight.config.vision.patches[0], padding=2 * vision.pooling_kernel_size**2)
        inputs = {"pixel_values": patches, "image_position_ids": places, "mm_token_type_ids": _types(ids)}
        dump(model, torch.tensor(ids)[None], path, **inputs, **(masks_of_generate(model, ids) if embedder else {}))


def masks_of_generate(model, ids):
    """The inputs of 12B's plain forward that give it the masks of its generate."""
    embeds, positions = model.get_input_embeddings()(torch.tensor(ids)[None]), torch.arange(len(ids))[None]
    masks = model.create_masks_for_generate(model.config, embeds, None, None, positions, mm_token_type_ids=_types(ids))
    return {"attention_mask": masks, "position_ids": positions}


def logits_of_12b(raw, weights, ids, rows, dtype=np.float64):
    """12B's, with the masks of its generate: its plain forward makes others, on global layers too."""
    with precision(dtype), torch.no_grad():
        model = whole_model(raw, weights)
        return _logits(model, ids, rows, masks_of_generate(model, ids))


def _filled(model, raw, weights):
    state = reference.state_dict(Config.from_dict(raw), weights, "model.language_model.")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == [] and not [name for name in missing if "language_model" in name]
    return model.eval()


def _types(ids):
    return torch.tensor(np.asarray(ids) == IDS["image_token_id"]).int()[None]


def _logits(model, ids, rows, options):
    features = {"image": SimpleNamespace(pooler_output=[torch.from_numpy(rows)])}
    out = model(input_ids=torch.tensor(ids)[None], mm_encoder_outputs=features, use_cache=False, **options)
    return out.logits[0].numpy()
