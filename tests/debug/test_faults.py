"""The catalogue is data that can be trusted, and `diagnose` names what was put into our own pass.

That it names mistakes made by other code than ours is tested in parity/test_diagnosis.py.
"""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from family import MEMBERS, kinds, model_of, small
from ports import captured

from minigemma import Error, Trace, forward
from minigemma.__main__ import main
from minigemma.debug import diagnosis
from minigemma.debug.catalogue import FAULTS, PROBES, Fault, applicable, to_bfloat16
from minigemma.debug.diagnosis import Search, diagnose
from minigemma.debug.diff import compare_traces
from minigemma.debug.port import Port
from minigemma.debug.replay import compare
from minigemma.debug.runs import Run
from minigemma.debug.samerun import layer_groups
from minigemma.taps import AUDIO_TAPS, TAPS, VISION_TAPS, tap_kind, time_axis
from minigemma.tensors import unused_tensors

TOKENS = np.concatenate([[2], np.random.default_rng(3).integers(3, 120, 22)])


def port_with(model, *ids, **options):
    port = Port(model.config, model.weights, TOKENS, **options)
    for id in ids:
        FAULTS[id].changes[0](port)
    return port


def diagnosed(model, *ids, only=None, **options):
    trace = Trace(only)
    port_with(model, *ids).run(trace)
    return diagnose(dict(trace), Run(model, TOKENS, dict(trace)), **options)


def test_every_entry_says_what_why_and_what_to_do():
    assert len(FAULTS) >= 45
    for id, fault in FAULTS.items():
        assert id == fault.id
        assert fault.title and fault.symptom and fault.remedy and fault.seen, id
        assert fault.probe in PROBES, id
        assert fault.first is None or fault.first in TAPS | VISION_TAPS | AUDIO_TAPS, id
        assert bool(fault.changes) == bool(fault.first), id


def test_the_catalogue_covers_every_part_of_the_model():
    assert {id[0] for id in FAULTS} == set("ABCDEFGHJLMSTV")
    assert len({fault.title for fault in FAULTS.values()}) == len(FAULTS)


def first_change(model, fault):
    """The first tap that a mistake changes, of those that a capture can hold: without scores if the run is cached."""
    rng, config, taps = np.random.default_rng(0), model.config, []
    unused = {t.name: rng.standard_normal(t.shape) for t in unused_tensors(config)}
    tokens, soft = TOKENS, None
    if "soft" in fault.needs:  # a picture that is longer than the window, and another
        where = np.array([*range(2, 10), 12, 13])
        soft, tokens = (where, rng.standard_normal((len(where), config.hidden_size))), TOKENS.copy()
        tokens[where] = config.image_token_id
    prefill, left_out = (12, ("scores", "pattern")) if "cached" in fault.needs else (None, ())
    for change in (lambda port: None, fault.changes[0]):
        port, seen = Port(config, model.weights, tokens, soft, unused=unused), []
        change(port)
        port.run(lambda name, array, seen=seen: seen.append((name, array)) or array, prefill)
        taps.append([(name, array) for name, array in seen if not name.endswith(left_out)])
    names = {name for name, _ in taps[0]}  # F1 has K and V taps in layers that should have none
    pairs = zip(taps[0], (tap for tap in taps[1] if tap[0] in names), strict=True)
    changed = (n for (n, a), (_, b) in pairs if a.shape != b.shape or compare(n, a, b).error > 1e-9)  # float64
    return next(map(tap_kind, changed), None)


def test_each_mistake_first_changes_the_tap_that_the_catalogue_names(member):
    ahead = None if member.startswith("E") else "vision"
    model = model_of(member, dtype="float64", image_token_id=102, use_bidirectional_attention=ahead)
    facts = {"cached": True, "soft": True, "unused": True, "pictures": True}
    every = [f for f in FAULTS.values() if not f.rounds and applicable(f, model.config, **facts)]
    expected = {fault.id: fault.first for fault in every}
    if model.config.hidden_size_per_layer_input:
        expected["A4"] = "ple.context"  # PLE's norm comes before those of the layers
    if all(layer.num_key_value_heads == 1 for layer in model.config.layers):
        expected["D6b"] = None  # all query heads read the same kv head
    assert {fault.id: first_change(model, fault) for fault in every} == expected


def divides_by_zero(*_):
    return 1 / 0


@pytest.mark.parametrize("change", [
    divides_by_zero,
    lambda port: port.edit("embed", divides_by_zero),
    lambda port: setattr(port, "after_call", divides_by_zero),
], ids=["in the change", "in an edit", "after a call"])  # fmt: skip
def test_an_exception_in_a_mistake_names_its_id(change):
    model = model_of("E2B")
    broken = Fault("Z1", "a mistake", probe="one", symptom="", remedy="", seen="", changes=change)
    port = port_with(model, "A1")
    with pytest.raises(ZeroDivisionError) as caught:
        broken.changes[0](port)
        port.run()
    assert "in a port with these mistakes of the catalogue: A1, Z1" in caught.value.__notes__


def test_a_port_leaves_the_model_as_it_was(member):
    model = model_of(member)
    owners = [model.weights, *model.weights.layers]
    before = [{name: np.copy(value) for name, value in vars(o).items() if name != "layers"} for o in owners]
    logits, _ = forward(TOKENS, model.weights, model.config)
    for fault in FAULTS.values():
        if applicable(fault, model.config):
            for change in fault.changes:
                change(Port(model.config, model.weights, TOKENS))
    for owner, values in zip(owners, before, strict=True):
        assert all(np.array_equal(getattr(owner, name), value) for name, value in values.items())
    assert np.array_equal(forward(TOKENS, model.weights, model.config)[0], logits)
    assert np.array_equal(Port(model.config, model.weights, TOKENS).run(), logits)


def test_a_mistake_that_the_model_cannot_make_is_not_tried():
    dense, mixture = model_of("12B").config, model_of("26B-A4B").config
    tried = [{id for id, fault in FAULTS.items() if applicable(fault, config)} for config in (dense, mixture)]
    assert not any(id.startswith("B") for ids in tried for id in ids)
    assert "D3" in tried[0] and not any(id.startswith("H") for id in tried[0])
    assert "H1" in tried[1]


HIDDEN_STATES = ("embed", "layers.*.resid_post", "logits")
EVIDENCE = [(id, ("logits",)) for id in ("A1", "A9", "B5", "C1", "D2", "E1", "F5", "G2")]
EVIDENCE += [(id, only) for id in ("E1", "F5") for only in (HIDDEN_STATES, None)]


@pytest.mark.parametrize("id, only", EVIDENCE)
def test_a_mistake_is_named_from_much_and_from_little(id, only):
    found = diagnosed(model_of("E2B"), id, only=only)
    assert found.verdict == "fault"
    assert found.faults[0].id == id
    assert found.faults[0].explains > 0.95
    assert found.faults[0].remedy == FAULTS[id].remedy


ONE_CALL, CACHED = ("A9c", "A14", "C3", "D12", "D13", "D14", "F12", "G4"), ("B2", "B9c", "E7", "F12b", "G2c")


@pytest.mark.parametrize("id, prefill", [*((id, None) for id in ONE_CALL), *((id, 12) for id in CACHED)])
def test_a_mistake_is_named_among_those_of_its_part_also_where_it_needs_a_cache(id, prefill, monkeypatch):
    """The parity suite tries each mistake against the whole catalogue."""
    model, calls = model_of("E2B", layer_types=kinds(1, 1), num_kv_shared_layers=2), {}
    monkeypatch.setattr(diagnosis, "FAULTS", {name: fault for name, fault in FAULTS.items() if name[0] == id[0]})
    port_with(model, id).run(lambda name, array: calls.setdefault(name, []).append(array) or array, prefill)
    theirs = {n: np.concatenate(a) for n, a in calls.items() if not (prefill and n.endswith(("scores", "pattern")))}
    assert [fault.id for fault in diagnose(theirs, Run(model, TOKENS, theirs), prefill=prefill).faults] == [id]


TRIED = [*((member, 23, None) for member in MEMBERS), ("E2B", 23, ["layers.*.attn.scores"]), ("E2B", 1, ["logits"])]
TRIED += [("26B-A4B", 23, ["layers.*.attn.scores"]), ("26B-A4B", 1, ["logits"])]


@pytest.mark.parametrize("member, length, only", TRIED)
def test_every_mistake_of_the_catalogue_can_be_tried_on_every_member(member, length, only):
    model, tokens, trace = model_of(member), TOKENS[-length:], Trace(only)
    soft = np.array([0]), np.ones((1, model.config.hidden_size), np.float32)
    forward(tokens, model.weights, model.config, soft_tokens=soft, tap=trace)
    run = Run(model, tokens, dict(trace), soft_tokens=soft)
    search = Search(run, compare_traces(dict(trace), run), prefill=length // 2 or None)
    candidates = search.candidates()
    assert len({candidate.fault.id for candidate in candidates}) > 40
    for candidate in candidates:
        assert search.errors([candidate]) is not None
    assert not search.skipped


def test_a_mistake_that_rounds_explains_nothing_of_another_at_few_positions():
    model, trace = model_of("E2B", layer_types=kinds(1, 1), num_kv_shared_layers=2), Trace()
    late = np.where(np.arange(len(TOKENS)) % 8, 1, 1.04).astype(np.float32)[:, None]  # [T, 1]: two times the allowed

    def port(name, x):
        return trace(name, to_bfloat16(x * late if name == "layers.3.mlp.gate" else x))

    forward(TOKENS, model.weights, model.config, tap=port)
    run = Run(model, TOKENS, dict(trace))
    search = Search(run, compare_traces(dict(trace), run), prefill=None)
    assert search.broken == ["layers.3.mlp.gate"]
    assert all(search.trial(one).explained < 0.1 for one in search.candidates() if one.fault.flips)


def raises(port):
    raise ValueError("axes differ")


def test_a_mistake_that_cannot_be_tried_on_a_trace_is_skipped_with_a_note(monkeypatch):
    broken = Fault("Z1", "a mistake", probe="one", symptom="", remedy="", seen="", changes=raises)
    monkeypatch.setitem(FAULTS, "Z1", broken)
    found = diagnosed(model_of("E2B"), "A8")
    assert [fault.id for fault in found.faults] == ["A8"]
    assert found.notes == ["not tried, as this trace cannot show them: Z1"]


CUT = [("embed", False), ("layers.0.resid_pre", True), ("layers.2.mlp.act", False), ("layers.3.attn.q", True)]


@pytest.mark.parametrize("wrong, late", CUT)
def test_no_capture_of_the_last_position_ends_in_a_traceback(wrong, late):
    """A mistake that is not in the catalogue, in a file cut as hooks on generate() see it."""
    model, trace = model_of("E2B", layer_types=kinds(1, 1), num_kv_shared_layers=2), Trace()
    noise = np.random.default_rng(1).uniform(0.5, 2, 1000)

    def port(name, x):
        return trace(name, x * noise[: x.shape[-1]].astype(x.dtype) if name == wrong else x)

    forward(TOKENS, model.weights, model.config, tap=port)
    theirs = dict(trace)
    for name, array in trace.items():
        if not late or re.match(r"layers\.[23]\.|final|logits", name):
            theirs[name] = array.take([-1], axis=time_axis(name))
    found = diagnose(theirs, Run(model, TOKENS, theirs))
    assert found.verdict != "healthy" and not found.notes


def test_two_mistakes_at_once_are_both_named():
    found = diagnosed(model_of("E2B"), "B5", "D1")
    assert {fault.id for fault in found.faults} == {"B5", "D1"}
    assert all(fault.explains > 0.03 for fault in found.faults)


PARTS = [("D1", "global", None), ("D1", "sliding", "*.resid_post"), ("C1", "KV-sharing", None)]
PARTS += [("D2", "global", "logits"), ("B1", "global", "*.resid_post"), ("E5", "KV-sharing", "*.resid_post")]


@pytest.mark.parametrize("id, kind, only", PARTS)
def test_a_mistake_in_some_layers_only_is_named_with_those_layers(id, kind, only):
    model, words = model_of("E2B"), f"the {kind} layers"
    theirs = captured(model, TOKENS, id, only, layer_groups(model.config)[words])
    found = diagnose(theirs, Run(model, TOKENS, theirs))
    assert [fault.id for fault in found.faults] == [id]
    assert f"{FAULTS[id].title}, on {words} only" in found.sentence


LATER = [
    ("D2", "", "*.resid_post", "from position 12 on"),
    ("C1", "the global layers", None, "on the global layers only, from position 12 on"),
    ("E7", "", "*.resid_post", "all later tokens in one call"),
]


@pytest.mark.parametrize("id, words, only, where", LATER)
def test_a_mistake_of_the_second_call_only_is_named_with_its_first_position(id, words, only, where):
    model = model_of("E2B")
    theirs = captured(model, TOKENS, id, only, layer_groups(model.config).get(words), start=12)
    found = diagnose(theirs, Run(model, TOKENS, theirs))
    assert [fault.id for fault in found.faults] == [id]
    assert f"{FAULTS[id].title}, {where}: explains" in found.sentence


@pytest.mark.parametrize("by", [5, -3])
@pytest.mark.parametrize("only", [None, "*.resid_post", "logits"])
def test_how_far_positions_jump_is_found(by, only, monkeypatch):
    change = next(change for change in FAULTS["E11"].changes if change.function.keywords["by"] == by)
    monkeypatch.setitem(FAULTS, "jump", replace(FAULTS["E11"], changes=change))
    model = model_of("E2B")
    theirs = captured(model, TOKENS, "jump", only, start=12)
    monkeypatch.delitem(FAULTS, "jump")
    run = Run(model, TOKENS, theirs)
    search = Search(run, compare_traces(theirs, run), None)
    (jump,) = search.mending(search.numbered())
    assert jump.where == f"by {by}" and search.mends_all(search.trial(jump))


@pytest.mark.parametrize("id", ["E10", "L10"])
@pytest.mark.parametrize("only", [None, "logits"])
def test_two_prompts_in_one_row_are_named_where_there_is_a_second_bos(id, only):
    model, tokens = model_of("E2B", bos_token_id=2), np.concatenate([TOKENS[:12], TOKENS[:11]])
    theirs = captured(model, tokens, id, only)
    for ids, known in (tokens, True), (np.where(np.arange(23) == 12, 7, tokens), False):
        run = Run(model, ids, theirs)
        found = compare_traces(theirs, run)
        assert ("<bos> is at 12: if two prompts are in one row, compare each alone" in (found.hint or "")) == known
        search = Search(run, found, None)
        tried = [candidate for candidate in search.candidates() if candidate.fault.id == id]
        assert len(tried) == known
        assert all(search.mends_all(search.trial(candidate)) for candidate in tried)


@pytest.mark.parametrize("id", ["B9b", "D7", "D11", "D13", "F12", "G4", "G3"])
def test_a_mistake_of_the_second_call_that_reads_other_positions_explains_it(id):
    """What it reads of other positions is that call's, and K and V of all."""
    model, start = model_of("E2B"), 12
    theirs = captured(model, TOKENS, id, ["*.resid_post", "*.attn.z"], start=start)
    run = Run(model, TOKENS, theirs)
    search = Search(run, compare_traces(theirs, run), None)
    one = next(one for one in search.candidates() if one.fault.id == id)
    assert search.mends_all(search.trial(one._replace(start=start)))


def test_a_harmless_mistake_is_called_harmless():
    found = diagnosed(model_of("E2B"), "B7")
    assert found.faults[0].id == "B7"
    assert "harmless" in found.sentence


def test_what_is_not_in_the_catalogue_is_located_and_not_named():
    model, trace = model_of("E2B"), Trace()
    sign = np.where(np.arange(24) % 3, 1, -1).astype(np.float32)
    forward(TOKENS, model.weights, model.config,
            tap=lambda n, x: trace(n, x * sign if n == "layers.3.attn.o" else x))  # fmt: skip
    found = diagnose(dict(trace), Run(model, TOKENS, dict(trace)))
    assert (found.verdict, found.first_broken, found.faults) == ("unknown", "layers.3.attn.o", [])


@pytest.mark.parametrize("kind", ["KV-sharing", "global"])
def test_of_an_unknown_mistake_the_broken_ops_and_their_layers_are_said_in_one_line(kind):
    model, trace = model_of("E2B"), Trace()
    layers = layer_groups(model.config)[f"the {kind} layers"]
    flipped = {f"layers.{i}.attn.pattern" for i in layers}
    forward(TOKENS, model.weights, model.config, tap=lambda n, x: trace(n, x[::-1] ** 2 if n in flipped else x))
    found = diagnose(dict(trace), Run(model, TOKENS, dict(trace)))
    numbers = ", ".join(map(str, sorted(layers)))
    assert f"the broken ops: attn.pattern in layers {numbers}, the {kind} layers" in found.notes[0]


@pytest.mark.parametrize("kept", ["all", "last logits", "last of all"])
def test_a_missing_and_a_second_bos_are_named_from_the_last_position_too(kept):
    model = model_of("E2B")
    for id, tokens in (("J1", TOKENS[1:]), ("J2", np.concatenate([TOKENS[:1], TOKENS]))):
        trace = Trace(["logits"] if kept == "last logits" else None)
        forward(tokens, model.weights, model.config, tap=trace)
        rows = [-1] if kept != "all" else range(len(tokens))
        theirs = {name: array.take(rows, axis=time_axis(name)) for name, array in trace.items()}
        assert [fault.id for fault in diagnose(theirs, Run(model, TOKENS, theirs)).faults] == [id]


def test_a_mistake_is_named_from_the_last_position_of_all_taps():
    model, trace = model_of("E2B"), Trace()
    port_with(model, "E1").run(trace)
    theirs = {name: array.take([-1], axis=time_axis(name)) for name, array in trace.items()}
    assert diagnose(theirs, Run(model, TOKENS, theirs)).faults[0].id == "E1"


def test_soft_tokens_reach_a_port_that_decodes():
    model = model_of("E2B", dtype="float64")  # in which rounding is 2e-16: two calls and one differ by that alone
    rows = np.random.default_rng(0).standard_normal((3, model.config.hidden_size))
    whole = Port(model.config, model.weights, TOKENS, (np.array([1, 2, 9]), rows)).run()
    decoded = Port(model.config, model.weights, TOKENS, (np.array([1, 2, 9]), rows)).run(prefill=6)
    assert np.linalg.norm(decoded - whole) < 1e-12 * np.linalg.norm(whole)
    without = Port(model.config, model.weights, TOKENS).run()
    assert np.linalg.norm(without - whole) > 1e-3 * np.linalg.norm(whole)


@pytest.mark.parametrize("prefill", [0, -3, len(TOKENS) + 1])
def test_a_first_call_of_no_tokens_or_of_more_than_the_prompt_is_refused(prefill):
    model, theirs = model_of("E2B"), dict(Trace().arrays)
    with pytest.raises(Error, match="--prefill is the number of tokens in their first call, from 1 to"):
        diagnose(theirs, Run(model, TOKENS, theirs), prefill=prefill)


def test_weights_of_ours_that_are_not_finite_are_not_blamed_on_them():
    config, weights = small("E2B")
    theirs = Trace()
    forward(TOKENS, weights, config, tap=theirs)
    weights.layers[3].up_proj[0, 0] = np.nan
    with pytest.raises(Error, match=r"our own pass cannot judge theirs: layers\.3\.mlp\.up"):
        Run(SimpleNamespace(config=config, weights=weights), TOKENS, dict(theirs))


def test_after_a_healthy_trace_the_next_rung_of_the_ladder_is_named():
    model = model_of("E2B")
    long, soft = np.tile(TOKENS, 3), (np.array([4]), np.ones((1, model.config.hidden_size), np.float32))
    ladder = [
        (TOKENS[:1], {}, None, "nine tokens"), (TOKENS, {}, None, "more than 64"),
        (long, {}, None, PROBES["cached"]), (long, {"prefill": 9}, None, PROBES["soft"]),
        (long, {"prefill": 9}, soft, ""),
    ]  # fmt: skip
    for tokens, options, soft_tokens, words in ladder:
        trace = Trace()
        forward(tokens, model.weights, model.config, soft_tokens=soft_tokens, tap=trace)
        found = diagnose(dict(trace), Run(model, tokens, dict(trace), soft_tokens), **options)
        assert found.verdict == "healthy"
        assert words in (found.next_probe or "")


def test_what_one_known_mistake_leaves_is_said():
    model, trace = model_of("E2B"), Trace()
    sign = np.where(np.arange(24) % 3, 1, -1).astype(np.float32)
    port_with(model, "D1").run(lambda n, x: trace(n, x * sign if n == "layers.4.mlp.down" else x))
    found = diagnose(dict(trace), Run(model, TOKENS, dict(trace)))
    assert (found.verdict, found.faults[0].id) == ("fault", "D1")
    assert found.sentence.endswith("the rest is not in the catalogue: it begins at layers.4.mlp.down")


@pytest.mark.parametrize("only", ["layers.*.resid_post", "layers.*.resid_mid"])
def test_hidden_states_of_another_run_are_told_as_such(only):
    model, other = model_of("E2B"), model_of("E2B", seed=9)
    changed = np.concatenate([TOKENS[:9], np.random.default_rng(8).integers(3, 120, 14)])
    for made, tokens, verdict in ((model, changed, "other-input"), (other, TOKENS, "other-weights")):
        trace = Trace(only)
        forward(tokens, made.weights, made.config, tap=trace)
        assert diagnose(dict(trace), Run(model, TOKENS, dict(trace))).verdict == verdict


def test_a_trace_of_another_length_asks_for_its_ids():
    model, trace = model_of("E2B"), Trace()
    forward(TOKENS[:-4], model.weights, model.config, tap=trace)
    with pytest.raises(Error, match="the trace has 19 positions and the prompt 23 ids; give the ids"):
        diagnose(dict(trace), Run(model, TOKENS, dict(trace)))


def test_where_taps_are_missing_the_next_capture_is_named():
    model, trace = model_of("E2B"), Trace(["layers.*.resid_pre", "layers.*.attn_out", "logits"])
    sign = np.where(np.arange(24) % 3, 1, -1).astype(np.float32)
    forward(TOKENS, model.weights, model.config,
            tap=lambda n, x: trace(n, x * sign if n == "layers.3.attn.o" else x))  # fmt: skip
    found = diagnose(dict(trace), Run(model, TOKENS, dict(trace)))
    assert found.first_broken == "layers.3.attn_out"
    assert "layers.3.attn.in" in found.next_probe


def test_the_command_lists_every_entry(capsys):
    assert main(["faults"]) == 0
    text = capsys.readouterr().out
    assert all(f"{fault.id}  {fault.title}" in text for fault in FAULTS.values())
    assert main(["faults", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == list(FAULTS)


def test_the_command_names_the_mistake_in_a_file(tmp_path, capsys):
    import minigemma

    model = minigemma.load()
    ids = model.tokenizer.encode("Mia went to the market. Tom put the kite in the barn.")
    port, trace = Port(model.config, model.weights, ids), Trace()
    FAULTS["E1"].changes[0](port)
    port.run(trace)
    path = str(tmp_path / "theirs.safetensors")
    trace.save(path, tokens=ids)
    assert main(["diagnose", path]) == 1
    assert f"E1, {FAULTS['E1'].title}" in capsys.readouterr().out
    assert main(["diagnose", path, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["faults"][0]["id"]) == ("fault", "E1")
    assert set(found["faults"][0]) == {"id", "title", "explains", "evidence", "remedy"}
    assert found["first_broken"] == "layers.4.attn.rot_q"


def with_noise(size, precision):
    """What a port in this precision records whose values are rounded more coarsely, by noise of this size."""
    model, trace, rng = model_of("E2B"), Trace(), np.random.default_rng(5)

    def port(name, x):
        if name.endswith("attn.v"):
            x = (x * (1 + size * rng.uniform(-1, 1, x.shape))).astype(x.dtype)
        return trace(name, x.astype(precision).astype(np.float32) if x.dtype == np.float32 else x)

    forward(TOKENS, model.weights, model.config, tap=port)
    return dict(trace), Run(model, TOKENS, dict(trace))


def test_a_part_in_bfloat16_of_a_port_in_float16_is_rounding():
    theirs, run = with_noise(2**-7, np.float16)
    comparison = compare_traces(theirs, run)
    assert comparison.precision == "float16" and comparison.first_broken == "layers.0.attn.v"
    found = diagnose(theirs, run)
    assert found.verdict == "healthy" and found.comparison.precision == "bfloat16"
    assert "though most numbers are those of float16" in found.sentence


def test_a_coarser_format_is_named_and_hides_no_mistake_of_a_port_in_float32():
    found = diagnose(*with_noise(2**-7, np.float32))
    assert (found.verdict, found.first_broken) == ("unknown", "layers.0.attn.v")
    assert found.sentence.endswith("bfloat16 rounding would explain all: if they use it, give --precision bfloat16")
    assert "--precision" not in diagnose(*with_noise(0.5, np.float32)).sentence
    assert "--precision" not in diagnose(*with_noise(2**-7, np.float32), precision="float32").sentence
