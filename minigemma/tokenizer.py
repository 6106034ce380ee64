"""Text <-> ids, and chat turns, on top of the tokenizers library.

Gemma 4's tokenizer adds no <bos> by itself: here `encode` puts exactly one in front. Text that merely looks like a
special token ("<turn|>" typed by a user) stays text unless `special=True` asks for the token.
"""

from pathlib import Path

from .errors import Error
from .files import check_file

LARGEST = 256 * 2**20  # bytes of a tokenizer.json; Gemma 4's has 32 MB
BOS, TURN, END_OF_TURN = "<bos>", "<|turn>", "<turn|>"
ROLES = {"system": "system", "user": "user", "assistant": "model", "model": "model"}


class Tokenizer:
    """The tokenizer.json of a checkpoint directory."""

    def __init__(self, path):
        import tokenizers

        check_file(path, LARGEST)
        try:
            self._text = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and where its Rust panics not even that
            raise Error(f"{path}: not a tokenizer.json that the tokenizers library reads ({error})") from None
        self._text.no_truncation()  # a prompt is never cut or filled up behind its writer's back
        self._text.no_padding()
        self.bos, self._turn, self._end_of_turn = (self.id(token) for token in (BOS, TURN, END_OF_TURN))

    def __len__(self):
        return self._text.get_vocab_size()

    def id(self, token):
        """The id of one token of the vocabulary, None where it has none."""
        return self._text.token_to_id(token)

    def token(self, id):
        """The vocabulary's text of one id, as the axes of figures show it; <id> where a model has more ids than it."""
        return self._text.id_to_token(int(id)) or f"<{id}>"

    def encode(self, text, bos=True, special=False):
        """text -> ids, with exactly one <bos> in front if `bos`."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Error("the text holds lone surrogates, which no encoding of it has; remove them") from None
        self._text.encode_special_tokens = not special
        ids = self._text.encode(text, add_special_tokens=False).ids
        if not special and not {self.bos, self._turn, self._end_of_turn}.isdisjoint(ids):
            raise Error(f"this tokenizer.json makes {BOS}, {TURN} or {END_OF_TURN} of plain text; do not trust it")
        if bos and self.bos is not None and ids[:1] != [self.bos]:
            ids = [self.bos, *ids]
        return ids

    def decode(self, ids):
        """ids -> text, special tokens left out."""
        return self._text.decode([int(id) for id in ids], skip_special_tokens=True)

    def stream(self, ids):
        """ids, one by one -> pieces of text, none of which ends inside a character."""
        from tokenizers.decoders import DecodeStream

        stream, held = DecodeStream(skip_special_tokens=True), []
        for id in ids:
            piece = stream.step(self._text, int(id))
            held = [*held, id] if piece is None else []
            if piece:
                yield piece
        if held and (rest := self.decode(held)):  # bytes that never became a character: shown as the library shows them
            yield rest

    def open_turn(self, role, text=""):
        """<|turn>role, a newline and the text. Without text it is what makes the model speak."""
        if self._turn is None or self._end_of_turn is None:
            raise Error(f"this tokenizer has no {TURN} and {END_OF_TURN} tokens, so it cannot chat; use generate")
        if role not in ROLES:
            raise Error(f"role {role!r} is none of {', '.join(ROLES)}")
        return [self._turn, *self.encode(f"{ROLES[role]}\n{text.strip()}", bos=False)]

    def close_turn(self):
        """<turn|> and a newline."""
        return [self._end_of_turn, *self.encode("\n", bos=False)]

    def chat(self, messages):
        """[{"role": "user", "content": ...}, ...] -> ids, ending where the model is to answer.

        <bos><|turn>user\\n{text}<turn|>\\n<|turn>model\\n, the format of the -it models' own template.
        """
        ids = [] if self.bos is None else [self.bos]
        for message in messages:
            if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
                raise Error(f"a message is an object with a role and a content, both text, not {message!r}")
            ids += self.open_turn(message["role"], message["content"]) + self.close_turn()
        return ids + self.open_turn("model")
