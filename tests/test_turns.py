"""Conversations become the ids of Google's templates, text stays text, and answers are read back as written.

goldens/turns.json holds 46 conversations as both of Google's templates render them for E2B and E4B and for the larger
models, answers with what they hold, and the sources of all of it.
"""

import json
import math
from itertools import product
from pathlib import Path

import pytest
from family import MEMBERS, small
from vocabulary import SPECIAL, gemma_4_vocabulary

from minigemma import Error
from minigemma.turns import MARKS, read, read_template, render, small_cue, stream, to_ids

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "turns.json").read_text(encoding="utf-8"))
CONVERSATIONS = {one["name"]: one for one in GOLDENS["conversations"]}
ANSWERS = {one["name"]: one for one in GOLDENS["answers"]}
FORMS = ("newest", "release")
ALL_NAMES = " ".join(SPECIAL)
HELLO = [{"role": "user", "content": "Hello"}]
NOW = {"type": "function", "function": {"name": "now", "description": "Tell the time"}}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return gemma_4_vocabulary(tmp_path_factory.mktemp("vocabulary") / "tokenizer.json")


def rendered(conversation, is_small, form="newest"):
    tools, options = conversation.get("tools"), conversation["options"]
    return render(conversation["messages"], tools, small=is_small, release=form == "release", **options)


def expected(conversation, is_small, form):
    return conversation[form] + ("" if is_small else conversation[f"{form}, larger models add"])


CASES = list(product(CONVERSATIONS, (True, False), FORMS))
REFUSED = [case for case in CASES if CONVERSATIONS[case[0]][case[2]] is None]


@pytest.mark.parametrize(("name", "is_small", "form"), [case for case in CASES if case not in REFUSED])
def test_a_conversation_becomes_the_text_and_ids_of_googles_template(tokenizer, name, is_small, form):
    conversation = CONVERSATIONS[name]
    pieces, text = rendered(conversation, is_small, form), expected(CONVERSATIONS[name], is_small, form)
    assert "".join(pieces) == text
    # Where a user typed the names of special tokens, the template's text alone does not say what is a token.
    typed = [message["content"] for message in conversation["messages"] if message["role"] == "user"]
    typed = next((one for one in typed if any(mark in one for mark in SPECIAL)), None)
    before, _, after = text.partition(typed) if typed else (text, "", "")
    ids = tokenizer.encode(before, special=True)
    ids += tokenizer.encode(typed or "", bos=False) + tokenizer.encode(after, bos=False, special=True)
    assert to_ids(pieces, tokenizer) == ids


def test_the_templates_refuse_four_of_the_184_renderings_and_so_do_we():
    assert (len(CASES), len(REFUSED)) == (184, 4)
    for name, is_small, form in REFUSED:
        with pytest.raises(Error, match=r"json\.(loads|dumps)"):
            rendered(CONVERSATIONS[name], is_small, form)


def test_the_published_ids_are_ours(tokenizer):
    messages = [{"role": "user", "content": "Write a long essay about Portugal."}]
    assert to_ids(render(messages, small=False), tokenizer) == GOLDENS["published"]["ids"]


# What the 46 conversations leave open: the ends that jinja2 3.1.6 gave with the same two templates for small models.
TIDE = {"role": "user", "content": "Tide?"}
ASKS = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "tide", "arguments": {}}}]}
ASKED = "<|turn>model\n<|tool_call>call:tide{}<tool_call|><|tool_response>response:tide"
ANSWERED = ASKS | {"tool_responses": [{"name": "tide", "response": {"m": 1.4}}]}
PARTS = [{"type": "image"}, {"type": "text", "text": " 1.4 "}, {"type": "audio"}]
IN_PARTS = {"role": "tool", "tool_call_id": "1", "content": PARTS}
NEXT = "<|turn>user\nTide?<turn|>\n<|turn>model\n"
FURTHER = [
    ("newest", [TIDE, ANSWERED, TIDE], False, f"{ASKED}{{m:1.4}}<tool_response|><turn|>\n{NEXT}"),
    ("release", [TIDE, ANSWERED, TIDE], False, f"{ASKED}{{m:1.4}}<tool_response|>{NEXT}"),
    ("release", [TIDE, ANSWERED], True, f"{ASKED}{{m:1.4}}<tool_response|>"),
    (
        "newest", [TIDE, ANSWERED | {"content": "Wait."}], True,
        f"{ASKED}{{m:1.4}}<tool_response|>Wait.<turn|>\n<|channel>thought\n",
    ),
    (
        "newest", [TIDE, ASKS, IN_PARTS], True,
        f'{ASKED}{{value:<|"|> 1.4 <|"|>}}<tool_response|><|image|><|audio|><|channel>thought\n',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("form", "messages", "think", "end"), FURTHER)
def test_calls_and_replies_end_a_prompt_as_in_googles_template(form, messages, think, end):
    pieces = render(messages, think=think, small=True, release=form == "release")
    assert "".join(pieces).endswith(f"<|turn>user\nTide?<turn|>\n{end}")


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        (
            {"type": "array", "items": {"Zeta": 1, "alpha": {"Key": None}, "type": "array"}},
            'items:{alpha:{<|"|>Key<|"|>:null},type:<|"|>ARRAY<|"|>,Zeta:1},type:<|"|>ARRAY<|"|>',
        ),
        (
            {"type": "object", "title": "A", "nullable": True, "additionalProperties": {"type": "integer"}},
            'nullable:true,properties:{additionalProperties:{type:<|"|>INTEGER<|"|>},title:{type:<|"|><|"|>}},'
            'type:<|"|>OBJECT<|"|>',
        ),
    ],
)
def test_schemas_are_written_as_in_googles_template(schema, written):
    tools = [{"function": {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}}]
    assert f"properties:{{a:{{{written}}}}},type" in "".join(render([TIDE], tools, small=True))


# Text stays text


def everywhere(text):
    """A conversation with `text` in every place where a user's or a program's text may be, and its tools."""
    call = {"id": "1", "function": {"name": "now", "arguments": {"zone": text, "inside": [{text: text}]}}}
    part = {"type": "text", "text": text}
    messages = [
        {"role": "system", "content": text},
        {"role": "user", "content": [part, {"type": "image"}, part]},
        {"role": "system", "content": text},
        {"role": "user", "content": text},
        {"role": "assistant", "content": None, "reasoning": text, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": text},
        {"role": "assistant", "tool_calls": [call], "tool_responses": [{"name": "now", "response": text}]},
    ]
    inner = {"type": "object", "description": text, "properties": {"a": {"type": "array", "items": {"default": text}}}}
    schemas = {"zone": {"type": "string", "description": text, "enum": [text, text]}, "inside": inner}
    parameters = {"type": "object", "properties": schemas, "required": [text]}
    return messages, [{"function": {"name": "now", "description": text, "parameters": parameters}}]


@pytest.mark.parametrize("form", FORMS)
def test_the_names_of_special_tokens_stay_text_in_every_place(tokenizer, form):
    special = set(SPECIAL.values())

    def marks(text):
        messages, tools = everywhere(text)
        ids = to_ids(render(messages, tools, think=True, small=False, release=form == "release"), tokenizer)
        return [id for id in ids if id in special], tokenizer.decode(ids)

    with_names, text = marks(ALL_NAMES)
    plain, _ = marks("plain")
    assert with_names == plain
    assert text.count(ALL_NAMES) > 15


def test_in_a_models_text_everything_but_thoughts_stays_text(tokenizer):
    others = " ".join(name for name in SPECIAL if name not in ("<|channel>", "<channel|>"))
    messages = [*HELLO, {"role": "assistant", "content": f"<|channel>thought\nHm.<channel|>{others}"}]
    pieces = render(messages, small=True, cue=False)
    assert "".join(pieces).endswith(f"<|turn>model\n{others}<turn|>\n")
    ids = to_ids(pieces, tokenizer)
    assert [id for id in ids if id in set(SPECIAL.values())] == [2, 105, 106, 105, 106]


def test_a_tokenizer_that_makes_tokens_of_text_is_refused(tokenizer, tmp_path):
    careless = gemma_4_vocabulary(tmp_path / "tokenizer.json", ordinary=["<|channel>"])
    pieces = render([{"role": "user", "content": "<|channel>"}], small=True)
    to_ids(pieces, tokenizer)
    with pytest.raises(Error, match="plain text"):
        to_ids(pieces, careless)


@pytest.mark.parametrize("missing", ["<|think|>", "<|tool>", "<|turn>"])
def test_a_vocabulary_without_the_token_is_an_error_that_names_it(tmp_path, missing):
    poor = gemma_4_vocabulary(tmp_path / "tokenizer.json", without=[missing])
    with pytest.raises(Error, match=rf"no {missing.replace('|', '.')} token"):
        to_ids(render(HELLO, [NOW], think=True, small=True), poor)


# Which cue


@pytest.mark.parametrize("member", MEMBERS)
def test_without_a_template_exactly_the_models_with_per_layer_embeddings_have_the_small_cue(member):
    config, _ = small(member)
    assert small_cue(config) == (member in ("E2B", "E4B"))


CUE = "{%- if add_generation_prompt -%}{{- '<|turn>model\\n' -}}"
CLOSED = "{%- if not enable_thinking -%}{{- '<|channel>thought\\n<channel|>' -}}{%- endif -%}"


@pytest.mark.parametrize("member", ["E2B", "31B"])
def test_the_end_of_the_checkpoints_template_decides_about_the_cue(tmp_path, member):
    config, _ = small(member)
    for text, is_small in ((f"{CUE}{{%- endif -%}}", True), (f"{CUE}{CLOSED}{{%- endif -%}}", False)):
        earlier = "{#- a comment about <|channel>thought\\n<channel|> -#}{%- set x = add_generation_prompt -%}"
        (tmp_path / "chat_template.jinja").write_text(earlier + text, encoding="utf-8")
        assert small_cue(config, read_template(tmp_path)) == is_small


def test_a_template_that_is_missing_is_none_and_one_that_is_not_text_is_an_error(tmp_path):
    assert read_template(tmp_path) is None
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfeA")
    with pytest.raises(Error, match=r"chat_template\.jinja"):
        read_template(tmp_path)


# Reading back

# Answers that we read otherwise than the golden's source: what we read, and why.
OTHERWISE = {
    "close mark without an opening one": (None, "Some reasoning<channel|>The answer.", []),  # it is shown before
    "opening mark without newline and close": ("thought Salt comes from rock.", "", []),  # an open channel is a thought
    # Calls that are not in the format are not repaired: the text is the model's own.
    "opening delimiter left out": (None, '<|tool_call>call:f{q:Kiel, today<|"|>,n:1}<tool_call|>', []),
    "closing delimiter left out": (None, '<|tool_call>call:f{q:<|"|>ls}<tool_call|>', []),
    "single quotes and a dangling delimiter": (None, "<|tool_call>call:f{q:'abc'<|\"|>}<tool_call|>", []),
    "bare call after a thought": ("Look.", 'call:f{q:<|"|>ls<|"|>}', []),
}


def ids_of(tokenizer, text):
    return tokenizer.encode(text, bos=False, special=True)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_back_as_written(tokenizer, name):
    golden = ANSWERS[name]
    ids, prompt = ids_of(tokenizer, golden["text"]), ids_of(tokenizer, golden["prompt_tail"])
    answer = read(ids, tokenizer, prompt)
    meant = OTHERWISE.get(name, (golden["thought"], golden["content"], golden["calls"]))
    assert (answer.thought, answer.text, answer.calls) == meant
    assert answer.ids == ids
    if golden["kind"] == "regular" and "never closes" not in name:
        assert not answer.notes
    elif name != "dashes and dots in a name":
        assert answer.notes


def test_regular_answers_are_read_as_every_source_reads_them():
    assert all(ANSWERS[name]["kind"] in ("odd", "ambiguous", "repair") for name in OTHERWISE)
    assert len(ANSWERS) == 35


def test_text_is_streamed_as_soon_as_its_id_is_there(tokenizer):
    seen = []

    def ids():
        for id in ids_of(tokenizer, "<|channel>thought\nWrite a<channel|>Write<|tool_call>call:now{}<tool_call|>"):
            seen.append(tokenizer.token(id))
            yield id

    pairs = stream(ids(), tokenizer)
    assert next(pairs) == ("thought", "Write")
    assert seen == ["<|channel>", "thought", "\n", "Write"]
    assert [kind for kind, _ in pairs] == ["thought", "text", "call"]


def test_a_call_is_read_back_from_what_render_writes(tokenizer):
    arguments = {
        "text": 'say "hi", {now}: [1] \\n\n', "empty": "", "names": ALL_NAMES, "n": [1, -2.5, 1e300, 1e-7, True, None],
        "map": {"Zeta": {}, "alpha": [{"b": []}], "two words": "x"},
    }  # fmt: skip
    call = {"function": {"name": "fs.read-file", "arguments": arguments}}
    prompt = to_ids(render(HELLO, small=True), tokenizer)
    both = to_ids(render([*HELLO, {"role": "assistant", "tool_calls": [call]}], small=True, cue=False), tokenizer)
    answer = read(both[len(prompt) :], tokenizer, prompt)
    assert answer.calls == [{"name": "fs.read-file", "arguments": arguments}]
    assert not answer.notes


NO_CALLS = [
    "call:f{a:", "call:f", "", "f{}", "call:f{a:NaN}", "call:f{a:1e999}", "call:f{a:1,}", "call:f{a:1}}", "call:f[1]",
    'call:f{a:"}', "call:f{{a:1}}", "call:f{a}", "call:f{a:1,a:1}", "call:f{a:" + "[" * 90 + "]" * 90 + "}",
    "call:f{a:" + "[" * 50_000, "call:f{" + "a " * 50_000, "call:f{" + '"' * 50_001, "call:" + " " * 50_000,
    "call:" + "f" * 50_000,
]  # fmt: skip


@pytest.mark.parametrize("inside", NO_CALLS, ids=[one[:12] for one in NO_CALLS])
def test_a_call_that_is_not_in_the_format_stays_text_and_is_noted(tokenizer, inside):
    for end in ("<tool_call|>", ""):
        answer = read(ids_of(tokenizer, f"Well.<|tool_call>{inside}{end}"), tokenizer)
        assert (answer.text, answer.calls) == (f"Well.<|tool_call>{inside}{end}", [])
        assert len(answer.notes) == 1


def test_a_stray_name_before_a_closing_mark_is_left_out_and_noted(tokenizer):
    for end in ("Kiel.", "<|tool_call>call:now{}<tool_call|>"):
        answer = read(ids_of(tokenizer, f"thought\n<channel|>{end}"), tokenizer)
        assert (answer.thought, answer.text) == (None, "Kiel." if end == "Kiel." else "")
        assert len(answer.notes) == 1
    for text in ("thought", "thought\n", "thought\nful", "thoughtful"):
        assert read(ids_of(tokenizer, text), tokenizer).text == text


def test_a_json_string_in_a_call_may_hold_a_line_break(tokenizer):
    ids = ids_of(tokenizer, '<|tool_call>call:f{a:"one\ntwo"}<tool_call|>')
    assert read(ids, tokenizer).calls == [{"name": "f", "arguments": {"a": "one\ntwo"}}]


def test_what_follows_the_end_of_an_answer_is_noted_and_left_out(tokenizer):
    for text, mark in (("Kiel.<turn|>\n<|turn>user\nNo.", "<turn|>"), ("<|tool_response>" * 9, "<|tool_response>")):
        answer = read(ids_of(tokenizer, text), tokenizer)
        assert answer.text == text.partition(mark)[0]
        assert any("stop ids" in note and mark in note for note in answer.notes)


@pytest.mark.parametrize("mark", MARKS)
def test_no_special_token_in_an_answer_goes_unseen(tokenizer, mark):
    """It has a meaning, or it is in the text, or a note names it."""
    answer = read(ids_of(tokenizer, f"a{mark}b"), tokenizer)
    assert mark in answer.text or answer.thought or any(mark in note for note in answer.notes)


# Hostile and careless input


def nested(depth):
    value = "x"
    for _ in range(depth):
        value = [value]
    return value


CYCLE = {}
CYCLE["x"] = CYCLE
VALUES = [math.nan, math.inf, -math.inf, 10**400, object(), {1: 2}, b"x", {"a", "b"}, nested(100_000), CYCLE]


@pytest.mark.parametrize("value", VALUES, ids=[str(i) for i in range(len(VALUES))])
def test_values_that_json_cannot_hold_are_one_line_errors_everywhere(value):
    schema = {"a": {"type": "string", "default": value}}
    function = {"name": "f", "parameters": {"type": "object", "properties": schema}}
    asks = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": value}}}]}
    answered = {"role": "assistant", "tool_responses": [{"name": "f", "response": {"a": value}}]}
    for messages, tools in (([*HELLO, asks], None), ([*HELLO, answered], None), (HELLO, [{"function": function}])):
        with pytest.raises(Error) as caught:
            render(messages, tools, small=True)
        assert "\n" not in str(caught.value)


WRONG_MESSAGES = [
    None, {}, "Hello", [], [None], [{}], ["Hello"], [{"role": "user"}], [{"role": "user", "content": None}],
    [{"role": "user", "content": 3}], [{"role": "user", "content": {"text": "x"}}],
    [{"role": ["user"], "content": "x"}], [{"role": "human", "content": "x"}],
    [{"role": "user", "content": [None]}], [{"role": "user", "content": [{}]}],
    [{"role": "user", "content": [{"type": "text", "text": 3}]}], [{"role": "user", "content": [{"type": "smell"}]}],
    [*HELLO, {"role": "developer", "content": "x"}], [*HELLO, {"role": "tool", "content": "x"}],
    [*HELLO, {"role": "assistant", "content": "x", "reasoning": 3}],
    [*HELLO, {"role": "assistant", "tool_calls": {}, "content": 3}], [*HELLO, {"role": "assistant", "tool_calls": "x"}],
    [*HELLO, {"role": "assistant", "tool_calls": [{}]}],
    [*HELLO, {"role": "assistant", "tool_calls": [{"function": {}}]}],
    [*HELLO, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}],
    [*HELLO, {"role": "assistant", "tool_responses": ["x"]}], [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}],
    [*HELLO, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, *HELLO],
    [{"role": "system", "content": [{"type": "text"}, 3]}, *HELLO],
]  # fmt: skip
WRONG_TOOLS = [
    "x", 3, [None], ["now"], [{}], [{"name": "now"}], [{"function": {}}], [{"function": {"name": 3}}],
    [{"function": {"name": "f", "description": 3}}], [{"function": {"name": "f", "parameters": "x"}}],
    [{"function": {"name": "f", "parameters": {"properties": {}}}}],
    [{"function": {"name": "f", "parameters": {"type": "object", "properties": [1]}}}],
    [{"function": {"name": "f", "parameters": {"type": "object", "properties": {"a": "string"}}}}],
    [{"function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"description": 3}}}}}],
    [{"function": {"name": "f", "parameters": {"type": "object", "required": "abc"}}}],
    [{"function": {"name": "f", "response": {"type": "string"}}}],
    [{"function": {"name": "f", "response": {"description": "x"}}}],
]  # fmt: skip


WRONG = [*((messages, None) for messages in WRONG_MESSAGES), *((HELLO, tools) for tools in WRONG_TOOLS)]


@pytest.mark.parametrize(("messages", "tools"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_messages_and_tools_of_another_form_are_one_line_errors(messages, tools):
    with pytest.raises(Error) as caught:
        render(messages, tools, small=True)
    assert "\n" not in str(caught.value)


def test_two_calls_that_a_reply_could_mean_are_an_error():
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("now", "then")]
    messages = [*HELLO, {"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": "09:00"}]
    with pytest.raises(Error, match="id"):
        render(messages, small=True)


def test_ten_megabytes_of_text_or_tools_come_through(tokenizer):
    text = "salt " * 2_000_000
    assert render([{"role": "user", "content": text}], small=True)[3] == text.strip()
    schemas = {f"p{i}": {"type": "string"} for i in range(100_000)}
    tools = [{"function": {"name": "f", "parameters": {"type": "object", "properties": schemas}}}]
    assert render(HELLO, tools, small=True).count('<|"|>') == 2 + 2 * len(schemas) + 2
    assert len(to_ids(render([{"role": "user", "content": text[:100_000]}], small=True), tokenizer)) > 20_000


def test_lone_surrogates_are_an_error(tokenizer):
    with pytest.raises(Error, match="surrogates"):
        to_ids(render([{"role": "user", "content": "\ud800"}], small=True), tokenizer)
