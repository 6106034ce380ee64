"""What the README's function dumps of a transformers model is read back: every array is the reference's, to the bit."""

import inspect
import types
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from family import MEMBERS, fields
from safetensors.torch import load_file, save_file

from minigemma import Config, random_weights
from minigemma.debug.diff import compare_traces
from minigemma.debug.foreign import read_trace
from minigemma.debug.pictures import runs_of
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


class Instead:
    """A model whose call is something else, for `dump`: run(input_ids) returns what has logits."""

    def __init__(self, model, run):
        self.named_modules, self.run = model.named_modules, run

    def __call__(self, input_ids, use_cache):
        return self.run(input_ids)


def row_of_a_batch(model, ids):
    """Two prompts of which the second is padded in front; its row is cut out."""
    batch, mask = torch.cat([ids.flip(1), ids]), torch.ones(2, ids.shape[1], dtype=int)
    batch[1, :9] = mask[1, :9] = 0
    return batch[1:], lambda _: model(batch, attention_mask=mask, use_cache=False)


def later_chunk(model, ids):
    def run(_):
        cache = model(ids[:, :12], use_cache=True).past_key_values
        return model(ids[:, 12:], past_key_values=cache)

    return ids, run


def last_call_of_generate(model, ids):
    """The ids that generate() returns; hooks keep what its last call showed."""
    config = transformers.GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.no_grad():
        returned = model.generate(ids, generation_config=config)

    def run(_):
        model.generate(ids, generation_config=config)
        return types.SimpleNamespace(logits=torch.zeros(0))

    return returned, run


@pytest.mark.parametrize(("how", "start"), [(row_of_a_batch, None), (later_chunk, 12), (last_call_of_generate, None)])
def test_a_padded_row_a_later_chunk_and_the_last_call_of_generate_are_as_right_as_the_whole(how, start, tmp_path):
    config, model = transformers_model("E2B")
    ids, run = how(model, torch.tensor(prompt(config) + (prompt(config) == 0))[None])
    dump(Instead(model, run), ids, tmp_path / "dump")
    arrays = load_file(tmp_path / "dump")
    if how is row_of_a_batch:
        arrays = {name: array[1:] if array.shape[:1] == (2,) else array for name, array in arrays.items()}
    save_file({name: array for name, array in arrays.items() if array.numel()}, tmp_path / "dump")
    found = read_trace(tmp_path / "dump", config, start=start)
    ours = types.SimpleNamespace(config=config, weights=random_weights(config, 5))
    (right,) = runs_of(found, found.tokens, ours)
    compared = compare_traces(right.theirs, right, "float32")
    assert not found.unread and compared.first_broken is None
    assert sum(row.verdict == "OK" for row in compared.rows) > 20 * config.num_hidden_layers
