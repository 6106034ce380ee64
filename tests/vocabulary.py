"""A small tokenizer with Gemma 4's special tokens and a few of its words, under their real ids.

Everything else becomes bytes, as in Gemma 4. Sources: google-deepmind/gemma (105, 106, 50), transformers' tests of a
checkpoint with the same vocabulary (the words), vllm's tests (48, 49) and other public tests (46, 47, 51, 52, 98).
"""

import tokenizers

from minigemma import Tokenizer

SPECIAL = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<|tool>": 46, "<tool|>": 47, "<|tool_call>": 48,
    "<tool_call|>": 49, "<|tool_response>": 50, "<tool_response|>": 51, '<|"|>': 52, "<|think|>": 98,
    "<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106, "<|image>": 255999, "<|audio>": 256000,
    "<|image|>": 258880, "<|audio|>": 258881, "<image|>": 258882, "<audio|>": 258883, "<|video|>": 258884,
}  # fmt: skip
WORDS = {
    "\n": 107, "user": 2364, "model": 4368, "thought": 45518, "Write": 6974, "▁a": 496, "▁long": 1440,
    "▁essay": 20494, "▁about": 1003, "▁Portugal": 23613, ".": 236761, "▁": 236743,
}  # fmt: skip


def gemma_4_vocabulary(path, without=(), ordinary=()):
    """Write the tokenizer.json to `path` and read it as minigemma does.

    without: special tokens to leave out; ordinary: those to add as tokens that are found in text, too.
    """
    special = {name: id for name, id in SPECIAL.items() if name not in without}
    bytes_ = {f"<0x{byte:02X}>": 238 + byte for byte in range(256)}  # the ids are Gemma 3's, as far as known the same
    vocabulary = {**special, **bytes_, **WORDS}
    model = tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, ignore_merges=True)
    inner = tokenizers.Tokenizer(model)
    for name in special:
        inner.add_tokens([tokenizers.AddedToken(name, normalized=False, special=name not in ordinary)])
    inner.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"▁?[A-Za-z]+|[\s\S]"), "isolated")
    decoders = tokenizers.decoders
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.save(str(path))
    return Tokenizer(path)
