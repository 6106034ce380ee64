"""Other engines' traces: every recognised layout and name reads back to the same arrays, the rest is refused."""

import json
import pickle
import re
import zipfile
from functools import cache

import numpy as np
import pytest
from family import small
from safetensors.numpy import save_file

from minigemma import Error, Trace, forward
from minigemma.checkpoint import write_safetensors
from minigemma.debug.foreign import MODULES, TABLES, read_trace
from minigemma.ops import linear
from minigemma.packed import narrow, widen
from minigemma.taps import axes_of, layer_of, tap_kind

TOKENS = np.arange(3, 17)  # 14: no member has an axis of that length
HEADS = "T N H", "T K H"
NO_PATH = {"attn.rot_q", "attn.rot_k", "attn.scores", "ple"}  # no module of transformers holds them


@pytest.fixture
def recorded(member):
    """config, and a Trace of TOKENS."""
    return record(member)


@cache
def record(member, count=14):
    config, weights = small(member)
    trace = Trace()
    forward(TOKENS[:count], weights, config, tap=trace)
    return config, trace


def axes(name):
    return ' '.join(axes_of(name))


def write(path, arrays, ids=TOKENS, /, **metadata):
    """A foreign file; its metadata as plain text."""
    tensors = {} if ids is None else {"tokens": np.asarray(ids)}
    tensors |= {name: np.array(array, order="C") for name, array in arrays.items()}
    save_file(tensors, path, metadata or None)
    return path


def assert_same(foreign, trace, names=None):
    """The foreign arrays are the trace's, name by name, in its order, shape and dtype."""
    assert list(foreign.arrays) == [name for name in trace if names is None or name in names]
    for name, array in foreign.arrays.items():
        assert array.dtype == trace[name].dtype, name
        np.testing.assert_array_equal(array, trace[name], err_msg=name)


def paths(config):
    """tap -> a module path of transformers with its side, one for each tap that has one."""
    last, found = str(config.num_hidden_layers - 1), {}
    for path, values in MODULES.items():
        for i in range(config.num_hidden_layers) if path.startswith("layers.") else (last,):
            for (given, number), tap in values.items():
                if isinstance(tap, tuple):  # several taps in one array
                    continue
                name = tap.replace("{last}", last).replace("*", str(i))
                side = "input" if given else "output"
                found.setdefault(name, (path.replace("*", str(i)), side, number))
    return found


# Our own files


def test_our_own_trace_reads_back_as_it_was(recorded, tmp_path):
    config, trace = recorded
    trace.save(tmp_path / "trace", tokens=TOKENS.tolist(), model="E2B")
    foreign = read_trace(tmp_path / "trace", config)
    assert_same(foreign, trace)
    assert (foreign.notes, foreign.ignored) == ([], [])
    assert foreign.tokens.tolist() == TOKENS.tolist() and foreign.metadata["model"] == "E2B"


@pytest.mark.parametrize("count", [1, 4])  # 4 is the number of heads, and 1 every axis of one
def test_our_own_trace_of_few_tokens_reads_back_as_it_was(member, count, tmp_path):
    config, trace = record(member, count)
    trace.save(tmp_path / "trace", tokens=TOKENS[:count].tolist(), axes="T N H")
    assert_same(read_trace(tmp_path / "trace", config), trace)


def test_a_trace_in_float64_stays_in_float64(exact, tmp_path):
    config, weights, tokens = exact
    trace = Trace()
    forward(tokens, weights, config, tap=trace)
    trace.save(tmp_path / "trace", tokens=tokens.tolist())
    foreign = read_trace(tmp_path / "trace", config)
    assert_same(foreign, trace)
    assert foreign.arrays["embed"].dtype == np.float64


# Layouts


def batched(name, array):
    return array[None]


def heads_first(name, array):
    return array.swapaxes(0, 1) if axes(name) in HEADS else array


def batched_heads_first(name, array):
    return heads_first(name, array)[None]


def flattened(name, array):
    return array.reshape(len(array), -1) if axes(name) in (*HEADS, "T L P") else array


def layers_first(name, array):
    return array.swapaxes(0, 1) if axes(name) == "T L P" else array


@pytest.mark.parametrize("change", [batched, heads_first, batched_heads_first, flattened, layers_first])
@pytest.mark.parametrize("known", [True, False])
def test_every_layout_is_recognised_from_its_shape(recorded, change, known, tmp_path):
    config, trace = recorded
    path = write(tmp_path / "trace", {k: change(k, trace[k]) for k in trace}, TOKENS if known else None)
    foreign = read_trace(path, config)
    assert_same(foreign, trace)
    assert (foreign.tokens is not None) == known
    changed = any(change(k, trace[k]).shape != trace[k].shape for k in trace)
    assert bool(foreign.notes) == changed


def test_the_notes_count_what_was_converted(tmp_path):
    config, trace = record("E2B")
    arrays = {name: heads_first(name, array)[None] for name, array in trace.items() if name.endswith("attn.q")}
    foreign = read_trace(write(tmp_path / "trace", arrays), config)
    assert foreign.notes == ["10 arrays had a batch axis of 1", "10 arrays had heads or layers before positions"]


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_half_precision_is_widened(recorded, dtype, tmp_path):
    config, trace = recorded
    floats = {name: array for name, array in trace.items() if array.dtype == np.float32}
    halves = {name: narrow(array) if dtype == "BF16" else array.astype(np.float16) for name, array in floats.items()}
    table = [(name, array.shape) for name, array in floats.items()]
    write_safetensors(tmp_path / "trace", dtype, table, floats.values() if dtype == "F16" else halves.values())
    foreign = read_trace(tmp_path / "trace", config, ids=TOKENS.tolist())
    for name, half in halves.items():
        np.testing.assert_array_equal(foreign.arrays[name], widen(half), err_msg=name)
    assert foreign.notes == [f"{len(floats)} arrays had 16 bits a value ({dtype})"]


def last(name, array):
    return array.take([-1], axis=axes(name).split().index("T"))


@pytest.mark.parametrize("squeeze", [False, True])
def test_the_last_position_alone_is_recognised(recorded, squeeze, tmp_path):
    config, trace = recorded
    rows = Trace()
    for name, array in trace.items():
        rows(name, last(name, array))
    arrays = {name: array.squeeze(axes(name).split().index("T")) if squeeze else array for name, array in rows.items()}
    foreign = read_trace(write(tmp_path / "trace", arrays), config)
    assert_same(foreign, rows)


def test_a_prefill_whose_last_layers_ran_for_the_last_position_only_is_recognised(tmp_path):
    config, weights = small("E2B")
    trace = Trace()
    forward(TOKENS, weights, config, tap=trace, logits="last")
    foreign = read_trace(write(tmp_path / "trace", trace), config)
    assert_same(foreign, trace)


def test_as_many_tokens_as_heads_are_decided_by_the_keys_beside_the_queries(tmp_path):
    config, trace = record("E4B", 4)
    trace = {name: array for name, array in trace.items() if name.endswith(("attn.q", "attn.k"))}
    ours = read_trace(write(tmp_path / "trace", trace, TOKENS[:4]), config)
    theirs = {name: heads_first(name, array) for name, array in trace.items()}
    assert_same(ours, trace)
    assert_same(read_trace(write(tmp_path / "trace", theirs, TOKENS[:4]), config), trace)


def test_as_many_tokens_as_heads_are_not_decided_by_flattened_keys(tmp_path):
    config, trace = record("E4B", 4)
    q, k = heads_first("layers.0.attn.q", trace["layers.0.attn.q"]), trace["layers.0.attn.k"].reshape(4, -1)
    foreign = read_trace(write(tmp_path / "trace", {"layers.0.attn.q": q, "layers.0.attn.k": k}, TOKENS[:4]), config)
    assert list(foreign.arrays) == ["layers.0.attn.k"]


@pytest.mark.parametrize("metadata", [{}, {"axes": "H N T"}, {"axes": "[1]"}])
def test_as_many_tokens_as_heads_are_refused_where_nothing_decides(metadata, tmp_path):
    config, trace = record("E2B", 4)  # one key head: keys look the same either way
    path = write(tmp_path / "trace", trace, TOKENS[:4], **metadata)
    foreign = read_trace(path, config)
    missing = [name for name in trace if name not in foreign.arrays]
    assert {tap_kind(name) for name in missing} == {f"layers.*.attn.{q}" for q in ("q_raw", "q", "rot_q", "z")}
    assert len(foreign.ignored) == len(missing)
    assert "may be [T N H] or [N T H], as 4 is the length of both axes" in foreign.ignored[0]


def test_the_metadata_decides_where_there_are_as_many_tokens_as_heads(tmp_path):
    config, trace = record("E2B", 4)
    theirs = {name: heads_first(name, array) for name, array in trace.items()}
    assert_same(read_trace(write(tmp_path / "trace", theirs, TOKENS[:4], axes="N T H"), config), trace)


# Names


@pytest.mark.parametrize(
    "prefix",
    ["", "model.", "model.language_model.", "language_model.model.", "language_model.", "base_model.model.model."],
)
@pytest.mark.parametrize("sides", ["{}.{}.{}", "{}.{}s.{}", "{}:{}", "{}.in or out", "{}"])
def test_module_paths_are_read_with_every_prefix_and_suffix(prefix, sides, tmp_path):
    config, trace = record("E2B")
    arrays = {}
    for tap, (path, side, index) in paths(config).items():
        bare = sides == "{}" and (side, index) != ("output", 0)
        if tap in trace and not bare and (index == 0 or sides.count("{}") == 3):
            suffix = sides.replace(".in or out", ".in" if side == "input" else ".out")
            arrays[prefix + suffix.format(path, side, index)] = flattened(tap, trace[tap])[None]
    foreign = read_trace(write(tmp_path / "trace", arrays), config)
    assert len(foreign.arrays) == len(arrays) > 100
    assert_same(foreign, trace, foreign.arrays)


def test_every_tap_but_a_few_has_a_module_path(recorded):
    config, trace = recorded
    pathless = {tap_kind(name).removeprefix("layers.*.") for name in trace if name not in paths(config)}
    assert pathless <= NO_PATH | {"logits"}  # lm_head's output is not softcapped yet


def test_lm_heads_output_is_softcapped(tmp_path):
    config, weights = small("E2B")
    trace = Trace()
    forward(TOKENS, weights, config, tap=trace)
    uncapped = linear(trace["final_norm"], weights.embed_tokens)
    assert np.abs(uncapped - trace["logits"]).max() > 1e-3
    foreign = read_trace(write(tmp_path / "trace", {"lm_head": uncapped[None]}), config)
    np.testing.assert_array_equal(foreign.arrays["logits"], trace["logits"])
    assert "1 array had no softcap, as lm_head has none: it was applied" in foreign.notes
    both = read_trace(write(tmp_path / "trace", {"lm_head": uncapped[None], "logits": uncapped}), config)
    np.testing.assert_array_equal(both.arrays["logits"], uncapped)  # as the engine has them: it forgot the softcap
    assert both.ignored == ["lm_head: differs from logits, which is logits too and is kept"]


def test_the_layers_parts_of_ple_are_put_together(tmp_path):
    config, trace = record("E2B")
    parts = {f"model.layers.{i}.input.1": trace["ple"][None, :, i] for i in range(config.num_hidden_layers)}
    assert_same(read_trace(write(tmp_path / "trace", parts), config), trace, ["ple"])
    removed = parts.pop("model.layers.3.input.1")[0]
    foreign = read_trace(write(tmp_path / "trace", parts | {"embed": trace["embed"]}), config)
    assert list(foreign.arrays) == ["embed"] and len(foreign.ignored) == config.num_hidden_layers - 1
    assert removed.shape == (14, 6)


@pytest.mark.parametrize("form", ["hidden_states.{}", "hidden_states_{}", "hidden_states[{}]"])
def test_hidden_states_and_attentions_are_read_as_transformers_lists_them(form, tmp_path):
    config, trace = record("12B")
    L = config.num_hidden_layers
    taps = ["embed"] + [f"layers.{i}.resid_pre" for i in range(1, L)] + ["final_norm"]
    arrays = {form.format(i): trace[tap][None] for i, tap in enumerate(taps)}
    arrays |= {f"attentions.{i}": trace[f"layers.{i}.attn.pattern"][None] for i in range(L)}
    names = [*taps, *(f"layers.{i}.attn.pattern" for i in range(L))]
    assert_same(read_trace(write(tmp_path / "trace", arrays), config), trace, names)


@pytest.mark.parametrize("batch", [False, True])
def test_stacked_hidden_states_and_attentions_are_taken_apart(batch, tmp_path):
    config, trace = record("E2B")
    L = config.num_hidden_layers
    names = ["embed", *(f"layers.{i}.resid_pre" for i in range(1, L)), "final_norm"]
    patterns = [f"layers.{i}.attn.pattern" for i in range(L)]
    arrays = {"hidden_states": np.stack([trace[name] for name in names])}
    arrays["attentions"] = np.stack([trace[name] for name in patterns])
    if batch:
        arrays = {key: array[:, None] for key, array in arrays.items()}
    foreign = read_trace(write(tmp_path / "trace", arrays), config)
    assert_same(foreign, trace, [*names, *patterns])
    assert not foreign.unread
    short = {"hidden_states": arrays["hidden_states"][:-1], "logits": trace["logits"]}
    assert list(read_trace(write(tmp_path / "trace", short), config).unread) == ["hidden_states"]


@pytest.mark.parametrize("form", ["hidden_states.{}", "model.layers.{}"])
def test_one_array_in_place_of_every_hidden_state_is_refused(form, tmp_path):
    config, trace = record("E2B")
    arrays = {form.format(i): trace["layers.9.resid_post"] for i in range(10)}
    with pytest.raises(Error, match="all layers hold one and the same array: the capture is wrong"):
        read_trace(write(tmp_path / "trace", arrays), config)


def test_of_a_row_before_and_after_its_scale_the_one_after_is_taken(tmp_path):
    config, trace = record("E2B")
    raw = trace["embed"] / np.float32(np.sqrt(config.hidden_size))
    arrays = {"embed_tokens.output": raw, "per_layer_model_projection.input": trace["embed"]}
    foreign = read_trace(write(tmp_path / "trace", arrays), config)
    assert_same(foreign, trace, ["embed"])
    assert not foreign.unread and "is not scaled yet" in foreign.notes[0]


def test_two_records_of_one_value_are_alike_where_neither_is_finite(tmp_path):
    config, trace = record("E2B")
    name = "layers.2.attn.q_raw"
    first, second = trace[name].copy(), trace[name] * np.float32(1 + 1e-7)
    first[3, 2:], second[3, 2:] = np.nan, np.inf
    arrays = {name: first, "layers.2.self_attn.q_norm.input": second}
    assert read_trace(write(tmp_path / "trace", arrays), config).ignored == []
    first[5, 1] = np.nan  # of one record only
    assert "differs from" in read_trace(write(tmp_path / "trace", arrays), config).ignored[0]


def test_a_mapping_file_translates_names_and_states_axes(recorded, tmp_path):
    config, trace = recorded
    queries = {name: array for name, array in trace.items() if name.endswith("attn.q")}
    arrays = {f"blk.{layer_of(name)}.q": array.transpose(2, 1, 0)[None] for name, array in queries.items()}
    arrays |= {"out": trace["logits"][-1]}
    lines = {"blk.{i}.q": {"tap": "layers.{i}.attn.q", "axes": "1 H N T"}, "out": {"tap": "logits", "axes": "V"}}
    (tmp_path / "names.json").write_text(json.dumps(lines | {"gone": "embed"}))
    foreign = read_trace(write(tmp_path / "trace", arrays), config, tmp_path / "names.json")
    for name, array in queries.items():
        np.testing.assert_array_equal(foreign.arrays[name], array)
    np.testing.assert_array_equal(foreign.arrays["logits"], trace["logits"][-1:])
    assert "1 of the mapping's names matched no key: gone" in foreign.notes


def test_a_mapping_decides_where_there_are_as_many_tokens_as_heads(tmp_path):
    config, trace = record("E2B", 4)
    (tmp_path / "names.json").write_text('{"q{i}": {"tap": "layers.{i}.attn.q", "axes": "N T H"}}')
    path = write(tmp_path / "trace", {"q3": trace["layers.3.attn.q"].swapaxes(0, 1)}, TOKENS[:4])
    foreign = read_trace(path, config, tmp_path / "names.json")
    np.testing.assert_array_equal(foreign.arrays["layers.3.attn.q"], trace["layers.3.attn.q"])


def test_the_same_value_under_two_names_is_taken_once(tmp_path):
    config, trace = record("E2B")
    q = trace["layers.0.attn.q"]
    pair = {"layers.0.attn.q": q, "model.layers.0.self_attn.q_norm": q[None]}
    assert_same(read_trace(write(tmp_path / "trace", pair), config), trace, ["layers.0.attn.q"])
    holes = {key: np.where(array > 1, np.float32(np.nan), array) for key, array in pair.items()}
    assert np.isnan(read_trace(write(tmp_path / "trace", holes), config).arrays["layers.0.attn.q"]).any()
    with pytest.raises(
        Error, match=r"layers.0.attn.q and model.layers.0.self_attn.q_norm are both layers.0.attn.q and d"
    ):
        read_trace(write(tmp_path / "trace", pair | {"layers.0.attn.q": q + 1}), config)


def test_what_a_module_is_given_may_differ_from_what_was_made_before(tmp_path):
    """So it does in a port that is wrong between the two modules, and that port is to be diagnosed."""
    config, trace = record("E2B")
    raw = trace["layers.0.attn.q_raw"].reshape(14, -1)
    arrays = {"layers.0.self_attn.q_proj": raw, "layers.0.self_attn.q_norm.input": 2 * raw}
    foreign = read_trace(write(tmp_path / "trace", arrays), config)
    assert_same(foreign, trace, ["layers.0.attn.q_raw"])
    assert "q_norm.input: differs from layers.0.self_attn.q_proj" in foreign.ignored[0]


# The prompt's ids


def test_ids_come_from_the_caller_then_a_tensor_then_the_metadata(tmp_path):
    config, trace = record("E2B")
    embed = {"embed": trace["embed"]}
    other = TOKENS + 1

    def read(ids=None, **metadata):
        return read_trace(write(tmp_path / "trace", arrays, None, **metadata), config, ids=ids).tokens

    arrays = embed
    assert read() is None
    assert read(tokens=json.dumps(TOKENS.tolist())).tolist() == TOKENS.tolist()
    assert read(input_ids=json.dumps([TOKENS.tolist()])).tolist() == TOKENS.tolist()
    for name in ("tokens", "input_ids", "ids"):
        for ids in (TOKENS, TOKENS[None].astype(np.int32)):
            arrays = embed | {name: ids}
            assert read(tokens=json.dumps(other.tolist())).tolist() == TOKENS.tolist()
    assert read(other.tolist()).tolist() == other.tolist()


@pytest.mark.parametrize(
    "ids, problem",
    [
        (np.full(14, 120), "token id 120 is outside the vocabulary"),
        (np.zeros((2, 14), int), r"tokens has the shape \[2, 14\]; capture one sequence"),
        (np.zeros(14, np.float32), "tokens is stored as F32; ids are integers"),
        (np.zeros(0, int), "non-empty"),
    ],
)
def test_impossible_ids_are_refused(ids, problem, tmp_path):
    config, trace = record("E2B")
    with pytest.raises(Error, match=problem):
        read_trace(write(tmp_path / "trace", {"embed": trace["embed"]}, ids), config)


@pytest.mark.parametrize("text", ["[1, [2]]", "5", '{"a": 1}', "hello", "[1.5]", "[" * 100_000, f"[{10**30}]"])
def test_impossible_ids_in_the_metadata_are_refused(text, tmp_path):
    config, trace = record("E2B")
    with pytest.raises(Error):
        read_trace(write(tmp_path / "trace", {"embed": trace["embed"]}, None, tokens=text), config)


# Refusals


@pytest.mark.parametrize(
    "key, change, reason",
    [
        ("layers.0.resid_pre", lambda x: np.stack([x, x]), "holds a batch of 2; capture one sequence"),
        ("layers.0.resid_pre", lambda x: x[:13], "holds 13 positions, and the prompt has 14"),
        ("layers.0.resid_pre", lambda x: x[:, :20], r"has the shape \[14, 20\]; \[T, D\] is \[14, 24\]"),
        ("layers.0.resid_pre", lambda x: x.T, r"has the shape \[24, 14\]"),
        ("layers.0.resid_pre", lambda x: x[:0], "is empty"),
        ("layers.0.resid_pre", lambda x: x.astype(np.int32), "is stored as I32; minigemma reads BF16, F16, F32, F64"),
        ("layers.0.resid_pre", lambda x: x > 0, "is stored as BOOL"),
        ("layers.99.resid_pre", lambda x: x, "their model has more layers than the 10 of this config"),
        ("model.layers.10", lambda x: x, "their model has more layers"),
        ("hidden_states.11", lambda x: x, "their model has more layers"),
        ("layers.10.input.1", lambda x: x, "their model has more layers"),
        ("layers.9.self_attn.k_proj", lambda x: x, "no K and V of its own; it reads those of layer 4"),
        ("layers.0.router.output.1", lambda x: x, "this model has no experts"),
        ("layers.0.per_layer_input_gate", lambda x: x, "no tap holds what this module makes"),
        ("per_layer_model_projection.output", lambda x: x, "no tap holds what this module makes"),
        ("embed_tokens.input", lambda x: x, "no tap holds what this module is given"),
        ("vision_tower.layers.0", lambda x: x, "is neither a tap's name nor a module path"),
        ("layers.*.resid_pre", lambda x: x, "is neither"),
        ("layers.123456.resid_pre", lambda x: x, "is neither"),
        ("layers." + "9" * 5000 + ".resid_pre", lambda x: x, "is neither"),
        ("two\nlines", lambda x: x, r"two\\nlines: is neither"),
        ("", lambda x: x, "is neither"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_reason(key, change, reason, tmp_path):
    config, trace = record("E2B")
    arrays = {key: change(trace["layers.0.resid_pre"]), "embed": trace["embed"]}
    foreign = read_trace(write(tmp_path / "trace", arrays), config)
    assert list(foreign.arrays) == ["embed"]
    (line,) = foreign.ignored
    assert re.search(reason, line) and "\n" not in line and len(line) < 300


def test_a_model_without_per_layer_embeddings_has_no_such_arrays(tmp_path):
    config, trace = record("31B")
    arrays = {"embed": trace["embed"], "layers.0.ple_out": trace["layers.0.resid_pre"]}
    assert read_trace(write(tmp_path / "trace", arrays), config).ignored == [
        "layers.0.ple_out: this model has no per-layer embeddings"
    ]


@pytest.mark.parametrize("wrong", [-1, 6, 0.5, np.nan])
def test_experts_that_there_are_not_are_refused(wrong, tmp_path):
    config, trace = record("26B-A4B")
    name = "layers.0.router.experts"
    as_floats = trace[name].astype(np.float32)
    path = write(tmp_path / "trace", {name: as_floats})
    assert_same(read_trace(path, config), trace, [name])
    as_floats[0, 0] = wrong
    foreign = read_trace(write(path, {name: as_floats, "embed": trace["embed"]}), config)
    assert foreign.ignored == [f"{name}: holds numbers that are not those of its experts, 0 to 5"]


def test_a_file_of_which_nothing_is_understood_says_what_was_seen_and_what_to_do(tmp_path):
    config, _ = small("E2B")
    path = write(tmp_path / "trace", {"blk.0.attn_q": np.zeros((14, 32), np.float32)})
    with pytest.raises(
        Error, match=r"no array is understood \(blk.0.attn_q: is neither .* mapping file, JSON such as \{"
    ) as e:
        read_trace(path, config)
    assert "\n" not in str(e.value)
    with pytest.raises(Error, match="the file holds none"):
        read_trace(write(tmp_path / "trace", {}), config)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("not JSON", "not a readable JSON file"),
        ("[1]", "expected a JSON object"),
        ('{"q": "layers.{i}.attn.queries"}', "layers.{i}.attn.queries is not a tap"),
        ('{"q": 3}', "3 is not a tap"),
        ('{"q": []}', "the list is empty; null leaves an array out"),
        ('{"q": {"axes": "T"}}', "None is not a tap"),
        ('{"q": "layers.1{i}.attn.q"}', "is not a tap"),
        ('{"q": "layers.{i}.attn.q"}', "must appear once on both sides, or on neither"),
        ('{"q{i}{i}": "layers.{i}.attn.q"}', "must appear once on both sides, or on neither"),
        ('{"q{i}": "layers.3.attn.q"}', "must appear once on both sides, or on neither"),
        ('{"q{i}": {"tap": "layers.{i}.attn.q", "slice": "0, x"}}', 'slice must be like "0, ..., :128", not \'0, x\''),
        ('{"q{i}": {"tap": "layers.{i}.attn.q", "axes": "T D"}}', "its axes are T N H in some order"),
        ('{"q{i}": {"tap": "layers.{i}.attn.q", "axes": "T N* H"}}', "its axes are T N H in some order"),
        ('{"q{i}": {"tap": "layers.{i}.attn.q", "axes": ["T", "N", "H"]}}', "its axes are T N H in some order"),
        ('{"no{i}": "layers.{i}.attn.q"}', "matches no key of .*; the first keys there are q1, tokens"),
        ("{}", "matches no key"),
    ],
)
def test_a_wrong_mapping_file_is_one_line(text, problem, tmp_path):
    config, trace = record("E2B")
    (tmp_path / "names.json").write_text(text)
    path = write(tmp_path / "trace", {"q1": trace["layers.1.attn.q"]})
    with pytest.raises(Error, match=problem) as error:
        read_trace(path, config, tmp_path / "names.json")
    assert "\n" not in str(error.value)


def test_a_missing_file_a_directory_and_garbage_are_errors(tmp_path):
    config, trace = record("E2B")
    whole = write(tmp_path / "whole", {name: trace[name] for name in ("embed", "layers.0.attn.q")}, axes="T N H")
    data = whole.read_bytes()
    rng = np.random.default_rng(0)
    garbage = [b"", b"\x00" * 7, b"\xff" * 64, data[:-1], data[: len(data) // 2], data + b"\0", rng.bytes(4096)]
    for content in garbage:
        (tmp_path / "garbage").write_bytes(content)
        with pytest.raises(Error, match="safetensors"):
            read_trace(tmp_path / "garbage", config)
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(Error):
            read_trace(path, config)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_npz_file_is_read_as_it_is(save, recorded, tmp_path):
    config, trace = recorded
    with open(tmp_path / "trace.npz", "wb") as file:
        save(file, tokens=TOKENS, **trace)
    foreign = read_trace(tmp_path / "trace.npz", config)
    assert_same(foreign, trace)
    assert foreign.tokens.tolist() == TOKENS.tolist()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_a_npy_file_is_one_array_with_the_files_name(dtype, tmp_path):
    config, trace = record("E2B")
    for order in "CF":
        np.save(tmp_path / "logits.npy", np.asarray(trace["logits"], dtype, order=order))
        foreign = read_trace(tmp_path / "logits.npy", config, ids=TOKENS)
        expected = trace["logits"].astype(dtype).astype(np.float64 if dtype == "<f8" else np.float32)
        np.testing.assert_array_equal(foreign.arrays["logits"], expected)


class Opens:
    """An object that would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def other_formats(directory):
    """The same array as the formats that people have -> path, words that its refusal holds."""
    array = np.zeros((14, 24), np.float32)
    with zipfile.ZipFile(directory / "a.pt", "w") as file:  # as torch.save writes it
        file.writestr("a/data.pkl", pickle.dumps({"embed": Opens(directory / "opened")}))
        file.writestr("a/data/0", array.tobytes())
    (directory / "a.pkl").write_bytes(pickle.dumps({"embed": array, "more": Opens(directory / "opened")}))
    (directory / "a.json").write_text(json.dumps({"embed": array.tolist()}), encoding="utf-8")
    (directory / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    np.savez(directory / "objects.npz", embed=np.array([Opens(directory / "opened")]))
    (directory / "cut.npz").write_bytes((directory / "objects.npz").read_bytes()[:50])
    return {"a.pt": "is a PyTorch file; save it", "a.pkl": "is a Python pickle; save it", "a.json": "is JSON; save it",
            "a.gguf": "is a GGUF file; save it", "objects.npz": "not a readable file of NumPy",
            "cut.npz": "not a readable file of NumPy"}  # fmt: skip


def test_another_format_is_named_with_the_lines_that_convert_it_and_is_never_unpickled(tmp_path):
    config, _ = small("E2B")
    for name, words in other_formats(tmp_path).items():
        with pytest.raises(Error) as error:
            read_trace(tmp_path / name, config)
        assert words in str(error.value) and "download it again" not in str(error.value), name
        assert "\n" not in str(error.value), name
    assert not (tmp_path / "opened").exists()


def test_a_safetensors_file_may_begin_with_the_first_byte_of_another_format(tmp_path):
    """Its first bytes are a length: 123 is {, 128 is the first byte of a pickle."""
    config, trace = record("E2B")
    data = write(tmp_path / "whole", {"embed": trace["embed"]}).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for length in (123 + 256, 128 + 256):
        padded = data[8:start].rstrip().ljust(length)
        (tmp_path / "trace").write_bytes(length.to_bytes(8, "little") + padded + data[start:])
        assert_same(read_trace(tmp_path / "trace", config), trace, ["embed"])


def test_more_axes_than_numpy_has_are_no_traceback(tmp_path):
    config, trace = record("E2B")
    write_safetensors(tmp_path / "trace", "F32", [("embed", (1,) * 100 + (14, 24))], [trace["embed"]])
    assert_same(read_trace(tmp_path / "trace", config), trace, ["embed"])


def test_arrays_in_float32_are_not_copied(tmp_path):
    """A trace of a real model may be larger than the memory that is left."""
    config, trace = record("E2B")
    foreign = read_trace(write(tmp_path / "trace", trace), config)
    assert not any(array.flags.writeable or array.flags.owndata for array in foreign.arrays.values())


def built_in(engine, config, trace):
    """A trace under the names that another engine has: of one target the array, of several a stack or a join."""
    arrays = {}
    for table in json.loads(TABLES.read_text(encoding="utf-8")):
        fitting = table["of"].startswith(engine) and table.get("experts") in (None, config.enable_moe_block)
        for theirs, target in table["names"].items() if fitting else ():
            for i in map(str, range(config.num_hidden_layers)):
                key = theirs.replace("{i}", i)
                listed = target if isinstance(target, list) else [target]
                parts = [one if isinstance(one, dict) else {"tap": one} for one in listed]
                taps = [str(part["tap"]).replace("{i}", i).replace("uncapped", "logits") for part in parts]
                if target is None:
                    arrays.setdefault(key, np.ones_like(trace["final_norm"]))
                elif set(taps) <= set(trace) and "uncapped" not in theirs:
                    rows = [trace[tap] for tap in taps]
                    axis = 0 if parts[0].get("slice") == "0" else -2
                    arrays[key] = rows[0] if len(rows) == 1 else np.stack(rows, axis)
                    if parts[0].get("axes") == "1 T N S":
                        arrays[key] = rows[0].transpose(1, 0, 2)[None]
    return arrays


@pytest.mark.parametrize("engine", ["llama.cpp, the graph of the text", "TransformerLens", "DeepMind"])
@pytest.mark.parametrize("member", ["E2B", "26B-A4B"])
def test_the_names_of_other_engines_are_read(engine, member, tmp_path):
    config, trace = record(member)
    arrays = built_in(engine, config, trace)
    arrays.pop("unembed.hook_out", None)  # it has no softcap
    found = read_trace(write(tmp_path / "theirs.safetensors", arrays), config)
    assert len(found.arrays) > 10 * config.num_hidden_layers
    assert_same(found, trace, found.arrays)
    assert not found.unread


def test_a_mapping_with_null_leaves_an_array_out(tmp_path):
    config, trace = record("E2B")
    path, mapping = tmp_path / "theirs.safetensors", tmp_path / "mapping.json"
    write(path, {"norm": np.ones_like(trace["final_norm"]), "embed": trace["embed"]})
    mapping.write_text(json.dumps({"norm": None}))
    found = read_trace(path, config, mapping)
    assert list(found.arrays) == ["embed"]
    assert not found.unread


@pytest.mark.parametrize("form", ["model.layers[{}].output", "layers.{}.output[0]", "model.layers[{}].output[0]"])
def test_nnsights_brackets_are_read(form, tmp_path):
    config, trace = record("E2B")
    states = {f"layers.{i}.resid_post": trace[f"layers.{i}.resid_post"] for i in range(config.num_hidden_layers)}
    arrays = {form.format(i): array[None] for i, array in enumerate(states.values())}
    assert_same(read_trace(write(tmp_path / "trace", arrays), config), trace, states)


def test_vllms_fused_products_are_taken_apart_and_its_positions_are_no_tap(recorded, tmp_path):
    config, trace = recorded
    arrays, taps = {}, [f"layers.{i}.resid_pre" for i in range(config.num_hidden_layers)]
    for i in range(config.num_hidden_layers):
        donor, qkv = config.layers[i].kv_from, ["attn.k_raw", "attn.v_raw"]  # a sharing layer holds what it never uses
        fused = {
            "self_attn.qkv_proj": [f"layers.{i}.attn.q_raw", *(f"layers.{donor}.{part}" for part in qkv)],
            "mlp.gate_up_proj": [f"layers.{i}.mlp.gate", f"layers.{i}.mlp.up"],
            "mlp.act_fn.input.0": [f"layers.{i}.mlp.gate", f"layers.{i}.mlp.up"],
        }
        arrays[f"model.layers.{i}.input.0"] = np.arange(len(TOKENS))
        arrays[f"model.layers.{i}.input.1"] = trace[f"layers.{i}.resid_pre"]
        for module, names in fused.items():
            arrays[f"model.layers.{i}.{module}"] = np.concatenate([flattened(name, trace[name]) for name in names], -1)
            taps += names
    found = read_trace(write(tmp_path / "trace", arrays), config)
    assert_same(found, trace, taps)
    assert not found.unread
    arrays = {"embed": trace["embed"], "layers.0.mlp.gate_up_proj": arrays["model.layers.0.mlp.gate_up_proj"][:, 1:]}
    assert "layers.0.mlp.gate, layers.0.mlp.up are" in read_trace(write(tmp_path / "trace", arrays), config).ignored[0]


@pytest.mark.parametrize("name", ["model.layers.{}.router.output", "layer_{}/mlp/router_logits/__call__/0"])
def test_the_scores_of_a_router_are_read_as_its_probabilities(name, tmp_path):
    config, trace = record("26B-A4B")
    probs = {n: array for n, array in trace.items() if n.endswith("router.probs")}
    scores = {name.format(n.split(".")[1]): np.log(array) for n, array in probs.items()}  # up to a constant
    found = read_trace(write(tmp_path / "trace", scores | {"embed": trace["embed"]}), config)
    assert not found.unread
    for n, array in probs.items():
        np.testing.assert_allclose(found.arrays[n], array, rtol=1e-5)


@pytest.mark.parametrize("module", ["self_attn.qkv_proj", "mlp.act_fn.input.0"])
def test_a_fused_array_of_a_layer_that_there_is_not_is_refused(module, tmp_path):
    config, trace = record("E2B")
    path = write(tmp_path / "trace", {f"model.layers.99.{module}": trace["embed"], "embed": trace["embed"]})
    assert "their model has more layers" in read_trace(path, config).ignored[0]


def test_a_mapping_takes_parts_of_an_array(tmp_path):
    config, trace = record("E2B")
    k, v = trace["layers.0.attn.k_raw"], trace["layers.0.attn.v_raw"]
    arrays = {"kv.0": np.stack([k, v]), "wide.0": np.concatenate([k, v], -1)}
    halves = [{"tap": "layers.{i}.attn.k_raw", "slice": "0"}, {"tap": "layers.{i}.attn.v_raw", "slice": "1, ..."}]
    half = {"tap": "layers.{i}.attn.v_raw", "slice": f"..., {v.shape[-1]}:"}
    both = ["layers.0.attn.k_raw", "layers.0.attn.v_raw"]
    for key, target, taps in (("kv", halves, both), ("wide", half, both[1:])):
        (tmp_path / "names.json").write_text(json.dumps({key + ".{i}": target, "embed": None}))
        found = read_trace(write(tmp_path / "trace", arrays | {"embed": k}), config, tmp_path / "names.json")
        assert_same(found, trace, taps)
        assert list(found.unread) == [other for other in arrays if not other.startswith(key)]


def test_a_mapping_wins_over_a_built_in_name(tmp_path):
    config, trace = record("E2B")
    (tmp_path / "names.json").write_text('{"attn_out-{i}": "layers.{i}.attn_out"}')
    taps = {"attn_out-0": "layers.0.attn_out", "l_out-0": "layers.0.resid_post"}
    path = write(tmp_path / "trace", {key: trace[tap] for key, tap in taps.items()})
    assert_same(read_trace(path, config, tmp_path / "names.json"), trace, taps.values())


def test_an_array_that_looks_transposed_is_refused_with_the_line_that_turns_it(tmp_path):
    config, trace = record("E2B")
    path = write(tmp_path / "trace", {"l_out-0": trace["layers.0.resid_post"].T, "logits": trace["logits"]}, None)
    (line,) = read_trace(path, config, spare=[TOKENS]).ignored
    assert 'it looks transposed: say so in a mapping file, {"tap": "layers.0.resid_post", "axes": "D T"}' in line


@pytest.mark.parametrize("more", [2, 242])
def test_keys_of_padding_are_cut(more, tmp_path):
    config, trace = record("E2B")
    names = [f"layers.{i}.attn.{part}" for i in (0, 4) for part in ("scores", "pattern")]
    arrays = {name: np.pad(trace[name], [(0, 0), (0, 0), (0, more)]) for name in names}
    found = read_trace(write(tmp_path / "trace", arrays), config)
    assert_same(found, trace, names)
    assert found.notes == ["4 arrays had keys of padding behind those of the prompt"]


def in_chunks(trace, start, window, config):
    """What an engine shows of the chunk from `start` on: rows of these positions, and the keys that a cache keeps."""
    arrays = {}
    for name, array in trace.items():
        letters, count = axes_of(name), len(TOKENS) - start
        arrays[name] = array.take(range(start, len(TOKENS)), letters.index("T"))
        if "S" in letters and config.layers[layer_of(name)].window:
            arrays[name] = arrays[name][..., -(count + window - 1) :]
    return arrays


@pytest.mark.parametrize("start", [9, 13])
@pytest.mark.parametrize("own", ["whole", "chunk", "none"])
def test_a_later_chunk_is_read_with_its_start(start, own, tmp_path):
    config, trace = record("E2B")
    arrays = in_chunks(trace, start, 5, config)
    ids = {"whole": TOKENS, "chunk": TOKENS[start:], "none": None}[own]
    path = write(tmp_path / "trace", arrays, ids)
    found = read_trace(path, config, ids=None if own == "whole" else [*TOKENS, 3, 4], start=start)
    assert found.tokens.tolist() == TOKENS.tolist() and found.start == start and not found.unread
    raw = {name for name in trace if name.endswith("scores") and config.layers[layer_of(name)].window}
    assert set(found.arrays) == set(trace) - (raw if start == 9 else set())  # before the mask, and without some keys
    for name, array in found.arrays.items():
        expected = trace[name].take(range(start, len(TOKENS)), axes_of(name).index("T"))
        seen = array > (-1e9 if name.endswith("scores") else 0 if "S" in axes_of(name) else -np.inf)
        np.testing.assert_array_equal(array[seen], expected[seen], err_msg=name)  # what no query sees is gone


def test_a_later_chunk_that_has_fewer_keys_than_queries_is_read(tmp_path):
    config, trace = record("E2B")
    pattern = trace["layers.0.attn.pattern"][:, 4:]  # [N, 10, 14]
    arrays = {"layers.0.attn.pattern": pattern[..., -5:], "layers.0.attn.v": trace["layers.0.attn.v"][4:]}
    found = read_trace(write(tmp_path / "trace", arrays), config, start=4)
    assert not found.unread and found.arrays["layers.0.attn.pattern"].shape == pattern.shape
    np.testing.assert_array_equal(found.arrays["layers.0.attn.pattern"][..., -5:], pattern[..., -5:])


def test_a_later_chunk_without_its_start_is_refused_with_the_start_to_give(tmp_path):
    config, trace = record("E2B")
    arrays = {name: array[9:] for name, array in trace.items() if "S" not in axes_of(name)}
    path = write(tmp_path / "trace", arrays | {"model.rotary_emb": trace["embed"]})
    with pytest.raises(Error, match=r"holds 5 positions and the prompt has 14 ids; .* give --start 9"):
        read_trace(path, config)
    with pytest.raises(Error, match=r"with --start 9 they need the 14 ids .* give all of them with --ids"):
        read_trace(write(path, arrays, TOKENS[9:]), config, start=9)


def test_a_later_chunk_with_its_own_ids_is_recognised_from_the_keys_before_it(tmp_path):
    config, trace = record("E2B")
    path = write(tmp_path / "trace", in_chunks(trace, 9, 5, config), TOKENS[9:])
    with pytest.raises(Error, match=r"is of a later chunk, as its first query sees 4 keys before its own; .* --start"):
        read_trace(path, config)


@pytest.mark.parametrize("known", ["file", "given"])
def test_padding_in_front_of_a_row_of_a_batch_is_cut(known, tmp_path):
    config, trace = record("E2B")
    arrays = {}
    for name, array in trace.items():
        widths = [(6 if letter in "TS" else 0, 0) for letter in axes_of(name)]
        arrays[name] = np.pad(array, widths, constant_values=3)[None]
    padded = [config.pad_token_id] * 6 + TOKENS.tolist()
    path = write(tmp_path / "trace", arrays, padded if known == "file" else None)
    found = read_trace(path, config, spare=[padded])
    turned = {f"layers.{i}.attn.rot_{letter}" for i in range(config.num_hidden_layers) for letter in "qk"}
    assert_same(found, trace, set(trace) - turned)
    assert found.tokens.tolist() == TOKENS.tolist() and not found.unread
    assert found.notes[0].startswith("6 ids in front are padding (id 0)")
