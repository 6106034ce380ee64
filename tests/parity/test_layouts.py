"""Weights of 4 to 8 bits beside the libraries that define their layouts, and beside transformers."""

import minigemma  # before NumPy, so that its BLAS gets one thread

# isort: split
import numpy as np
import pytest

from minigemma import checkpoint
from minigemma.checkpoint import find_text_tensors
from minigemma.layouts import BLOCKS, MLX4, MLX8, W4A16, W8A16
from minigemma.packed import PackedMatrix
from minigemma.tools import quantize

from .layouts import affine, blocks_of_gguf, compressed

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")
pytest.importorskip("compressed_tensors")

LAYOUTS = {"w4a16": W4A16, "w8a16": W8A16, "mlx4": MLX4, "mlx8": MLX8}
LAYOUTS |= {layout.name: layout for layout in BLOCKS.values()}


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_become_the_weights_of_the_layouts_own_library(seed):
    rng = np.random.default_rng(seed)
    for name, parts, weights in [*blocks_of_gguf(rng, 7, 3), *compressed(rng, 13, 512)]:
        matrix = PackedMatrix(LAYOUTS[name.partition("-")[0]], parts, weights.shape)
        np.testing.assert_array_equal(np.asarray(matrix).view(np.uint32), weights.view(np.uint32), name)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_become_the_weights_of_mlx(seed):
    pytest.importorskip("mlx.core")
    for name, parts, weights in affine(np.random.default_rng(seed), 13, 512):
        matrix = PackedMatrix(LAYOUTS[name.partition("-")[0]], parts, weights.shape)
        np.testing.assert_array_equal(np.asarray(matrix), weights, name)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_file_that_the_library_packed_is_read_as_it_reads_it(bits, symmetric, tmp_path):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from safetensors.torch import save_file

    rng = np.random.default_rng(bits)
    name = f"w{bits}a16-32" + ("" if symmetric else "-zero")
    ((_, parts, weights),) = [case for case in compressed(rng, 52, 256) if case[0] == name]
    q = torch.tensor(LAYOUTS[name[:5]].unpack(*parts[:2])[0])
    tensors = {"q_proj.weight_packed": pack_to_int32(q, bits), "q_proj.weight_shape": torch.tensor([52, 256])}
    tensors["q_proj.weight_scale"] = torch.tensor(parts[1].view(np.int16)).view(torch.bfloat16)
    if not symmetric:
        tensors["q_proj.weight_zero_point"] = pack_to_int32(torch.tensor(parts[2]), bits, packed_dim=0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    found = find_text_tensors(tmp_path)
    assert list(found) == ["q_proj.weight"]
    np.testing.assert_array_equal(np.asarray(found["q_proj.weight"].map()), weights)


@pytest.mark.parametrize("bits", [4, 8])
def test_transformers_loads_what_quantize_writes_and_gives_our_logits(bits, tmp_path):
    from transformers import AutoModelForImageTextToText

    quantize.write(minigemma.TINY, tmp_path / "out", bits)
    model = minigemma.load(tmp_path / "out")
    ids = model.tokenizer.encode("Once upon a time there was a fox. Tom put the kite in the barn.")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = theirs(input_ids=torch.tensor([ids])).logits[0].numpy()
    ours, _ = model(ids)
    exact, _ = minigemma.load(tmp_path / "out", "float64")(ids)
    assert np.linalg.norm(logits - exact) < 5e-6 * np.linalg.norm(exact)  # the same weights: only float32 rounding
    assert np.linalg.norm(ours - exact) < 5 * np.linalg.norm(logits - exact)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q8_0"])
def test_a_file_that_the_gguf_library_wrote_is_read_as_it_was_meant(kind, tmp_path, monkeypatch):
    import gguf
    import gguf_files

    tiny = minigemma.load(minigemma.TINY)
    keys, tensors = gguf_files.describe(tiny)
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "gemma4")
    for name, value in keys.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        if name != "general.architecture":  # the writer's own
            add[type(value)](name, value)
    meant = {}
    for name, array in tensors.items():
        form = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        raw = gguf.quants.quantize(array, form)
        meant[name] = gguf.quants.dequantize(raw, form)
        writer.add_tensor(name, raw, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    twin = gguf_files.write(tmp_path / "twin.gguf", keys, meant)
    model, expected = (minigemma.load(path) for path in (tmp_path / "tiny.gguf", twin))
    ids = tiny.tokenizer.encode("Tom put the kite in the barn.")
    assert model.tokenizer.encode("Tom put the kite in the barn.") == ids
    np.testing.assert_array_equal(model(ids)[0], expected(ids)[0])  # small matrices, converted when they are loaded
    monkeypatch.setattr(checkpoint, "SMALL", 0)  # bytes: nothing is converted at load
    exact, ours = (minigemma.load(tmp_path / "tiny.gguf", dtype)(ids)[0] for dtype in ("float64", "bfloat16"))
    assert np.linalg.norm(ours - exact) <= 5 * np.linalg.norm(expected(ids)[0] - exact)
