"""Synthetic checkpoints: the released file's names, shapes and dtypes, with random values."""

import numpy as np
import pytest
from family import fields, random_picture

import minigemma
from minigemma import Error
from minigemma.account.towers import TOWERS
from minigemma.checkpoint import read_header
from minigemma.packed import PackedMatrix
from minigemma.released import RELEASED, released_config
from minigemma.tensors import checkpoint_tensors
from minigemma.tools.synth import synthesize

VISION = {
    "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "position_embedding_size": 50, "standardize": False,
    "use_clipped_linears": True,
}  # fmt: skip


@pytest.fixture
def released_in_small(member, monkeypatch):
    """The names of the released models stand for the family in miniature."""
    monkeypatch.setitem(RELEASED, member, fields(member))
    monkeypatch.setitem(TOWERS, member, {"vision_config": VISION, "audio_config": None})
    return member


def test_a_synthetic_checkpoint_has_the_released_tensors_and_runs(released_in_small, tmp_path):
    synthesize(released_in_small, tmp_path / "w")
    model = minigemma.load(tmp_path / "w")
    table = checkpoint_tensors(model.config, TOWERS[released_in_small], unused=True)
    stored = read_header(tmp_path / "w" / "model.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in stored.items()} == {
        tensor.name: (tensor.shape, "BF16") for tensor in table
    }
    logits, _ = model(np.arange(12))
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 10  # neither dead nor saturated
    soft = model.see(random_picture(12, 36), 70)
    assert np.ptp(soft, axis=0).min() > 0  # the clip bounds leave something of the picture
    again = synthesize(released_in_small, tmp_path / "again")
    assert again == sum(2 * np.prod(tensor.shape, dtype=int) for tensor in table)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("w", "again")]
    assert files[0] == files[1]  # the same seed, the same file


def test_a_synthetic_checkpoint_of_four_bits_has_both_tables_packed_and_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(RELEASED, "E2B", fields("E2B") | {"hidden_size": 64, "hidden_size_per_layer_input": 32})
    monkeypatch.setitem(TOWERS, "E2B", {"vision_config": VISION, "audio_config": None})
    monkeypatch.setattr("minigemma.checkpoint.SMALL", 0)  # bytes: nothing is converted at load
    size = synthesize("E2B", tmp_path / "w", format="w4a16")
    model = minigemma.load(tmp_path / "w")
    weights, layer = model.weights, model.weights.layers[1]
    for matrix in (weights.embed_tokens, weights.embed_tokens_per_layer, layer.q_proj, layer.per_layer_projection):
        assert isinstance(matrix, PackedMatrix)
    logits, _ = model(np.arange(12))
    assert 0.1 < logits.std() < 10  # neither dead nor saturated
    held = read_header(tmp_path / "w" / "model.safetensors")
    assert 0 <= (tmp_path / "w" / "model.safetensors").stat().st_size - size < 200 * len(held)  # size, and the header


def test_a_synthetic_gguf_file_has_both_tables_packed_and_runs(released_in_small, tmp_path, monkeypatch):
    small = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "moe_intermediate_size": 32}
    small |= {"hidden_size_per_layer_input": 32 * bool(fields(released_in_small)["hidden_size_per_layer_input"])}
    monkeypatch.setitem(RELEASED, released_in_small, fields(released_in_small) | small)
    monkeypatch.setattr("minigemma.checkpoint.SMALL", 0)  # bytes: nothing is converted at load
    size = synthesize(released_in_small, tmp_path / "w", format="q4_0")
    (path,) = (tmp_path / "w").iterdir()
    assert 0 <= path.stat().st_size - size < 20_000  # the header, and what fills up to 32 bytes
    model = minigemma.load(path)
    assert {m.layout.name for m in (model.weights.embed_tokens, model.weights.layers[0].q_proj)} == {"Q4_0"}
    logits, _ = model(np.arange(12))
    assert 0.1 < logits.std() < 10  # neither dead nor saturated
    for ours, theirs in zip(model.config.layers, released_config(released_in_small).layers, strict=True):
        for name, value in vars(theirs).items():
            np.testing.assert_array_equal(getattr(ours, name), value, name)
    account = minigemma.count(path)
    assert account.differences == ()
    assert account.nbytes == size - 4 * model.config.layers[-1].head_dim // 2  # the frequencies' divisors


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5_000_000_000}))
    with pytest.raises(Error, match=r"E2B takes 10\.2 GB and 5\.0 GB are free"):
        synthesize("google/gemma-4-E2B-it", tmp_path / "w")
    assert list((tmp_path / "w").iterdir()) == []


def test_a_checkpoint_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"a download of hours")
    with pytest.raises(Error, match=r"holds model-00001-of-00002\.safetensors already"):
        synthesize("E2B", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model-00001-of-00002.safetensors"]


def test_only_released_names_can_be_synthesized(tmp_path):
    with pytest.raises(Error, match="E2B, E4B"):
        synthesize("E3B", tmp_path / "w")
