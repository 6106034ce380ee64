"""Text <-> ids, on top of the tokenizers library.

Gemma 4's tokenizer does not add <bos>: `encode` puts exactly one in front. Text that only looks like a special token
("<turn|>" typed by a user) stays text, unless `special=True` asks for the token.
"""

import codecs
import re
from pathlib import Path

from .errors import Error
from .files import check_file
from .gguf import is_gguf, vocabulary

LARGEST = 256 * 2**20  # bytes of a tokenizer.json; Gemma 4's has 32 MB
BYTE = re.compile("<0x([0-9A-F]{2})>")  # a token that is one byte of a character
INVALID, UTF8 = "\ufffd", codecs.getincrementaldecoder("utf-8")
LONGEST_HELD = 8  # ids that wait for the rest of a character, in tokenizers without byte tokens; a character is 4 bytes


class Mark(str):
    """A special token, by its name. In a conversation, every other str is text, whatever it looks like."""


BOS, EOS, TURN, END_OF_TURN, THINK = map(Mark, ("<bos>", "<eos>", "<|turn>", "<turn|>", "<|think|>"))
CHANNEL, END_OF_CHANNEL, TOOL, END_OF_TOOL = map(Mark, ("<|channel>", "<channel|>", "<|tool>", "<tool|>"))
CALL, END_OF_CALL, QUOTE = map(Mark, ("<|tool_call>", "<tool_call|>", '<|"|>'))
REPLY, END_OF_REPLY = map(Mark, ("<|tool_response>", "<tool_response|>"))
IMAGE, AUDIO, VIDEO = map(Mark, ("<|image|>", "<|audio|>", "<|video|>"))
START_OF_IMAGE, END_OF_IMAGE = map(Mark, ("<|image>", "<image|>"))
START_OF_AUDIO, END_OF_AUDIO = map(Mark, ("<|audio>", "<audio|>"))
MARKS = [BOS, EOS, TURN, END_OF_TURN, THINK, CHANNEL, END_OF_CHANNEL, TOOL, END_OF_TOOL, CALL, END_OF_CALL, QUOTE]
MARKS += [REPLY, END_OF_REPLY, IMAGE, AUDIO, VIDEO]


class Tokenizer:
    """A tokenizer.json, or the tokens and merges of a GGUF file.

    marks: id -> Mark; bos: the id of <bos>, None if there is none.
    """

    def __init__(self, path):
        import tokenizers

        if is_gguf(path):
            held = vocabulary(path)
        else:
            check_file(path, LARGEST)
            held = Path(path).read_bytes()
        try:
            self._text = _from_gguf(*held) if is_gguf(path) else tokenizers.Tokenizer.from_str(held.decode())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and where its Rust panics not even that
            raise Error(f"{path}: the tokenizers library cannot read this tokenizer ({error})") from None
        self._text.no_truncation()  # a tokenizer.json may ask for both; a prompt stays as it was written
        self._text.no_padding()
        self.bos, self.marks = self.id(BOS), {self.id(mark): mark for mark in MARKS}

    def __len__(self):
        return self._text.get_vocab_size()

    def id(self, token):
        """The id of a token, None if the vocabulary lacks it."""
        return self._text.token_to_id(token)

    def token(self, id):
        """The vocabulary's text of one id, for the axes of figures; <id> if the vocabulary lacks it."""
        return self._text.id_to_token(int(id)) or f"<{id}>"

    def encode(self, text, bos=True, special=False):
        """text -> ids, with exactly one <bos> in front if `bos`. Raises Error if `text` is not valid Unicode text."""
        if not isinstance(text, str):
            raise Error(f"the text must be a str, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Error(
                f"the text holds lone surrogates (bytes that are not UTF-8) at character {error.start}; remove them"
            ) from None
        self._text.encode_special_tokens = not special
        ids = self._text.encode(text, add_special_tokens=False).ids
        if not special and (wrong := self.marks.keys() & set(ids)):
            raise Error(f"this tokenizer.json turns plain text into {self.marks[wrong.pop()]}; do not trust it")
        if bos and self.bos is not None and ids[:1] != [self.bos]:
            ids = [self.bos, *ids]
        return ids

    def decode(self, ids):
        """ids -> text, without the special tokens. Raises Error if `ids` is not a list of whole numbers from 0."""
        try:
            return self._text.decode([int(id) for id in ids], skip_special_tokens=True)
        except (TypeError, ValueError, OverflowError):
            raise Error(f"the ids must be a list of whole numbers from 0, not {ids!r}") from None

    def stream(self, ids):
        """ids, one by one -> pieces of text that join to `decode` of all ids. No piece ends inside a character.

        A run of byte tokens (<0xF0>) is held until it ends: one invalid byte turns every byte of the run into U+FFFD.
        From that byte on the run is known to be invalid and is given at once. The work is linear in the number of ids.
        """
        special = {id for id, token in self._text.get_added_tokens_decoder().items() if token.special}
        before, held = [], []  # the ids of the last piece; ids whose text is not given yet
        run, invalid = UTF8(), False  # reads a run of byte tokens
        for id in map(int, ids):
            token = self._text.id_to_token(id)
            if token is None or id in special:
                continue
            held.append(id)
            byte = BYTE.fullmatch(token)
            if byte and self.decode([id]) != token:  # the decoder makes bytes of byte tokens
                try:
                    run.decode(bytes.fromhex(byte[1]))
                except UnicodeDecodeError:
                    invalid = True
                if invalid:
                    yield INVALID * len(held)
                    held = []
                continue
            text = self._text_after(before, held)
            if (text and not text.endswith(INVALID)) or len(held) > LONGEST_HELD:
                yield text
                before, held = held, []
            run, invalid = UTF8(), False
        if held and (rest := self._text_after(before, held)):
            yield rest

    def _text_after(self, before, held):
        """The text of `held` where it follows `before`: some decoders treat the first token of a text differently."""
        return self.decode(before + held)[len(self.decode(before)) :]


def _from_gguf(tokens, kinds, merges):
    """`vocabulary` of a GGUF file -> a tokenizer of the library, with the rules of Gemma 4's tokenizer.json."""
    import tokenizers

    ids, space = {token: i for i, token in enumerate(tokens)}, "\u2581"
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = tokenizers.normalizers.Replace(" ", space)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_tokens([
        tokenizers.AddedToken(token, special=kind == 3 or token in MARKS, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (3, 4)  # control tokens, and tokens of the model's authors: llama.cpp gives some marks this kind
    ])  # fmt: skip
    return made
