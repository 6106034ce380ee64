"""Weights of 4 to 8 bits: read bit for bit, multiplied from where they lie, written and loaded again."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from family import small, text_arrays
from processes import one_line

import minigemma
from minigemma import Error, checkpoint, packed
from minigemma.__main__ import main
from minigemma.account.memory import weights_in_memory
from minigemma.checkpoint import write_safetensors
from minigemma.compressed import INTEGERS, pack, rows_of
from minigemma.layouts import BLOCKS, MLX4, MLX8, W4A16, W8A16
from minigemma.model import forward
from minigemma.packed import PackedMatrix
from minigemma.tensors import text_tensors
from minigemma.tools import bench, quantize

GOLDENS = safetensors.numpy.load_file(Path(__file__).parent / "goldens" / "layouts" / "layouts.safetensors")
LAYOUTS = {"w4a16": W4A16, "w8a16": W8A16, "mlx4": MLX4, "mlx8": MLX8}
LAYOUTS |= {layout.name: layout for layout in BLOCKS.values()}
CASES = sorted({name.rpartition(".")[0] for name in GOLDENS})


def stored(case):
    """The PackedMatrix of a case, and its weights as the layout's own library gave them."""
    weights = GOLDENS[f"{case}.weights"].view(np.float32)
    parts = [GOLDENS[f"{case}.{i}"] for i in range(3) if f"{case}.{i}" in GOLDENS]
    return PackedMatrix(LAYOUTS[case.partition("-")[0]], parts, weights.shape), weights


@pytest.mark.parametrize("case", CASES)
def test_every_layout_gives_the_weights_of_its_own_library_bit_for_bit(case):
    matrix, weights = stored(case)
    np.testing.assert_array_equal(np.asarray(matrix).view(np.uint32), weights.view(np.uint32))
    np.testing.assert_array_equal(matrix[[2, 0]], weights[[2, 0]])
    np.testing.assert_array_equal(matrix[1], weights[1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tokens", [1, 3, 4, 150])
def test_a_product_with_packed_weights_is_that_with_their_float32(case, tokens):
    matrix, weights = stored(case)
    x = np.random.default_rng(tokens).standard_normal((tokens, weights.shape[1])).astype(np.float32)
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    # a sum of n products in float32 is off by at most n x 2^-24 of the sum of their sizes; the minimum is a second sum
    allowed = 2 * weights.shape[1] * 2**-24 * (np.abs(x) @ np.abs(weights).T)
    matrix_minima = matrix.layout.unpack(*matrix.parts)[2]
    if matrix_minima is not None:
        allowed = allowed + 4 * weights.shape[1] * 2**-24 * np.abs(x).sum(1)[:, None] * np.abs(matrix_minima).max()
    assert (np.abs(packed.product(x, matrix) - exact) <= allowed).all()


def test_a_stack_of_packed_matrices_gives_each_of_them():
    matrix, weights = stored("Q4_0")
    stack = PackedMatrix(matrix.layout, [np.stack([part, part[::-1]]) for part in matrix.parts], (2, *weights.shape))
    assert stack[1].shape == weights.shape
    np.testing.assert_array_equal(np.asarray(stack), [weights, weights[::-1]])
    np.testing.assert_array_equal(stack[np.array([1, 0])], [weights[::-1], weights])


@pytest.fixture(scope="module", params=[4, 8])
def quantised(request, tmp_path_factory):
    """The tiny weights in few bits, and how many."""
    out = tmp_path_factory.mktemp("quantised")
    quantize.write(minigemma.TINY, out, request.param)
    return out, request.param


def test_the_pass_on_packed_weights_is_that_of_their_float32_twin(quantised, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL", 0)  # bytes: nothing is converted at load
    out, _ = quantised
    model, twin, exact = (minigemma.load(out, dtype) for dtype in ("bfloat16", "float32", "float64"))
    assert isinstance(model.weights.layers[3].gate_proj, PackedMatrix)
    ids = model.tokenizer.encode("Tom put the kite in the barn.")
    ours, theirs, reference = (np.asarray(one(ids)[0], np.float64) for one in (model, twin, exact))
    assert np.linalg.norm(ours - reference) <= 5 * np.linalg.norm(theirs - reference)


def test_quantising_rounds_to_the_nearest_of_the_numbers_that_its_bits_can_hold(quantised):
    out, bits = quantised
    before, after = (checkpoint.find_text_tensors(where) for where in (minigemma.TINY, out))
    name = "layers.3.mlp.gate_proj.weight"
    original, matrix = np.asarray(packed.widen(before[name].map())), after[name].map()
    _, scale, _ = matrix.layout.unpack(*matrix.parts)
    distance = np.abs(np.asarray(matrix) - original).reshape(*scale.shape, -1)
    # half a step; at the upper end the largest number that fits is half a step lower, and bfloat16 rounds the scale
    assert (distance <= scale[..., None] * (0.5 + 2.0 ** (bits - 9)) * (1 + 2**-7)).all()
    table = "embed_tokens.weight"
    np.testing.assert_array_equal(before[table].map(), after[table].map())


def test_layers_and_names_can_be_kept_in_sixteen_bits(tmp_path, capsys):
    assert (
        main(["quantize", str(minigemma.TINY), str(tmp_path / "q"), "--layers", "[0-4]", "--keep", "*.down_proj.*"])
        == 0
    )
    held = checkpoint.read_header(tmp_path / "q" / "model.safetensors")
    names = [name for name in held if name.endswith("_packed")]
    assert {name.split(".layers.")[1][0] for name in names if ".layers." in name} == set("01234")
    assert not any("down_proj" in name for name in names)
    assert f"{len(names)} matrices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--layers", "77"], "fits none of the layers 0 to 9"),
        (["--keep", "*.dwon_proj.*"], "fits no matrix"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused(options, complaint, tmp_path, run):
    one_line(run("quantize", minigemma.TINY, tmp_path / "q", *options), complaint)


def test_what_is_quantised_or_holds_a_checkpoint_is_not_quantised_again(quantised, tmp_path):
    out, _ = quantised
    with pytest.raises(Error, match="quantised already"):
        quantize.write(out, tmp_path / "again")
    with pytest.raises(Error, match="holds a checkpoint already"):
        quantize.write(minigemma.TINY, out)


def damaged(path, change):
    """A file of one packed matrix, [8, 64], with one change."""
    rows, arrays = list(rows_of("q_proj.weight", (8, 64), 4, 32)), list(pack(np.ones((8, 64), np.float32), 4, 32))
    change(rows, arrays)
    write_safetensors(path / "model.safetensors", "F32", rows, arrays)
    return path


def less(i):
    return lambda rows, arrays: (rows.pop(i), arrays.pop(i))


def other(i, array, dtype):
    array = np.asarray(array)

    def change(rows, arrays):
        rows[i], arrays[i] = (rows[i][0], array.shape, dtype), array

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (less(1), "without q_proj.weight_scale"),
        (less(2), "without q_proj.weight_shape"),
        (other(2, [8, 48], "I64"), "packed in 5 bits"),
        (other(2, [8, -64], "I64"), "packed in"),
        (other(2, [8, 0], "I64"), "packed in"),
        (other(2, [9, 64], "I64"), "do not fit"),
        (other(2, [64], "I64"), "not packed as compressed-tensors packs"),
        (other(1, np.ones((8, 3)), "F32"), "do not fit"),
        (other(1, np.ones((8, 0)), "F32"), "do not fit"),
        (other(0, np.ones((8, 8)), "F32"), "not packed as"),
    ],
)
def test_a_packed_matrix_whose_parts_do_not_fit_is_refused(change, complaint, tmp_path):
    with pytest.raises(Error, match=complaint):
        checkpoint.find_text_tensors(damaged(tmp_path, change))


def test_save_writes_the_weights_that_a_packed_checkpoint_stands_for(quantised, tmp_path):
    out, _ = quantised
    model = minigemma.load(out)
    minigemma.save(tmp_path / "saved", model.weights, model.config, "float32")
    ids = [2, 5, 9, 11]
    np.testing.assert_array_equal(
        minigemma.load(tmp_path / "saved", "float32")(ids)[0], minigemma.load(out, "float32")(ids)[0]
    )
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))


def test_params_and_memory_count_what_packed_matrices_stand_for_and_the_bytes_that_they_take(quantised):
    out, bits = quantised
    whole, account = minigemma.count(minigemma.TINY), minigemma.count(out)
    assert account.parts == whole.parts and account.differences == ()
    held = checkpoint.read_header(out / "model.safetensors")
    in_file = sum(stored.map(checkpoint.FILE_DTYPES | INTEGERS).nbytes for stored in held.values())
    shapes = sum(16 for name in held if name.endswith("_shape"))  # bytes, two numbers of 8
    assert account.nbytes == in_file - shapes
    assert weights_in_memory(account)["this file"]["file"] == account.nbytes
    mlp = {tensor.dtype for tensor in account.tensors if tensor.part == "MLP"}
    assert mlp == {f"w{bits}a16"}
    assert "this file" not in weights_in_memory(whole)


def test_bench_tells_packed_bytes_apart(quantised, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL", 0)  # bytes: nothing is converted at load
    out, _ = quantised
    account, model = minigemma.count(out), minigemma.load(out)
    packed_ones = [t for t in account.tensors if t.packed is not None and t.part != "unused"]
    assert bench.packed_bytes(model) == sum(t.packed for t in packed_ones) > 0
    assert bench.packed_bytes(minigemma.load(minigemma.TINY)) == 0


def test_a_directory_of_mlx_is_the_weights_that_it_stands_for(tmp_path, monkeypatch):
    """With MLX's prefix, one module of 8 bits, and one whose rows no group fits, which stays in 16 bits."""
    monkeypatch.setattr(checkpoint, "SMALL", 0)  # bytes: nothing is converted at load
    config, _ = small("E2B", hidden_size=64, intermediate_size=96)
    rng, rows, arrays, plain, own = np.random.default_rng(0), [], [], [], {}
    for tensor in text_tensors(config):
        name, shape = f"language_model.model.{tensor.name}", tensor.shape
        module = name.removesuffix(".weight")
        if len(shape) < 2 or shape[1] % 32:
            values = checkpoint.random_vector(tensor, rng) if len(shape) < 2 else rng.normal(0, 0.2, shape)
            rows.append((name, shape, "BF16"))
            arrays.append(packed.narrow(values.astype(np.float32)))
            plain.append(packed.widen(arrays[-1]))
            continue
        bits = 8 if name.endswith("layers.1.mlp.up_proj.weight") else 4
        own |= {module: {"group_size": 32, "bits": 8}} if bits == 8 else {}
        group = 64 if shape[1] % 64 == 0 and bits == 4 else 32
        own |= {module: {"group_size": 32, "bits": 4}} if group == 32 and bits == 4 else {}
        q = rng.integers(0, 2**bits, shape)
        scale, bias = (packed.narrow(np.full((shape[0], shape[1] // group), s, np.float32)) for s in (2**-bits, -0.5))
        words = (q.reshape(shape[0], -1, 32 // bits) << bits * np.arange(32 // bits)).sum(-1)
        fields = {"weight": (words, "U32"), "scales": (scale, "BF16"), "biases": (bias, "BF16")}
        rows += [(f"{module}.{field}", np.shape(array), dtype) for field, (array, dtype) in fields.items()]
        arrays += [array for array, _ in fields.values()]
        plain.append((q * 2.0**-bits - 0.5).astype(np.float32))
    write_safetensors(tmp_path / "model.safetensors", "F32", rows, arrays)
    about = {"quantization": {"group_size": 64, "bits": 4, "mode": "affine"} | own}
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | about))
    model, names = minigemma.load(tmp_path), [tensor.name for tensor in text_tensors(config)]
    assert model.weights.layers[1].up_proj.layout is MLX8 and model.weights.layers[0].up_proj.layout is MLX4
    twin = checkpoint.assemble(config, dict(zip(names, plain, strict=True)))
    np.testing.assert_allclose(model([2, 17, 90])[0], forward([2, 17, 90], twin, config)[0], rtol=1e-4, atol=1e-4)
    assert minigemma.count(tmp_path).differences == ()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"quantization": {"group_size": 48}}))
    with pytest.raises(Error, match="not packed as MLX packs a matrix in groups of 32, 64 or 128"):
        minigemma.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"quantization": {"group_size": 128}}))
    with pytest.raises(Error, match="packed in 2 bits; of MLX, minigemma reads 4 and 8"):
        minigemma.load(tmp_path)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_experts_that_are_matrices_of_their_own_are_the_released_files_stacks(bits, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL", 0)  # bytes: nothing is converted at load
    config, weights = small("26B-A4B", hidden_size=64, moe_intermediate_size=32, intermediate_size=64)
    rows, arrays = [], []
    for name, value in text_arrays(config, weights).items():
        experts = value.ndim == 3
        for e, matrix in enumerate(value) if experts else ():
            gate_up = name.endswith("gate_up_proj")
            for part, half in zip(("gate", "up") if gate_up else ("down",), np.split(matrix, 1 + gate_up), strict=True):
                own = f"{name.rpartition('.')[0]}.{e}.{part}_proj.weight"
                rows += rows_of(own, half.shape, bits, 32) if bits < 16 else [(own, half.shape, "BF16")]
                arrays += pack(half, bits, 32) if bits < 16 else [packed.narrow(half)]
        if not experts:
            rows.append((name, value.shape))
            arrays.append(value)
    write_safetensors(tmp_path / "model.safetensors", "F32", rows, arrays)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    model, twin, exact = (minigemma.load(tmp_path, dtype) for dtype in ("bfloat16", "float32", "float64"))
    expert = model.weights.layers[0].experts_gate_up_proj[2]
    assert isinstance(expert, PackedMatrix if bits < 16 else packed.HalfMatrix)
    if bits == 16:
        np.testing.assert_array_equal(expert[:], packed.widen(packed.narrow(weights.layers[0].experts_gate_up_proj[2])))
    ours, theirs, reference = (one([2, 17, 90, 4])[0] for one in (model, twin, exact))
    assert np.linalg.norm(ours - reference) <= 5 * np.linalg.norm(theirs - reference)
    account = minigemma.count(tmp_path)
    assert account.parts == minigemma.count(config).parts
    lost = next(i for i, row in enumerate(rows) if row[0].startswith("layers.1.experts.3.down"))
    less = slice(lost, lost + (3 if bits < 16 else 1))
    del rows[less], arrays[less]
    write_safetensors(tmp_path / "model.safetensors", "F32", rows, arrays)
    with pytest.raises(Error, match=r"layers\.1\.experts: an expert lacks a matrix"):
        minigemma.load(tmp_path)


WIDE = {  # every row is a multiple of 256 long, with PLE, sharing layers and both kinds of layer
    "hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "global_head_dim": 128,
    "hidden_size_per_layer_input": 256, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}  # fmt: skip
HALVES = {"Q4_0": [0], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}  # where a block has float16
UNIT = {"Q4_0": 4.6, "Q8_0": 74, "Q4_K": 330, "Q5_K": 660, "Q6_K": 1370, "w4a16": 4.6, "w8a16": 74}  # rms of numbers


def random_packed(name, shape, zero, rng):
    """A PackedMatrix of random bytes, whose weights are about as large as those of a trained model."""
    layout, (*rows, width), step = LAYOUTS[name], shape, shape[-1] ** -0.5 / UNIT[name]
    if name in HALVES:
        raw = rng.integers(0, 256, (*rows, width // layout.columns, layout.size), np.uint8)
        for at in HALVES[name]:
            raw[..., at : at + 2] = np.float16([step]).view(np.uint8)
        return PackedMatrix(layout, (raw.reshape(*rows, -1),), shape)
    numbers = rng.integers(0, 256, (*rows, width * int(layout.bits) // 8), np.uint8)
    parts = [numbers, packed.narrow(rng.uniform(0.5, 1.5, (*rows, width // 32)).astype(np.float32) * step)]
    zeros = [rng.integers(-8, 8, (*rows, width // 32), np.int8)] if zero else []
    return PackedMatrix(layout, [*parts, *zeros], shape)


@pytest.mark.parametrize(
    ("name", "zero", "member"),
    [
        *((name, False, "E2B") for name in UNIT),
        ("w4a16", True, "E2B"),
        ("w8a16", True, "E2B"),
        ("Q4_0", False, "26B-A4B"),
    ],
)
def test_a_model_in_any_layout_is_as_exact_as_its_float32_twin(name, zero, member):
    config, plain = small(member, **WIDE if member == "E2B" else {"hidden_size": 64, "moe_intermediate_size": 32})
    rng, ids = np.random.default_rng(0), [2, 17, 90, 4, 33, 33, 8, 101]
    few_bits = text_arrays(config, plain)
    for tensor, array in few_bits.items():
        if array.ndim > 1 and array.shape[-1] % 32 == 0 and "router" not in tensor:
            few_bits[tensor] = random_packed(name, array.shape, zero, rng)

    def logits(dtype=None):
        given = {tensor: np.asarray(array).astype(dtype) if dtype else array for tensor, array in few_bits.items()}
        weights = checkpoint.assemble(config, given)
        prompt, cache = forward(ids[:-1], weights, config)
        return np.concatenate([prompt, forward(ids[-1:], weights, config, cache)[0]]).astype(np.float64)

    ours, twin, exact = logits(), logits(np.float32), logits(np.float64)
    assert 0.1 < exact.std() < 20  # the softcap of 30 hides nothing
    assert np.linalg.norm(ours - exact) <= 5 * np.linalg.norm(twin - exact)
    assert np.linalg.norm(ours[-1] - exact[-1]) <= 5 * np.linalg.norm(twin[-1] - exact[-1])  # one token has its own way
