"""A conversation with caches shows the model the ids and gives the logits of one that is read whole.

The model's part is scripted: `sample` gives the ids of the script, and the pass runs on them.
"""

import io
import json
from importlib import import_module

import numpy as np
import pytest
from family import MEMBERS, small
from processes import one_line
from vocabulary import SPECIAL, gemma_4_vocabulary

import minigemma
from minigemma import Conversation, Error, Model, prefill
from minigemma.__main__ import main
from minigemma.turns import render, spelled, to_ids

SAMPLING = import_module("minigemma.sampling")
CONVERSATION = import_module("minigemma.conversation")
COMMAND = import_module("minigemma.__main__")
NOW = {"type": "function", "function": {"name": "now", "description": "Tell the time"}}
CALL = '<|tool_call>call:now{zone:<|"|>CET<|"|>}<tool_call|>'
ASKED = {"role": "user", "content": "What time is it?"}


@pytest.fixture(params=["tiny", *MEMBERS])
def model(request, tmp_path, tiny):
    """The tiny weights, and every member of the family with random weights in float64 and the tokenizer of tiny."""
    if request.param == "tiny":
        return tiny
    (tmp_path / "tokenizer.json").write_bytes((minigemma.TINY / "tokenizer.json").read_bytes())
    sizes = {"vocab_size": 2560, "max_position_embeddings": 4096}
    if request.param in ("E2B", "E4B"):
        sizes["vocab_size_per_layer_input"] = 2560
    return Model(tmp_path, *small(request.param, np.float64, **sizes), {})


@pytest.fixture
def script(monkeypatch, tiny):
    """Give a function that sets what the model says next, special tokens by their name."""
    ids = []
    monkeypatch.setattr(SAMPLING, "sample", lambda *_, **__: ids.pop(0))

    def says(*answers):
        ids[:] = [id for text in answers for id in tiny.tokenizer.encode(text, bos=False, special=True)]

    return says


def answered(conversation, messages, **options):
    """The answer to further messages, and its pairs."""
    pairs = list(conversation.read(conversation.draw(messages, 50, **options)))
    return conversation.answer, pairs


def reply(conversation, text):
    (call,) = conversation.messages[-1]["tool_calls"]
    return [{"role": "tool", "tool_call_id": call["id"], "content": text}]


# The turns of a conversation: what the model says, and whether its text stands beside a call.
THOUGHTFUL = [
    "<|channel>thought\nA clock knows. \n<channel|>" + CALL + "<|tool_response>",
    "It is late.\n<channel|>  It is nine. \n<turn|>",
    "Bye.<turn|>",
]
PLAIN = ["Let me look. " + CALL + "<|tool_response>", " It is nine.<turn|>", "Bye.<turn|>"]


@pytest.mark.parametrize("think", [True, False])
def test_a_cached_conversation_is_what_the_template_writes_and_gives_the_logits_of_a_whole_one(
    model, script, think, monkeypatch
):
    read, draw = [], CONVERSATION.generate_ids

    def watched(model, ids, count, cache, **options):
        read.append((list(ids), cache))
        return draw(model, ids, count, cache, **options)

    monkeypatch.setattr(CONVERSATION, "generate_ids", watched)
    conversation = Conversation(model, "Be brief.", [NOW], think)
    script(*(THOUGHTFUL if think else PLAIN))
    texts = ["09:00", {"role": "user", "content": " Thanks. "}]
    messages, before = [ASKED], []
    for _ in range(3):
        before.append([*conversation.messages, *messages])
        answered(conversation, messages)
        ids, cache = read[-1]
        whole = to_ids(render(before[-1], [NOW], think, small=model.small_cue), model.tokenizer)
        assert conversation.prompt == whole
        assert whole[cache.length :] == ids
        ours, _ = prefill(ids, model.weights, model.config, cache)
        expected, _ = prefill(whole, model.weights, model.config)
        atol = 2e-4 if ours.dtype == np.float32 else 1e-9  # as in test_long_run
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)
        if texts:
            text = texts.pop(0)
            messages = reply(conversation, text) if isinstance(text, str) else [text]
    # the last prompt: its start, up to the cue of the first turn, came from a cache
    first = to_ids(render(before[0], [NOW], think, small=model.small_cue, cue=False), model.tokenizer)
    assert conversation.length_read <= len(conversation.prompt) - len(first)


def test_a_plain_conversation_reads_each_new_message_only(tiny, script):
    conversation = Conversation(tiny)
    script("The barn.<turn|>", "Tom.<turn|>")
    answered(conversation, [ASKED])
    answered(conversation, [{"role": "user", "content": "Who?"}])
    new = len(tiny.tokenizer.encode(".<turn|>\n<|turn>user\nWho?<turn|>\n<|turn>model\n", bos=False, special=True))
    assert conversation.length_read == new  # and the last id of the answer, which no cache held


def test_text_beside_a_call_stays_before_it_in_one_open_turn(tiny, script):
    conversation = Conversation(tiny, tools=[NOW])
    script("Let me look." + CALL + "<|tool_response>", "It is nine.<turn|>")
    answered(conversation, [ASKED])
    answered(conversation, reply(conversation, "09:00"))
    text = "<|turn>model\nLet me look." + CALL + '<|tool_response>response:now{value:<|"|>09:00<|"|>}<tool_response|>'
    ids = tiny.tokenizer.encode(text, bos=False, special=True)
    assert conversation.prompt[-len(ids) :] == ids


def test_an_answer_is_in_the_history_without_its_thought_once_the_user_speaks(tiny, script):
    conversation = Conversation(tiny, think=True)
    script("<|channel>thought\nHm.\n<channel|>Yes.<turn|>", "No.<turn|>")
    answer, pairs = answered(conversation, [ASKED])
    assert (answer.thought, answer.text, answer.calls) == ("Hm.", "Yes.", [])
    assert {kind for kind, _ in pairs} == {"thought", "text"}
    answered(conversation, [ASKED])
    assert not {SPECIAL["<|channel>"], SPECIAL["<channel|>"]} & set(conversation.prompt)


@pytest.mark.parametrize("mark", ["<eos>", "<turn|>", "<|tool_response>"])
def test_an_answer_ends_at_each_of_the_three_stops_whatever_the_config_says(tiny, script, mark, monkeypatch):
    monkeypatch.setattr(tiny, "generation_config", {})
    script(f"Yes.{mark}No.")
    answer = tiny.chat([ASKED])
    assert (answer.text, answer.notes) == ("Yes.", [])
    assert mark not in [tiny.tokenizer.token(id) for id in answer.ids]


def test_chat_answers_as_the_pass_continues_the_rendered_ids(tiny):
    ids = [id for id, _ in minigemma.generate_ids(tiny, tiny.chat_ids([ASKED]), 20, temperature=0.0)]
    answer = tiny.chat([ASKED], max_new_tokens=20, temperature=0.0)
    assert answer.ids == ids
    assert answer.text == tiny.tokenizer.decode(ids)
    pairs = list(tiny.chat([ASKED], stream=True, max_new_tokens=20, temperature=0.0))
    assert "".join(piece for kind, piece in pairs if kind == "text") == answer.text


@pytest.mark.parametrize("name", ["tiny", "tiny-wide", "tiny-no-ple"])
def test_the_template_beside_the_weights_decides_about_the_cue_with_ple_or_without(tiny, name):
    twin = minigemma.load(minigemma.TINY.parent / name)
    assert twin.small_cue
    assert twin.chat_ids([ASKED]) == tiny.chat_ids([ASKED])


def test_who_stops_an_answer_keeps_what_was_said_and_an_error_keeps_nothing(tiny, script):
    conversation = Conversation(tiny)
    script("The barn is red.<turn|>")
    pairs = conversation.read(conversation.draw([ASKED], 50))
    _, piece = next(pairs)
    pairs.close()
    assert conversation.messages == [ASKED, {"role": "assistant", "content": piece, "reasoning": None}]
    with pytest.raises(Error, match="positions"):
        conversation.draw([ASKED], tiny.config.max_position_embeddings)
    with pytest.raises(Error, match="temperature"):
        answered(conversation, [ASKED], temperature=-1)
    assert len(conversation.messages) == 2


@pytest.mark.parametrize("messages", [[], "Hello", [{"role": "user"}], [{"role": "tool", "content": "x"}]])
def test_messages_of_another_form_are_one_line_errors_of_chat(tiny, messages):
    for ask in (tiny.chat, tiny.chat_ids):
        with pytest.raises(Error) as caught:
            ask(messages)
        assert "\n" not in str(caught.value)


# The command line


@pytest.fixture
def tools(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps([NOW]), encoding="utf-8")
    return str(tmp_path / "tools.json")


def typed(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_thoughts_go_to_stderr_and_the_answer_alone_to_stdout(script, capsys, monkeypatch):
    for command in (["generate", "What time is it?"], ["chat"]):
        typed(monkeypatch, "What time is it?\n")
        script("<|channel>thought\nHm.\n<channel|>It is nine.<turn|>")
        assert main([*command, "--think", "--system", "Be brief."]) == 0
        out, err = capsys.readouterr()
        assert (out, err) == ("It is nine.\n", "Hm.\n\n")


@pytest.mark.parametrize("command", [["generate", "What time is it?"], ["chat"]])
def test_a_call_is_printed_as_json_and_the_next_line_is_its_reply(script, capsys, monkeypatch, tools, command):
    typed(monkeypatch, "What time is it?\n" * (command == ["chat"]) + "09:00\n")
    script("Well." + CALL + "<|tool_response>", "It is nine.<turn|>")
    assert main([*command, "--tools", tools]) == 0
    text, call, answer = capsys.readouterr().out.splitlines()
    assert (text, answer) == ("Well.", "It is nine.")
    assert json.loads(call) == {"name": "now", "arguments": {"zone": "CET"}}


def test_without_a_reply_the_conversation_ends_behind_the_call(script, capsys, monkeypatch, tools):
    typed(monkeypatch, "")
    script(CALL + "<|tool_response>")
    assert main(["generate", "What time is it?", "--tools", tools]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "now"


def test_a_reply_that_cannot_be_read_is_asked_for_again(script, capsys, monkeypatch, tools):
    lines = iter(["What time is it?", "caf\udce9", "09:00", ""])
    monkeypatch.setattr(COMMAND, "_ask", lambda prompt: next(lines))
    monkeypatch.setattr(COMMAND, "_at_terminal", lambda: True)
    script(CALL + "<|tool_response>", "It is nine.<turn|>")
    assert main(["chat", "--tools", tools]) == 0
    out, err = capsys.readouterr()
    assert "not UTF-8" in err
    assert out.splitlines()[-1] == "It is nine."


def test_a_user_cannot_write_special_tokens_through_the_command_line(script, capsys, monkeypatch, tools):
    seen, draw, names = [], Conversation.draw, " ".join(SPECIAL)

    def watched(self, messages, *arguments, **options):
        ids = draw(self, messages, *arguments, **options)
        seen.append([id for id in self.prompt if id in SPECIAL.values()])
        return ids

    monkeypatch.setattr(Conversation, "draw", watched)
    for text in (names, "plain"):
        typed(monkeypatch, f"{text}\n{text}\n{text}\n")
        script(CALL + "<|tool_response>", "It is nine.<turn|>", "Bye.<turn|>")
        assert main(["chat", "--tools", tools, "--system", text, "--think"]) == 0
    assert seen[:3] == seen[3:]


HOSTILE = [
    "", "x", "{}", "3", '"now"', "[3]", '[{"function": {}}]', "[" * 100_000, '[{"function": {"name": 3}}]',
    '[{"function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "array", "items": '
    '{"default": NaN}}}}}}]',
    '[{"function": {"name": "f", "parameters": {"type": "object", "properties": {"a": ' + '{"items":' * 90 + "1"
    + "}" * 90 + "}}}}]",
    f'[{{"function": {{"name": "f", "description": "{"x" * (17 << 20)}"}}}}]',
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=[one[:40] for one in HOSTILE])
@pytest.mark.parametrize("flag", ["tools", "messages"])
def test_a_hostile_file_is_one_line_and_nothing_on_stdout(tmp_path, capsys, text, flag):
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    commands = [["generate", "x", "--tools", str(path)], ["chat", "--tools", str(path)]]
    for command in commands if flag == "tools" else [["turns", str(path)]]:
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert err.startswith("minigemma: ")


@pytest.mark.parametrize(("words", "complaint"), [(["x", "--special"], "--special"), ([""], "prompt is empty")])
def test_a_prompt_that_is_no_turn_is_refused(words, complaint, run):
    one_line(run("generate", *words, "--think"), complaint)


def test_turns_shows_each_id_with_its_token_and_colour_on_a_terminal_alone(tmp_path, capsys, tools, tiny, monkeypatch):
    (tmp_path / "file.json").write_text(json.dumps([ASKED]), encoding="utf-8")
    words = ["turns", str(tmp_path / "file.json"), "--think", "--tools", tools]
    assert main([*words, "--json"]) == 0
    ids = json.loads(capsys.readouterr().out)
    assert ids == tiny.chat_ids([ASKED], [NOW], think=True)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.split()[::2] == [str(id) for id in ids]
    assert shown.splitlines()[0].split()[1] == "<bos>"
    monkeypatch.setattr(COMMAND, "_is_terminal", lambda stream: True)
    assert main(words) == 0
    assert "\x1b[1;34m<bos>" in capsys.readouterr().out
    assert "\x1b" not in shown


def test_a_token_that_holds_control_characters_is_printed_escaped(tmp_path):
    tokenizer = gemma_4_vocabulary(tmp_path / "tokenizer.json")
    ids = to_ids(render([{"role": "user", "content": "a\x1b[31m\u202e"}], small=True), tokenizer)
    assert spelled(ids, tokenizer).replace("\n", "").isprintable()
