"""The trained weights of this repository mean the same to transformers: same tokens, same ids, same logits.

MINIGEMMA_WEIGHTS names another directory to test, as it does for the program.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

import minigemma
from minigemma import generate_ids

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
    model, info = transformers.Gemma4ForCausalLM.from_pretrained(
        DIRECTORY, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert {name: found for name, found in info.items() if found} == {}, "missing, unexpected or misshapen tensors"
    return model.eval()


@pytest.fixture(scope="module")
def fast():
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(DIRECTORY / "tokenizer.json"))


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
