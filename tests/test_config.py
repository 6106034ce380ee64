"""config.json in both spellings, every layer resolved, and every contradiction refused in one line."""

import json

import numpy as np
import pytest
from family import fields, kinds
from numpy.testing import assert_allclose

from minigemma import Config, Error
from minigemma.account.towers import TOWERS
from minigemma.config import GLOBAL, SLIDING
from minigemma.released import RELEASED, released_config


def test_e2b_is_resolved_as_the_released_file_describes_it():
    config = released_config("google/gemma-4-E2B-it")
    assert [layer.index for layer in config.layers if layer.kind == GLOBAL] == [4, 9, 14, 19, 24, 29, 34]
    assert config.first_kv_shared_layer == 15
    assert {layer.kv_from for layer in config.layers[15:] if layer.kind == SLIDING} == {13}
    assert {layer.kv_from for layer in config.layers[15:] if layer.kind == GLOBAL} == {14}
    assert [layer.kv_from for layer in config.layers[:15]] == list(range(15))
    assert [layer.intermediate_size for layer in config.layers] == [6144] * 15 + [12288] * 20
    assert {(layer.kind, layer.head_dim, layer.window) for layer in config.layers} == {
        (SLIDING, 256, 512),
        (GLOBAL, 512, None),
    }


def test_e4bs_sharing_layers_read_layers_22_and_23_and_are_not_double_wide():
    config = released_config("E4B")
    assert {(layer.kind, layer.kv_from) for layer in config.layers[24:]} == {(SLIDING, 22), (GLOBAL, 23)}
    assert {layer.intermediate_size for layer in config.layers} == {10240}


@pytest.mark.parametrize(("name", "kv_heads"), [("12B", (8, 1)), ("26B-A4B", (8, 2)), ("31B", (16, 4))])
def test_the_big_members_make_v_from_k_on_global_layers_only(name, kv_heads):
    config = released_config(name)
    sliding, full = config.layers[0], config.layers[5]
    assert (sliding.k_eq_v, full.k_eq_v) == (False, True)
    assert (sliding.num_key_value_heads, full.num_key_value_heads) == kv_heads
    assert config.hidden_size_per_layer_input == 0
    assert not any(layer.shares_kv for layer in config.layers)


@pytest.mark.parametrize(
    ("name", "attention"), [("E2B", None), ("E4B", None), ("12B", "vision"), ("26B-A4B", "vision"), ("31B", "vision")]
)
def test_pictures_attend_bidirectionally_in_the_big_members_only(name, attention):
    assert released_config(name).use_bidirectional_attention == attention


def test_fields_left_out_get_the_defaults_of_their_model_type():
    """transformers has other defaults for model_type gemma4_unified, which is 12B's."""
    names = ("hidden_size_per_layer_input", "max_position_embeddings", "use_bidirectional_attention")
    text = {name: value for name, value in fields("12B").items() if name not in names}
    for kind, expected in (("gemma4", (256, 131072, None)), ("gemma4_unified", (0, 262144, "vision"))):
        for data in ({"model_type": kind, "text_config": text}, text | {"model_type": f"{kind}_text"}):
            config = Config.from_dict(data)
            assert tuple(getattr(config, name) for name in names) == expected


def test_a_name_that_was_never_released_is_refused_with_the_names_that_were():
    with pytest.raises(Error, match="E2B, E4B, 12B, 26B-A4B, 31B"):
        released_config("google/gemma-4-7B")


@pytest.mark.parametrize("name", RELEASED)
def test_the_shared_fact_files_agree_with_the_released_models(name):
    """Only where those files are at hand: the project carries the numbers, not the files."""
    from pathlib import Path

    stem = {"12B": "12b_it_config_fields"}.get(name, name.lower().replace("-", "_") + "_it_config")
    path = Path(__file__).parents[2] / "shared" / "facts" / f"{stem}.json"
    if not path.exists():
        pytest.skip("the raw config.json is not here")
    data = json.loads(path.read_text())
    data["text_config"].pop("layer_pattern", None)
    ours, theirs = released_config(name), Config.from_dict(data)
    for field in vars(ours):
        if field not in ("layers", "source", "beside", "vision", "audio"):
            assert getattr(ours, field) == getattr(theirs, field), field
    for part in ("vision", "audio"):
        found, tower = getattr(theirs, part), TOWERS[name][f"{part}_config"]
        for field, value in (tower or {}).items():
            assert getattr(found, field) == (tuple(value) if isinstance(value, list) else value), field
        assert (found is None) == (tower is None)
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert {k: v for k, v in vars(a).items() if k != "inv_freq"} == {
            k: v for k, v in vars(b).items() if k != "inv_freq"
        }
        assert_allclose(a.inv_freq, b.inv_freq)


def test_default_rope_turns_every_pair_and_proportional_rope_the_first_quarter_with_whole_head_exponents():
    config = released_config("E2B")
    sliding, full = config.layers[0].inv_freq, config.layers[4].inv_freq
    assert_allclose(sliding, [10_000.0 ** (-2 * j / 256) for j in range(128)])
    assert_allclose(full[:64], [1_000_000.0 ** (-2 * j / 512) for j in range(64)])
    assert not full[64:].any()
    assert len(full) == 256


def test_both_spellings_of_the_global_geometry_give_the_same_layers(member):
    google = fields(member)
    config = Config.from_dict({"model_type": "gemma4", "text_config": google})
    sparse = {
        f"{layer.index:02}": {"head_dim": layer.head_dim, "num_key_value_heads": layer.num_key_value_heads}
        for layer in config.layers
        if layer.kind == GLOBAL
    }
    dropped = ("global_head_dim", "num_global_key_value_heads")
    flat = {k: v for k, v in google.items() if k not in dropped} | {"per_layer_config": sparse}
    again = Config.from_dict(flat | {"model_type": "gemma4_text"})
    shape = [(x.kind, x.head_dim, x.num_key_value_heads, x.kv_from, x.k_eq_v) for x in config.layers]
    assert shape == [(x.kind, x.head_dim, x.num_key_value_heads, x.kv_from, x.k_eq_v) for x in again.layers]


def test_an_empty_per_layer_config_means_that_all_layers_have_the_top_level_geometry():
    flat = fields("E2B", per_layer_config={})
    assert {layer.head_dim for layer in Config.from_dict(flat).layers} == {8}


def test_a_saved_config_reads_back_the_same(member, tmp_path):
    config = Config.from_dict({"model_type": "gemma4", "text_config": fields(member)})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    again = Config.from_json(tmp_path)
    assert [vars(x) | {"inv_freq": 0} for x in again.layers] == [vars(x) | {"inv_freq": 0} for x in config.layers]
    assert again.to_dict() == config.to_dict()


ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "yarn", "rope_theta": 1e6},
}
NAN_ROPE = ROPE | {"full_attention": {"rope_type": "proportional", "rope_theta": float("nan")}}
PARTIAL = ROPE | {"full_attention": {"rope_type": "default", "partial_rotary_factor": 0.25}}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"rope_parameters": ROPE}, "yarn"),
        ({"rope_parameters": NAN_ROPE}, "rope_theta"),
        ({"rope_parameters": PARTIAL}, "partial_rotary_factor"),
        ({"rope_parameters": {"sliding_attention": ROPE["sliding_attention"]}}, "full_attention"),
        ({"num_kv_shared_layers": 6}, "layer 4 shares"),
        ({"num_kv_shared_layers": 10}, "num_kv_shared_layers"),
        ({"num_kv_shared_layers": -1}, "num_kv_shared_layers"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "not a multiple"),
        ({"head_dim": 7}, "odd"),
        ({"head_dim": 0}, "head_dim"),
        ({"hidden_size": "24"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"use_bidirectional_attention": "all"}, "'all'"),
        ({"attention_bias": True}, "bias"),
        ({"hidden_activation": "silu"}, "silu"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"layer_types": kinds(4, 4)[:-1]}, "layer_types"),
        ({"layer_types": [*kinds(4, 4)[:-1], "sliding_attention"]}, "last"),
        ({"layer_types": ["chunked_attention"] * 10}, "chunked_attention"),
        ({"per_layer_config": {"10": {"head_dim": 8}}}, "'10'"),
        ({"per_layer_config": {"1": {"hidden_size": 8}}}, "hidden_size"),
        ({"per_layer_config": {"8": {"head_dim": 32}}}, "another shape"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"final_logit_softcapping": 0}, "final_logit_softcapping"),
        ({"enable_moe_block": True}, "num_experts"),
        ({"enable_moe_block": True, "num_experts": 4, "top_k_experts": 5, "moe_intermediate_size": 8}, "top_k_experts"),
        ({"enable_moe_block": "yes"}, "enable_moe_block"),
        ({"vocab_size_per_layer_input": 100}, "PLE table"),
        ({"pad_token_id": 500}, "pad_token_id"),
    ],
)
def test_an_unsupported_or_contradictory_value_is_named_in_one_line(changes, complaint):
    with pytest.raises(Error, match=complaint) as caught:
        Config.from_dict(fields("E2B", **changes), "some/config.json")
    assert "\n" not in str(caught.value)
    assert "some/config.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "[" * 100_000, "\x00"])
def test_a_file_that_is_no_config_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Error):
        Config.from_json(tmp_path)


def test_a_missing_config_is_refused_with_its_path(tmp_path):
    with pytest.raises(Error, match=r"config\.json: no such file"):
        Config.from_json(tmp_path)


def test_a_proportional_factor_divides_the_frequencies():
    rope = {
        "sliding_attention": {"rope_theta": 10000.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5, "factor": 8.0},
    }
    config = Config.from_dict(fields("E2B", rope_parameters=rope))
    assert_allclose(config.layers[4].inv_freq, np.r_[1e6 ** (-2 * np.arange(4) / 16) / 8, np.zeros(4)])
