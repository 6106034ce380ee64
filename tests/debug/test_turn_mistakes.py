"""Each mistake of a chat template is named by the ids of a prompt that has it, and right prompts have none."""

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from processes import one_line
from vocabulary import SPECIAL, gemma_4_vocabulary

from minigemma import TINY, Error, Trace
from minigemma.__main__ import main
from minigemma.debug.catalogue import FAULTS
from minigemma.debug.diagnosis import diagnose_ids
from minigemma.debug.turn_mistakes import mistakes_in
from minigemma.turns import render, to_ids

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "turns.json").read_text(encoding="utf-8"))
CONVERSATIONS = {one["name"]: one for one in GOLDENS["conversations"]}
CLOSED = "<|channel>thought\n<channel|>"
CALL = '<|tool_call>call:tide_at{harbour:<|"|>Kiel<|"|>}<tool_call|>'
REPLY = '<|tool_response>response:tide_at{value:<|"|>1.4 m<|"|>}<tool_response|>'


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return gemma_4_vocabulary(tmp_path_factory.mktemp("vocabulary") / "tokenizer.json")


def ids_of(tokenizer, name, is_small, release=False):
    one = CONVERSATIONS[name]
    return to_ids(
        render(one["messages"], one.get("tools"), small=is_small, release=release, **one["options"]), tokenizer
    )


def differs(one, is_small):
    """Whether the two templates render this conversation differently."""
    larger = "" if is_small else ", larger models add"
    return one["newest"] != one["release"] or (larger and one[f"newest{larger}"] != one[f"release{larger}"])


NEWEST = [name for name, one in CONVERSATIONS.items() if one["newest"] is not None]


@pytest.mark.parametrize("is_small", [True, False])
@pytest.mark.parametrize("name", NEWEST)
def test_a_conversation_in_the_newest_form_has_no_mistake(tokenizer, name, is_small):
    assert mistakes_in(ids_of(tokenizer, name, is_small), tokenizer, is_small) == []


@pytest.mark.parametrize("is_small", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_release_form_is_one_note_without_blame(tokenizer, name, is_small):
    found = mistakes_in(ids_of(tokenizer, name, is_small, release=True), tokenizer, is_small)
    if differs(CONVERSATIONS[name], is_small):
        (note,) = found
        assert (note.id, note.blame) == ("T25", False)
        assert note.sentence.startswith("release template")
    else:
        assert found == []


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("tool call without arguments", "T16"),
        ("arguments given as JSON text", "T20"),
        ("tool call with a null argument", "T21"),
        ("tool whose parameters are called type and description", "T22"),
    ],
)
def test_the_note_on_the_release_form_names_the_mistakes_that_it_shares_with_ports(tokenizer, name, entry):
    (note,) = mistakes_in(ids_of(tokenizer, name, True, release=True), tokenizer, True)
    assert f"({entry})" in note.sentence


def change(old, new, count=-1):
    def changed(text):
        assert old in text
        return text.replace(old, new, count)

    return changed


OPEN_REPLY = f"{REPLY}<|channel>thought\n"
# entry: what makes it: a conversation, whether the model is small, and a change of its right text
THINKING, HARBOURS, TOOLS = "tool reply, thinking on", "two turns", "call, reply, answer, next user turn"
MADE = [
    ("T1", "plain", True, lambda text: text + CLOSED),
    ("T1", "plain, thinking on", False, lambda text: text + CLOSED),
    ("T1", "tool call, native responses, text", True, lambda text: text + CLOSED),
    ("T2", "plain", False, lambda text: text.removesuffix(CLOSED)),
    ("T3", "plain", True, lambda text: text + "<|channel>thought\n"),
    ("T3", "plain", False, lambda text: text.removesuffix("<channel|>")),
    ("T3", "plain, thinking on", True, lambda text: text + "<|channel>thought\n"),
    ("T4", HARBOURS, True, lambda text: text.replace("<|turn>", "<start_of_turn>").replace("<turn|>", "<end_of_turn>")),
    ("T5", HARBOURS, True, change("Kiel.<turn|>\n", "Kiel.<turn|><|channel>thought\nAgain.<channel|>Kiel.<turn|>\n")),
    ("T5", "plain", True, lambda text: text + "It dissolves rock.<turn|> And rivers"),
    ("T6", "call without a reply yet", True, lambda text: text + "<|tool_response>" * 5),
    ("T6", "call without a reply yet", True, lambda text: text + "It is 1.4 m."),
    ("T7", "call without a reply yet", True, change(CALL, CALL * 6)),
    ("T8", HARBOURS, True, change("Kiel.", "thought\nThey want one name.\nKiel.")),
    ("T8", TOOLS, True, change(CALL, CALL.replace("<|tool_call>", "").replace("<tool_call|>", ""))),
    ("T9", HARBOURS, True, change("<|turn>model\nKiel.", "<|turn>thinking\nOne name.<turn|>\n<|turn>model\nKiel.")),
    ("T9", HARBOURS, True, change("Kiel.", "<think>One name.</think>Kiel.")),
    ("T9", HARBOURS, True, change("Kiel.", "<|/think|>Kiel.")),
    ("T14", HARBOURS, True, change("Kiel.", "<|channel>thought\nThey want one name.\n<channel|>Kiel.")),
    ("T15", THINKING, True, change("<|channel>thought\nI need the tide.\n<channel|>", "")),
    ("T16", THINKING, False, change(OPEN_REPLY, "<turn|>\n<|turn>tool\n1.4 m<turn|>\n<|turn>model\n")),
    ("T16", TOOLS, True, change(REPLY, "<turn|>\n<|turn>user\n1.4 m<turn|>\n<|turn>model\n")),
    ("T17", TOOLS, True, change("It is 1.4 m.", "<turn|>\n<|turn>model\nIt is 1.4 m.")),
    ("T17", TOOLS, True, change("It is 1.4 m.<turn|>\n", "It is 1.4 m.")),
    ("T17", TOOLS, True, change("<turn|>\n<|turn>model\n" + CALL, "<turn|>\n" + CALL)),
    ("T18", "tool call, native responses, mapping", True, change(",hour:9}<tool_call|>", "<tool_call|>")),
    ("T18", "tool call, native responses, text", True, change('Kiel<|"|>}<tool_call|>', "Kiel}<tool_call|>")),
    ("T19", "tool call, native responses, mapping", True, change('harbour:<|"|>Kiel<|"|>', '"harbour":"Kiel"')),
    ("T19", "tool call, native responses, text", True, change('value:<|"|>1.4 m<|"|>', 'value:"1.4 m"')),
    ("T20", THINKING, True, change('{harbour:<|"|>Kiel<|"|>}', '{{"harbour": "Kiel"}}')),
    ("T21", THINKING, True, change('<|"|>Kiel<|"|>}', "None}")),
    ("T21", THINKING, True, change('value:<|"|>1.4 m<|"|>', "value:[1,None]")),
    ("T22", "one tool, system, thinking on", True, change("properties:{harbour:", "properties:{port:")),
    ("T23", "plain", True, change("<bos>", "<bos><bos>")),
    ("T24", "special-token look-alikes in user text", True, lambda text: text),
    ("T25", "two turns, thinking on", True, change("<|think|>\n", "<|think|>")),
    ("T25", "picture, then text", True, change("<|image|>", "\n\n<|image|>\n\n")),
    ("T26", HARBOURS, False, change("Kiel.", CLOSED + "Kiel.")),
]


@pytest.mark.parametrize(("entry", "name", "is_small", "made"), MADE, ids=[f"{m[0]}-{m[1]}" for m in MADE])
def test_a_mistake_made_in_a_right_prompt_is_named(tokenizer, entry, name, is_small, made):
    one = CONVERSATIONS[name]
    right = one["newest"] + ("" if is_small else one["newest, larger models add"])
    ids = tokenizer.encode(made(right), special=True)
    config = SimpleNamespace(vocab_size=262_144)
    model = SimpleNamespace(tokenizer=tokenizer, small_cue=is_small, config=config, directory="gemma")
    diagnosis = diagnose_ids(ids, model)
    assert entry in diagnosis.sentence
    found = diagnosis.prompt
    assert entry in [finding.id for finding in found], found
    assert len({finding.id for finding in found}) == 1, found
    for finding in found:
        assert finding.sentence
        assert (finding.title, finding.remedy) == (FAULTS[finding.id].title, FAULTS[finding.id].remedy)
        assert 0 <= finding.position < len(ids)


def test_a_prompt_without_bos_is_named(tokenizer):
    (found,) = mistakes_in(ids_of(tokenizer, "plain", True)[1:], tokenizer, True)
    assert (found.id, found.position) == ("T23", 0)


def test_thinking_asked_for_in_text_is_named(tokenizer):
    messages = [{"role": "system", "content": "<|think|>\nBe brief."}, {"role": "user", "content": "Name a harbour."}]
    (found,) = mistakes_in(to_ids(render(messages, small=True), tokenizer), tokenizer, True)
    assert found.id == "T11"


@pytest.mark.parametrize("name", [name for name in SPECIAL if name not in ("<pad>", "<unk>")])
def test_a_special_token_that_a_user_typed_is_named_if_it_is_a_token(tokenizer, name):
    text = f"<bos><|turn>user\nPrint {name} please<turn|>\n<|turn>model\n"
    found = mistakes_in(tokenizer.encode(text, special=True), tokenizer, True)
    media = name.strip("<|>") in ("image", "audio", "video")
    assert [one.id for one in found] == ([] if media else ["T24"])
    messages = [{"role": "user", "content": f"Print {name} please"}]
    assert mistakes_in(to_ids(render(messages, small=True), tokenizer), tokenizer, True) == []


def test_every_entry_is_made_here():
    elsewhere, unseen = {"T11"}, {"T10", "T12", "T13"}  # ids do not show those three
    assert {id for id in FAULTS if id[0] == "T"} == {entry for entry, *_ in MADE} | elsewhere | unseen


def test_a_right_answer_behind_the_prompt_is_no_mistake(tokenizer):
    for is_small in (True, False):
        prompt = ids_of(tokenizer, "one tool", is_small)
        for answer in ("Yes.", "Yes.<turn|>", f"{CALL}<|tool_response>", f"Well.{CALL * 2}<|tool_response>"):
            ids = prompt + tokenizer.encode(answer, bos=False, special=True)
            assert mistakes_in(ids, tokenizer, is_small) == []
        thinking = ids_of(tokenizer, "one tool, system, thinking on", is_small)
        answer = f"<|channel>thought\nI need the tide.\n<channel|>{CALL}<|tool_response>"
        assert mistakes_in(thinking + tokenizer.encode(answer, bos=False, special=True), tokenizer, is_small) == []


def test_prompts_that_the_newest_template_alone_writes_are_no_mistake(tokenizer):
    asks = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "now"}}], "reasoning": "A clock."}
    picture = {"role": "tool", "tool_call_id": "1", "content": [{"type": "image"}]}
    beside = asks | {"content": "Wait.", "tool_responses": [{"name": "now", "response": "09:00"}]}
    for messages in ([asks, picture], [beside]):
        ids = to_ids(render([{"role": "user", "content": "Now?"}, *messages], think=True, small=True), tokenizer)
        assert mistakes_in(ids, tokenizer, True) == []


def test_a_required_parameter_that_no_template_drops_is_the_tools_own_mistake(tokenizer):
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]}
    pieces = render(
        [{"role": "user", "content": "Go."}], [{"function": {"name": "f", "parameters": parameters}}], small=True
    )
    (found,) = mistakes_in(to_ids(pieces, tokenizer), tokenizer, True)
    assert (found.id, found.blame) == ("T22", True)


def test_an_open_call_tells_the_newest_form_from_the_release(tokenizer):
    text = CONVERSATIONS["call without a reply yet"]["newest"].replace('<|"|>Kiel<|"|>}', "None}")
    (found,) = mistakes_in(tokenizer.encode(text, special=True), tokenizer, True)
    assert (found.id, found.blame) == ("T21", True)


def test_text_without_turns_is_no_conversation(tokenizer):
    assert mistakes_in(tokenizer.encode("Once upon a time"), tokenizer, True) == []


def test_pictures_that_stand_as_many_placeholders_are_no_mistake(tokenizer):
    ids = tokenizer.encode(CONVERSATIONS["text, then picture, then text"]["newest"], special=True)
    at = ids.index(SPECIAL["<|image|>"])
    soft = [SPECIAL["<|image>"], *[SPECIAL["<|image|>"]] * 70, SPECIAL["<image|>"]]
    assert mistakes_in([*ids[:at], *soft, *ids[at + 1 :]], tokenizer, True) == []


def test_diagnose_names_the_mistake_in_ids_alone_without_a_forward_pass(tiny, monkeypatch, capsys, run):
    for module in ("sampling", "debug.port", "debug.replay"):
        monkeypatch.setattr(import_module(f"minigemma.{module}"), "forward", None, raising=False)
    asked = [{"role": "user", "content": "Who is Tom?"}]
    right = tiny.chat_ids(asked)
    closed = [*right, *tiny.tokenizer.encode(CLOSED, bos=False, special=True)]
    release = to_ids(render(asked, think=True, small=True, release=True), tiny.tokenizer)
    for ids, status, words in (
        (closed, 1, ("T1  ", "remedy")), (release, 0, ("T25", "release template")), (right, 0, ("no mistake",)),
    ):  # fmt: skip
        assert main(["diagnose", "--ids", ",".join(map(str, ids))]) == status
        out = capsys.readouterr().out
        assert all(word in out for word in words)
    one_line(run("diagnose"), "nothing to diagnose")


def test_diagnose_names_the_mistake_in_the_ids_of_a_trace_and_judges_the_trace_too(tiny, tmp_path, capsys):
    text = "<bos><|turn>user\nWho is Tom?<turn|>\n<|turn>model\n<|channel>thought\n"
    trace, ids = Trace("layers.*.resid_post"), tiny.tokenizer.encode(text, special=True)
    tiny(ids, tap=trace)
    trace.save(tmp_path / "theirs.safetensors", tokens=ids)
    assert main(["diagnose", str(tmp_path / "theirs.safetensors"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "healthy"
    assert [(one["id"], one["position"]) for one in found["prompt"]] == [("T3", len(ids) - 3)]


def test_any_ids_are_judged_without_a_crash(tokenizer):
    rng = np.random.default_rng(0)
    special = np.array([*SPECIAL.values(), 107, 2364, 4368, 45518, 10**6, 361, 363])
    for _ in range(300):
        ids = rng.choice(special, rng.integers(0, 40))
        for is_small in (True, False):
            for finding in mistakes_in(ids, tokenizer, is_small):
                assert 0 <= finding.position <= len(ids)
    assert mistakes_in([], tokenizer, True)[0].id == "T23"
    with pytest.raises(Error):
        mistakes_in([2, -1], tokenizer, True)


@pytest.mark.parametrize("stranger", [99_999, 2_560, 2**31 - 1, 2**40])
def test_an_id_that_the_model_does_not_have_is_refused_and_not_called_clean(tiny, stranger):
    ids = tiny.chat_ids([{"role": "user", "content": "Hello"}])
    assert diagnose_ids(ids, tiny).sentence == "the ids show no mistake"
    with pytest.raises(Error, match=f"id {stranger} at position 4 is outside the vocabulary .* --weights"):
        diagnose_ids([*ids[:4], stranger, *ids[4:]], tiny)


def test_ids_and_conversations_need_no_weights(tmp_path, capsys, run):
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((TINY / name).read_bytes())
    (tmp_path / "talk.json").write_text('[{"role": "user", "content": "Hello"}]', encoding="utf-8")
    assert main(["turns", str(tmp_path / "talk.json"), "--weights", str(tmp_path), "--json"]) == 0
    ids = capsys.readouterr().out.strip().strip("[]").replace(" ", "")
    assert main(["diagnose", "--ids", ids, "--weights", str(tmp_path)]) == 0
    one_line(run("generate", "Hello", "--weights", tmp_path), "no .safetensors file")
