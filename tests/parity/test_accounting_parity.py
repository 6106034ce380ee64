"""The table of tensors against what transformers holds: every name and shape, of random configs and released towers."""

import pytest

from minigemma import Config, count
from minigemma.account.towers import TOWERS
from minigemma.released import RELEASED, released_config
from minigemma.tensors import checkpoint_tensors, unused_tensors

from .configs import random_config

torch = pytest.importorskip("torch")
gemma = pytest.importorskip("transformers")

# transformers 5.23.0 reads 12B's file with these names changed (conversion_mapping.py, "gemma4_unified").
RENAMED = [("model.embed_vision.multimodal_embedder.", "model.embed_vision.")]
RENAMED += [(f"model.embed_vision.{name}", f"model.vision_embedder.{name}") for name in ("patch_", "pos_")]


def held(model):
    """name -> shape of what transformers saves; the head is tied to the token table and is no tensor of its own."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "lm_head.weight"}


@pytest.mark.parametrize("seed", range(60))
def test_a_random_config_counts_what_transformers_holds(seed):
    raw, _ = random_config(seed)
    config = Config.from_dict(raw)
    with torch.device("meta"):
        model = gemma.Gemma4ForCausalLM(gemma.Gemma4TextConfig.from_dict(raw.get("text_config", raw)))
    assert {tensor.name: tensor.shape for tensor in count(config).tensors} == held(model)
    elements = sum(parameter.numel() for parameter in model.parameters()) + config.num_hidden_layers  # layer_scalar
    assert count(config).total == elements
    # Google's layout holds, beside that, k_proj, v_proj and k_norm of each layer that reads another's K and V
    extra = sum(torch.Size(tensor.shape).numel() for tensor in unused_tensors(config))
    assert count(config, unused=True).total == elements + extra
    assert bool(extra) == bool(config.num_kv_shared_layers)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_with_its_towers_holds_what_transformers_holds(name):
    unified = name == "12B"
    kind, build = gemma.Gemma4Config, gemma.Gemma4ForConditionalGeneration
    if unified:
        kind, build = gemma.Gemma4UnifiedConfig, gemma.Gemma4UnifiedForConditionalGeneration
    text = {key: value for key, value in RELEASED[name].items() if not (unified and "per_layer_input" in key)}
    with torch.device("meta"):
        model = build(kind(text_config=text, **TOWERS[name]))
    theirs = held(model)
    if unified:
        for old, new in RENAMED:
            theirs = {key.replace(old, new): shape for key, shape in theirs.items()}
    table = checkpoint_tensors(released_config(name), TOWERS[name])
    assert {tensor.name: tensor.shape for tensor in table} == theirs
