"""The course reads easily: its sentences are short. Code, formulas and tables are left out."""

import json
import re

import pytest
from notebook_runs import FOLDER, NOTEBOOKS

TEXTS = [*NOTEBOOKS, *sorted((FOLDER / "lectures").glob("session_*.ipynb")), FOLDER / "lectures" / "misconceptions.md"]
MEAN, LONGEST = 16, 32  # words
LEFT_OUT = r"```.*?```|\$\$.*?\$\$|^\|.*?$|^#+ .*?$|</?\w+>|^\*\*Exercise [^)]*\)"

TERMS = {  # the notebook that explains a term -> the terms
    "00": "weights, tokens, parameters, multiply-add, layers, window, sliding, global, RoPE, key, value, KV cache, "
    "prompt, embedding, PLE, float32, mantissa, bfloat16, float16, pass, tokenizer, logits, vocabulary, softmax, "
    "surprise, loss, held-out, tap, residual stream, hidden state, attention, MLP, layer scalar, checkpoint, head, "
    "query, greedy",
    "01": "special tokens, transformers, projection, normed, RMSNorm, cosine, GELU, gate, twin",
    "02": "root mean square, frequency, engine, port",
    "03": "grouped queries, mask, attention sink",
    "04": "donor, prefill, stem, activations",
    "05": "mixture of experts, expert, router, softcap, branches",
    "06": "logit lens, sampling, temperature, top-k, top-p",
}


def sentences(text):
    """The sentences of a text in Markdown. A formula or a piece of code inside one counts as a word."""
    text = re.sub(LEFT_OUT, "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$[^$\n]+\$|`[^`\n]+`", "Code", text)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)  # a link is its text
    found = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        for sentence in re.split(r"(?<=[.!?:])[\"'*_)]*\s+(?=[\"'*_(]*[A-Z0-9\[])|(?<=:)\s*$", " ".join(block.split())):
            words = [word for word in sentence.split() if re.search(r"\w", word)]
            if len(words) > 1:
                found.append(" ".join(words))
    return found


def text_of(path):
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_a_sentence_ends_at_its_stop_and_a_formula_is_one_word():
    text = (
        "One two, $a + b$ three. Four `x = 1` five? (See [the model](model.py).)\n\n| a | b |\n\n- six seven\n- eight"
    )
    assert [len(sentence.split()) for sentence in sentences(text)] == [4, 3, 3, 2]


def first_use(term):
    """The notebook that uses a term first, such as "03", and whether it stands in italics there."""
    for path in NOTEBOOKS:
        text = re.sub(LEFT_OUT, "", text_of(path), flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"\$[^$\n]+\$|`[^`\n]+`|!?\[[^]]*\]\([^)]*\)", "Code", text)
        if found := re.search(rf"(?<![\w-]){term}", text, re.IGNORECASE):
            emphasised = re.finditer(r"(\*{1,2})[^*\n]+\1", text)
            return path.name[:2], any(words.start() < found.start() < words.end() for words in emphasised)
    return None, False


@pytest.mark.parametrize("notebook", TERMS)
def test_a_term_is_explained_where_it_first_appears_in_italics(notebook):
    terms = TERMS[notebook].split(", ")
    assert {term: first_use(term) for term in terms} == {term: (notebook, True) for term in terms}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_notebook_has_short_sentences(path):
    found = sentences(text_of(path))
    lengths = [len(sentence.split()) for sentence in found]
    assert not [sentence for sentence in found if len(sentence.split()) > LONGEST]
    assert sum(lengths) / len(lengths) < MEAN
