"""Mistakes that are easily made, each refused in one line that names it."""

import json

import numpy as np
import pytest
from family import fields, small
from processes import one_line

import minigemma
from minigemma import Config, Error, Tokenizer, Trace, checkpoint, forward, generate_ids
from minigemma.account import compute, parameters
from minigemma.files import make_directory, progress, read_json
from minigemma.turns import render, to_ids

ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"rope_parameters": ROPE | {"full_attention": ROPE["full_attention"] | {"type": "yarn"}}},
            "'type' is not a RoPE setting",
        ),
        ({"rope_parameters": ROPE | {"full_attention": {}}}, "rope_theta must be a number"),
        ({"rope_parameters": [1]}, "no object named sliding_attention"),
        ({"rope_parameters": 0}, "no object named sliding_attention"),
        ({"layer_types": "full_attention"}, "one kind for each of the 10 layers"),
        ({"per_layer_config": [8]}, "per_layer_config must be an object"),
        ({"per_layer_config": {"4": {"head_dim": 16}, "04": {"head_dim": 8}}}, "describes layer 4 twice"),
        ({"per_layer_config": {"9" * 5000: {"head_dim": 16}}}, "not a layer number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"final_logit_softcapping": 1e300}, "final_logit_softcapping"),
        ({"final_logit_softcapping": 10**400}, "final_logit_softcapping"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, complaint):
    raw = fields("E2B") | changes
    raw["num_hidden_layers"] = 10
    with pytest.raises(Error, match=complaint):
        Config.from_dict(raw)


@pytest.mark.parametrize("name", ["per_layer_config", *fields("31B")])
def test_a_config_that_says_two_things_in_two_places_is_refused(name):
    text = fields("31B", per_layer_config=None)
    Config.from_dict({"model_type": "gemma4", "text_config": text, name: text[name]})
    with pytest.raises(Error, match=f"{name} is .* and .* in text_config"):
        Config.from_dict({"model_type": "gemma4", "text_config": text, name: 99})


@pytest.mark.parametrize("old", [{"rope_theta": 10_000.0}, {"rope_scaling": {"factor": 8.0}}])
def test_rope_in_its_older_form_is_refused_and_not_left_out(old):
    with pytest.raises(Error, match="is an older form of rope_parameters"):
        Config.from_dict(fields("E2B", rope_parameters=None) | old)
    Config.from_dict(fields("E2B", rope_parameters=ROPE) | old)  # beside rope_parameters it says nothing more


def test_both_layer_types_of_rope_may_be_left_to_the_defaults():
    assert Config.from_dict(fields("E2B", rope_parameters=None)).layers[0].inv_freq[0] == 1


@pytest.mark.parametrize("ids", [[[1], [2, 3]], [], [1.5], "ab", [[1, 2]], [True]])
def test_what_is_no_list_of_ids_is_refused_by_the_pass(ids):
    config, loaded = small("E2B")
    with pytest.raises(Error, match="tokens must be a non-empty list of ids"):
        forward(ids, loaded, config)


@pytest.mark.parametrize(
    ("ids", "count", "options", "complaint"),
    [
        (None, 2, {}, "must be a list of token ids, not NoneType"),
        ({1, 2}, 2, {}, "must be a list of token ids, not set"),
        ([1], 2.0, {}, "max_new_tokens must be a whole number"),
        ([1], True, {}, "max_new_tokens must be a whole number"),
        ([1], 2, {"seed": -1}, "seed must be a whole number"),
        ([1], 2, {"seed": "x"}, "seed must be a whole number"),
    ],
)
def test_what_generation_cannot_use_is_refused(checkpoint, ids, count, options, complaint):
    with pytest.raises(Error, match=complaint):
        list(generate_ids(minigemma.load(checkpoint), ids, count, **options))


@pytest.mark.parametrize("weight_map", [None, [], {}, {"x": 3}])
def test_an_index_without_a_map_of_files_is_refused(checkpoint, weight_map):
    (checkpoint / "model.safetensors").rename(checkpoint / "model-1.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(Error, match=r"no weight_map|missing"):
        minigemma.load(checkpoint)


def test_a_directory_that_is_none_and_a_dtype_that_cannot_be_saved_are_refused(tmp_path):
    config, loaded = small("E2B")
    with pytest.raises(Error, match="no such directory"):
        minigemma.read_weights(tmp_path / "nowhere", config)
    with pytest.raises(Error, match="'float64' cannot be saved"):
        minigemma.save(tmp_path, loaded, config, "float64")
    (tmp_path / "file").touch()
    with pytest.raises(Error, match="cannot make this directory"):
        make_directory(tmp_path / "file" / "below")
    with pytest.raises(Error, match=r"a/\.\.: neither a directory nor a model"):
        minigemma.load("a/..")


def test_paths_that_no_system_has_and_headers_beyond_any_sense_are_refused(tmp_path):
    with pytest.raises(Error, match="cannot be read"):
        read_json("a\x00b")
    (tmp_path / "model.safetensors").write_bytes((2**30).to_bytes(8, "little"))
    with pytest.raises(Error, match=f"a header of {2**30 + 8} bytes"):
        checkpoint.read_header(tmp_path / "model.safetensors")
    with pytest.raises(Error, match="no such directory"):
        minigemma.load("x" * 5000)


def test_a_trace_whose_metadata_is_no_json_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"embed": np.zeros((2, 3), np.float32)}, tmp_path / "t", {"tokens": "[1,"})
    with pytest.raises(Error, match="not a trace that minigemma saved"):
        Trace.load(tmp_path / "t")


def test_a_prompt_too_long_to_account_for_is_refused_and_large_sizes_stay_exact():
    big = fields("12B", max_position_embeddings=2**31, num_attention_heads=2**20, hidden_size=2**31)
    account = parameters.Account("big", Config.from_dict(big), [])
    with pytest.raises(Error, match="too long to account for"):
        compute.compute_account(account, 2**31)
    products = compute.multiply_adds(account.config, np.array([512] * 3), np.array([0, 512, 1024]))
    assert products["logits"] == 3 * 512 * 120 * 2**31
    assert all(count > 0 for count in products.values())


def test_a_tower_of_a_million_layers_is_refused(tmp_path):
    tower = parameters.TOWERS["E2B"]["vision_config"] | {"num_hidden_layers": 2**20}
    raw = {"model_type": "gemma4", "text_config": fields("E2B"), "vision_config": tower, "audio_config": None}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(Error, match=r"vision_config: num_hidden_layers"):
        parameters.count(str(tmp_path / "config.json"))


def test_a_tokenizer_without_turns_cannot_chat(tmp_path, checkpoint, run):
    raw = json.loads((minigemma.TINY / "tokenizer.json").read_text(encoding="utf-8"))
    raw["added_tokens"] = [token for token in raw["added_tokens"] if "turn" not in token["content"]]
    raw["model"]["vocab"] = {
        word.replace("turn", "other") if word in ("<|turn>", "<turn|>") else word: id
        for word, id in raw["model"]["vocab"].items()
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(Error, match=r"no <\|turn> token"):
        to_ids(render([{"role": "user", "content": "Hello"}], small=True), Tokenizer(tmp_path / "tokenizer.json"))
    one_line(run("chat", "--weights", checkpoint), "has no tokenizer.json")
    (checkpoint / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    one_line(run("chat", "--weights", checkpoint), "no <|turn> token")


def test_progress_is_shown_when_something_takes_longer_than_a_second(monkeypatch, capsys):
    now = iter([0.0, 0.5, 1.5, 1.6, 2.0, 3.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with progress("converting", 4) as advance:
        for _ in range(4):
            advance(1)
    assert capsys.readouterr().err == "\rconverting: 50 %\rconverting: 100 %\rconverting: done in 3 s\n"
