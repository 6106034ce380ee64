"""The oracle for sounds: transformers' audio tower and 12B's embedder, recorded under minigemma's tap names."""

import contextlib
from functools import cache
from unittest import mock

import numpy as np
import torch
from family import IDS, SOUND_IDS, hearing, random_audio, random_picture, random_sound, random_vision
from transformers import (
    Gemma4AudioConfig,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4UnifiedAudioConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedTextConfig,
)
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4_unified import modeling_gemma4_unified
from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import Gemma4UnifiedAudioFeatureExtractor

from minigemma import Config, Trace, random_weights
from minigemma.audio import embed_sound, encode_audio, log_mel
from minigemma.config import AudioEmbedder
from minigemma.vision import embed_image, encode_image

from . import pictures, reference
from .dump_transformers import dump
from .pictures import part_of, tower_state
from .reference import eager, precision


def random_hearing(seed):
    """A random config.json that hears, and a log mel for its tower, or the samples of a sound for 12B."""
    rng = np.random.default_rng([11, seed])

    def pick(*options):
        return options[rng.integers(len(options))]

    if pick(True, False, False, False, False):
        raw = hearing("12B", {"audio_embed_dim": pick(12, 40), "rms_norm_eps": pick(1e-6, 1e-3)})
        return raw, random_sound(int(rng.integers(1, 300)), seed)
    heads, left = pick(1, 2, 4), pick(2, 4, 13, 20)
    audio = {
        "hidden_size": heads * pick(6, 8, 14), "num_hidden_layers": pick(1, 2, 3), "num_attention_heads": heads,
        "subsampling_conv_channels": [pick(8, 12, 16), pick(3, 6)], "output_proj_dims": pick(12, 20),
        "use_clipped_linears": pick(True, False), "rms_norm_eps": pick(1e-6, 1e-3), "conv_kernel_size": pick(1, 3, 5),
        "attention_context_left": left, "attention_chunk_size": left - 1, "attention_logit_cap": pick(50.0, 0.7),
        "gradient_clipping": pick(1e10, 0.9), "residual_weight": pick(0.5, 0.8),
    }  # fmt: skip
    frames = int(rng.integers(1, pick(12, 300)))
    mel = rng.normal(-3, 3, (frames, audio["subsampling_conv_channels"][0])).astype(np.float32)
    return hearing("E2B", audio), mel


class Hearing:
    """One config and sound: our taps, and the reference's; `disagreements` of case.py compares them."""

    def __init__(self, raw, sound, seed=0, install=lambda tower: None, padding=7):
        """install: a mistake that is put into transformers' audio tower. padding: frames behind its log mel."""
        self.raw, self.sound, self.config = raw, sound, Config.from_dict(raw)
        self.install, self.padding = install, padding
        self.seed, self.reference = seed, cache(self._reference)

    def weights(self, dtype):
        return random_audio(self.config, self.seed, dtype)

    def ours(self, dtype):
        trace = Trace()
        encode = embed_sound if isinstance(self.config.audio, AudioEmbedder) else encode_audio
        encode(self.sound, self.weights(dtype), self.config, tap=trace)
        return trace

    def _reference(self, dtype):
        with precision(dtype), torch.no_grad():
            record = _record_embedder if isinstance(self.config.audio, AudioEmbedder) else _record_tower
            return record(self, tower_state(self.config, "audio", self.weights(dtype)))


def _embedder(module, audio, text, state):
    embedder = module(audio, text).eval()
    embedder.load_state_dict(part_of(state, "embed_audio."))
    return embedder


def _record_tower(case, state):
    audio = eager(Gemma4AudioConfig.from_dict(case.raw["audio_config"]))
    tower = modeling_gemma4.Gemma4AudioModel(audio).eval()
    tower.load_state_dict(part_of(state, "audio_tower."))
    case.install(tower)
    text = Gemma4TextConfig.from_dict(case.raw["text_config"])
    embedder = _embedder(modeling_gemma4.Gemma4MultimodalEmbedder, audio, text, state)
    R, padding = len(case.sound), case.padding  # which changes nothing in a right tower
    T = -(-R // 4)
    mel = torch.from_numpy(np.pad(case.sound, ((0, padding), (0, 0)))).to(torch.get_default_dtype())[None]
    mask = torch.arange(R + padding)[None] < R
    taps = {"audio.mel": mel[0, :R].numpy()}

    def keep(name, tensor, *shape, rows=T):
        array = tensor.detach().clone().numpy()[0, :rows]
        taps[name] = array.reshape(rows, *shape) if shape else array

    def output(module, name, *shape):
        module.register_forward_hook(lambda _, args, out: keep(name, out, *shape))

    def entry(module, name, *shape):
        module.register_forward_pre_hook(lambda _, args: keep(name, args[0], *shape))

    def channels_last(name, rows):
        return lambda _, args, out: keep(name, out[0].permute(0, 2, 3, 1), rows=rows)

    first = tower.subsample_conv_projection
    first.layer0.register_forward_hook(channels_last("audio.half", -(-R // 2)))
    first.layer1.register_forward_hook(channels_last("audio.quarter", T))
    output(first.input_proj_linear, "audio.embed")
    for i, layer in enumerate(tower.layers):
        _watch(layer, f"audio.layers.{i}.", keep, entry, output)
    output(tower.output_proj, "audio.encoded")
    with _attention(taps, T):
        last = tower(mel, mask)
    assert last.attention_mask[0].sum() == T
    taps["audio.soft_tokens"] = embedder(last.last_hidden_state)[0, :T].numpy()
    return taps


def _watch(layer, at, keep, entry, output):
    attn, conv, H = layer.self_attn, layer.lconv1d, layer.self_attn.head_dim
    entry(layer.feed_forward1, at + "resid_pre")
    for name, ffn in ("ffn1", layer.feed_forward1), ("ffn2", layer.feed_forward2):
        output(ffn.pre_layer_norm, f"{at}{name}.in")
        output(ffn.ffw_layer_1, f"{at}{name}.hidden")
        output(ffn.act_fn, f"{at}{name}.act")
        output(ffn.ffw_layer_2, f"{at}{name}.down")
        ffn.post_layer_norm.register_forward_hook(
            lambda _, args, out, name=f"{at}{name}_out", ffn=ffn: keep(name, out * ffn.post_layer_scale)
        )
        output(ffn, f"{at}resid_{name}")
    output(layer.norm_pre_attn, at + "attn.in")
    output(attn.q_proj, at + "attn.q_raw", -1, H)
    output(attn.k_proj, at + "attn.k_raw", -1, H)
    output(attn.v_proj, at + "attn.v", -1, H)
    entry(attn.post, at + "attn.z", -1, H)
    output(attn.post, at + "attn.o")
    output(layer.norm_post_attn, at + "attn_out")
    entry(conv, at + "resid_mid")
    output(conv.pre_layer_norm, at + "conv.in")
    output(conv.linear_start, at + "conv.start")
    conv.depthwise_conv1d.register_forward_pre_hook(lambda _, args: keep(at + "conv.gated", args[0].transpose(1, 2)))
    conv.depthwise_conv1d.register_forward_hook(lambda _, args, out: keep(at + "conv.mixed", out.transpose(1, 2)))
    output(conv.act_fn, at + "conv.act")
    output(conv.linear_end, at + "conv_out")
    output(conv, at + "resid_conv")
    output(layer.norm_out, at + "resid_post")


@contextlib.contextmanager
def _attention(taps, T):
    """Keep what stands inside the attention: scaled queries and keys, relative keys, scores and pattern."""
    plain = modeling_gemma4.Gemma4AudioAttention.forward
    fill = torch.Tensor.masked_fill

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        at, S = f"audio.layers.{self.layer_idx}.attn.", self.max_past_horizon
        blocks, context = self._convert_to_block, self._extract_block_context
        seen = []

        def by_distance(x):  # [1, N, blocks, chunk, context] -> [N, T, S]: from places in a context to distances
            t, d = np.arange(T)[:, None], np.arange(S)
            return x[0].numpy()[:, t // self.chunk_size, t % self.chunk_size, t % self.chunk_size + S - d]

        def masked_fill(x, mask, value):
            if x.ndim == 5:
                taps[at + "scores"] = by_distance(x)
            return fill(x, mask, value)

        watched = {
            "_convert_to_block": lambda q: blocks(taps.setdefault(at + "q", q[0, :T].numpy()) is None or q),
            "_extract_block_context": lambda x: context(seen.append(x[0, :T].numpy()) or x),
        }
        with mock.patch.multiple(self, **watched), mock.patch.object(torch.Tensor, "masked_fill", masked_fill):
            out, weights = plain(self, hidden_states, position_embeddings, attention_mask)
        taps[at + "k"], taps[at + "pattern"] = seen[0], by_distance(weights)
        relative = self.relative_k_proj(position_embeddings).view(-1, self.num_heads, self.head_dim).numpy()
        taps[at + "rel_k"] = relative[::-1][:S]  # the reference counts from the farthest
        return out, weights

    with mock.patch.object(modeling_gemma4.Gemma4AudioAttention, "forward", forward):
        yield


def _record_embedder(case, state):
    audio = Gemma4UnifiedAudioConfig.from_dict(case.raw["audio_config"])
    text = Gemma4UnifiedTextConfig.from_dict(case.raw["text_config"])
    embedder = _embedder(modeling_gemma4_unified.Gemma4UnifiedMultimodalEmbedder, audio, text, state)
    width = audio.audio_embed_dim
    extractor = Gemma4UnifiedAudioFeatureExtractor(feature_size=width, audio_samples_per_token=width)
    frames = extractor([case.sound], return_tensors="pt")["input_features"].to(torch.get_default_dtype())
    return {"audio.frames": frames[0].numpy(), "audio.soft_tokens": embedder(frames)[0].numpy()}


# The ids of a medium in a prompt: what stands before its soft tokens, the placeholder of each, what stands behind.
MARKS = {"image": ("boi", "image", "eoi"), "video": ("boi", "video", "eoi"), "audio": ("boa", "audio", "eoa")}


class Mixed:
    """A whole model, and a prompt in which pictures, frames of a video and sounds stand between text."""

    def __init__(self, member, seed, kinds=None):
        rng = np.random.default_rng([17, seed])
        self.member, self.raw = member, hearing(member)
        self.config, self.seed = Config.from_dict(self.raw), seed
        self.weights = random_weights(self.config, seed, np.float64)
        self.vision = random_vision(self.config, seed, np.float64)
        self.audio = random_audio(self.config, seed, np.float64)
        self.media, self.ids, self.where, rows = {kind: [] for kind in MARKS}, [2], [], []
        mixed = [*rng.permutation(["image", "video", "audio"]), *rng.choice(["image", "audio"], rng.integers(3))]
        for kind in kinds or mixed:
            source, soft = self.medium(kind, rng)
            self.media[kind].append(source)
            start, mark, end = ((IDS | SOUND_IDS)[f"{name}_token_id"] for name in MARKS[kind])
            self.ids += [*rng.integers(1, 100, rng.integers(0, 4)), start]
            self.where += range(len(self.ids), len(self.ids) + len(soft))
            self.ids += [mark] * len(soft) + [end]
            rows.append(soft)
        self.ids = np.array([*self.ids, *rng.integers(1, 100, 3)])
        self.rows = np.concatenate(rows)

    def medium(self, kind, rng):
        """A picture or the samples of a sound, and our soft tokens of it."""
        if kind != "audio":
            image = random_picture(*(int(n) * self.config.vision.side for n in rng.integers(1, 4, 2)), rng.integers(99))
            see = embed_image if self.member == "12B" else encode_image
            return image, see(image, self.vision, self.config)
        sound = random_sound(int(rng.integers(161, 300 if self.member == "12B" else 6000)), rng.integers(99))
        if self.member == "12B":
            return sound, embed_sound(sound, self.audio, self.config)
        return sound, encode_audio(log_mel(sound), self.audio, self.config)

    def logits(self):
        """transformers' [T, V] in double. It runs its own towers, finds the placeholders, and makes the masks."""
        with precision(np.float64), torch.no_grad():
            model, given = self.reference()
            quirk = not self.config.hidden_size_per_layer_input  # see reference.record
            return model(**given, use_cache=False, output_hidden_states=quirk).logits[0].numpy()

    def dump(self, path):
        """What the README's function dumps of transformers in float32."""
        model, given = self.reference()
        dump(model, given.pop("input_ids"), path, **given)

    def reference(self):
        """transformers' model, and its inputs."""
        unified = self.member == "12B"
        with torch.no_grad():
            whole = (Gemma4UnifiedConfig if unified else Gemma4Config).from_dict(self.raw)
            if unified:
                whole.vision_config.output_proj_dims = whole.vision_config.mm_embed_dim
            for part in (whole, whole.text_config, whole.vision_config, whole.audio_config):
                eager(part)
            model = (Gemma4UnifiedForConditionalGeneration if unified else Gemma4ForConditionalGeneration)(whole).eval()
            self.fill(model, unified)
            ids, types = torch.tensor(self.ids)[None], torch.zeros(1, len(self.ids), dtype=torch.int)
            for number, kind in enumerate(MARKS, 1):
                types[ids == IDS[f"{kind}_token_id"]] = number
            given = {"input_ids": ids, "mm_token_type_ids": types} | self.inputs(unified)
            if unified:
                embeds, positions = model.get_input_embeddings()(ids), torch.arange(len(self.ids))[None]
                masks = model.create_masks_for_generate(whole, embeds, None, None, positions, mm_token_type_ids=types)
                given |= {"attention_mask": masks, "position_ids": positions}
            return model, given

    def fill(self, model, unified):
        state = tower_state(self.config, "vision", self.vision) | tower_state(self.config, "audio", self.audio)
        if unified:  # the names of a file -> those of the module
            for name in [name for name in state if "vision" in name]:
                last = name.partition(".")[2]
                projects = last.startswith("embedding_projection")
                state[f"embed_vision.{'multimodal_embedder.' * projects}{last}"] = state.pop(name)
        state = {f"model.{name}": value for name, value in state.items()}
        state |= reference.state_dict(self.config, self.weights, "model.language_model.")
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert unexpected == [] and missing == []

    def inputs(self, unified):
        """The towers' inputs as the processors make them: padded to the longest."""
        size = self.config.vision.patches[0]
        given, frames = {}, len(self.media["video"])
        for kind, names in (
            ("image", ("pixel_values", "image_position_ids")),
            ("video", ("pixel_values_videos", "video_position_ids")),
        ):
            if not self.media[kind]:
                continue
            given |= {"num_frames_per_video": torch.tensor([frames])} if kind == "video" else {}
            cases = [pictures.Sight(self.raw, image) for image in self.media[kind]]
            longest = max(case.patches(size)[0].shape[1] for case in cases)
            padded = [case.patches(size, longest - case.patches(size)[0].shape[1]) for case in cases]
            given |= dict(zip(names, (torch.cat(arrays) for arrays in zip(*padded, strict=True)), strict=True))
        extract = Gemma4AudioFeatureExtractor()
        if unified:
            width = self.config.audio.audio_embed_dim
            extract = Gemma4UnifiedAudioFeatureExtractor(feature_size=width, audio_samples_per_token=width)
        sounds = extract(self.media["audio"], return_tensors="pt")
        given["input_features"] = sounds["input_features"].to(torch.get_default_dtype())
        return given | {"input_features_mask": sounds["input_features_mask"]}
