"""minigemma against transformers, live: every intermediate of every kind of Gemma 4, in float32 and in double.

The double comparison is the sharp one. Both sides compute in float64 throughout, so a difference above 1e-12 is a
difference of meaning: float32 comparisons must allow 1e-5, and mistakes of that size exist (see test_mutations.py).
"""

import json
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import safetensors.torch as safetensors_torch
import torch
import transformers
from family import MEMBERS, fields
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding

import minigemma
from minigemma import EMPTY, Config, forward, generate_ids, prefill
from minigemma.packed import HalfMatrix
from minigemma.released import RELEASED, released_config
from minigemma.taps import tap_kind
from minigemma.tensors import text_tensors, unused_tensors

from .case import TOLERANCE, Case, disagreements, distance
from .configs import random_config
from .reference import eager, precision, state_dict

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

DTYPES = [np.float32, np.float64]
SEEDS = range(240)
WORST = {dtype: defaultdict(float) for dtype in DTYPES}  # the largest distance of each kind of tap, for the report


def member_case(member):
    raw = fields(member)
    return Case(raw, np.random.default_rng(11).integers(0, raw["vocab_size"], 23), seed=5)


def assert_every_tap_agrees(case):
    for dtype in DTYPES:
        ours, theirs = case.ours(dtype), case.reference(dtype)
        assert set(ours) == set(theirs), "a tap that is not compared could hold anything"
        assert disagreements(ours, case, dtype) == {}
        for name in ours:
            kind = tap_kind(name)
            WORST[dtype][kind] = max(WORST[dtype][kind], distance(ours[name], theirs[name]))


def in_pieces(case, cuts):
    """The logits of the prompt, computed with a cache from cut to cut, in float64."""
    weights, cache, rows = case.weights(np.float64), EMPTY, []
    for start, end in zip([0, *cuts], [*cuts, len(case.prompt)], strict=True):
        piece, cache = forward(case.prompt[start:end], weights, case.config, cache)
        rows.append(piece)
    return np.concatenate(rows)


# The plain forward pass


@pytest.mark.parametrize("seed", SEEDS)
def test_every_tap_of_a_random_config_is_what_transformers_computes(seed):
    raw, prompt = random_config(seed)
    assert_every_tap_agrees(Case(raw, prompt, seed))


@pytest.mark.parametrize("member", MEMBERS)
def test_every_tap_of_a_member_of_the_family_is_what_transformers_computes(member):
    assert_every_tap_agrees(member_case(member))


def test_the_random_configs_cover_every_feature():
    drawn = [random_config(seed) for seed in SEEDS]
    configs = [Config.from_dict(raw) for raw, _ in drawn]
    layers = [layer for config in configs for layer in config.layers]
    features = {
        "Google's spelling": sum("text_config" in raw for raw, _ in drawn),
        "transformers' spelling": sum("per_layer_config" in raw for raw, _ in drawn),
        "omitted layer_types": sum("layer_types" not in raw.get("text_config", raw) for raw, _ in drawn),
        "a window of one": sum(layer.window == 1 for layer in layers),
        "a window of two": sum(layer.window == 2 for layer in layers),
        "sharing": sum(config.num_kv_shared_layers > 0 for config in configs),
        "sharing without PLE": sum(c.num_kv_shared_layers > 0 and not c.hidden_size_per_layer_input for c in configs),
        "both kinds of donor": sum(
            {layer.kind for layer in c.layers if layer.shares_kv} == {"sliding_attention", "full_attention"}
            for c in configs
        ),
        "double width": sum(len({layer.intermediate_size for layer in config.layers}) == 2 for config in configs),
        "k_eq_v": sum(layer.k_eq_v for layer in layers),
        "other kv heads on global layers": sum(
            len({layer.num_key_value_heads for layer in config.layers}) == 2 for config in configs
        ),
        "other head_dim on global layers": sum(len({layer.head_dim for layer in c.layers}) == 2 for c in configs),
        "MoE": sum(config.enable_moe_block for config in configs),
        "MoE with PLE": sum(c.enable_moe_block and c.hidden_size_per_layer_input > 0 for c in configs),
        "PLE": sum(config.hidden_size_per_layer_input > 0 for config in configs),
        "no PLE": sum(config.hidden_size_per_layer_input == 0 for config in configs),
        "pairs that stand still": sum(bool((layer.inv_freq == 0).any()) for layer in layers),
        "bidirectional images": sum(config.use_bidirectional_attention == "vision" for config in configs),
        "no softcap": sum(config.final_logit_softcapping is None for config in configs),
        "another pad token": sum(config.pad_token_id > 0 for config in configs),
    }
    assert {name: count for name, count in features.items() if count < 10} == {}


def test_the_double_reference_holds_no_float32_and_is_sharper_than_the_single_one():
    case = member_case("E2B")
    model = case.model(np.float64)
    assert {tensor.dtype for tensor in [*model.parameters(), *model.buffers()]} == {torch.float64}
    double, single = case.reference(np.float64), case.reference(np.float32)
    assert {array.dtype for array in double.values()} == {np.dtype(np.float64)}
    assert 1e-8 < distance(single["logits"], double["logits"]) < 1e-5
    assert torch.float32 is not torch.float64 and torch.get_default_dtype() == torch.float32, "the patches are undone"


@pytest.mark.parametrize("seed", range(0, 240, 4))
def test_the_config_that_minigemma_writes_describes_the_same_model_to_transformers(seed):
    raw, prompt = random_config(seed)
    case, written = Case(raw, prompt, seed), Case(json.loads(json.dumps(Config.from_dict(raw).to_dict())), prompt, seed)
    assert distance(written.reference(np.float64)["logits"], case.reference(np.float64)["logits"]) == 0


# The released models, at their real sizes


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_has_the_tensors_and_the_rope_frequencies_of_transformers(name):
    config = released_config(name)
    text_config = eager(transformers.Gemma4TextConfig.from_dict(config.source))
    with torch.device("meta"):  # shapes without memory
        state = transformers.Gemma4ForCausalLM(text_config).state_dict()
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items() if name != "lm_head.weight"}
    assert {f"model.{tensor.name}": tensor.shape for tensor in text_tensors(config)} == theirs
    with precision(np.float64):
        rotary = Gemma4TextRotaryEmbedding(text_config)
    for layer in config.layers:
        np.testing.assert_allclose(layer.inv_freq, getattr(rotary, f"{layer.kind}_inv_freq"), rtol=1e-14)


# Images and audio


@pytest.mark.parametrize("seed", range(0, 80, 2))
def test_soft_tokens_are_not_scaled_and_look_up_the_pad_tokens_ple(seed):
    raw, prompt = random_config(seed)
    text, rng = raw.get("text_config", raw), np.random.default_rng(seed)
    text["use_bidirectional_attention"] = None  # images that see themselves whole are not ours to compute
    where = np.sort(rng.choice(len(prompt), max(1, len(prompt) // 3), replace=False))
    case = Case(raw, prompt, seed, (where, rng.standard_normal((len(where), text["hidden_size"])).astype(np.float32)))
    assert_every_tap_agrees(case)


@pytest.mark.parametrize("member", MEMBERS)
def test_soft_tokens_are_merged_as_the_multimodal_model_merges_image_features(member):
    """Here transformers finds the placeholders, replaces their ids and merges the features itself."""
    case, image_token = member_case(member), 7
    where, text = np.array([3, 4, 5, 12]), case.prompt != image_token
    case.prompt = np.where(text, case.prompt, 8)
    case.prompt[where] = image_token
    rows = np.random.default_rng(1).standard_normal((len(where), case.config.hidden_size))
    features = SimpleNamespace(pooler_output=[torch.from_numpy(rows)])  # as the vision tower returns them
    with precision(np.float64), torch.no_grad():
        model = multimodal(case, np.float64, image_token_id=image_token)
        theirs = model(
            input_ids=torch.tensor(case.prompt)[None],
            mm_encoder_outputs={"image": features},
            use_cache=False,
            output_hidden_states=True,
        ).logits[0]
    ours, _ = forward(case.prompt, case.weights(np.float64), case.config, soft_tokens=(where, rows))
    assert distance(ours, theirs) < TOLERANCE[np.float64]


def multimodal(case, dtype, **ids):
    """A Gemma4ForConditionalGeneration around the case's text model, with a vision tower too small to see with."""
    vision = transformers.Gemma4VisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=8, position_embedding_size=4, patch_size=2,
    )  # fmt: skip
    text = eager(transformers.Gemma4TextConfig.from_dict(case.raw))
    config = eager(transformers.Gemma4Config(text_config=text, vision_config=vision, audio_config=None, **ids))
    model = transformers.Gemma4ForConditionalGeneration(config).eval()
    state = state_dict(case.config, case.weights(dtype), "model.language_model.")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == [] and all("vision" in name for name in missing)
    return model


# The cache


@pytest.mark.parametrize("seed", range(0, 240, 3))
def test_a_sequence_with_a_cache_gives_the_logits_of_transformers_plain_pass(seed):
    raw, prompt = random_config(seed)
    case = Case(raw, prompt, seed)
    theirs = case.reference(np.float64)["logits"]
    every = list(range(1, len(prompt)))
    some = sorted(np.random.default_rng(seed).choice(every, len(every) // 3, replace=False).tolist())
    for cuts in (every, some):
        assert distance(in_pieces(case, cuts), theirs) < TOLERANCE[np.float64]


@pytest.mark.parametrize("seed", range(1, 240, 6))
def test_a_prompt_in_chunks_gives_the_last_logits_of_transformers_plain_pass(seed):
    raw, prompt = random_config(seed)
    case = Case(raw, prompt, seed)
    weights, cut = case.weights(np.float64), len(prompt) // 2
    _, cache = forward(prompt[:cut], weights, case.config, logits=None)
    last, _ = forward(prompt[cut:], weights, case.config, cache, logits="last")
    assert distance(last[0], case.reference(np.float64)["logits"][-1]) < TOLERANCE[np.float64]


def test_a_prompt_of_several_chunks_ends_in_the_logits_of_transformers_plain_pass():
    raw = fields("E2B", max_position_embeddings=4096, sliding_window=100)
    case = Case(raw, np.random.default_rng(0).integers(0, raw["vocab_size"], 1100), seed=2)
    logits, _ = prefill(case.prompt, case.weights(np.float64), case.config)
    with precision(np.float64), torch.no_grad():
        theirs = case.model(np.float64)(torch.tensor(case.prompt)[None], use_cache=False).logits[0, -1]
    assert distance(logits, theirs) < TOLERANCE[np.float64]


@pytest.mark.parametrize("member", MEMBERS)
def test_greedy_generation_continues_as_transformers_generates(member):
    """Its generate() has a cache, cuts sliding layers to the window and skips KV-sharing layers in the prompt."""
    case = member_case(member)
    model = minigemma.Model(None, case.config, case.weights(np.float64), {})
    ours = [token for token, _ in generate_ids(model, case.prompt, 40, temperature=0.0)]
    with precision(np.float64):
        theirs = case.model(np.float64).generate(
            torch.tensor(case.prompt)[None], max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert ours == theirs[0, len(case.prompt) :].tolist()


# Files: what one side writes, the other reads, with the same logits


def loaded_by_transformers(directory):
    model, info = transformers.Gemma4ForCausalLM.from_pretrained(
        directory, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32,
        output_loading_info=True,
    )  # fmt: skip
    assert {name: found for name, found in info.items() if found} == {}, "missing, unexpected or misshapen tensors"
    return model.eval()


def same_logits(directory, model, prompt):
    """minigemma on a directory against a float32 model of transformers."""
    ours, _ = minigemma.load(directory, dtype="float32")(prompt)
    with torch.no_grad():
        theirs = model(torch.tensor(prompt)[None], use_cache=False).logits[0]
    return distance(ours, theirs) < TOLERANCE[np.float32]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("member", MEMBERS)
def test_transformers_loads_what_minigemma_saves_with_no_name_missing_or_left_over(member, dtype, tmp_path):
    case = member_case(member)
    minigemma.save(tmp_path, case.weights32, case.config, dtype)
    assert same_logits(tmp_path, loaded_by_transformers(tmp_path), case.prompt)


def test_matrices_that_stay_in_a_bfloat16_file_multiply_as_in_transformers(tmp_path):
    """Small matrices are converted at load; these are not. The numbers are bfloat16, the arithmetic is float32."""
    raw = fields("E4B", hidden_size=512, intermediate_size=768, vocab_size=700, vocab_size_per_layer_input=700)
    case = Case(raw, np.random.default_rng(3).integers(0, 700, 23), seed=3)
    minigemma.save(tmp_path, case.weights32, case.config, "bfloat16")
    model = minigemma.load(tmp_path, dtype="bfloat16")
    assert {type(model.weights.layers[0].gate_proj), type(model.weights.embed_tokens)} == {HalfMatrix}
    with torch.no_grad():
        theirs = loaded_by_transformers(tmp_path)(torch.tensor(case.prompt)[None], use_cache=False).logits[0]
    at_once, _ = model(case.prompt)
    assert distance(at_once, theirs) < TOLERANCE[np.float32]
    cache, rows = EMPTY, []
    for token in case.prompt:  # one row multiplies by another rule than many
        row, cache = model([token], cache)
        rows.append(row)
    assert distance(np.concatenate(rows), theirs) < TOLERANCE[np.float32]


@pytest.mark.parametrize("shard_size", ["10GB", "20KB"])
@pytest.mark.parametrize("member", MEMBERS)
def test_minigemma_loads_what_transformers_saves_whole_or_in_shards(member, shard_size, tmp_path):
    case = member_case(member)
    model = case.model(np.float32)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "20KB")
    assert same_logits(tmp_path, model, case.prompt)


@pytest.mark.parametrize("member", MEMBERS)
def test_minigemma_loads_the_text_model_of_a_multimodal_checkpoint(member, tmp_path):
    case = member_case(member)
    multimodal(case, np.float32).save_pretrained(tmp_path)
    assert "text_config" in json.loads((tmp_path / "config.json").read_text())
    assert same_logits(tmp_path, case.model(np.float32), case.prompt)


@pytest.mark.parametrize("member", ["E2B", "E4B"])
def test_minigemma_loads_googles_layout_with_the_unused_k_and_v_of_sharing_layers(member, tmp_path):
    """Google's files hold k_proj, v_proj and k_norm of every layer; reading them would be wrong, refusing them too."""
    case = member_case(member)
    state = state_dict(case.config, case.weights32, "model.language_model.")
    del state["lm_head.weight"]
    unused = unused_tensors(case.config)
    assert len(unused) == 3 * case.config.num_kv_shared_layers
    state |= {f"model.language_model.{tensor.name}": torch.randn(tensor.shape) for tensor in unused}
    state["model.vision_tower.patch_embedder.input_proj.weight"] = torch.randn(2, 2)
    safetensors_torch.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma4", "text_config": case.raw}))
    assert same_logits(tmp_path, case.model(np.float32), case.prompt)


def test_report_of_the_worst_distances():
    """Not a test: with -s it prints how close the comparisons above came to their limits."""
    for dtype, worst in WORST.items():
        print(f"\n{dtype.__name__}, limit {TOLERANCE[dtype]:.0e}: worst {max(worst.values(), default=0):.1e}")
        for name in sorted(worst, key=worst.get, reverse=True):
            print(f"  {worst[name]:.1e}  {name}")
