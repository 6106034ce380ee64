"""What weights/README.md promises of the tiny weights, measured with minigemma on held-out stories."""

import hashlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minigemma
from minigemma.checkpoint import find_text_tensors, read_header, read_unused
from minigemma.config import GLOBAL, SLIDING
from minigemma.sampling import CHUNK
from minigemma.taps import layer_of
from minigemma.tensors import checkpoint_tensors, text_tensors, unused_tensors

WEIGHTS = minigemma.TINY.parent
TRAINED = json.loads((Path(__file__).parent / "goldens" / "tiny_tensors.json").read_text(encoding="utf-8"))
whole_directories = pytest.mark.parametrize("name", TRAINED)  # tiny and its twins


@pytest.fixture(scope="module")
def stories():
    """The corpus generator, which is a program beside the weights and no part of the package."""
    sys.path.insert(0, str(WEIGHTS / "training"))
    import stories

    yield stories
    sys.path.remove(str(WEIGHTS / "training"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{A} had {a animal.1} that", "{A} had {a anmal.1} that", "no slot 'anmal'"),
        ("{A} had {a animal.1} that", "{A} had {an animal.1} that", "a slot must be like {animal}"),
        ("at dusk a <bat> flew", "at dusk a bat flew", "must be marked as <bat>"),
        ("Mia, Anna", "Mia,, Anna", "empty word"),
        ("Mia, Anna", "Mia", "same number of names"),
        ("girls = '''", "girls '''", "line"),
    ],
)
def test_a_mistake_in_the_frames_is_one_line(stories, tmp_path, old, new, message):
    text = (WEIGHTS / "training" / "frames.toml").read_text(encoding="utf-8")
    (tmp_path / "frames.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SystemExit, match=re.escape(message)) as stopped:
        stories.read_frames(tmp_path / "frames.toml")
    assert "\n" not in str(stopped.value)


def questions_beyond_the_window(stories, model, count):
    """(prompt ids, answer) of questions whose answer was last mentioned more than a window of tokens before."""
    encode, found = model.tokenizer.encode, []
    number = 0
    while len(found) < count:
        story = stories.tell_story("heldout", number)
        number += 1
        for question in story.questions:
            text = f"{story.text}\n{question.question}"
            mentions = list(re.finditer(rf"\b{re.escape(question.value)}\b", text, re.IGNORECASE))
            after = text[mentions[-1].end() :] if mentions else text
            if question.kind != "sum" and mentions and len(encode(after)) > model.config.sliding_window:
                found.append((model.chat_ids([{"role": "user", "content": text}]), question.answer))
    return found[:count]


def says(model, ids, answer, tap=minigemma.model.no_tap):
    """Whether greedy decoding would give the answer and end the turn: each token is the most probable one there."""
    wanted = [*model.tokenizer.encode(answer, bos=False), model.tokenizer.id("<turn|>")]
    logits, _ = model([*ids, *wanted], tap=tap)
    return logits[len(ids) - 1 : -1].argmax(-1).tolist() == wanted


def near_sighted(config):
    """A tap that lets global layers see no farther than the sliding ones."""

    def tap(name, pattern):
        layer = layer_of(name)
        if not name.endswith("attn.pattern") or config.layers[layer].kind != GLOBAL:
            return pattern
        T, S = pattern.shape[1:]
        kept = pattern * (np.arange(S - T, S)[:, None] - np.arange(S) < config.sliding_window)  # [N, T, S]
        return kept / kept.sum(-1, keepdims=True)

    return tap


def test_most_facts_beyond_the_window_are_recalled_and_few_without_global_attention(tiny, stories):
    questions = questions_beyond_the_window(stories, tiny, 60)
    assert np.mean([says(tiny, *question) for question in questions]) >= 0.8
    blind = near_sighted(tiny.config)
    assert np.mean([says(tiny, *question, tap=blind) for question in questions]) < 0.4


def test_held_out_stories_cost_less_than_half_a_nat_a_token(tiny, stories):
    loss, tokens = 0.0, 0
    for number in range(40):
        ids = tiny.tokenizer.encode(stories.document("heldout", number), special=True)
        logits, _ = tiny(ids)
        shifted = logits[:-1].astype(np.float64) - logits[:-1].max(-1, keepdims=True)
        chosen = np.take_along_axis(shifted, np.array(ids[1:])[:, None], axis=-1)[:, 0]
        loss += (np.log(np.exp(shifted).sum(-1)) - chosen).sum()
        tokens += len(ids) - 1
    assert loss / tokens < 0.55  # the 4-gram needs 1.00; 0.467 over all 1,500 held-out documents


def test_the_shape_is_e2bs_in_small(tiny):
    config = tiny.config
    assert [layer.kind for layer in config.layers] == ([SLIDING] * 4 + [GLOBAL]) * 2
    assert [layer.kv_from for layer in config.layers] == [0, 1, 2, 3, 4, 3, 3, 3, 3, 4]
    assert [layer.intermediate_size for layer in config.layers] == [256] * 5 + [512] * 5
    assert config.layers[4].head_dim > config.layers[3].head_dim
    assert config.final_logit_softcapping == 30.0
    assert sum(path.stat().st_size for path in tiny.directory.iterdir()) <= 12_000_000


def test_no_layer_scalar_or_norm_is_left_at_one(tiny):
    """Where they are all 1, leaving them out would not show."""
    for layer in tiny.weights.layers:
        assert abs(layer.layer_scalar.item() - 1) > 0.05
        assert np.abs(layer.input_layernorm - 1).max() > 0.05


def test_twenty_times_the_training_length_keeps_constant_memory_in_sliding_layers(tiny):
    model = SimpleNamespace(config=tiny.config, weights=tiny.weights, generation_config={})
    ids = np.random.default_rng(0).integers(300, 2500, 10_000)
    _, cache = minigemma.prefill(ids, model.weights, model.config)
    kept = [len(cache.entries[i].k) for i in range(5)]
    assert kept == [31, 31, 31, 31, 10_000]
    rooms = [len(cache.entries[i].buffer.k) for i in range(4)]  # what is allocated behind them
    assert max(rooms) <= 2 * (31 + CHUNK)


# The directory, as Google ships one


@whole_directories
def test_the_files_are_those_of_a_released_checkpoint(name):
    files = {"chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    files |= {"tokenizer_config.json"} | ({"processor_config.json"} if name == "tiny" else set())
    found = {path.name for path in (WEIGHTS / name).iterdir() if path.suffix not in (".png", ".wav")}
    assert found - {"goldens.json"} == files


@whole_directories
def test_the_text_tensors_are_the_trained_ones(name):
    """dtype, shape and sha256 of each tensor, as training left it."""
    found, config = find_text_tensors(WEIGHTS / name), minigemma.Config.from_json(WEIGHTS / name)
    stored = {tensor.name: found[tensor.name] for tensor in text_tensors(config)}
    assert TRAINED[name] == {
        name: [each.dtype, list(each.shape), hashlib.sha256(each.map().tobytes()).hexdigest()]
        for name, each in stored.items()
    }


@whole_directories
def test_the_unused_tensors_of_kv_sharing_layers_are_copies_of_their_donors(name):
    config, found = minigemma.Config.from_json(WEIGHTS / name), find_text_tensors(WEIGHTS / name)
    assert set(found) == {tensor.name for tensor in text_tensors(config) + unused_tensors(config)}
    assert len(unused_tensors(config)) == 15
    for tensor in unused_tensors(config):
        donor = f"layers.{config.layers[tensor.layer].kv_from}.{tensor.name.split('.', 2)[2]}"
        np.testing.assert_array_equal(found[tensor.name].map(), found[donor].map())


def test_the_file_says_which_tensors_are_unused_and_the_account_counts_them(tiny):
    with open(tiny.directory / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert "No pass reads them" in header["__metadata__"]["unused"]
    account = minigemma.count(tiny.directory)
    assert account.parts["unused"] == sum(array.size for array in read_unused(tiny.directory, tiny.config).values())
    text = minigemma.count(tiny.config)
    beside = account.parts.keys() - text.parts.keys()
    assert beside == {"unused", "vision", "audio"}
    assert account.total == text.total + sum(account.parts[part] for part in beside)
    assert account.total == minigemma.count(tiny.directory / "config.json").total
    assert account.differences == ()


@whole_directories
def test_both_spellings_of_the_global_heads_are_there_and_agree(name):
    raw = json.loads((WEIGHTS / name / "config.json").read_text(encoding="utf-8"))
    config = minigemma.Config.from_dict(raw)
    heads = {f"{layer.index}": {"head_dim": layer.head_dim} for layer in config.layers if layer.kind == GLOBAL}
    assert raw["text_config"]["per_layer_config"] == heads
    del raw["text_config"]["per_layer_config"]
    assert [layer.head_dim for layer in minigemma.Config.from_dict(raw).layers] == [
        layer.head_dim for layer in config.layers
    ]


@whole_directories
def test_the_names_are_those_of_a_released_file(name):
    raw = json.loads((WEIGHTS / name / "config.json").read_text(encoding="utf-8"))
    table = checkpoint_tensors(minigemma.Config.from_dict(raw), raw, unused=True)
    assert set(read_header(WEIGHTS / name / "model.safetensors")) == {tensor.name for tensor in table}


@whole_directories
def test_the_tokenizer_file_puts_one_bos_before_plain_text_and_our_tokenizer_does_not_add_another(name):
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(WEIGHTS / name / "tokenizer.json"))
    ours = minigemma.load(WEIGHTS / name).tokenizer
    for text in ("", "Mia went home.", " two\nlines "):
        assert library.encode(text).ids == ours.encode(text)
        assert ours.encode(text).count(ours.bos) == 1


def test_gemma_4s_special_tokens_have_gemma_4s_ids(tiny):
    ids = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<|tool_call>": 48, '<|"|>': 52, "<|think|>": 98}
    ids |= {"<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106, "\n": 107}
    assert {token: tiny.tokenizer.id(token) for token in ids} == ids
