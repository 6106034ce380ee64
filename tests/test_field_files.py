"""Checkpoints as people hold them: what only has other names loads, and what differs is named."""

import json
import warnings

import numpy as np
import pytest
from family import small, text_arrays
from numpy.testing import assert_array_equal
from test_weights import TOKENS, write

import minigemma
from minigemma import Error, forward
from minigemma.checkpoint import write_safetensors


@pytest.fixture(scope="module")
def e2b():
    """Its config, its tensors by bare name, and their logits."""
    config, weights = small("E2B")
    return config, text_arrays(config, weights), forward(TOKENS, weights, config)[0]


@pytest.mark.parametrize(
    "prefix",
    [
        "language_model.model.", "_orig_mod.model.", "module.model.language_model.", "module._orig_mod.model.",
        "base_model.model.model.", "base_model.model.model.language_model.", "_fsdp_wrapped_module.model.",
    ],
)  # fmt: skip
def test_a_wrappers_prefix_changes_nothing(tmp_path, e2b, prefix):
    config, arrays, expected = e2b
    assert_array_equal(minigemma.load(write(tmp_path / "w", config, arrays, prefix=prefix))(TOKENS)[0], expected)


def test_a_wrapper_inside_a_name_changes_nothing(tmp_path, e2b):
    config, arrays, expected = e2b
    inside = {name.replace(".self_attn", "._orig_mod.self_attn"): array for name, array in arrays.items()}
    assert_array_equal(minigemma.load(write(tmp_path / "w", config, inside))(TOKENS)[0], expected)


def test_shards_load_without_their_index_and_a_missing_one_is_named(tmp_path, e2b):
    config, arrays, expected = e2b
    directory = write(tmp_path / "w", config, arrays, files=3)
    (directory / "model.safetensors.index.json").unlink()
    assert_array_equal(minigemma.load(directory)(TOKENS)[0], expected)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(Error, match="part 2 of 00003 is missing"):
        minigemma.load(directory)


def test_the_only_safetensors_file_loads_whatever_its_name_and_two_of_them_are_not_guessed(tmp_path, e2b):
    config, arrays, expected = e2b
    directory = write(tmp_path / "w", config, arrays)
    (directory / "model.safetensors").rename(directory / "gemma-merged.safetensors")
    assert_array_equal(minigemma.load(directory)(TOKENS)[0], expected)
    write_safetensors(directory / "other.safetensors", "F32", [("x", (1,))], [np.ones(1)])
    with pytest.raises(Error, match=r"no index says which of gemma-merged\.safetensors, other\.safetensors belong"):
        minigemma.load(directory)


BYSTANDERS = ["layers.0.self_attn.k_proj.k_scale", "layers.0.self_attn.v_scale", "rotary_emb.inv_freq", "visual.x"]


def test_tensors_that_cannot_change_the_pass_are_noted_once(tmp_path, e2b):
    config, arrays, expected = e2b
    directory = write(tmp_path / "w", config, arrays | {name: np.ones(1, np.float32) for name in BYSTANDERS})
    with pytest.warns(UserWarning, match=r"4 tensors are not part of the model and are not read") as noted:
        model = minigemma.load(directory)
    assert len(noted) == 1
    assert_array_equal(model(TOKENS)[0], expected)


@pytest.mark.parametrize("inside", ["lora_A.default", "base_layer", "modules_to_save.default"])
def test_a_lora_that_is_not_merged_is_refused_by_name(tmp_path, e2b, inside):
    config, arrays, _ = e2b
    adapter = {f"layers.0.self_attn.q_proj.{inside}.weight": np.ones((2, 2), np.float32)}
    with pytest.raises(Error, match=rf"LoRA that is not merged .*{inside}.*merge_and_unload"):
        minigemma.load(write(tmp_path / "w", config, arrays | adapter))


@pytest.mark.parametrize("row", [0, -1])
def test_an_output_head_that_differs_in_any_row_is_refused_and_a_copy_is_not(tmp_path, e2b, row):
    config, arrays, expected = e2b
    head = arrays["embed_tokens.weight"].copy()
    directory = write(tmp_path / "w", config, arrays | {"lm_head.weight": head})
    with warnings.catch_warnings(action="error"):
        assert_array_equal(minigemma.load(directory)(TOKENS)[0], expected)
    head[row, 3] += 1
    with pytest.raises(Error, match=r"lm_head\.weight differs from the token table in 1 of its 120 rows"):
        minigemma.load(write(tmp_path / "w", config, arrays | {"lm_head.weight": head}))


def test_a_token_table_of_another_length_is_refused_with_both_shapes(tmp_path, e2b):
    config, arrays, _ = e2b
    table = np.vstack([arrays["embed_tokens.weight"], np.zeros((10, 24), np.float32)])
    with pytest.raises(Error, match=r"embed_tokens.weight is \[130, 24\] and should be \[120, 24\]"):
        minigemma.load(write(tmp_path / "w", config, arrays | {"embed_tokens.weight": table}))
    raw = json.loads((tmp_path / "w" / "config.json").read_text())
    (tmp_path / "w" / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": False}))
    with pytest.raises(Error, match="tie_word_embeddings"):
        minigemma.load(tmp_path / "w")
