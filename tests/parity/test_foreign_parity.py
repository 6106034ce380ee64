"""What the README's function dumps of a transformers model is read back: every array is the reference's, to the bit."""

import inspect
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from family import MEMBERS, fields
from safetensors.torch import save_file

from minigemma import Config, random_weights
from minigemma.debug.foreign import read_trace
from minigemma.taps import tap_kind, time_axis

from .case import TOLERANCE, distance
from .dump_transformers import dump
from .reference import build, record

UNSEEN = {"attn.rot_q", "attn.rot_k", "attn.scores"}  # made between modules


def test_the_function_is_in_the_readme_as_it_stands():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert inspect.getsource(dump) in readme


@cache
def transformers_model(member):
    """config, and transformers' model of it in float32."""
    raw = fields(member)
    config = Config.from_dict(raw)
    return config, build(raw, config, random_weights(config, 5), np.float32)


def prompt(config, count=23):
    return np.random.default_rng(11).integers(0, config.vocab_size, count)


@pytest.mark.parametrize("count", [23, 4, 1])  # 4 heads; one token
@pytest.mark.parametrize("member", MEMBERS)
def test_what_the_readmes_function_dumps_is_read_back_to_the_bit(member, count, tmp_path):
    config, model = transformers_model(member)
    ids = prompt(config, count)
    theirs = record(model, ids, np.float32)
    dump(model, torch.tensor(ids)[None], tmp_path / "dump")
    foreign = read_trace(tmp_path / "dump", config)
    for name, array in foreign.arrays.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    missing = {tap_kind(name).removeprefix("layers.*.") for name in theirs if name not in foreign.arrays}
    assert missing == UNSEEN | (set() if config.hidden_size_per_layer_input else {"resid_ffn"})
    assert foreign.tokens.tolist() == ids.tolist()
    assert not [line for line in foreign.ignored if "no tap holds" not in line]


@pytest.mark.parametrize("member", ["E2B", "26B-A4B"])
def test_a_model_in_bfloat16_is_dumped_in_bfloat16(member, tmp_path):
    config, model = transformers_model(member)
    ids = torch.tensor(prompt(config))[None]
    with torch.no_grad():
        try:
            logits = model.bfloat16()(ids, use_cache=False).logits
            dump(model, ids, tmp_path / "dump")
        finally:
            transformers_model.cache_clear()
    foreign = read_trace(tmp_path / "dump", config)
    np.testing.assert_array_equal(foreign.arrays["logits"], logits[0].float().numpy())
    routed = sum(".router." in name for name in foreign.arrays)
    assert any(int(note.split()[0]) >= len(foreign.arrays) - routed for note in foreign.notes if "(BF16)" in note)
    assert not [line for line in foreign.ignored if "differs" in line]


@pytest.mark.parametrize("member", MEMBERS)
def test_lists_of_hidden_states_and_attentions_are_read(member, tmp_path):
    config, model = transformers_model(member)
    ids = prompt(config)
    theirs = record(model, ids, np.float32)
    with torch.no_grad():
        out = model(torch.tensor(ids)[None], use_cache=False, output_hidden_states=True, output_attentions=True)
    arrays = {f"hidden_states.{i}": array.clone() for i, array in enumerate(out.hidden_states)}
    arrays |= {f"attentions.{i}": array.clone() for i, array in enumerate(out.attentions)}
    save_file(arrays, tmp_path / "lists", {"tokens": str(ids.tolist())})
    foreign = read_trace(tmp_path / "lists", config)
    assert len(foreign.arrays) == 2 * config.num_hidden_layers + 1 and not foreign.ignored
    for name, array in foreign.arrays.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_a_prefill_that_keeps_the_last_logits_only_is_read_with_its_single_rows(tmp_path):
    config, model = transformers_model("E2B")
    ids = prompt(config)
    theirs = record(model, ids, np.float32)
    with mock.patch.object(model, "forward", partial(model.forward, logits_to_keep=1)):
        dump(model, torch.tensor(ids)[None], tmp_path / "dump")
    foreign = read_trace(tmp_path / "dump", config)
    single = {name for name, array in foreign.arrays.items() if array.shape != theirs[name].shape}
    assert single >= {"logits", "layers.9.attn.q"} and "layers.4.attn.q" not in single
    for name, array in foreign.arrays.items():
        axis = time_axis(name)
        whole = theirs[name].take([-1], axis=axis) if name in single else theirs[name]
        assert distance(array, whole) < TOLERANCE[np.float32], name
