"""Makes a whole checkpoint directory from a saved text model, with the files, names and fields of Google's own.

    python weights/training/whole.py weights/tiny

Some engines read only that form: config.json nests the text model in `text_config`, tensors are named
`model.language_model.*`, every layer has k_proj, v_proj and k_norm, and the tokenizer comes with its special tokens and
a chat template. The tensors that the pass reads keep dtype, shape and bytes. A second run writes the same bytes again.
train.py runs this on what it saves.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, processors

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where minigemma lies
from minigemma import Config
from minigemma.checkpoint import FILE_DTYPES, find_text_tensors, read_header, write_safetensors
from minigemma.config import GLOBAL
from minigemma.files import read_json, replacing
from minigemma.packed import narrow
from minigemma.tensors import AUDIO, VISION, text_tensors, unused_tensors

# Special tokens that the tokenizer was trained without: their ids in Gemma 4's vocabulary, where it has <unused...>.
NAMED = {
    46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>", 50: "<|tool_response>",
    51: "<tool_response|>", 52: '<|"|>', 98: "<|think|>", 100: "<|channel>", 101: "<channel|>",
}  # fmt: skip
MEDIA = {  # field of config.json: the token of which it holds the id
    "image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>",
    "audio_token_id": "<|audio|>", "boa_token_id": "<|audio>", "eoa_token_id": "<audio|>",
    "eoa_token_index": "<audio|>", "video_token_id": "<|video|>",
}  # fmt: skip
UNUSED = (
    "k_proj, v_proj and k_norm of the KV-sharing layers are copies of those of the layer whose K and V they read. "
    "No pass reads them; strict loaders expect them, because Google's files hold them."
)


def complete(directory):
    """Rewrite the files of `directory`, one after the other. Each file is whole at any time. Towers are kept."""
    config, path = Config.from_json(directory), directory / "model.safetensors"
    towers = tensors_of(path, tuple(f"model.{prefix}" for prefix in (*VISION, *AUDIO)))
    write_weights(path, whole_text(config, find_text_tensors(directory)) | towers)
    tokenizer = write_tokenizer(directory / "tokenizer.json")
    write_json(directory / "tokenizer_config.json", tokenizer_fields(config))
    shutil.copy(Path(__file__).with_name("chat_template.jinja"), directory)
    write_json(directory / "config.json", config_fields(read_json(directory / "config.json"), config, tokenizer))


def add_tower(directory, kind, fields, arrays):
    """Put a tower beside the text model of a whole directory, in the place of one that was there.

    kind: "vision" or "audio". fields: its config. arrays: its float32 tensors, named as in a released checkpoint.
    """
    path, prefixes = directory / "model.safetensors", VISION if kind == "vision" else AUDIO
    old = tensors_of(path, tuple(f"model.{prefix}" for prefix in prefixes))
    kept = {name: array for name, array in tensors_of(path, "").items() if name not in old}
    write_weights(path, kept | {name: narrow(array).reshape(array.shape) for name, array in arrays.items()})
    write_json(directory / "config.json", read_json(directory / "config.json") | {f"{kind}_config": fields})
    processor = directory / "processor_config.json"
    there = read_json(processor) if processor.exists() else {}
    write_json(processor, there | (image_processor(fields) if kind == "vision" else feature_extractor(fields)))


def image_processor(fields):
    """What transformers reads to prepare a picture. The tower was trained with pictures of at most 70 soft tokens."""
    sizes = {name: fields[name] for name in ("patch_size", "pooling_kernel_size")}
    return {"image_processor": {"image_processor_type": "Gemma4ImageProcessor", "max_soft_tokens": 70} | sizes}


def feature_extractor(fields):
    """What transformers reads to prepare a sound: the tower takes as many mel bins as its first channels."""
    bins = fields["subsampling_conv_channels"][0]
    return {"feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor", "feature_size": bins}}


def tensors_of(path, prefixes):
    """The tensors in a file whose names begin so -> bfloat16 bits by name, in memory: the file will be replaced."""
    return {
        name: np.array(stored.map()).reshape(stored.shape)
        for name, stored in read_header(path).items()
        if name.startswith(prefixes)
    }


def whole_text(config, found):
    """The text model's tensors unchanged, and those that no pass reads as copies of the donor's -> bits by name."""
    bits = {tensor.name: np.array(found[tensor.name].map()) for tensor in text_tensors(config)}
    for tensor in unused_tensors(config):
        donor = config.layers[tensor.layer].kv_from
        bits[tensor.name] = bits[tensor.name.replace(f"layers.{tensor.layer}.", f"layers.{donor}.")]
    return {f"model.language_model.{name}": array for name, array in bits.items()}


def write_weights(path, bits):
    """Write tensors by name, all of one dtype: bfloat16 as its bits, or float32."""
    (dtype,) = {name for array in bits.values() for name, kind in FILE_DTYPES.items() if kind == array.dtype}
    names = sorted(bits)
    table = [(name, bits[name].shape) for name in names]
    write_safetensors(path, dtype, table, [bits[name] for name in names], {"unused": UNUSED})


def write_tokenizer(path):
    """Name Gemma 4's special tokens, and let the tokenizer put <bos> before a text. -> Tokenizer"""
    raw = read_json(path)
    raw["model"]["vocab"] = {NAMED.get(id, token): id for token, id in raw["model"]["vocab"].items()}
    for token in raw["added_tokens"]:
        token["content"] = NAMED.get(token["id"], token["content"])
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    with replacing(path) as temporary:
        tokenizer.save(str(temporary))
    return tokenizer


def tokenizer_fields(config):
    """tokenizer_config.json; engines that convert a checkpoint read the special tokens from it."""
    return {
        "add_bos_token": True,
        "additional_special_tokens": [*NAMED.values(), "<|turn>", "<turn|>", *dict.fromkeys(MEDIA.values())],
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "model_max_length": config.max_position_embeddings,
        "pad_token": "<pad>",
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }


def config_fields(raw, config, tokenizer):
    """config.json as Google nests it, with both spellings of the global layers' head_dim; the towers as they are."""
    outer = ("architectures", "transformers_version")
    text = {name: value for name, value in raw.get("text_config", raw).items() if name not in outer}
    (head_dim,) = {layer.head_dim for layer in config.layers if layer.kind == GLOBAL}
    text |= {"model_type": "gemma4_text", "global_head_dim": head_dim, "num_global_key_value_heads": None}
    whole = {name: tokenizer.token_to_id(token) for name, token in MEDIA.items()}
    whole |= {name: raw[name] for name in ("dtype", "transformers_version")}
    whole |= {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4"}
    towers = {name: raw.get(name) for name in ("vision_config", "audio_config")}
    whole |= {"text_config": dict(sorted(text.items())), **towers}
    whole |= {"tie_word_embeddings": True, "vocab_size": config.vocab_size}  # mlx-lm reads vocab_size out here only
    return dict(sorted(whole.items()))


def write_json(path, fields):
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="a checkpoint with tokenizer.json, text only or whole already")
    complete(parser.parse_args().directory)
