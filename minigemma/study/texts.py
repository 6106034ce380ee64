"""Texts to measure: a file of them -> ids, with the senses of labelled words."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import Error


# ------------------------------------------------------------------------------------------------------------- texts
@dataclass(frozen=True, eq=False)
class Document:
    """A text as ids, and the senses of its labelled words at the last token of each."""

    ids: np.ndarray  # [T]
    senses: dict  # position -> (word, sense)


def read_texts(path):
    """A file of texts -> [{"text": ..., "senses": [[start, end, word, sense], ...]}].

    `.jsonl`: one JSON object a line, senses (characters of the text) where there are any. Anything else: plain text,
    documents separated by blank lines.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Error(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise Error(f"{path}: not a readable UTF-8 file ({error})") from None
    if path.suffix == ".jsonl":
        lines = enumerate(content.split("\n"), 1)
        texts = [_from_json(line, f"{path}, line {i}") for i, line in lines if line.strip()]
    else:
        texts = [{"text": text.strip(), "senses": []} for text in re.split(r"\n\s*\n", content) if text.strip()]
    if not texts:
        raise Error(f"{path}: holds no text")
    return texts


def _from_json(line, where):
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Error(f"{where}: not JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("text"), str) or not data["text"]:
        raise Error(f'{where}: expected an object with a "text"')
    senses = data.get("senses", [])
    for label in senses if isinstance(senses, list) else [senses]:
        fits = isinstance(label, list) and [type(part) for part in label] == [int, int, str, str]
        if not fits or not 0 <= label[0] < label[1] <= len(data["text"]):
            raise Error(f'{where}: a sense must be [start, end, "word", "sense"] within the text, not {label!r}')
    return {"text": data["text"], "senses": senses}


def documents(tokenizer, texts, length):
    """Texts as ids, <bos> in front, cut to `length` tokens; texts of under 4 tokens are left out."""
    found = []
    for text in texts:
        ids = tokenizer.encode(text["text"])[:length]
        ends = token_ends(tokenizer, ids, text["text"]) if text["senses"] else []
        senses = {}
        for _, end, word, sense in text["senses"]:
            position = int(np.searchsorted(ends, len(text["text"][:end].encode())))
            if position < len(ids):
                senses[position] = (word, sense)
        if len(ids) >= 4:
            found.append(Document(np.array(ids), senses))
    if not found:
        raise Error("every text is shorter than 4 tokens, so there is nothing to measure; give longer ones (--texts)")
    return found


def token_ends(tokenizer, ids, text):
    """Where in the text's UTF-8 bytes each token ends, [T]: from the tokens' own text, with "▁" for a space."""
    pieces = []
    for id in ids:
        piece = tokenizer.token(id)
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        pieces.append(bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode())
    if len(ids) and ids[0] == tokenizer.bos:
        pieces[0] = b""
    if not text.replace("▁", " ").encode().startswith(b"".join(pieces)):
        raise Error(f"the tokens of {text[:40]!r} do not spell it, so its sense labels have no place; use one without")
    return np.cumsum([len(piece) for piece in pieces])
