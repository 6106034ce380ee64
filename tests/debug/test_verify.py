"""`verify` passes where the numbers are the goldens', and finds and names every way in which they are not.

The published goldens are of weights that cannot be had here: of them, only the choice and the form are tested.
"""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from processes import command, one_line

import minigemma
from minigemma import Config, Edit, Error
from minigemma.account.towers import TOWERS
from minigemma.debug.goldens import PUBLISHED, check_goldens, goldens_for, goldens_text, read_goldens
from minigemma.packed import narrow, widen
from minigemma.released import RELEASED, released_config, released_name
from minigemma.taps import names_of

STORED = minigemma.TINY / "goldens.json"
HEAD = {"name": "made", "model": "fake", "source": "this test", "compute": "float32", "tolerance": "ours"}


@pytest.fixture
def beside(tiny, tmp_path):
    """The tiny model in a directory of its own, and a function that puts goldens beside it."""
    (tmp_path / "tokenizer.json").write_bytes((tiny.directory / "tokenizer.json").read_bytes())
    model = replace(tiny, directory=tmp_path)

    def put(goldens, logits=1e-4, hidden=2e-5):
        tolerances = {"ours": {"logits": logits, "hidden": hidden, "why": "chosen"}}
        (tmp_path / "goldens.json").write_text(json.dumps({"tolerances": tolerances, "goldens": goldens}))
        return model

    return put


def stored(name):
    """One golden of weights/tiny/goldens.json, as JSON."""
    (golden,) = (g for g in json.loads(STORED.read_text(encoding="utf-8"))["goldens"] if g["name"] == name)
    return golden | {"tolerance": "ours"}


def computed(model, ids, tap=minigemma.model.no_tap):
    """A golden of our own: the eight highest logits and two greedy tokens of a pass in one piece."""
    logits, _ = model(ids, tap=tap, logits="last")
    top = np.argsort(-logits[0])[:8]
    more, _ = model([*ids, top[0]], tap=tap, logits="last")
    values = logits[0, top].tolist()
    greedy = [int(top[0]), int(more[0].argmax())]
    return HEAD | {"ids": ids, "top_logits": {"indices": top.tolist(), "values": values}, "greedy_tokens": greedy}


def differing(result):
    return [check["what"] for check in result["checks"] if check["verdict"] == "differs"]


# ---------------------------------------------------------------------------------------------------- the tiny weights
def test_the_tiny_weights_compute_what_transformers_computed_with_them(tiny):
    result = check_goldens(tiny)
    assert result["fits"] and result["models"] == {"tiny": True}
    assert {check["verdict"] for check in result["checks"]} == {"fits"}
    assert result["verdict"] == "All 6 goldens of tiny fit."


def test_the_stored_goldens_stand_on_both_sides_of_the_window_and_are_small(tiny):
    goldens = read_goldens(STORED)
    window = tiny.config.sliding_window
    lengths = {len(golden.ids) for golden in goldens}
    assert {window - 1, window, window + 1} <= lengths
    assert max(lengths) > 2 * window
    assert sum(golden.messages is not None for golden in goldens) == 1
    assert all("transformers 5" in golden.compute for golden in goldens)
    assert all(len(golden.top_logits) == 8 and len(golden.greedy_tokens) == 16 for golden in goldens)
    assert all(len(golden.hidden) >= 4 for golden in goldens)
    assert STORED.stat().st_size < 30_000


def test_a_prompt_that_runs_in_chunks_fits_a_golden_of_one_pass(tiny, beside):
    """Ids by rule, as the published goldens at 511, 512 and 513 tokens have them."""
    rule = {"start": [2], "repeat": [609, 886, 518, 486, 464], "length": 513}
    ids = [2] + 102 * rule["repeat"] + rule["repeat"][:2]
    assert len(ids) == 513
    result = check_goldens(beside([computed(tiny, ids) | {"ids": rule}]))
    assert result["fits"], goldens_text(result)


# ----------------------------------------------------------------------------------------------- errors that are put in
def shift(golden, key, index, by):
    golden[key]["values"][index] += by


ERRORS = {
    "ids": lambda golden: golden["ids"].insert(2, 400),
    "logit of 518": lambda golden: shift(golden, "top_logits", 2, 3e-4),
    "logit of 609, not in their first 7": lambda golden: [part.pop(0) for part in golden["top_logits"].values()],
    "greedy tokens": lambda golden: golden["greedy_tokens"].__setitem__(5, 400),
    "layers.0.resid_post, norm": lambda golden: golden["hidden"][1].update(
        l2_norm=golden["hidden"][1]["l2_norm"] * 1.0001
    ),
    "final_norm, value 3": lambda golden: golden["hidden"][-1]["first_8"].__setitem__(3, 0.5),
}


@pytest.mark.parametrize("what", ERRORS)
def test_an_error_put_into_a_golden_is_found_and_named(what, beside):
    golden = stored("short")
    ERRORS[what](golden)
    if what == "ids":  # the same prompt, so that only the tokenizer's ids are wrong
        golden = {name: golden[name] for name in (*HEAD, "prompt", "ids")}
    result = check_goldens(beside([golden, stored("window")]))
    assert differing(result) == [what]
    assert not result["fits"]
    assert result["verdict"].startswith(f"1 of 2 goldens differ, first in short: {what}")
    assert "differs" in goldens_text(result)
    assert "tokenizer" in result["verdict"] if what == "ids" else "pass is wrong" in result["verdict"]


def test_a_fault_in_a_layer_is_named_from_that_layer_on(tiny, beside):
    weights = SimpleNamespace(**vars(tiny.weights))
    weights.layers = [SimpleNamespace(**vars(layer)) for layer in tiny.weights.layers]
    weights.layers[5].layer_scalar = weights.layers[5].layer_scalar * np.float32(1.001)
    result = check_goldens(replace(beside([stored("window + 1")]), weights=weights))
    wrong = [name.split(",")[0] for name in differing(result)]
    assert wrong[:2] == ["layers.5.resid_post", "layers.8.resid_post"]


def test_numbers_that_are_not_finite_never_fit_and_are_null_in_json(tiny, beside):
    weights = SimpleNamespace(**vars(tiny.weights))
    weights.norm = np.full_like(tiny.weights.norm, np.nan)
    result = check_goldens(replace(beside([stored("short")]), weights=weights))
    assert len(differing(result)) == 3  # the final norm, the logits, the greedy tokens
    json.dumps(result, allow_nan=False)
    assert "not finite" in goldens_text(result)


def test_two_tokens_that_are_nearer_than_rounding_are_a_tie_and_not_an_error(tiny, beside):
    ids = stored("window")["ids"]
    logits, _ = tiny(ids, logits="last")
    first, second = np.argsort(-logits[0])[:2]
    after, _ = tiny([*ids, int(second)], logits="last")
    golden = HEAD | {"ids": ids, "greedy_tokens": [int(second), int(after[0].argmax())]}
    gap = float(logits[0, first] - logits[0, second])
    tie, wrong = check_goldens(beside([golden], logits=0.51 * gap)), check_goldens(beside([golden], logits=0.49 * gap))
    assert [check["verdict"] for check in tie["checks"]] == ["tie within rounding"]
    assert tie["fits"] and "ties" in tie["verdict"]
    assert tie["checks"][0]["found"][1] == golden["greedy_tokens"][1], "judged after their token, not after ours"
    assert [check["verdict"] for check in wrong["checks"]] == ["differs"]


def test_a_reference_that_was_once_in_bfloat16_fits_with_its_rounded_embedding_scales(tiny, beside):
    """sqrt(128) is 11.3125 in bfloat16 and sqrt(32) 5.65625; a factor that is no rounding stays an error."""
    ids = stored("window")["ids"]

    def scaled(by_embed, by_ple):
        return Edit({"embed": lambda array: array * by_embed, "ple.token": lambda array: array * by_ple})

    rounded = computed(tiny, ids, scaled(11.3125 / 128**0.5, 5.65625 / 32**0.5))
    result = check_goldens(beside([rounded]))
    assert result["fits"] and "embedding scales in bfloat16" in result["verdict"]
    assert not check_goldens(beside([computed(tiny, ids, scaled(0.999, 1.0))]))["fits"]


def test_without_a_tokenizer_ids_are_not_checked_and_the_numbers_are(beside):
    model = beside([stored("short")])
    (model.directory / "tokenizer.json").unlink()
    result = check_goldens(model)
    assert result["fits"] and "ids were not checked" in result["verdict"]
    chat = stored("chat")
    nothing = check_goldens(beside([{name: chat[name] for name in (*HEAD, "messages", "ids")}]))
    assert not nothing["fits"] and nothing["verdict"].startswith("Nothing was checked")
    goldens_text(nothing)


def test_where_goldens_are_of_two_models_the_one_that_fits_is_named(beside):
    base, tuned = stored("short") | {"model": "base"}, stored("short") | {"model": "tuned"}
    shift(base, "top_logits", 0, 1.0)
    result = check_goldens(beside([base, tuned]))
    assert result["models"] == {"base": False, "tuned": True}
    assert result["fits"] and result["verdict"] == "The golden of tuned fits."


def test_log_probabilities_are_compared_by_their_differences(tiny, beside):
    ids = stored("window")["ids"]
    golden = computed(tiny, ids)
    top = golden.pop("top_logits")
    golden["top_logprobs"] = top | {"values": [value - 17.25 for value in top["values"]]}
    assert check_goldens(beside([golden]))["fits"]
    golden["top_logprobs"]["values"][3] += 3e-4
    (wrong,) = differing(check_goldens(beside([golden])))
    assert wrong == f"logit, less that of {top['indices'][0]}, of {top['indices'][3]}"


def test_a_weight_and_the_largest_values_of_a_state_are_compared(tiny, beside):
    tiny([2, 300], tap=(trace := minigemma.Trace("layers.0.attn.q")))
    q = trace["layers.0.attn.q"][-1].ravel().astype(np.float64)
    largest = np.argsort(-np.abs(q))[:4]
    state = {"taps": ["layers.0.attn.q"], "l2_norm": np.linalg.norm(q), "first_8": q[:8].tolist()}
    state["largest_4"] = {"indices": largest.tolist(), "values": q[largest].tolist()}
    scalar = float(np.ravel(tiny.weights.layers[0].layer_scalar)[0])
    golden = HEAD | {"ids": [2, 300], "hidden": [state], "weights": {"layers.0.layer_scalar": scalar}}
    assert check_goldens(beside([golden]))["fits"]
    state["largest_4"]["values"][2] *= 1.01
    golden["weights"] = {"layers.0.layer_scalar": scalar * 1.001}
    wrong = differing(check_goldens(beside([golden])))
    assert wrong == ["layers.0.layer_scalar", f"layers.0.attn.q, value {largest[2]}"]


def test_norms_unlike_those_of_the_real_weights_are_said_and_are_no_error(tiny, beside, monkeypatch):
    """In the weights that were seen a score is 32 times a cosine."""
    monkeypatch.setattr("minigemma.debug.goldens._released", lambda config: "E2B")
    model = beside([stored("short")])
    result = check_goldens(model)
    assert result["fits"] and "is not one number" in result["unusual"][0] and "Unusual: q_norm" in goldens_text(result)

    def with_norms(q, k):
        layers = [SimpleNamespace(**vars(layer)) for layer in tiny.weights.layers]
        for layer, w in zip(tiny.config.layers, layers, strict=True):
            w.q_norm = np.full(layer.head_dim, q / layer.head_dim, np.float32)
            w.k_norm = np.full(layer.head_dim, k, np.float32)
        weights = SimpleNamespace(**{**vars(tiny.weights), "layers": layers})
        return check_goldens(replace(model, weights=weights))["unusual"]

    assert with_norms(64, 0.5) == []
    assert with_norms(32, 0.5)[0].startswith("q_norm x k_norm x head_dim is 16 in layer 0")


# ------------------------------------------------------------------------------------------------ the published goldens
MODELS = {
    "E2B": ["google/gemma-4-E2B-it"], "E4B": ["google/gemma-4-E4B-it"],
    "12B": ["google/gemma-4-12B", "google/gemma-4-12B-it"], "26B-A4B": ["google/gemma-4-26B-A4B-it"],
    "31B": ["google/gemma-4-31B-it"],
}  # fmt: skip


@pytest.mark.parametrize("size", RELEASED)
def test_a_config_of_a_released_geometry_selects_the_published_goldens_of_that_model(size, tmp_path):
    def models(directory):
        return {golden.model for golden in goldens_for(released_config(size), directory)}

    for directory in (tmp_path, tmp_path / f"gemma-4-{size}"):
        assert models(directory) == set(MODELS[size])
    for name in MODELS[size]:
        assert models(tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / "0a1b") == {name}
        assert not name.endswith("-it") or models(tmp_path / name.split("/")[1]) == {name}


@pytest.mark.parametrize("size", RELEASED)
def test_the_vision_of_a_whole_checkpoint_does_not_hide_its_goldens(size, tmp_path):
    whole = {"model_type": "gemma4", "text_config": RELEASED[size], "image_token_id": 3} | TOWERS[size]
    directory = tmp_path / f"gemma-4-{size}{'' if size == '12B' else '-it'}"
    found = [golden.model for golden in goldens_for(Config.from_dict(whole), directory)]
    assert found and found == [golden.model for golden in goldens_for(released_config(size), directory)]


def test_e2b_has_goldens_on_both_sides_of_its_window(tmp_path):
    config = released_config("E2B")
    lengths = [len(golden.ids) for golden in goldens_for(config, tmp_path)]
    assert {511, 512, 513} <= set(lengths)
    assert config.sliding_window == 512


def test_a_directory_without_goldens_is_told_how_to_make_them(tmp_path):
    hub = tmp_path / "models--google--gemma-4-E2B" / "snapshots" / "0a1b"
    for size, directory in (("E2B", hub), ("E4B", tmp_path / "models--google--gemma-4-E4B")):
        with pytest.raises(Error, match=r"no goldens are known for gemma-4-.* \(there are some of .*make_goldens.py"):
            goldens_for(released_config(size), directory)
    other = Config.from_dict(RELEASED["E2B"] | {"sliding_window": 511})
    with pytest.raises(Error, match=r"a model of this config.json; make .*make_goldens.py"):
        goldens_for(other, tmp_path)


def test_goldens_beside_the_weights_go_before_published_ones(beside):
    directory = beside([stored("short")]).directory
    assert [golden.model for golden in goldens_for(released_config("E2B"), directory)] == ["tiny"]


def test_published_goldens_are_whole_and_agree_with_themselves():
    for golden in read_goldens(PUBLISHED):
        config = released_config(golden.model)
        ids = [*golden.ids, *golden.greedy_tokens, *golden.top_logits]
        assert golden.source and golden.compute and golden.within["why"]
        assert all(0 <= id < config.vocab_size for id in ids)
        values = list(golden.top_logits.values())
        assert values == sorted(values, reverse=True)
        for top in (golden.top_logits, golden.top_logprobs):
            assert list(top)[:1] in ([], golden.greedy_tokens[:1])
        taps = [tap for state in golden.hidden for tap in state["taps"]]
        assert set(taps) <= set(names_of(config))
        assert golden.model in MODELS[released_name(golden.model)]


def test_published_goldens_run_to_the_end_at_the_depth_and_vocabulary_of_e2b(tmp_path):
    """On a narrow model of random weights, so every number must be found to differ."""
    narrow_e2b = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "head_dim": 8}
    narrow_e2b |= {"global_head_dim": 8, "hidden_size_per_layer_input": 1}
    config = Config.from_dict(RELEASED["E2B"] | narrow_e2b)
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    own = [golden for golden in published["goldens"] if golden["model"] == MODELS["E2B"][0]]
    for golden in own:  # without the places that a narrow model does not have
        states = [state for state in golden.get("hidden", ()) if "ple.gate" not in state["taps"][0]]
        golden["hidden"] = [{key: value for key, value in state.items() if key != "largest_4"} for state in states]
    (tmp_path / "goldens.json").write_text(json.dumps(published | {"goldens": own}))
    result = check_goldens(minigemma.Model(tmp_path, config, minigemma.random_weights(config), {}))
    assert not result["fits"]
    assert {check["verdict"] for check in result["checks"] if check["what"] == "ids"} == {"not checked"}
    assert {check["verdict"] for check in result["checks"] if check["what"] != "ids"} == {"differs"}
    assert len(result["goldens"]) == len(own) > 20
    goldens_text(result)


def nearest(values):
    """The nearest bfloat16 numbers."""
    return widen(narrow(np.asarray(values, np.float32)))


def test_published_logits_are_no_bfloat16_numbers_so_they_left_the_reference_in_float32():
    for golden in (golden for golden in read_goldens(PUBLISHED) if "bfloat16" not in golden.compute):
        values = np.array(list(golden.top_logits.values()))
        assert values.size == 0 or (np.abs(nearest(values) - values) > 1e-4).sum() > 0.7 * len(values)


def test_the_published_hidden_state_0_is_no_embedding():
    """An embedding is a row of bfloat16 numbers times its scale; state 0 is not, so states are numbered by layer."""
    (paris,) = (golden for golden in read_goldens(PUBLISHED) if golden.name == "Paris")
    (state,) = (state for state in paris.hidden if state["taps"] == ["layers.0.resid_post"])
    for scale in (1, 1536**0.5, 39.25):
        row = np.array(state["first_8"]) / scale
        assert (np.abs(nearest(row) / row - 1) > 1e-4).sum() >= 6


# -------------------------------------------------------------------------------------------------- a user's mistakes
def without(*names):
    return {name: value for name, value in stored("short").items() if name not in names}


MALFORMED = {
    "no ids": without("ids"),
    "no tolerance": without("tolerance"),
    "an unknown tolerance": stored("short") | {"tolerance": "none"},
    "not an object": [1, 2],
    "ids that are text": stored("short") | {"ids": "abc"},
    "ids that are no whole numbers": stored("short") | {"ids": [2, 1.5]},
    "an endless rule": stored("short") | {"ids": {"start": [], "repeat": [2], "length": 10**12}},
    "lists of two lengths": stored("short") | {"top_logits": {"indices": [1, 2], "values": [0.5]}},
    "a logit that is not finite": stored("short") | {"top_logits": {"indices": [1], "values": [float("nan")]}},
    "a norm of 0": stored("short") | {"hidden": [{"taps": ["embed"], "l2_norm": 0, "first_8": []}]},
    "a message without content": stored("short") | {"messages": [{"role": "user"}]},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_file_that_is_no_goldens_file_is_refused_by_name(case, beside):
    with pytest.raises(Error, match=r"goldens\.json: golden 1 cannot be read"):
        check_goldens(beside([stored("short"), MALFORMED[case]]))


def test_a_golden_of_another_vocabulary_or_another_depth_is_refused(beside):
    with pytest.raises(Error, match="'short': id 2560 is outside this model's vocabulary, 0 to 2559"):
        check_goldens(beside([stored("short") | {"greedy_tokens": [2560]}]))
    deep = [{"taps": ["layers.10.resid_post"], "l2_norm": 1, "first_8": []}]
    with pytest.raises(Error, match=r"'short': 'layers\.10\.resid_post' is not a tap of this model"):
        check_goldens(beside([stored("short") | {"hidden": deep}]))
    wide = [{"taps": ["embed"], "l2_norm": 1, "first_8": [0.5] * 129}]
    with pytest.raises(Error, match="'short': embed has more values than this model's 128"):
        check_goldens(beside([stored("short") | {"hidden": wide}]))
    heads = [{"taps": ["layers.0.attn.pattern"], "l2_norm": 1, "first_8": []}]
    with pytest.raises(Error, match="have no row for each token"):
        check_goldens(beside([stored("short") | {"hidden": heads}]))
    with pytest.raises(Error, match=r"'layers.0.q_proj_norm' is no weight of this model"):
        check_goldens(beside([stored("short") | {"weights": {"layers.0.q_proj_norm": 1.0}}]))
    with pytest.raises(Error, match="has no list of goldens"):
        check_goldens(beside([]))


def test_the_command_exits_with_0_where_all_fit_1_where_not_and_2_where_there_are_no_goldens(tmp_path, checkpoint):
    result = command("verify")
    assert result.returncode == 0
    assert result.stdout.rstrip().endswith("All 6 goldens of tiny fit.")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(minigemma.TINY / name, tmp_path)
    wrong = json.loads(STORED.read_text(encoding="utf-8"))
    shift(wrong["goldens"][0], "top_logits", 0, 0.1)
    (tmp_path / "goldens.json").write_text(json.dumps(wrong))
    result = command("verify", "--weights", tmp_path, "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["fits"] is False
    made_by = "weights/training/make_goldens.py"
    one_line(command("verify", "--weights", checkpoint), "no goldens are known", made_by, str(checkpoint))
