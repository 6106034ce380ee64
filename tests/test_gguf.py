"""GGUF files: the same model as from safetensors, and one line for what is not whole."""

import struct

import gguf_files
import numpy as np
import pytest
from processes import peak_memory

import minigemma
from minigemma import Error, checkpoint, gguf
from minigemma.__main__ import main
from minigemma.layouts import BLOCKS
from minigemma.packed import PackedMatrix

TEXT = "Once upon a time there was a fox.\n\nTom put the kite in the barn. 3 \xe9 \U0001f642 <|turn>"


@pytest.fixture(scope="module")
def described(tiny):
    return gguf_files.describe(tiny)


@pytest.fixture(scope="module")
def tiny_gguf(described, tmp_path_factory):
    """The tiny weights as a GGUF file of float32."""
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", *described)


def test_a_gguf_file_is_the_same_model_bit_for_bit(tiny, tiny_gguf):
    model = minigemma.load(tiny_gguf)
    ids = tiny.tokenizer.encode(TEXT)
    assert model.tokenizer.encode(TEXT) == ids
    assert model.tokenizer.decode(ids) == tiny.tokenizer.decode(ids)
    np.testing.assert_array_equal(model(ids)[0], tiny(ids)[0])
    asked = [{"role": "user", "content": "Tom put the kite in the barn. Where is the kite?"}]
    assert model.chat_ids(asked) == tiny.chat_ids(asked)
    assert model.chat(asked, temperature=0.0).text == "The kite is in the barn."


def test_a_gguf_file_says_which_tokens_are_never_drawn(described, tmp_path):
    keys = described[0] | {"tokenizer.ggml.suppress_tokens": [2554, 2557]}
    model = minigemma.load(gguf_files.write(tmp_path / "m.gguf", keys, described[1]))
    assert model.generation_config == {"eos_token_id": [1, 50, 106], "suppress_tokens": [2554, 2557]}


def test_commands_take_a_gguf_file(tiny_gguf, tmp_path, capsys):
    own, trace = ["--weights", str(tiny_gguf)], str(tmp_path / "trace")
    for words in (["generate", "Once", "-n", "3", *own], ["trace", "Tom", "--out", trace, *own], ["diff", trace, *own]):
        assert main(words) == 0, words
    for command in ("params", "memory", "compute"):
        assert main([command, str(tiny_gguf)]) == 0, command
    account, whole = minigemma.count(tiny_gguf), minigemma.count(minigemma.load(tiny_gguf).config, unused=True)
    assert account.text == whole.text and account.differences == ()


@pytest.mark.parametrize("number", BLOCKS)
def test_rows_in_blocks_are_packed_matrices_of_the_mapped_file(number, described, tmp_path, monkeypatch):
    """Any bytes are a valid block; scales are kept small, so that no number overflows."""
    monkeypatch.setattr(checkpoint, "SMALL", 0)
    keys, tensors = described
    layout, name = BLOCKS[number], "blk.0.ffn_down.weight"
    rows, width = tensors[name].shape
    raw = np.random.default_rng(number).integers(0, 256, (rows, width // layout.columns, layout.size), np.uint8)
    for at in {"Q4_0": [0], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}[layout.name]:
        raw[..., at : at + 2] = np.frombuffer(np.float16(2**-10).tobytes(), np.uint8)
    path = gguf_files.write(tmp_path / "m.gguf", keys, tensors, {name: (number, raw.tobytes(), (rows, width))})
    matrix = minigemma.load(path).weights.layers[0].down_proj
    assert isinstance(matrix, PackedMatrix) and matrix.layout is layout
    np.testing.assert_array_equal(matrix.parts[0], raw.reshape(rows, -1))
    exact, _ = minigemma.load(path, "float64")([2, 500, 7])
    twin, _ = minigemma.load(path, "float32")([2, 500, 7])
    ours, _ = minigemma.load(path)([2, 500, 7])
    assert np.linalg.norm(ours - exact) <= 5 * np.linalg.norm(twin - exact)


def test_a_tokenizer_json_beside_the_file_is_preferred(tiny, tiny_gguf, described, tmp_path):
    keys = {name: value for name, value in described[0].items() if "ggml.merges" not in name}
    path = gguf_files.write(tmp_path / "m.gguf", keys, described[1])
    with pytest.raises(Error, match=r"put the model's tokenizer\.json beside it"):
        _ = minigemma.load(path).tokenizer
    (tmp_path / "tokenizer.json").write_bytes((minigemma.TINY / "tokenizer.json").read_bytes())
    assert minigemma.load(path).tokenizer.encode("Tom") == tiny.tokenizer.encode("Tom")


@pytest.mark.parametrize("part", ["tokens", "merges", "token_type"])
@pytest.mark.parametrize("value", [1.5, [1], "x"])
def test_tokens_that_are_none_are_refused(part, value, described, tmp_path):
    keys = described[0] | {f"tokenizer.ggml.{part}": value}
    model = minigemma.load(gguf_files.write(tmp_path / "m.gguf", keys, described[1]))
    with pytest.raises(Error, match="no tokens with types and merges"):
        _ = model.tokenizer


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"general.architecture": "gemma3"}, "holds the architecture 'gemma3'"),
        ({"gemma4.attention.sliding_window_pattern": [True, False]}, "for each of the 10 layers"),
        ({"gemma4.attention.head_count_kv": [1, 1]}, "for each of the 10 layers"),
        ({"gemma4.attention.head_count_kv": [1, 2] * 5}, "different numbers of kv heads"),
        ({"gemma4.block_count": None}, r"no key gemma4\.block_count"),
        ({"gemma4.block_count": "ten"}, r"gemma4\.block_count cannot be 'ten'"),
        ({"gemma4.attention.layer_norm_rms_epsilon": "small"}, "cannot be 'small'"),
        ({"gemma4.attention.layer_norm_rms_epsilon": [0.5]}, r"cannot be \[0\.5\]"),
        ({"gemma4.embedding_length": 96}, "tensors do not fit"),
        ({"general.alignment": 24}, "power of two"),
        ({"gemma4.rope.scaling.type": "yarn"}, r"gemma4\.rope\.scaling\.type is 'yarn'; Gemma 4's RoPE is not scaled"),
        ({"gemma4.rope.scaling.factor": 8.0}, r"scaling\.factor is 8\.0"),
    ],
)
def test_keys_that_contradict_the_file_are_refused(changes, complaint, described, tmp_path):
    keys = {name: value for name, value in (described[0] | changes).items() if value is not None}
    with pytest.raises(Error, match=complaint):
        minigemma.load(gguf_files.write(tmp_path / "m.gguf", keys, described[1]))


def test_rope_keys_that_scale_nothing_are_accepted(described, tmp_path):
    keys = described[0] | {"gemma4.rope.scaling.type": "none", "gemma4.rope.scaling.factor": 1.0}
    assert gguf.config_of(gguf_files.write(tmp_path / "m.gguf", keys, described[1]))["num_hidden_layers"] == 10


@pytest.mark.parametrize(
    ("item", "count"), [(b"\0", 2**24), (struct.pack("<Q2s", 2, b"ab"), 2**21)], ids=["bytes", "short texts"]
)
def test_a_list_in_the_header_never_takes_more_memory_than_twice_the_file(item, count, tmp_path):
    kind = 8 if len(item) > 1 else 0
    header = b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, kind, count)
    (tmp_path / "m.gguf").write_bytes(header + item * count)
    too_many = pytest.raises(Error, match=r"announces \d+ values, more than a model of \d+ bytes has")
    with peak_memory() as peak, too_many:
        gguf.read(tmp_path / "m.gguf")
    assert peak[0] < 2 * (len(header) + len(item) * count)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop("output_norm.weight"), "1 missing"),
        (lambda t: t.update({"output.weight": np.ones((4, 4))}), r"lm_head\.weight is \[4, 4\]"),
        (lambda t: t.update({"output.weight": 2 * t["token_embd.weight"]}), r"lm_head\.weight differs"),
        (lambda t: t.update({"blk.0.attn_q.bias": np.ones(4)}), r"1 unknown \(layers\.0\.attn_q\.bias"),
        (lambda t: t.pop("rope_freqs.weight"), r"no rope_freqs\.weight"),
        (lambda t: t.update({"rope_freqs.weight": np.arange(1, 33)}), "another RoPE"),
        (lambda t: t.pop("token_embd.weight"), r"no token_embd\.weight"),
    ],
)
def test_tensors_that_differ_are_refused(change, complaint, described, tmp_path):
    tensors = dict(described[1])
    change(tensors)
    with pytest.raises(Error, match=complaint):
        minigemma.load(gguf_files.write(tmp_path / "m.gguf", described[0], tensors))


def test_a_type_that_is_not_read_is_named(tiny_gguf, tmp_path):
    raw, name = tiny_gguf.read_bytes(), b"output_norm.weight"
    at = raw.index(name) + len(name) + 12  # behind the number of dimensions and the only one
    (tmp_path / "m.gguf").write_bytes(patched(raw, at, "<I", 11))
    with pytest.raises(Error, match=r"output_norm\.weight is of type 11; minigemma reads F32, .* Q6_K"):
        minigemma.load(tmp_path / "m.gguf")


def patched(raw, at, form, value):
    size = struct.calcsize(form)
    return raw[:at] + struct.pack(form, value) + raw[at + size :]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda raw: b"", "has 0 bytes"),
        (lambda raw: raw[:23], "too few for a GGUF file"),
        (lambda raw: b"PK" + raw[2:], "not a GGUF file"),
        (lambda raw: patched(raw, 4, "<I", 3 << 24), "other byte order"),
        (lambda raw: patched(raw, 8, "<Q", 2**60), r"announces 11529215046068.* tensors and keys"),
        (lambda raw: patched(raw, 16, "<Q", 2**60), r"announces 11529215046068.* tensors and keys"),
        (lambda raw: patched(raw, 8, "<Q", 2**13), "ends at byte|not UTF-8|dimensions"),
        (lambda raw: patched(raw, 24, "<Q", 2**63), "ends at byte"),
        (lambda raw: raw[: len(raw) // 2], "beyond the end"),
        (lambda raw: raw[:5000], "ends at byte 5000"),
    ],
)
def test_a_header_that_lies_is_refused(change, complaint, tiny_gguf, tmp_path):
    (tmp_path / "m.gguf").write_bytes(change(tiny_gguf.read_bytes()))
    with pytest.raises(Error, match=complaint):
        gguf.read(tmp_path / "m.gguf")
