"""The account is exact to the unit: against the released files, the real cache, and the products of a real run."""

import json
import math
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from family import (
    HEARING,
    MEMBERS,
    TOWER,
    VISION,
    fields,
    hearing,
    random_audio,
    random_sound,
    random_vision,
    seeing,
    small,
)
from processes import one_line, peak_memory
from test_audio import hear
from test_vision import see

import minigemma
import minigemma.model
import minigemma.ops
from minigemma import EMPTY, Config, Error, Trace, encode_audio, files, forward, log_mel, prefill
from minigemma.__main__ import main
from minigemma.account import compute, memory
from minigemma.account.compute import multiply_adds, prefill_multiply_adds
from minigemma.account.memory import kv_cache, memory_account
from minigemma.account.parameters import count
from minigemma.account.towers import TOWERS
from minigemma.checkpoint import read_header, write_safetensors
from minigemma.released import EFFECTIVE, RELEASED
from minigemma.tensors import checkpoint_tensors, text_tensors

PUBLISHED = {  # tensors, all elements, text, token table, PLE table: of the files on the hub
    "E2B": (2_011, 5_123_178_979, 4_647_449_891, 402_653_184, 2_348_810_240),
    "E4B": (2_130, 7_996_157_418, 7_518_069_034, 671_088_640, 2_818_572_288),
    "12B": (677, 11_959_730_224, 11_907_350_320, 1_006_632_960, 0),
    "26B-A4B": (1_013, 25_805_936_206, 25_233_141_790, 738_197_504, 0),
    "31B": (1_188, 31_273_088_876, 30_697_345_340, 1_409_286_144, 0),
}
TOWER_SIZES = {"E2B": (167_365_056, 304_825_088), "E4B": (167_365_056, 304_825_088)}
TOWER_SIZES |= {"26B-A4B": (569_550_384, 0), "31B": (569_550_384, 0)}
FACTS = Path(__file__).parents[3] / "shared" / "facts" / "e2b_it_tensors.json"
released_models = pytest.mark.parametrize("name", PUBLISHED)


# Parameters


@released_models
def test_a_released_model_counts_to_the_unit(name):
    account = count(name)
    text_rest = account.text - account.parts["token table"] - account.parts.get("PLE table", 0)
    found = (len(account.tensors), account.total, account.text, account.parts["token table"])
    assert (*found, account.parts.get("PLE table", 0)) == PUBLISHED[name]
    assert text_rest == PUBLISHED[name][2] - sum(PUBLISHED[name][3:])
    assert account.nbytes == 2 * account.total


@pytest.mark.parametrize("name", TOWER_SIZES)
def test_the_towers_count_to_the_unit(name):
    sizes = Counter()
    for tensor in count(name).tensors:
        sizes[tensor.name.split(".")[1]] += math.prod(tensor.shape)
    assert (sizes["vision_tower"], sizes["audio_tower"]) == TOWER_SIZES[name]


def test_the_small_models_hold_928_clip_bounds_that_the_hub_does_not_count():
    for name in ("E2B", "E4B"):
        parts = Counter(tensor.part for tensor in count(name).tensors if tensor.shape == ())
        assert parts == {"audio": 480, "vision": 448}
    assert count("31B").to_dict()["clip_bounds"] == 0


def test_googles_files_hold_k_and_v_that_nothing_reads():
    unused = [tensor for tensor in count("E2B").tensors if tensor.part == "unused"]
    assert (len(unused), count("E2B").parts["unused"]) == (60, 18_880_512)
    assert sum(tensor.part == "unused" for tensor in count("E4B").tensors) == 54
    assert "unused" not in count("E2B", unused=False).parts


@pytest.mark.skipif(not FACTS.exists(), reason="the list of the real file's tensors is not here")
def test_e2b_is_the_real_file_name_by_name_and_shape_by_shape():
    real = {name: (dtype, tuple(shape)) for name, (dtype, shape) in json.loads(FACTS.read_text()).items()}
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in count("E2B").tensors} == real


@released_models
def test_no_tensor_is_in_the_table_twice(name):
    names = [tensor.name for tensor in count(name).tensors]
    assert len(names) == len(set(names))


def test_a_token_of_the_mixture_reads_the_published_number_of_parameters():
    assert count("26B-A4B").active == 3_822_530_590


def test_a_token_of_a_ple_model_reads_one_row_of_the_ple_table():
    account = count("E2B")
    assert account.active == account.text - account.parts["unused"] - account.parts["PLE table"] + 35 * 256


def test_only_one_candidate_gives_both_effective_numbers_and_only_when_truncated():
    candidates = {name: count(name).effective["candidates"] for name in EFFECTIVE}
    ways = {name: {key: row["reproduces"] for key, row in rows.items()} for name, rows in candidates.items()}
    assert [key for key in ways["E2B"] if ways["E2B"][key] and ways["E4B"][key]] == ["all - PLE table - token table"]
    assert ways["E2B"]["all - PLE table - token table"] == "truncated"
    values = {key: row["parameters"] for key, row in candidates["E2B"].items()}
    assert values["all - PLE table - token table"] == 2_371_715_555
    assert values["text - PLE table"] == 2_298_639_651
    assert values["all - PLE table"] == 2_774_368_739
    assert count("12B").effective["published"] is None


@pytest.mark.parametrize("spelling", ["E2B", "gemma-4-e2b", "google/gemma-4-E2B-it"])
def test_a_released_model_goes_by_all_its_names(spelling):
    assert count(spelling).name == "E2B"


def test_count_of_a_config_is_its_text_model(member):
    config, weights = small(member)
    arrays = [vars(weights), *map(vars, weights.layers)]
    held = sum(array.size for group in arrays for array in group.values() if isinstance(array, np.ndarray))
    assert minigemma.count(config).total == held


@released_models
def test_every_sum_of_the_json_adds_up(name, capsys):
    assert main(["params", name, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"name", "tensors", "total", "bytes", "parts", "effective", "active", "layers"} <= set(data)
    assert sum(data["parts"].values()) == data["total"]
    assert sum(data["part_bytes"].values()) == data["bytes"]
    assert sum(data["part_tensors"].values()) == data["tensors"]
    assert sum(layer["total"] for layer in data["layers"]) + sum(data["outside_layers"].values()) == data["total"]
    by_part = Counter(data["outside_layers"])
    for layer in data["layers"]:
        assert sum(layer["parts"].values()) == layer["total"]
        assert layer["bytes"] == 2 * layer["total"]
        by_part.update(layer["parts"])
    assert by_part == data["parts"]
    assert data["text"] == data["total"] - data["parts"].get("vision", 0) - data["parts"].get("audio", 0)


# A config.json and a checkpoint


def google(member, **more):
    """A config.json as Google spells it."""
    return {"model_type": "gemma4", "dtype": "bfloat16", "text_config": fields(member)} | more


def test_a_config_in_googles_spelling_counts_unused_tensors_and_one_of_transformers_does_not(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(google("E2B") | TOWERS["E2B"]))
    with_unused = count(path)
    assert set(with_unused.parts) >= {"unused", "vision", "audio"}
    resaved = fields("E2B") | {"per_layer_config": {"4": {"head_dim": 16}, "9": {"head_dim": 16}}}
    del resaved["global_head_dim"]
    path.write_text(json.dumps(google("E2B", text_config=resaved)))
    assert set(count(path).parts).isdisjoint({"unused", "vision", "audio"})
    path.write_text(json.dumps(fields("E2B")))
    assert "unused" not in count(path).parts


def test_a_float32_config_counts_four_bytes_a_parameter(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(fields("12B") | {"dtype": "float32"}))
    account = count(tmp_path / "config.json")
    assert account.nbytes == 4 * account.total


def test_a_saved_checkpoint_differs_in_nothing(checkpoint):
    account = count(checkpoint)
    assert account.differences == ()
    stored = read_header(checkpoint / "model.safetensors").values()
    assert account.nbytes == sum(tensor.map().nbytes for tensor in stored)


def test_a_checkpoint_in_googles_layout_differs_in_nothing(tmp_path):
    raw = google("E2B") | {"vision_config": TOWERS["12B"]["vision_config"] | {"mm_embed_dim": 8}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for unused in (True, False):  # files saved again by transformers have dropped them
        table = checkpoint_tensors(Config.from_dict(raw), raw, unused)
        write(tmp_path, table)
        account = count(tmp_path)
        assert account.differences == ()
        assert ("unused" in account.parts) == unused


def test_every_difference_between_a_file_and_the_table_is_named(checkpoint, capsys):
    config = Config.from_json(checkpoint)
    table = {tensor.name: tensor for tensor in checkpoint_tensors(config)}
    del table["model.layers.2.mlp.up_proj.weight"]
    for name, shape in (("model.norm.weight", (23,)), ("lm_head.weight", (120, 24)), ("model.vision_tower.x", (2,))):
        table[name] = table["model.norm.weight"]._replace(name=name, shape=shape)
    write(checkpoint, table.values(), "F32")
    assert main(["params", str(checkpoint)]) == 0
    out = capsys.readouterr().out.splitlines()
    start = out.index("file against table: 4 differences")
    assert sorted(out[start + 1 :]) == [
        "lm_head.weight: in the file, not in the table (F32 [120, 24])",
        "model.layers.2.mlp.up_proj.weight: in the table, not in the file (F32 [40, 24])",
        "model.norm.weight: [23] in the file, [24] in the table",
        "model.vision_tower.x: in the file, not in the table (F32 [2])",
    ]


def test_a_file_of_another_dtype_differs_in_every_tensor(checkpoint):
    table = checkpoint_tensors(Config.from_json(checkpoint))
    write(checkpoint, table, "BF16")
    differences = count(checkpoint).differences
    assert len(differences) == len(table)
    assert "model.norm.weight: BF16 in the file, F32 in the table" in differences


def write(directory, table, dtype="BF16"):
    shapes = [(tensor.name, tensor.shape) for tensor in table]
    arrays = (np.zeros(shape, np.uint16 if dtype == "BF16" else np.float32) for _, shape in shapes)
    write_safetensors(directory / "model.safetensors", dtype, shapes, arrays)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vision_config": {"hidden_size": 8}}, "vision_config: patch_size"),
        ({"vision_config": TOWERS["E2B"]["vision_config"] | {"hidden_size": -1}}, "vision_config: hidden_size"),
        ({"vision_config": TOWERS["E2B"]["vision_config"] | {"standardize": 1}}, "vision_config: standardize"),
        ({"audio_config": TOWERS["E2B"]["audio_config"] | {"subsampling_conv_channels": [1]}}, "subsampling_conv"),
        ({"audio_config": TOWERS["E2B"]["audio_config"] | {"num_attention_heads": 0}}, "num_attention_heads"),
        ({"audio_config": "big"}, "audio_config"),
        ({"dtype": "int3"}, "dtype"),
        ({"dtype": ["int3"]}, "dtype"),
        ({"text_config": 5}, "text_config"),
    ],
)
def test_a_config_that_cannot_be_counted_is_refused_in_one_line(change, words, tmp_path, run):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(google("E2B") | change))
    one_line(run("params", path), words)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(Error, match=r"E3B.*E2B, E4B.*no file or directory"):
        count("E3B")


# Memory


@pytest.mark.parametrize(("length", "steps"), [(1, ()), (4, (1,)), (5, (3, 5)), (6, ()), (23, (3, 5)), (23, (1,))])
def test_the_kv_account_is_what_the_cache_holds_after_a_run(member, length, steps):
    config, weights = small(member)
    cuts = sorted({0, length, *(min(step, length) for step in steps)})
    cache, tokens = EMPTY, np.arange(length)
    for start, stop in pairwise(cuts):
        _, cache = forward(tokens[start:stop], weights, config, cache, logits=None)
    sizes = kv_cache(config, length, itemsize=4)
    assert sum(sizes) == cache.nbytes
    held = {i: entry.k.nbytes + entry.v.nbytes for i, entry in cache.entries.items()}
    assert {i: size for i, size in enumerate(sizes) if size} == held


@pytest.mark.skipif(not (minigemma.TINY / "model.safetensors").exists(), reason="the tiny weights are not trained yet")
@pytest.mark.parametrize("length", [1, 40, 300])
def test_the_kv_account_holds_for_the_tiny_weights(tiny, length):
    length = min(length, tiny.config.max_position_embeddings)
    _, cache = prefill(np.arange(length) % 100, tiny.weights, tiny.config)
    assert sum(kv_cache(tiny.config, length, itemsize=4)) == cache.nbytes


def test_e2bs_kv_cache_at_full_length():
    sizes = memory_account(count("E2B"), 131_072)["kv_cache"]
    gigabytes = {way: round(size / 1e9, 3) for way, size in sizes.items()}
    assert gigabytes == {
        "shared, bounded": 0.812, "shared, unbounded": 2.416, "unshared, bounded": 1.894, "unshared, unbounded": 5.637,
    }  # fmt: skip


@released_models
def test_weights_in_memory_are_split_without_a_rest(name):
    account = count(name)
    schemes = memory.weights_in_memory(account)
    assert schemes["bfloat16"]["file"] == account.nbytes
    for sizes in schemes.values():
        assert sizes["file"] == sizes["resident"] + sizes["disk"]
    files = [sizes["file"] for sizes in schemes.values()]
    assert files == sorted(files, reverse=True)
    assert schemes["bfloat16"]["resident"] == 2 * compute.overview()["models"][name]["resident"]


def test_published_footprints_stand_beside_our_sums_with_the_difference():
    rows = memory_account(count("E2B"), 1)["published"]
    assert {9.6e9, 11.4e9, 1.5e9, 2.583e9, 1.12e9} == {row["published"] for row in rows}
    for row in rows:
        assert row["difference"] == row["bytes"] - row["published"]
        assert row["remark"]
    assert memory_account(count("31B"), 1)["published"] == []


def test_the_account_of_activations_is_the_size_of_the_real_arrays(member):
    config, weights = small(member)
    _, cache = forward(np.arange(9), weights, config)
    trace = Trace()
    forward(np.arange(14), weights, config, cache, tap=trace, logits="last")
    largest = Counter()
    for tap, array in trace.items():
        name = tap.split(".", 2)[-1] if tap.startswith("layers.") else tap
        largest[name] = max(largest[name], array.nbytes)
    account = memory.activations(config, 14, past=9)
    account.pop("peak")
    assert account == {name: largest[name] for name in account}


@pytest.mark.parametrize(
    "sizes", [{"intermediate_size": 4000}, {"sliding_window": 2000}, {"hidden_size": 600, "intermediate_size": 300}]
)
@pytest.mark.parametrize("member", ["E2B", "26B-A4B", "31B"])  # with PLE, with experts, with neither
def test_the_estimated_peak_of_a_chunk_is_near_the_measured_one(member, sizes):
    config, weights = small(member, max_position_embeddings=4096, **sizes)
    new, past = 200, 800
    _, cache = forward(np.arange(past) % 100, weights, config, logits=None)
    with peak_memory() as peak:
        forward(np.arange(new) % 100, weights, config, cache, logits="last")
    assert 0.9 < memory.activations(config, new, past)["peak"] / peak[0] < 1.3


# Compute


class Counted(np.ndarray):
    """Arrays that count the multiply-adds of every matrix product they take part in, under the label of the moment."""

    products: ClassVar = Counter()
    label = "attention over keys"

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [np.asarray(array) if isinstance(array, Counted) else array for array in inputs]
        if ufunc is np.matmul:
            Counted.products[Counted.label] += plain[0].size * plain[1].shape[-1]
        if out is not None:
            options["out"] = tuple(np.asarray(array) for array in out)
        result = getattr(ufunc, method)(*plain, **options)
        return out[0] if out is not None else result.view(Counted) if isinstance(result, np.ndarray) else result

    def __array_function__(self, func, types, args, kwargs):
        result = super().__array_function__(func, types, args, kwargs)
        return result.view(Counted) if isinstance(result, np.ndarray) else result


@pytest.fixture
def counting(member, monkeypatch):
    """config, weights whose products are counted by part, and the counts."""
    config, weights = small(member, np.float64)
    weights.embed_tokens = weights.embed_tokens.view(Counted)
    part_of = {}
    for tensor in text_tensors(config):
        owner = weights if tensor.layer is None else weights.layers[tensor.layer]
        part_of[id(getattr(owner, tensor.attribute))] = tensor.part

    def labelled(label_of, linear):
        def run(x, weight):
            Counted.label = label_of(weight)
            try:
                return linear(x, weight)
            finally:
                Counted.label = "attention over keys"

        return run

    linear = minigemma.ops.linear
    part = {"token table": "logits"}
    monkeypatch.setattr(
        minigemma.model, "linear", labelled(lambda w: part.get(part_of[id(w)], part_of[id(w)]), linear)
    )
    monkeypatch.setattr(minigemma.ops, "linear", labelled(lambda w: "experts", linear))  # its callers there: experts
    monkeypatch.setattr(Counted, "products", Counter())
    return config, weights, Counted.products


PASSES = [(1, 0, "last"), (1, 3, "all"), (1, 17, None), (4, 0, None), (4, 3, "last"), (11, 0, "all"), (11, 17, "last")]


@pytest.mark.parametrize(("new", "past", "logits"), PASSES)
def test_the_compute_account_is_the_products_that_a_run_makes(counting, new, past, logits):
    config, weights, products = counting
    cache = forward(np.arange(past), weights, config)[1] if past else EMPTY
    products.clear()
    forward(np.arange(new), weights, config, cache, logits=logits)
    expected = multiply_adds(config, new, past, logits)
    assert products == {part: size for part, size in expected.items() if size}


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_prefill_account_is_the_products_of_a_real_prefill(counting, chunk, monkeypatch):
    config, weights, products = counting
    monkeypatch.setattr(compute, "CHUNK", chunk)
    monkeypatch.setattr(sys.modules["minigemma.sampling"], "CHUNK", chunk)
    prefill(np.arange(23), weights, config)
    assert products == prefill_multiply_adds(config, 23)


def test_a_prompt_is_cut_where_prefill_cuts_it(monkeypatch):
    config, weights = small("E2B")
    calls = []

    def watched(ids, weights, config, cache, **options):
        calls.append((len(ids), cache.length))
        return forward(ids, weights, config, cache, **options)

    module = sys.modules["minigemma.sampling"]
    monkeypatch.setattr(module, "forward", watched)
    for owner in (module, compute):
        monkeypatch.setattr(owner, "SCORE_BYTES", 10_000)
    prefill(np.arange(100), weights, config)
    assert calls == list(zip(*map(list, compute.chunks(config, 100)), strict=True))


def test_without_the_shortcut_a_prompt_costs_what_all_layers_at_all_positions_cost(counting):
    config, weights, products = counting
    forward(np.arange(19), weights, config, logits="all")
    products["logits"] //= 19
    assert products == prefill_multiply_adds(config, 19, shortcut=False)


def test_the_shortcut_saves_a_prompt_most_of_its_work_and_a_decoded_token_nothing():
    result = compute.compute_account(count("E2B"), 4096)
    with_it, without = (sum(result["prefill"][way].values()) for way in ("with shortcut", "without shortcut"))
    assert with_it < 0.35 * without
    config = count("E2B").config
    assert multiply_adds(config, 1, 99) == multiply_adds(config, 1, 99, "last", shortcut=False)


def test_ple_stores_half_of_e2b_and_costs_under_two_percent_of_a_token():
    shares = {name: row["ple"] / row["of"] for name, row in compute.compute_account(count("E2B"), 1)["ple"].items()}
    assert shares.pop("parameters stored") > 0.5
    assert shares.pop("bytes stored, bfloat16") > 0.5
    assert len(shares) == 2
    assert max(shares.values()) < 0.02


def test_only_ple_keeps_the_resident_parameters_as_few_as_those_a_token_reads():
    rows = compute.overview()["models"]
    assert {row["kind"] for row in rows.values()} == {"PLE", "plain", "mixture"}
    for row in rows.values():
        assert row["stored"] >= row["resident"]
        assert (row["stored"] > row["resident"]) == (row["kind"] == "PLE")
        assert (row["read"] < 0.5 * row["resident"]) == (row["kind"] == "mixture")
        assert 0.999 < row["computed"] / row["read"] < 1


@pytest.mark.parametrize("context", [0, -1, 131_073])
@pytest.mark.parametrize("command", ["memory", "compute"])
def test_a_context_that_the_model_does_not_have_is_refused(command, context, run):
    one_line(run(command, "E2B", "--context", context), "131072")


# Pictures


def test_the_towers_of_e2b_count_to_the_unit_group_by_group():
    vision, audio = count("E2B").towers.values()
    assert vision == {
        "clip bounds": 448, "projection into the text model": 1_179_648, "norms and statistics": 51_200,
        "MLP": 113_246_208, "attention": 37_748_736, "position table": 15_728_640, "patches": 589_824,
    }  # fmt: skip
    assert audio == {
        "clip bounds": 480, "projection into the text model": 2_359_296, "subsampling": 1_086_752,
        "norms and statistics": 110_592, "MLP": 201_326_592, "attention": 62_916_096, "convolution": 37_810_176,
        "output projection": 1_574_400,
    }  # fmt: skip


@released_models
def test_the_groups_of_the_towers_add_up_to_their_parts(name):
    account = count(name)
    for part, groups in account.towers.items():
        assert sum(groups.values()) == account.parts[part]


@pytest.fixture
def products(monkeypatch):
    """A count of the multiply-adds of the products with weights, as "matrices"."""
    found, product = Counter(), minigemma.ops.product

    def counted(x, weight):
        found["matrices"] += len(x) * math.prod(weight.shape)
        return product(x, weight)

    monkeypatch.setattr(minigemma.ops, "product", counted)
    return found


@pytest.mark.parametrize("seer", VISION)
def test_the_account_of_a_picture_is_the_products_that_its_pass_makes(seer, products):
    config = Config.from_dict(seeing(seer))
    def tap(name, array):
        if name.endswith(".scores"):
            products["attention over patches"] += 2 * array.size * config.vision.head_dim
        return array

    see(config, random_vision(config), tap=tap)
    account = compute.picture_multiply_adds(config, 6)
    assert account.pop("attention over patches", 0) == products["attention over patches"]
    assert sum(account.values()) == products["matrices"]


def test_a_picture_of_16_times_the_soft_tokens_is_38_times_the_work_in_e2b():
    budgets = compute.compute_account(count("E2B"), 1)["pictures"]
    work = {budget: sum(account["encode"].values()) for budget, account in budgets.items()}
    assert [round(2 * work[budget] / 1e9) for budget in (70, 140, 280, 560, 1120)] == [211, 460, 1077, 2778, 8053]
    assert round(work[1120] / work[70]) == 38
    assert 0.61 < budgets[1120]["encode"]["attention over patches"] / work[1120] < 0.63


PROPORTIONS = {"hidden_size": 96, "num_key_value_heads": 12, "num_attention_heads": 12, "patch_size": 6}  # as in E2B


@pytest.mark.parametrize("vision", [*({"intermediate_size": F} for F in (100, 384, 1600)), VISION["12B"]])
def test_the_estimated_peak_of_a_picture_is_near_the_measured_one(vision):
    unified = vision | {"patch_size": 16, "mm_embed_dim": 3840}
    config = Config.from_dict(seeing("E2B", unified if "mm_embed_dim" in vision else TOWER | PROPORTIONS | vision))
    weights = random_vision(config)
    with peak_memory() as peak:
        see(config, weights, (7, 10))
    assert 0.9 < memory.picture_memory(config, 256)[70]["encoder"] / peak[0] < 1.3


def test_pictures_that_fit_into_the_context_with_their_two_marks():
    sizes = memory_account(count("E2B"), 131_072)["pictures"]
    assert [row["pictures"] for row in sizes.values()] == [1820, 923, 464, 233, 116]
    assert memory_account(count(Config.from_dict(fields("E2B"))), 9)["pictures"] == {}


# Sounds


@pytest.mark.parametrize("hearer", HEARING)
@pytest.mark.parametrize("samples", [161, 3000, 16000])
def test_the_account_of_a_sound_is_the_products_that_its_pass_makes(hearer, samples, products):
    config = Config.from_dict(hearing(hearer))
    def tap(name, array):
        if name.endswith(".scores"):  # q k, q rel_k, and the pattern times v
            products["attention over frames"] += 3 * array.size * config.audio.hidden_size // len(array)
        elif name.endswith("conv.mixed"):
            products["matrices"] += array.size * config.audio.conv_kernel_size
        return array

    hear(config, random_audio(config), samples, tap=tap)
    account = compute.sound_multiply_adds(config, samples)
    assert account.pop("attention over frames", 0) == products["attention over frames"]
    assert sum(account.values()) == products["matrices"]


def test_a_second_of_sound_is_15_gflop_in_e2b_and_30_seconds_445():
    sounds = compute.compute_account(count("E2B"), 1)["sounds"]
    assert {s: round(2 * sum(row["encode"].values()) / 1e9) for s, row in sounds.items()} == {1: 15, 10: 148, 30: 445}
    assert compute.compute_account(count("31B"), 1)["sounds"] == {}


@pytest.mark.parametrize("audio", [{}, {"hidden_size": 96}, {"subsampling_conv_channels": [128, 32]}])
def test_the_estimated_peak_of_a_sound_is_near_the_measured_one(audio):
    config = Config.from_dict(hearing("E2B", audio))
    weights, mel = random_audio(config), log_mel(random_sound(16000))
    with peak_memory() as peak:
        encode_audio(mel, weights, config)
    assert 0.9 < memory.sound_memory(config, 256)[1]["encoder"] / peak[0] < 1.3


def test_half_minutes_of_sound_that_fit_into_the_context_with_their_two_marks():
    for name in ("E2B", "12B"):
        assert memory_account(count(name), 131_072)["sounds"][30]["sounds"] == 174  # 87 minutes
    assert memory_account(count("31B"), 9)["sounds"] == {}


# What is printed and drawn


@pytest.mark.parametrize(
    "arguments", [["params"], ["params", "E2B"], ["memory", "E2B"], ["memory", "31B"], ["compute", "26B-A4B"]]
)
def test_the_text_and_the_json_of_a_command_hold_the_same_numbers(arguments, capsys):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    if arguments == ["params"]:
        expected = [f"{row['stored']:,}" for row in data["models"].values()]
    elif "parts" in data:
        expected = [f"{size:,}" for size in [*data["parts"].values(), data["total"], data["active"]]]
    elif "kv_cache" in data:
        expected = [f"{size / 1e9:.3f}" for size in data["kv_cache"].values()]
        expected += [f"{row['encoder'] / 1e6:,.3f}" for row in [*data["pictures"].values(), *data["sounds"].values()]]
    else:
        expected = [f"{size / 1e6:,.3f}" for size in data["decode"].values()]
        media = [*data["pictures"].values(), *data["sounds"].values()]
        expected += [f"{sum(row['encode'].values()) / 1e9:,.3f}" for row in media]
    for number in expected:
        assert number in text


@pytest.mark.parametrize("name", MEMBERS)
def test_the_uses_of_parameters_add_up_to_all_and_to_what_a_token_reads(name):
    account = count(name)
    uses = account.uses
    assert sum(sum(parts.values()) for parts in uses.values()) == account.total
    row = account.config.num_hidden_layers * account.config.hidden_size_per_layer_input
    assert sum(uses["multiplied for every token"].values()) + row == account.active
    for part, size in account.parts.items():
        both = ("attention", "global attention") if part == "attention" else (part,)
        assert sum(parts.get(each, 0) for parts in uses.values() for each in both) == size, part


def test_printing_an_account_shows_its_table():
    assert "5,123,178,979" in str(count("E2B"))


def test_tables_align_numbers_to_the_right():
    assert files.table(["name", "size"], [("a", 1), ("bcdef", 1000)]) == "name    size\na          1\nbcdef  1,000"


def test_figures_show_the_data_with_labelled_axes():
    figures = pytest.importorskip("minigemma.tools.figures", reason="matplotlib is not installed")
    accounts = {name: count(name) for name in RELEASED}
    lengths = [128, 1024, 8192]
    sizes = {"shared": [sum(kv_cache(accounts["E2B"].config, length)) for length in lengths]}
    bars = figures.part_bars({name: account.parts for name, account in accounts.items()})
    berg = figures.iceberg({name: account.uses for name, account in accounts.items()})
    lines = figures.kv_cache_lines(lengths, sizes)
    layers = figures.layer_bars(accounts["E2B"].layers)
    widths = sum(patch.get_width() for patch in bars.axes[0].patches)
    assert widths == pytest.approx(sum(account.total for account in accounts.values()) / 1e9)
    heights = [
        sum(abs(patch.get_height()) for patch in berg.axes[0].patches if 0 < patch.get_x() + 0.5 - i < 0.5)
        for i in range(5)
    ]
    assert heights == pytest.approx([100] * 5)  # percent
    for name, account in accounts.items():
        patches = figures.squares(account.uses, each=10**8).axes[0].patches
        assert sum(patch.get_width() for patch in patches) / 0.92 * 1e8 == pytest.approx(account.total, rel=1e-6), name
    assert lines.axes[0].lines[0].get_ydata() == pytest.approx(np.array(sizes["shared"]) / 1e9)
    tops = [layer["total"] / 1e6 for layer in accounts["E2B"].layers]
    drawn = Counter()
    for container in layers.axes[0].containers:
        for i, patch in enumerate(container):
            drawn[i] += patch.get_height()
    assert [drawn[i] for i in range(35)] == pytest.approx(tops)
    for figure in (bars, berg, lines, layers):
        units = figure.axes[0].get_xlabel() + figure.axes[0].get_ylabel()
        assert any(unit in units for unit in ("billions", "millions", "GB", "%"))


def test_every_member_of_the_family_is_tested_here():
    assert set(MEMBERS) == set(RELEASED) == set(PUBLISHED)
