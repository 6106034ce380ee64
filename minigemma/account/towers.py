"""The parts of a checkpoint beside the text model: vision and audio, as their config.json describes them."""

import re

# From the config.json files of the released models: only the fields that decide a tensor's shape. 12B ("unified") has
# no towers: it projects patches of pixels and frames of sound directly.
_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12,
    "num_key_value_heads": 12, "head_dim": 64, "patch_size": 16, "position_embedding_size": 10240,
    "standardize": False, "use_clipped_linears": True,
}  # fmt: skip
_BIG_VISION = _VISION | {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "head_dim": 72, "standardize": True, "use_clipped_linears": False,
}  # fmt: skip
_AUDIO = {
    "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 8, "conv_kernel_size": 5,
    "subsampling_conv_channels": [128, 32], "output_proj_dims": 1536, "use_clipped_linears": True,
}  # fmt: skip
_UNIFIED_VISION = {"patch_size": 16, "pooling_kernel_size": 3, "mm_embed_dim": 3840, "mm_posemb_size": 1120}
TOWERS = {
    "E2B": {"vision_config": _VISION, "audio_config": _AUDIO},
    "E4B": {"vision_config": _VISION, "audio_config": _AUDIO},
    "12B": {"vision_config": _UNIFIED_VISION, "audio_config": {"audio_embed_dim": 640}},
    "26B-A4B": {"vision_config": _BIG_VISION, "audio_config": None},
    "31B": {"vision_config": _BIG_VISION, "audio_config": None},
}

# Groups of a tower's tensors, by their name; the first that fits counts.
GROUPS = {
    "clip bounds": r"(in|out)put_(min|max)$",
    "projection into the text model": r"embedding_projection",
    "subsampling": r"subsample",
    "norms and statistics": r"norm|std_|patch_ln",
    "MLP": r"mlp|feed_forward",
    "attention": r"self_attn",
    "convolution": r"lconv1d",
    "output projection": r"output_proj",
    "position table": r"position_embedding_table|pos_embedding",
    "patches": r"input_proj|patch_dense",
}


def group_of(name):
    """The key of GROUPS that a tensor of a tower belongs to."""
    return next(group for group, pattern in GROUPS.items() if re.search(pattern, name))
