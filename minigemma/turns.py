"""Conversations -> ids, and ids -> thought, answer and calls: the format of the -it checkpoints.

A whole conversation, with thinking on and one tool; <..> are special tokens, one id each, and the rest is text:

    <bos><|turn>system
    <|think|>
    Be brief.<|tool>declaration:now{description:<|"|>Tell the time<|"|>}<tool|><turn|>
    <|turn>user
    What time is it?<turn|>
    <|turn>model
    <|channel>thought
    I need a clock.
    <channel|><|tool_call>call:now{}<tool_call|>                                  the model stops, the tool runs
    <|tool_response>response:now{value:<|"|>09:00<|"|>}<tool_response|>           our reply, in the same turn
    It is nine.<turn|>
    <|turn>user
    Thanks.<turn|>
    <|turn>model

(There are no line breaks around calls and replies; here they keep the lines short.) The last line is the cue: the model
speaks next. Thoughts are removed once the user speaks again. A string of a tool, a call or a reply stands between two
<|"|> tokens and needs no escapes, because text never becomes a special token: `render` keeps the two apart.

Two forms exist. The newest is that of Google's chat template published on 2026-07-09; `release=True` gives the one of
2026-04-02. Their rules are followed to the letter, and tested against both; no template of a checkpoint is executed.
One difference is known, in the release form: a model's text of only spaces beside its tool_responses.
"""

import json
import re
from dataclasses import dataclass
from itertools import groupby, starmap
from pathlib import Path

from .errors import Error
from .files import check_file, read_text, without_repeats
from .media import KINDS, Media, lay_out, make_prompt
from .messages import SCHEMA_SHAPE, TOOL_SHAPE, Message, check, check_json, checked_messages
from .tokenizer import (
    BOS, CALL, CHANNEL, END_OF_CALL, END_OF_CHANNEL, END_OF_REPLY, END_OF_TOOL, END_OF_TURN, EOS, MARKS, QUOTE, REPLY,
    THINK, TOOL, TURN, Mark,
)  # fmt: skip


ENDS = {END_OF_TURN, REPLY, EOS}  # what ends an answer: its turn, a call that waits for the reply, the text

NAME = "thought"  # of the only channel
SCHEMA_WORDS = {"description", "type", "properties", "required", "nullable"}
LARGEST_TEMPLATE = 2**20  # bytes of a chat_template.jinja; Google's has 18,000


# Messages -> pieces -> ids


def render(messages, tools=None, think=False, *, small, cue=True, keep_thoughts=False, release=False):
    """A conversation -> pieces, each a Mark or text; `to_ids` makes ids of them.

    messages: [{"role": ..., "content": text or parts}, ...]. Roles: system, developer, user, assistant or model, tool.
    Parts: {"type": "text", "text": ...}; {"type": "image", "image": a path or an array}, likewise "audio" and "video";
    and {"type": "image"} alone. Each of these is one placeholder, a Media where its source is known. A model's message
    may have "tool_calls" and "reasoning" (its thought). The replies follow it as messages of role tool, or they are its
    "tool_responses". tools: [{"type": "function", "function": {...}}, ...]. small: whether the cue is
    that of E2B and E4B, see `small_cue`. keep_thoughts: keep the thoughts before the calls of earlier turns, too.
    Raises Error for what the format cannot express.
    """
    messages = checked_messages(messages, release)
    system = [messages.pop(0)] if messages[0].role == "system" else []
    pieces = [BOS]

    # The system turn: thinking on, the system message, the tools.
    if system or tools or think:
        pieces += [TURN, "system\n"]
        if think:
            pieces += [THINK] if release else [THINK, "\n"]
        for message in system:
            pieces += _text(message, release, space=" " * message.in_parts)
        for tool in check(tools or [], [TOOL_SHAPE], "tool"):
            pieces += [TOOL, *_declaration(tool["function"], release), END_OF_TOOL]
        pieces += [END_OF_TURN, "\n"]

    # The turns. Messages of the model that follow one another are one turn, with their calls and the replies inside.
    last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    nobody = Message(role=None)
    for i, message in enumerate(messages):
        before, after = messages[i - 1] if i else nobody, messages[i + 1] if i + 1 < len(messages) else nobody
        joins = message.role == "model" and not release
        if not (joins and before.role == "model"):
            pieces += [TURN, f"{message.role}\n"]
        if message.thought and not release and (i > last_user or (keep_thoughts and message.calls)):
            pieces += [CHANNEL, f"{NAME}\n{message.thought}\n", END_OF_CHANNEL]
        for name, arguments in message.calls:
            written = ["{", arguments, "}"] if isinstance(arguments, str) else _value(arguments, release)
            pieces += [CALL, f"call:{name}", *written, END_OF_CALL]
        for name, response, media in message.replies:
            fields = response if isinstance(response, dict) else {"value": response}
            pieces += [REPLY, f"response:{name}", *_value(fields, release), END_OF_REPLY, *starmap(_place, media)]
        pieces += (text := _text(message, release))
        if message.calls and not message.replies and not release:
            pieces.append(REPLY)  # the model wrote it to stop; the reply is still to come
        elif message.replies and not text and (release or after is nobody):
            pass  # the model goes on from the reply
        elif not (joins and after.role == "model"):
            pieces += [END_OF_TURN, "\n"]

    # The cue: the model speaks next, in a new turn or in the one that a reply left open.
    last = messages[-1] if messages else nobody
    if cue:
        in_turn = last.replies or (last.calls and not release)
        if not in_turn:
            pieces += [TURN, "model\n"]
        if think and last.replies and not release:
            pieces += [CHANNEL, f"{NAME}\n"]
        if not think and not small and (release or not in_turn):
            pieces += [CHANNEL, f"{NAME}\n", END_OF_CHANNEL]  # an empty thought: 12B, 26B-A4B and 31B answer at once
    return pieces


def _text(message, release, space=""):
    """The content of a message -> pieces. Every text is trimmed, and a model's text loses its thoughts.

    space: what follows each text; the first system message has a space behind each of its parts.
    """
    pieces = []
    for kind, value in message.content:
        if kind == "text":
            kept = [part.partition(CHANNEL)[0] for part in value.split(END_OF_CHANNEL)]
            pieces.append(("".join(kept) if message.role == "model" else value).strip() + space)
        elif release and kind != "audio":
            pieces += ["\n\n", _place(kind, value), "\n\n"]
        else:
            pieces.append(_place(kind, value))
    return [piece for piece in pieces if piece]


def _place(kind, source):
    """The placeholder of a medium: a Media where its source is known."""
    return KINDS[kind].mark if source is None else Media(kind, source)


def to_ids(pieces, tokenizer, special=False):
    """Pieces -> ids: marks by their name, text as text. Raises Error where the vocabulary lacks such a token.

    special: names of special tokens in the text become these tokens; only for a prompt that somebody wrote so.
    """
    ids = []
    for is_mark, run in groupby(pieces, lambda piece: isinstance(piece, Mark)):
        for piece in run if is_mark else ["".join(run)]:
            new = [tokenizer.id(piece)] if is_mark else tokenizer.encode(piece, bos=False, special=special)
            if new == [None]:
                raise Error(f"this tokenizer has no {piece} token; use the tokenizer.json of an -it checkpoint")
            ids += new * getattr(piece, "times", 1)
    return ids


def to_prompt(pieces, tokenizer, config, budget=None, special=False):
    """Pieces -> Prompt: their ids, and what the soft tokens of their media are made of. Raises Error as lay_out does.

    budget: the most soft tokens of a picture.
    """
    pieces = lay_out(pieces, config, budget)
    return make_prompt(pieces, to_ids(pieces, tokenizer, special), config)


def raw_pieces(parts):
    """Parts as a message has them -> pieces without turns, to be continued. Their text is not trimmed."""
    content = checked_messages([{"role": "user", "content": parts}])[0].content
    return [value if kind == "text" else _place(kind, value) for kind, value in content]


def spelled(ids, tokenizer, coloured=False):
    """ids -> text: each id with its token, and a new line behind each line break of the conversation.

    An id that stands several times in a row is written once, with their number: a picture has hundreds.

    coloured: special tokens in blue, ids dim, by ANSI codes for a terminal.
    """
    dim, blue, plain = ("\x1b[2m", "\x1b[1;34m", "\x1b[0m") if coloured else ("", "", "")
    text = ""
    for id, run in groupby(ids):
        token, times = tokenizer.token(id), len([*run])
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
        shown += f" x {times}" * (times > 1)
        text += f"{dim}{id}{plain} {blue if token in MARKS else ''}{shown}{plain}"
        text += "\n" if token.endswith("\n") else "  "
    return text.rstrip()


def small_cue(config, template=None):
    """Whether the cue is that of E2B and E4B, without the closed empty thought of the larger models.

    template: the text of the checkpoint's chat_template.jinja. It is read, never executed: what is written at its end
    decides. Without one, per-layer embeddings decide: exactly E2B and E4B have them.
    """
    if template is None:
        return config.hidden_size_per_layer_input > 0
    cue = template.rpartition("add_generation_prompt")[2]
    return re.search(r"<\|channel>thought(\\n|\n)<channel\|>", cue) is None


def read_template(directory):
    """The text of a directory's chat_template.jinja, or None. Raises Error if it is not text."""
    path = Path(directory) / "chat_template.jinja"
    if not path.exists():
        return None
    check_file(path, LARGEST_TEMPLATE)
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise Error(f"{path}: not a readable template ({error}); download it again") from None


# Tools, calls and replies: JSON with bare keys, and strings between two <|"|>

ORDER = ("description", "parameters", "response", "enum", "items", "nullable", "properties", "required", "type")
RELEASE_ORDER = ("description", "nullable", "enum", "properties", "required", "items", "type")


def _value(x, release=False, quote=()):
    """JSON -> pieces, keys sorted without case. quote: what stands around keys."""
    if isinstance(x, dict):
        fields = {key: _value(value, release, quote) for key, value in x.items()}
        return _braces([[*quote, key, *quote, ":", *fields[key]] for key in sorted(fields, key=str.lower)])
    if isinstance(x, list | tuple):
        return _braces([_value(value, release, quote) for value in x], "[]")
    if isinstance(x, str):
        return [QUOTE, x, QUOTE]
    if x is None:
        return ["None" if release else "null"]
    return [str(x).lower()]  # true, false, and numbers as Python prints them


def _braces(fields, braces="{}"):
    """[pieces, ...] -> pieces: commas between them, braces around them."""
    return [braces[0], *(piece for i, one in enumerate(fields) for piece in ([","] * (i > 0) + one)), braces[1]]


def _fields(fields, order=ORDER):
    """{key: pieces} -> [key: and its pieces, ...]"""
    return [[f"{key}:", *fields[key]] for key in order if key in fields]


def _declaration(function, release):
    """declaration:NAME{description:..,parameters:{properties:{..},required:[..],type:..},response:{..}}"""
    fields = {"description": _value(function.get("description") or "")}
    if parameters := function.get("parameters"):
        inner = {"type": _type(parameters), **_given(parameters, "required")}
        if parameters.get("properties"):
            inner["properties"] = _properties(parameters["properties"], release)
        fields["parameters"] = _braces(_fields(inner))
    if response := function.get("response"):
        if _type(response)[1] != "OBJECT":  # Google's template leaves the braces of another type open
            raise Error(f"tool {function['name']}: its response must be of type object")
        fields["response"] = _braces(_fields({"type": _type(response), **_given(response, "description")}))
    return [f"declaration:{function['name']}", *_braces(_fields(fields))]


def _properties(schemas, release):
    """{NAME:{..},NAME:{..}}. The release form drops parameters that are named like a word of JSON Schema."""
    names = [name for name in sorted(schemas, key=str.lower) if not (release and name in SCHEMA_WORDS)]
    return _braces([[f"{name}:", *_schema(schemas[name], name, release)] for name in names])


def _schema(schema, name, release):
    """{description:..,enum:[..],items:{..},nullable:true,properties:{..},required:[..],type:..}, those that it has.

    Nothing else of JSON Schema is written, such as default, minimum or anyOf.
    """
    check(schema, SCHEMA_SHAPE, f"the parameter {name}")
    kind = str(schema.get("type", "")).upper()
    fields = {"type": _type(schema), **_given(schema, "description")}
    if schema.get("nullable"):
        fields["nullable"] = ["true"]
    if kind == "STRING":
        fields |= _given(schema, "enum")
    elif kind == "ARRAY" and isinstance(schema.get("items"), dict) and schema["items"]:
        fields["items"] = _items(schema["items"], release)
    elif kind == "OBJECT":
        properties = schema.get("properties")
        if properties is None:  # then every key that is not a word of JSON Schema counts as a property
            others = schema.keys() - SCHEMA_WORDS
            properties = {key: schema[key] if isinstance(schema[key], dict) else {} for key in others}
        fields |= {"properties": _properties(properties, release), **_given(schema, "required")}
    if not release:
        return _braces(_fields(fields))
    *before, last = _fields(fields, RELEASE_ORDER)
    if fields.keys().isdisjoint({"description", "nullable", "enum"}):  # then its commas are wrong
        return ["{", *(piece for one in before for piece in [",", *one]), *last, "}"]
    return _braces([*before, last])


def _items(schema, release):
    """The schema of a list's items. Here every key is written, and keys further inside stand between two <|"|>."""
    fields = {key: _value(value, release, [QUOTE]) for key, value in schema.items() if value is not None}
    if isinstance(schema.get("properties"), dict):
        fields["properties"] = _properties(schema["properties"], release)
    if isinstance(kind := schema.get("type"), str | list):
        fields["type"] = _value(kind.upper() if isinstance(kind, str) else [str(one).upper() for one in kind])
    return _braces(_fields(fields, sorted(fields, key=str.lower)))


def _given(schema, key):
    return {key: _value(schema[key], quote=[QUOTE])} if schema.get(key) else {}


def _type(schema):
    return [QUOTE, str(schema.get("type", "")).upper(), QUOTE]  # of several types: Python's print of the list


# Ids -> thought, answer and calls


@dataclass(frozen=True)
class Answer:
    """What a model wrote. thought: trimmed, None where there is none. calls: [{"name": ..., "arguments": {...}}, ...].

    notes: a sentence for everything that breaks the format. Only marks without a meaning are left out of the text.
    """

    thought: str | None
    text: str
    calls: list
    ids: list
    notes: list

    def messages(self):
        """The answer as messages for the history, each call with an id that its reply can name.

        The format writes a message's text behind its calls and their replies, where the turn ends. A model writes text
        before its calls; as a message of its own the text stays there, in the same turn.
        """
        said = {"role": "assistant", "content": self.text, "reasoning": self.thought}
        calls = [{"id": f"call_{i}", "type": "function", "function": call} for i, call in enumerate(self.calls, 1)]
        if calls and self.text.strip():
            return [said, {"role": "assistant", "tool_calls": calls}]
        return [said | ({"tool_calls": calls} if calls else {})]


def read(ids, tokenizer, prompt=()):
    """The ids that a model wrote behind the ids of a prompt -> Answer."""
    ids = [int(id) for id in ids]
    return to_answer(stream(ids, tokenizer, prompt), ids)


def to_answer(pairs, ids):
    """The pairs of `stream`, and the ids that they were read from -> Answer."""
    found = {"thought": [], "text": [], "call": [], "note": []}
    for kind, piece in pairs:
        found[kind].append(piece)
    thought = "".join(found["thought"]).strip()
    return Answer(thought or None, "".join(found["text"]), found["call"], ids, list(dict.fromkeys(found["note"])))


def stream(ids, tokenizer, prompt=()):
    """ids, one by one -> pairs ("thought" or "text", piece), ("call", call) and ("note", sentence), as soon as known.

    Special tokens are found by their id, before anything is decoded. The end of the prompt decides whether the answer
    begins inside a thought: with thinking on, a model may still answer at once.
    """
    marks, reader = tokenizer.marks, _Reader(tokenizer)
    prompt = [int(id) for id in prompt]
    last = next((i for i in reversed(range(len(prompt))) if prompt[i] in marks), None)
    if last is not None and marks[prompt[last]] == CHANNEL:
        reader.place, reader.begins = "thought", not tokenizer.decode(prompt[last + 1 :]).startswith(f"{NAME}\n")
    runs = groupby((int(id) for id in ids), marks.get)
    for mark, run in runs:
        if mark is None:
            yield from reader.text(run)
        elif mark in ENDS:
            yield from reader.end()
            if rest := sum(1 for _ in run) - 1 + sum(1 for _, more in runs for _ in more):
                yield "note", f"{rest} ids follow {mark}, which ends an answer: its id belongs to the stop ids"
            return
        else:
            for _ in run:
                yield from reader.mark(mark)
    yield from reader.end()


class _Reader:
    """Where in an answer we are."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.place = "text"  # or "thought": inside a channel
        self.begins = True  # the name of a channel may come next
        self.named = True  # whether the last channel had its name
        self.call = None  # the parts of an open call, text and <|"|>
        self.held = ""  # a name or a mark that may belong to nothing

    def text(self, ids):
        """A run of ids between two marks -> pairs."""
        if self.call is not None:
            self.call.append(self.tokenizer.decode(ids))
            return
        pieces = self.tokenizer.stream(ids)
        if self.begins:
            start = ""
            while f"{NAME}\n".startswith(start) and "\n" not in start and (piece := next(pieces, "")):
                start += piece
            name, _, rest = start.partition("\n")
            self.begins, named = False, name == NAME
            if self.place == "thought":
                self.named, start = named, rest if named else start
                if not named:
                    yield "note", f"a channel is not named {NAME}; all of it counts as thought"
            elif named and not self.named:
                start = rest
                yield "note", f"the name {NAME} stands behind its channel; it is left out"
            elif named and not rest:
                self.held, start = start, ""
            if start:
                yield self.place, start
        for piece in pieces:
            yield self.place, self.held + piece
            self.held = ""

    def mark(self, mark):
        """A special token that does not end the answer -> pairs."""
        if self.call is not None:
            if mark == QUOTE:
                self.call.append(mark)
                return
            yield from self.end_call(closed=mark == END_OF_CALL)
            if mark == END_OF_CALL:
                return
        inside, held, self.held = self.place == "thought", self.held, ""
        if held.strip() == NAME and mark != END_OF_CHANNEL:
            yield "text", held
        if mark == CHANNEL:
            self.place, self.begins = "thought", True
            if inside:
                yield "note", f"{mark} inside an open channel; it is left out"
        elif mark == CALL:
            self.place, self.call = "text", []
            if inside:
                yield "note", f"{mark} inside an open channel; the thought ends there"
        elif mark == END_OF_CHANNEL and inside:
            self.place, self.begins = "text", True
        elif mark == END_OF_CHANNEL:
            self.held = "" if held else str(mark)
            yield "note", f"{mark} without {CHANNEL}; what stands before it may be a thought"
        elif mark == END_OF_CALL:
            yield "note", f"{mark} without {CALL}; it is left out"
        else:
            yield self.place, str(mark)
            yield "note", f"{mark} does not belong into an answer; it is left in the text"

    def end_call(self, closed):
        parts, self.call = self.call, None
        try:
            name, arguments = parse_object(parts)
            yield "call", {"name": name, "arguments": arguments}
        except (ValueError, RecursionError) as error:
            yield "text", CALL + "".join(parts) + END_OF_CALL * closed
            yield "note", f"a call is not in the format ({error}); it is left in the text"
        else:
            if not closed:
                yield "note", f"a call ends without {END_OF_CALL}"

    def end(self):
        if self.call is not None:
            yield from self.end_call(closed=False)
        if self.held.strip() == NAME:
            yield "text", self.held
        if self.place == "thought":
            yield "note", "the thought does not end, so there is no answer; allow more new tokens"


WORD = re.compile(r'"(?:[^"\\]|\\.)*"?|([^{}\[\],:"]+)(:?)', re.DOTALL)  # a JSON string, or anything up to a sign


def parse_object(parts, kind="call"):
    """The parts of kind:NAME{..}, text and <|"|> -> the name, and the object as JSON has it. Raises ValueError.

    It becomes JSON first: what stands between two <|"|> is a string to the letter; outside, bare keys get quotes.
    """

    def quoted(word):
        bare = word[2] and word[1].strip()
        return f"{json.dumps(bare)}:" if bare else word[0]

    head = re.match(rf"\s*{kind}:\s*([^\s{{}}]+)\s*(?={{)", parts[0] if parts else "")
    if head is None:
        raise ValueError(f"it does not begin with {kind}:NAME{{")
    text, in_string = [], False
    for part in [parts[0][head.end() :], *parts[1:]]:
        if isinstance(part, Mark):
            in_string = not in_string
            text.append('"')
        else:
            text.append(json.dumps(part)[1:-1] if in_string else WORD.sub(quoted, part))
    arguments = json.loads("".join(text), strict=False, object_pairs_hook=without_repeats)
    return head[1], check_json(arguments, "its arguments")
