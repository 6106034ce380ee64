"""Messages and tools as users send them -> checked ones, or one clear Error. The format itself is in turns.py."""

import sys
from dataclasses import dataclass, field

from .errors import Error

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "model", "model": "model"}
ROLES["tool"] = "tool"
MEDIA = {"image": "image", "image_url": "image", "audio": "audio", "input_audio": "audio", "video": "video"}
DEEPEST = 64  # levels of lists and objects in a tool, a call or a reply
SCHEMA_SHAPE = {"description?": str, "enum?": list, "properties?": dict, "required?": [str]}
TYPED_SHAPE = {"type": str, **SCHEMA_SHAPE}
TOOL_SHAPE = {"function": {"name": str, "description?": str, "parameters?": TYPED_SHAPE, "response?": TYPED_SHAPE}}
CALL_SHAPE = {"function": {"name": str}}
KINDS = {str: "text", dict: "an object", list: "a list"}


@dataclass
class Message:
    """A checked message.

    role: system, user, model, or tool in the release form. content: [(kind, value), ...]; kind is text, image, audio or
    video, and value the text, or the medium as the user gave it, None where only its place is known. calls: [(name,
    arguments), ...]. replies: [(name, response, media), ...], media as content.
    """

    role: str | None
    content: list = field(default_factory=list)
    in_parts: bool = False  # whether the content was a list
    thought: str = ""
    calls: list = field(default_factory=list)
    replies: list = field(default_factory=list)


def checked_messages(messages, release=False):
    """Messages as users send them -> [Message, ...]. In the newest form, a reply of role tool joins its call's message.

    Raises Error for what the format cannot express, or what its template would lose.
    """
    found, calls = [], []
    for i, message in enumerate(check(check_list(messages), [{"role": str}], "message")):
        where, role = f"message {i + 1}", message["role"]
        if role not in ROLES or (role == "developer" and i):
            raise Error(f"{where}: role {role!r} is none of {', '.join(ROLES)}, or developer is not the first")
        asks = bool(found and found[-1].calls) and not release
        if role == "tool" and not release:
            if not asks:
                raise Error(f"{where}: this reply answers no call; put it behind the message with its tool_calls")
            found[-1].replies.append(_reply(message, calls, where))
            continue
        if asks and not found[-1].replies:
            raise Error(f"{where}: the calls before it have no reply; put a message of role tool between")
        new = Message(ROLES[role], *_content(message, where, release and (role == "tool" or not found)))
        new.thought = check(message.get("reasoning") or message.get("reasoning_content") or "", str, where)
        calls = check(message.get("tool_calls") or [], [CALL_SHAPE], f"{where}: tool_calls")
        for function in (call["function"] for call in calls):
            arguments = function.get("arguments") or {}
            if not (release and isinstance(arguments, str)):
                check(arguments, dict, f"{where}: the arguments of {function['name']}")
            new.calls.append((function["name"], arguments))
        for reply in check(message.get("tool_responses") or [], [{"name?": str}], f"{where}: tool_responses"):
            new.replies.append((reply.get("name") or "unknown", check_json(reply.get("response"), where), []))
        if new.role != "model" and (new.calls or new.replies or new.thought):
            raise Error(f"{where}: only a model's message has tool_calls, tool_responses or reasoning, not a {role}'s")
        found.append(new)
    if not found:
        raise Error("the conversation has no message; give at least one")
    return found


def _content(message, where, release):
    """The content of a message -> [(kind, value), ...], and whether it was a list. Raises Error.

    release: print what is not text as the release template does: a system message as Python, an object of a tool not.
    """
    content = message.get("content")
    if release and message["role"] in ("system", "developer"):
        content = str(content)
    if (content is None and ROLES[message["role"]] == "model") or (release and isinstance(content, dict)):
        return [], False
    if isinstance(content, str):
        return [("text", content)], False
    if not isinstance(content, list | tuple):
        kind = KINDS.get(type(content), type(content).__name__)
        raise Error(f"{where}: content must be text or a list of parts, not {kind}; json.dumps makes text of an object")
    parts = []
    for part in check(content, [{"type": str}], f"{where}: part"):
        if part["type"] == "text":
            parts.append(("text", check(part, {"text": str}, f"{where}: part")["text"]))
        elif part["type"] in MEDIA:
            kind = MEDIA[part["type"]]
            parts.append((kind, part.get(kind)))
        else:
            raise Error(f"{where}: a part of type {part['type']!r}; the types are text, {', '.join(MEDIA)}")
    return parts, True


def _reply(message, calls, where):
    """A message of role tool -> (the name of its function, its text, its media). Raises Error."""
    names = {call["function"]["name"] for call in calls if call.get("id") == message.get("tool_call_id")}
    if len(names) > 1:
        raise Error(f"{where}: its tool_call_id fits several calls; give each call an id of its own")
    name = names.pop() if names else check(message.get("name") or "unknown", str, f"{where}: name")
    content, _ = _content(message, where, release=False)
    text = "".join(value for kind, value in content if kind == "text")
    return name, text, [part for part in content if part[0] != "text"]


def check_list(messages):
    """Messages, if they are a list of objects. Raises Error, which shows what a message is."""
    listed = isinstance(messages, list | tuple)
    wrong = next((one for one in messages if not isinstance(one, dict)), None) if listed else messages
    if not listed or wrong is not None:
        place = f"message {1 + [*messages].index(wrong)} is" if listed else "this is"
        found = KINDS.get(type(wrong), type(wrong).__name__)
        raise Error(f'messages are a list such as [{{"role": "user", "content": "Hello"}}]; {place} {found}')
    return messages


def check(x, shape, where):
    """x, if it has that shape. Raises Error, which names the place.

    A shape is str, dict, list, [the shape of every item] or {key: shape}; a key that ends in ? may be missing or null.
    """
    kind = shape if isinstance(shape, type) else type(shape)
    if not isinstance(x, (list, tuple) if kind is list else kind):
        hint = "; json.loads makes one of text" * (kind is dict and isinstance(x, str))
        raise Error(f"{where}: expected {KINDS[kind]}, found {KINDS.get(type(x), type(x).__name__)}{hint}")
    if isinstance(shape, list):
        for i, one in enumerate(x):
            check(one, shape[0], f"{where} {i + 1}")
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            name = key.rstrip("?")
            if name == key or x.get(name) is not None:
                check(x.get(name), inner, f"{where}: {name}")
    elif kind is dict:
        check_json(x, where)
    return x


def check_json(x, where, depth=0):
    """x, if JSON can hold it and it is not nested too deep. Raises Error."""
    if depth > DEEPEST:
        raise Error(f"{where}: more than {DEEPEST} levels of lists and objects, or one that contains itself")
    if isinstance(x, dict | list | tuple):
        for one in [*x, *x.values()] if isinstance(x, dict) else x:
            check_json(one, where, depth + 1)
        if isinstance(x, dict) and not all(isinstance(key, str) for key in x):
            raise Error(f"{where}: a key of an object must be text")
    elif isinstance(x, int | float):
        if not -sys.float_info.max <= x <= sys.float_info.max:
            raise Error(f"{where}: a number is not finite, or has more than 308 digits")
    elif x is not None and not isinstance(x, str):
        raise Error(f"{where}: JSON has no {type(x).__name__}")
    return x
