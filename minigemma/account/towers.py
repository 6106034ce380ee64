"""What the released files hold beside the text model, and the footprints that others published."""




# The other parts of the released files, from the same config.json files: only the fields that decide a tensor's shape.
# 12B ("unified") has no towers: it projects patches of pixels and frames of sound directly.
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
# Published footprints in bytes: the claim, the size, the nearest sum of accounting.footprints, and a remark on the
# difference. The claims are from public pages of engines and of LiteRT. None of these pages says what it counts.
FOOTPRINTS = {
    "E2B": (
        ("bfloat16, the lowest published", 9.6e9, "text and vision, bfloat16", "the same digits; not confirmed"),
        ("bfloat16, the highest published", 11.4e9, "whole file and full KV cache, bfloat16", "open"),
        ("2 and 4 bits, PLE mapped: under", 1.5e9, "resident, 4-bit", "below, as claimed; room for cache and scales"),
        ("2 and 4 bits, PLE mapped: under", 1.5e9, "resident, mixed 2/4-bit", "below, as claimed"),
        ("LiteRT's file", 2.583e9, "whole file, 4-bit", "open; scales would add, 2-bit matrices subtract"),
        ("LiteRT's mapped embeddings", 1.12e9, "PLE table, 4-bit", "open; 1.12 GiB would be 1.203 GB, with scales"),
    ),
}
