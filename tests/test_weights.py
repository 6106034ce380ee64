"""Checkpoints: one file or several, three prefixes, three dtypes, mapped or converted; what does not fit is listed."""

import json
import struct

import numpy as np
import pytest
from family import small, text_arrays
from numpy.testing import assert_array_equal

import minigemma
from minigemma import Error, forward
from minigemma.checkpoint import SMALL, read_header, write_safetensors
from minigemma.packed import HalfMatrix, narrow, product, widen
from minigemma.tensors import text_tensors, unused_tensors

TOKENS = np.arange(17)


def write(directory, config, arrays, dtype="F32", files=1, prefix="model."):
    """A checkpoint directory with the given arrays, in one file or several."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    names = list(arrays)
    if files == 1:
        shards = {"model.safetensors": names}
    else:
        shards = {f"model-{i + 1:05}-of-{files:05}.safetensors": names[i::files] for i in range(files)}
        weight_map = {prefix + name: shard for shard, held in shards.items() for name in held}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for shard, held in shards.items():
        table = [(prefix + name, arrays[name].shape) for name in held]
        write_safetensors(directory / shard, dtype, table, [arrays[name] for name in held])
    return directory


@pytest.fixture
def e2b():
    config, weights = small("E2B")
    expected, _ = forward(TOKENS, weights, config)
    return config, text_arrays(config, weights), expected


@pytest.mark.parametrize("prefix", ["model.language_model.", "model.", ""])
@pytest.mark.parametrize("files", [1, 3])
def test_names_under_every_prefix_and_in_several_files_load_to_the_same_logits(tmp_path, e2b, prefix, files):
    config, arrays, expected = e2b
    model = minigemma.load(write(tmp_path / "w", config, arrays, files=files, prefix=prefix))
    assert_array_equal(model(TOKENS)[0], expected)


def test_the_unused_k_and_v_of_sharing_layers_may_be_there_and_towers_are_passed_over(tmp_path, e2b):
    config, arrays, expected = e2b
    extra = {t.name: np.zeros(t.shape, np.float32) for t in unused_tensors(config)}
    assert len(extra) == 15
    model = minigemma.load(write(tmp_path / "w", config, arrays | extra, prefix="model.language_model."))
    assert_array_equal(model(TOKENS)[0], expected)
    tower = {"vision_tower.patch.weight": np.zeros((2, 2), np.float32), "embed_vision.w": np.zeros(3, np.float32)}
    model = minigemma.load(write(tmp_path / "w", config, arrays | tower))
    assert_array_equal(model(TOKENS)[0], expected)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_sixteen_bit_files_give_the_logits_of_their_values_in_every_mode(tmp_path, e2b, stored, monkeypatch):
    monkeypatch.setattr("minigemma.checkpoint.SMALL", 0)  # map even these small matrices
    config, arrays, _ = e2b
    if stored == "bfloat16":
        bits = {name: narrow(array) for name, array in arrays.items()}
    else:
        bits = {name: array.astype(np.float16) for name, array in arrays.items()}
    directory = write(tmp_path / "w", config, bits, dtype={"bfloat16": "BF16", "float16": "F16"}[stored])
    exact, _ = minigemma.load(directory, "float64")(TOKENS)
    assert exact.dtype == np.float64
    for dtype in ("bfloat16", "float32"):
        model = minigemma.load(directory, dtype)
        assert isinstance(model.weights.embed_tokens_per_layer, HalfMatrix)
        assert isinstance(model.weights.layers[0].q_proj, HalfMatrix) == (dtype == "bfloat16")
        logits, _ = model(TOKENS)
        assert logits.dtype == np.float32
        assert np.linalg.norm(logits - exact) < 1e-5 * np.linalg.norm(exact)


def test_nothing_large_is_copied_at_load(tmp_path):
    config, weights = small("E2B", vocab_size=4096, vocab_size_per_layer_input=4096)
    minigemma.save(tmp_path, weights, config)
    model = minigemma.load(tmp_path)
    table = model.weights.embed_tokens_per_layer
    assert table.bits.nbytes > SMALL
    assert not table.bits.flags.owndata
    assert not table.bits.flags.writeable


def test_saving_and_loading_keeps_every_value_in_float32_and_the_nearest_in_bfloat16(tmp_path, member):
    config, weights = small(member)
    minigemma.save(tmp_path / "exact", weights, config, "float32")
    assert_array_equal(minigemma.load(tmp_path / "exact")(TOKENS)[0], forward(TOKENS, weights, config)[0])
    minigemma.save(tmp_path / "half", weights, config)
    again = minigemma.load(tmp_path / "half", "float32").weights
    for tensor in text_tensors(config):
        before, after = text_arrays(config, weights)[tensor.name], text_arrays(config, again)[tensor.name]
        np.testing.assert_allclose(np.asarray(after), before, rtol=2**-8)


def test_one_error_lists_what_is_missing_what_has_the_wrong_shape_and_what_is_unknown(tmp_path, e2b):
    config, arrays, _ = e2b
    del arrays["layers.3.mlp.up_proj.weight"]
    arrays["norm.weight"] = np.ones(7, np.float32)
    arrays["layers.0.self_attn.q_proj.bias"] = np.ones(7, np.float32)
    with pytest.raises(Error) as caught:
        minigemma.load(write(tmp_path / "w", config, arrays))
    message = str(caught.value)
    assert "1 missing (layers.3.mlp.up_proj.weight)" in message
    assert "1 of the wrong shape (norm.weight is [7] and should be [24])" in message
    assert "1 unknown (layers.0.self_attn.q_proj.bias)" in message
    assert "\n" not in message


def test_a_tensor_that_appears_under_two_prefixes_is_refused(tmp_path, e2b):
    config, arrays, _ = e2b
    twice = {f"model.{name}": array for name, array in arrays.items()} | {"norm.weight": arrays["norm.weight"]}
    with pytest.raises(Error, match="twice"):
        minigemma.load(write(tmp_path / "w", config, twice, prefix=""))


def test_a_quantised_file_is_refused_with_its_dtype(tmp_path, e2b):
    config, arrays, _ = e2b
    directory = write(tmp_path / "w", config, arrays)
    path = directory / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"F32"', b'"I32"'))
    with pytest.raises(Error, match="I32"):
        minigemma.load(directory)


@pytest.mark.parametrize("keep", [0, 4, 8, 500, -1])
def test_a_truncated_file_is_refused(checkpoint, keep):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(Error, match="safetensors"):
        minigemma.load(checkpoint)


def test_a_file_of_another_kind_is_refused(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"pickle")
    with pytest.raises(Error, match=r"model\.safetensors"):
        minigemma.load(checkpoint)


def test_missing_files_are_named(checkpoint, tmp_path):
    with pytest.raises(Error, match="no such directory"):
        minigemma.load(tmp_path / "nowhere")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(Error, match=r"holds no \.safetensors file; download the whole repository"):
        minigemma.load(checkpoint)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin"])
def test_an_index_cannot_lead_out_of_its_directory(checkpoint, name):
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(Error, match=r"index\.json"):
        minigemma.load(checkpoint)


def test_an_unknown_dtype_is_refused(checkpoint):
    with pytest.raises(Error, match="int8"):
        minigemma.load(checkpoint, "int8")


def test_weights_come_from_the_environment_when_no_path_is_given(checkpoint, monkeypatch):
    monkeypatch.setenv("MINIGEMMA_WEIGHTS", str(checkpoint))
    assert minigemma.load().directory == checkpoint


def test_a_hub_name_is_found_in_the_local_cache_and_never_downloaded(checkpoint, tmp_path, monkeypatch):
    import huggingface_hub.constants

    snapshot = tmp_path / "hub" / "models--google--gemma-4-E2B-it" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    checkpoint.rename(snapshot)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert minigemma.load("google/gemma-4-E2B-it").directory == snapshot
    with pytest.raises(Error, match="hf download google/gemma-4-E4B-it"):
        minigemma.load("google/gemma-4-E4B-it")


def test_a_failed_save_leaves_the_old_file_and_no_other(checkpoint, monkeypatch):
    before = (checkpoint / "model.safetensors").read_bytes()
    config, weights = small("E2B")
    weights.layers[7].q_proj = "not an array"
    with pytest.raises(ValueError, match="could not convert"):
        minigemma.save(checkpoint, weights, config)
    assert (checkpoint / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in checkpoint.iterdir()) == ["config.json", "model.safetensors"]


def test_random_weights_are_the_same_for_the_same_seed_and_nowhere_equal_to_one(member):
    config, weights = small(member)
    _, again = small(member)
    _, other = small(member, seed=2)
    for name, array in text_arrays(config, weights).items():
        assert_array_equal(array, text_arrays(config, again)[name])
        assert not np.array_equal(array, text_arrays(config, other)[name])
        assert not (array == 1).any()


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even():
    expected = {  # as torch 2.13.0 rounds them
        1.0: 0x3F80, 1 + 2**-8: 0x3F80, 1 + 3 * 2**-8: 0x3F82, 1 + 2**-8 + 2**-20: 0x3F81, 1e-30: 0x0DA2,
        0.0: 0, 1e-40: 1, -2.5e38: 0xFF3C, 3.4e38: 0x7F80, np.inf: 0x7F80, -np.inf: 0xFF80,
    }  # fmt: skip
    assert narrow(np.array([*expected], np.float32)).tolist() == [*expected.values()]
    assert narrow(np.array([-0.0], np.float32)).tolist() == [0x8000]
    assert np.isnan(widen(narrow(np.array([np.nan], np.float32)))).all()


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 64), (1000, 1537), (3, 40_000)])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9, 128, 129])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_matrix_multiplies_like_its_values(shape, rows, dtype):
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((rows, shape[1]), np.float32), rng.standard_normal(shape, np.float32)
    bits = narrow(w) if dtype == "bfloat16" else w.astype(np.float16)
    exact = x.astype(np.float64) @ widen(bits).astype(np.float64).T
    assert np.abs(product(x, HalfMatrix(bits)) - exact).max() < 1e-5 * np.sqrt(shape[1]) * 4


@pytest.mark.parametrize("shape", [(64, 300), (7, 5)])
def test_a_machine_of_the_other_byte_order_gets_the_same_numbers(shape):
    rng = np.random.default_rng(5)
    x, bits = rng.standard_normal((3, shape[1]), np.float32), narrow(rng.standard_normal(shape, np.float32))
    foreign = bits.astype(bits.dtype.newbyteorder())
    np.testing.assert_array_equal(product(x, HalfMatrix(foreign)), product(x, HalfMatrix(bits)))
    np.testing.assert_array_equal(HalfMatrix(foreign)[2:4], widen(bits)[2:4])


def test_a_stored_tensor_maps_to_a_view_of_the_file(checkpoint):
    stored = read_header(checkpoint / "model.safetensors")
    assert stored["model.norm.weight"].shape == (24,)
    assert not any(tensor.map().flags.writeable for tensor in stored.values())
