"""The trained weights of this repository mean the same to transformers: same tokens, same ids, same logits.

MINIGEMMA_WEIGHTS names another directory to test, as it does for the program.
"""

import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from PIL import Image

import minigemma
from minigemma import generate_ids
from minigemma.interventions import token_losses
from minigemma.sounds import read_sound
from minigemma.turns import render

from . import reference  # noqa: F401  (one thread)

DIRECTORY = Path(os.environ.get("MINIGEMMA_WEIGHTS", minigemma.TINY))
pytestmark = pytest.mark.skipif(
    not (DIRECTORY / "model.safetensors").exists(), reason=f"no weights in {DIRECTORY}: they are not trained yet"
)

PROMPTS = [
    "Once upon a time, there was a little fox who",
    "Mia and Jack went to the market. Mia bought",
    "The bottle was green. The drum was black. What colour was the bottle? It was",
    '"Hurry up!" called Ella. She was still looking for',
    "One windy morning the old fisherman found a",
    "Ella hid the blanket on the shelf. Jack kept the slipper in the tent. Later, Ella needed the blanket, so",
    "School was over, and",
    "In the garden,\nbehind the house, there was",
    "Then the music started, and it became dark.",
    "At last",
]
TEXTS = [
    *PROMPTS,
    "",
    " ",
    "two  spaces, three   spaces and one at the end ",
    " one in front",
    "a line\nanother\n\nand after an empty one\n\n\n\nfour",
    "\n",
    "tab\there",
    "Grüße aus Köln: äöüÄÖÜß, naïve café, Łódź",
    "🦊 a fox, 👩‍🚀 three code points, 🇩🇪 a flag, e\u0301 a combining accent",
    "日本語のテキスト and العربية and हिन्दी",
    "3.14159 + 2,718 = 5.85987; 1234567890",
    "camelCaseAndUPPERcase_with_underscores-and-dashes",
    "a▁real▁U+2581",
    "<bos>Mia<eos> looked <|turn> like <turn|> tags <unk> <pad> <unused7> <|image|>",
    "<0x41> is text, not a byte",
    "zero\u200bwidth and \u00a0 no-break and \ufeff mark",
    "x" * 300,
]


@pytest.fixture(scope="module")
def ours():
    """The weights as a user gets them, without the stop ids: every prompt goes on for 200 tokens."""
    return replace(minigemma.load(DIRECTORY), generation_config={})


@pytest.fixture(scope="module")
def theirs():
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        DIRECTORY, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert {name: found for name, found in info.items() if found} == {}, "missing, unexpected or misshapen tensors"
    return model.eval()


@pytest.fixture(scope="module")
def programs():
    """Those that draw the pictures and speak the words that the towers were trained on."""
    sys.path.insert(0, str(minigemma.TINY.parent / "training"))
    import pictures
    import words

    yield SimpleNamespace(pictures=pictures, words=words)
    sys.path.remove(str(minigemma.TINY.parent / "training"))


@pytest.fixture(scope="module")
def fast():
    return transformers.AutoTokenizer.from_pretrained(DIRECTORY)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_two_hundred_greedy_tokens_are_transformers_greedy_tokens_and_their_logits_agree(prompt, ours, theirs):
    """transformers reads the whole text at once: where it would always have chosen our next token, it generates it."""
    ids = ours.tokenizer.encode(prompt)
    text = [*ids, *(token for token, _ in generate_ids(ours, ids, 200, temperature=0.0))]
    with torch.no_grad():
        expected = theirs(torch.tensor(text)[None], use_cache=False).logits[0].numpy()
    assert text[len(ids) :] == expected[len(ids) - 1 : -1].argmax(-1).tolist()
    logits, _ = ours(text)
    assert np.abs(logits - expected).max() < 1e-4


def test_transformers_own_generate_gives_our_greedy_tokens(ours, theirs):
    ids = ours.tokenizer.encode(PROMPTS[0])
    generated = theirs.generate(torch.tensor(ids)[None], max_new_tokens=200, do_sample=False, eos_token_id=None)
    assert generated[0, len(ids) :].tolist() == [token for token, _ in generate_ids(ours, ids, 200, temperature=0.0)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_that_are_converted_at_load_give_the_same_logits(dtype, ours, theirs):
    ids = ours.tokenizer.encode(" ".join(PROMPTS))
    logits, _ = minigemma.load(DIRECTORY, dtype=dtype)(ids)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)[None], use_cache=False).logits[0].numpy()
    assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_ids_that_transformers_gives_it(text, ours, fast):
    expected = fast.encode(text, add_special_tokens=False)
    assert ours.tokenizer.encode(text, bos=False, special=True) == expected
    plain = fast.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ours.tokenizer.encode(text, bos=False) == plain, "text that looks like a special token stays text"


@pytest.mark.parametrize("text", TEXTS)
def test_ids_become_the_text_that_transformers_makes_of_them(text, ours, fast):
    ids = ours.tokenizer.encode(text, special=True)
    assert ours.tokenizer.decode(ids) == fast.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", [*PROMPTS, "", " one in front", "<|turn> typed"])
def test_a_plain_text_begins_with_one_bos_in_transformers_and_here(text, ours, fast):
    ids = ours.tokenizer.encode(text, special=True)
    assert fast(text).input_ids == ids
    assert ids.count(fast.bos_token_id) == 1


@pytest.fixture(scope="module")
def template():
    """The template of this repository, whichever directory is tested."""
    return transformers.AutoTokenizer.from_pretrained(minigemma.TINY)


def test_transformers_knows_the_special_tokens(fast):
    added = {token.content for token in fast.added_tokens_decoder.values() if token.special}
    assert set(fast.all_special_tokens) == {token for token in added if not token.startswith("<unused")}


CONVERSATION = [
    {"role": "system", "content": "Answer in one word. "},
    {"role": "user", "content": "Tom put the kite in the barn.\nWhere is the kite?"},
    {"role": "assistant", "content": "The barn."},
    {"role": "user", "content": " And who put it there? "},
]


@pytest.mark.parametrize("messages", [CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2]], ids=["system", "user", "one"])
def test_the_chat_template_gives_the_ids_of_our_chat_with_one_bos(messages, ours, fast):
    ids = fast.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.chat_ids(messages) == ids
    assert ids.count(fast.bos_token_id) == 1


GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "turns.json").read_text(encoding="utf-8"))
PARTS = {"video", "image_url", "input_audio"}


def supported(conversation):
    """Whether the tiny weights' template can write it: no tools, no media but pictures and sounds."""
    parts = [part for m in conversation["messages"] if isinstance(m.get("content"), list) for part in m["content"]]
    fields = {field for message in conversation["messages"] for field in message}
    return not (
        conversation.get("tools") or fields & {"tool_calls", "tool_responses"} or PARTS & {p["type"] for p in parts}
    )


@pytest.mark.parametrize("conversation", GOLDENS["conversations"], ids=lambda one: one["name"])
def test_the_chat_template_writes_what_googles_newest_writes_or_refuses(template, conversation):
    options = conversation["options"]

    def rendered():
        return template.apply_chat_template(
            conversation["messages"], tools=conversation.get("tools"), tokenize=False,
            add_generation_prompt=options["cue"], enable_thinking=options["think"],
        )  # fmt: skip

    if supported(conversation):
        assert rendered() == conversation["newest"]
        pieces = render(conversation["messages"], None, options["think"], small=True, cue=options["cue"])
        assert "".join(pieces) == rendered()
    else:
        with pytest.raises(Exception, match=r"not trained to call tools|takes text, pictures and sounds"):
            rendered()


def test_the_chat_template_asks_for_a_thought_in_the_system_turn(template):
    for messages, text in ((CONVERSATION[:2], "Answer in one word."), (CONVERSATION[1:2], "")):
        rendered = template.apply_chat_template(messages, tokenize=False, enable_thinking=True)
        assert rendered.startswith(f"<bos><|turn>system\n<|think|>\n{text}<turn|>\n<|turn>user\nTom")


def test_the_chat_template_leaves_out_an_earlier_thought_and_joins_model_messages(template):
    thought = {"role": "assistant", "content": "<|channel>thought\nA barn.<channel|> The barn."}
    rendered = template.apply_chat_template([*CONVERSATION[:2], thought, CONVERSATION[2]], tokenize=False)
    assert rendered.endswith("kite?<turn|>\n<|turn>model\nThe barn.The barn.<turn|>\n")


def test_the_chat_template_refuses_what_this_model_cannot_read(template):
    video = [{"role": "user", "content": [{"type": "video", "video": "x.gif"}]}]
    for messages, options, words in (
        (video, {}, "no video"),
        ([{"role": "tool", "content": "x"}], {}, "not tool"),
        (CONVERSATION, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ):
        with pytest.raises(Exception, match=words):
            template.apply_chat_template(messages, tokenize=False, **options)


def test_the_answers_about_a_hundred_pictures_are_transformers_greedy_answers(ours, programs):
    """transformers prepares the pixels too. As above, it reads prompt and answer at once."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    processor = Gemma4ImageProcessorPil.from_pretrained(DIRECTORY)  # processor_config.json
    seeing, info = transformers.Gemma4ForConditionalGeneration.from_pretrained(
        DIRECTORY, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert {name: found for name, found in info.items() if found} == {}, "missing, unexpected or misshapen tensors"
    for number in range(100):
        drawn = programs.pictures.picture("heldout", number)
        question, _ = drawn.questions[number % len(drawn.questions)]
        content = [{"type": "image", "image": drawn.image}, {"type": "text", "text": question}]
        ids = ours.chat_ids([{"role": "user", "content": content}])
        where = np.flatnonzero(np.array(ids) == ours.config.image_token_id)
        drawn_ids = generate_ids(ours, ids, 12, temperature=0.0, soft_tokens=(where, ours.see(drawn.image)))
        text = [*ids, *(token for token, _ in drawn_ids)]
        pixels = processor(Image.fromarray(drawn.image), return_tensors="pt")
        del pixels["num_soft_tokens_per_image"]
        with torch.no_grad():
            expected = seeing(input_ids=torch.tensor(text)[None], use_cache=False, **pixels).logits[0]
        assert text[len(ids) :] == expected[len(ids) - 1 : -1].argmax(-1).tolist(), (number, question)


def test_the_answers_about_the_clips_are_transformers_greedy_answers(ours, programs):
    """transformers makes the log mel too. As above, it reads prompt and answer at once."""
    hearing = transformers.Gemma4ForConditionalGeneration.from_pretrained(
        DIRECTORY, attn_implementation="eager", dtype=torch.float32
    )
    extractor = transformers.Gemma4AudioFeatureExtractor.from_pretrained(DIRECTORY)  # processor_config.json
    names, rng = [word for _, word in programs.words.SPOKEN], np.random.default_rng(0)
    for path, form in itertools.product(sorted(DIRECTORY.glob("*.wav")), programs.words.FORMS):
        samples, soft = read_sound(path), ours.hear(path)
        before, behind, _ = programs.words.question(names.index(path.stem), form, rng)
        prompt = f"{before}<|audio>{'<|audio|>' * len(soft)}<audio|>{behind}"
        ids = ours.tokenizer.encode(prompt, special=True)
        where = np.flatnonzero(np.array(ids) == ours.config.audio_token_id)
        text = [*ids, *(token for token, _ in generate_ids(ours, ids, 12, temperature=0.0, soft_tokens=(where, soft)))]
        with torch.no_grad():
            given = extractor([samples], return_tensors="pt")
            expected = hearing(input_ids=torch.tensor(text)[None], use_cache=False, **given).logits[0]
        assert text[len(ids) :] == expected[len(ids) - 1 : -1].argmax(-1).tolist(), (path, form)


def test_transformers_has_the_same_loss_on_held_out_texts(ours, theirs, fast):
    """The first texts; over all of texts.jsonl see weights/README.md."""
    lines = (minigemma.TINY.parent / "texts.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    found = {"ours": [], "theirs": []}
    for text in (json.loads(line)["text"] for line in lines):
        ids = fast(text).input_ids
        with torch.no_grad():
            logits = theirs(torch.tensor(ids)[None], use_cache=False).logits[0].numpy()
        found["theirs"].append(token_losses(logits, ids))
        ids = ours.tokenizer.encode(text)
        found["ours"].append(token_losses(ours(ids)[0], ids))
    losses = {name: np.concatenate(each).mean() for name, each in found.items()}
    assert abs(losses["ours"] - losses["theirs"]) < 1e-4, losses
