"""Texts to measure: a file -> texts -> token ids, with the senses of labelled words."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import Error
from ..files import read_text
from ..tokenizer import BYTE


# ------------------------------------------------------------------------------------------------------------- texts
@dataclass(frozen=True, eq=False)
class Document:
    """A text as token ids. The sense of a labelled word belongs to the word's last token."""

    ids: np.ndarray  # [T]
    senses: dict  # position -> (word, sense)


def read_texts(path):
    """A file of texts -> [{"text": ..., "senses": [[start, end, word, sense], ...]}].

    `.jsonl`: one JSON object per line; "senses" is optional, and start and end count characters of the text. Any other
    file: plain text, with blank lines between texts. Raises Error where the file is missing, empty or malformed.
    """
    path = Path(path)
    try:
        content = read_text(path)
    except FileNotFoundError:
        raise Error(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise Error(f"{path}: not a readable text in UTF-8 ({error})") from None
    if path.suffix == ".jsonl":
        lines = enumerate(content.split("\n"), 1)
        texts = [_from_json(line, f"{path}, line {i}") for i, line in lines if line.strip()]
    else:
        texts = [{"text": text.strip(), "senses": []} for text in re.split(r"\n\s*\n", content) if text.strip()]
    if not texts:
        raise Error(f"{path}: the file has no text in it")
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
    """Texts as token ids: <bos> first, cut to `length` tokens. Texts of fewer than 4 tokens are left out.

    Raises Error if no text is left.
    """
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
        raise Error("every text is shorter than 4 tokens; give longer texts (--texts)")
    return found


def token_ends(tokenizer, ids, text):
    """The byte of the text (UTF-8) at which each token ends, [T]. In a token's text "▁" is a space.

    Raises Error if the tokens joined together are not the text.
    """
    pieces = []
    for id in ids:
        piece = tokenizer.token(id)
        byte = BYTE.fullmatch(piece)
        pieces.append(bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode())
    if len(ids) and ids[0] == tokenizer.bos:
        pieces[0] = b""
    if not text.replace("▁", " ").encode().startswith(b"".join(pieces)):
        raise Error(f"the tokens of {text[:40]!r} do not join to that text; remove its 'senses'")
    return np.cumsum([len(piece) for piece in pieces])
