"""`diff`: a healthy trace is called healthy, a broken op is found where it is, and another run is told as such."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from family import model_of
from ports import captured
from processes import one_line, peak_memory
from safetensors.numpy import save_file

from minigemma import TINY, Edit, Error, Replay, Trace, forward, load
from minigemma.__main__ import main
from minigemma.checkpoint import write_safetensors
from minigemma.debug.catalogue import FAULTS, applicable
from minigemma.debug.catalogue.rope import placed
from minigemma.debug.diagnosis import Candidate, Search, diagnose, diagnose_file
from minigemma.debug.diff import compare_traces, diff_captures, diff_file
from minigemma.debug.port import Port
from minigemma.debug.replay import compare, in_words
from minigemma.debug.runs import Run
from minigemma.ops import visible
from minigemma.packed import narrow, widen
from minigemma.taps import axes_of, layer_of, names_of, tap_kind, time_axis

TOKENS = np.random.default_rng(3).integers(3, 120, 23)
MEMBERS = {"A4": "12B", "D6": "31B"}  # A4: where no PLE has a norm before the layers; D6: two global kv heads


def recorded(model, only=None, tokens=TOKENS, tap=None):
    """What another engine would have captured: our own taps, changed by `tap`."""
    trace = Trace(only)
    with np.errstate(all="ignore"):
        forward(tokens, model.weights, model.config, tap=lambda n, x: trace(n, x if tap is None else tap(n, x)))
    return dict(trace)


def recorded_with(model, fault):
    """The trace of a port that makes one mistake of the catalogue."""
    port, trace = Port(model.config, model.weights, TOKENS), Trace()
    fault.changes[0](port)
    port.run(trace)
    return dict(trace)


def compared(model, theirs, tokens=TOKENS, **options):
    return compare_traces(theirs, Run(model, tokens, theirs), **options)


def test_replay_goes_on_with_their_values_and_judges_each_op_alone():
    model = model_of("E2B")
    theirs = recorded(model, tap=Edit({"layers.2.mlp.up": lambda x: x * 1.5}))
    replay = Replay(theirs)
    logits, _ = forward(TOKENS, model.weights, model.config, tap=replay)
    assert np.array_equal(logits, theirs["logits"])
    assert [name for name, found in replay.found.items() if found.error > 0] == ["layers.2.mlp.up"]


def test_the_error_of_one_position_is_not_thinned_by_the_others():
    ours = np.ones((50, 4))
    theirs = ours.copy()
    theirs[7] = 2
    found = compare("embed", ours, theirs)
    assert found.error == 1
    assert np.flatnonzero(found.errors).tolist() == [7]


def test_identical_traces_are_all_ok(member):
    model = model_of(member)
    found = compared(model, recorded(model))
    assert {row.verdict for row in found.rows} == {"OK"}
    assert found.first_broken is found.identity is None
    assert "all" in found.sentence


def test_every_tap_that_was_not_captured_is_missing():
    model = model_of("E2B")
    found = compared(model, recorded(model, ["layers.3.*", "logits"]))
    verdicts = {row.name: row.verdict for row in found.rows}
    assert list(verdicts) == names_of(model.config)
    assert {name for name, verdict in verdicts.items() if verdict == "OK"} == {
        name for name in verdicts if name.startswith("layers.3.") or name == "logits"
    }


ROUNDED = {"bfloat16": lambda x: widen(narrow(x)), "float16": lambda x: x.astype(np.float16).astype(np.float32)}


@pytest.mark.parametrize("precision", ROUNDED)
def test_an_engine_that_only_rounds_is_healthy_and_its_number_format_is_told(precision, member):
    rounded = ROUNDED[precision]
    model = model_of(member)
    theirs = recorded(model, tap=lambda name, x: rounded(x) if x.dtype == np.float32 else x)
    found = compared(model, theirs)
    assert found.precision == precision
    assert found.first_broken is None


def overflowing(tap=lambda name, x: x, precision=np.float16):
    """A model whose layer 2 makes numbers larger than float16 can hold, and what a port in float16 records."""
    model = model_of("E2B")
    weight = np.copy(model.weights.layers[2].post_feedforward_layernorm)  # [D]
    weight[5] = 4e4
    model.weights.layers[2].post_feedforward_layernorm = weight

    def half(name, x):
        return tap(name, x).astype(precision).astype(np.float32) if x.dtype == np.float32 else x

    return model, recorded(model, tap=half)


def test_an_overflow_of_float16_is_named_and_what_follows_is_poisoned():
    model, theirs = overflowing()
    found = compared(model, theirs)
    verdicts = {row.name: row.verdict for row in found.rows}
    assert found.precision == "float16" and found.first_broken == "layers.2.mlp_out"
    assert found.sentence.startswith("float16 overflow at layers.2.mlp_out: the right value there is ")
    assert [name for name, verdict in verdicts.items() if verdict == "BROKEN"] == ["layers.2.mlp_out"]
    assert verdicts["layers.2.resid_post"] == verdicts["logits"] == "POISONED"
    assert diagnose(theirs, Run(model, TOKENS, theirs)).verdict == "overflow"
    assert not found.clean


def test_large_numbers_in_bfloat16_are_no_overflow():
    model = overflowing()[0]
    theirs = recorded(model, tap=lambda name, x: ROUNDED["bfloat16"](x) if x.dtype == np.float32 else x)
    assert compared(model, theirs).first_broken is None


def test_a_mistake_beside_an_overflow_is_still_broken():
    model, theirs = overflowing(lambda name, x: x * np.float16(1.5) if name == "layers.1.mlp.up" else x)
    found = compared(model, theirs)
    assert found.first_broken == "layers.1.mlp.up" and "overflow" not in found.sentence
    assert [row.name for row in found.rows if row.verdict == "BROKEN"] == ["layers.1.mlp.up", "layers.2.mlp_out"]


def test_a_nan_that_is_no_overflow_is_broken_once_and_poisons_the_rest():
    model = model_of("E2B")
    late = np.arange(len(TOKENS))[:, None, None] >= 9
    theirs = recorded(model, tap=Edit({"layers.4.attn.z": lambda x: np.where(late, np.float32(np.nan), x)}))
    found = compared(model, theirs)
    assert found.first_broken == "layers.4.attn.z" and "overflow" not in found.sentence
    assert [row.name for row in found.rows if row.verdict == "BROKEN"] == ["layers.4.attn.z"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("only", ["*", ["embed", "ple.token", "layers.*.resid_*", "logits"]])
def test_rows_of_the_tables_before_their_scale_are_no_mistake(only, precision):
    model = model_of("E2B")
    rounded = ROUNDED.get(precision, lambda x: x)
    theirs = recorded(model, only, tap=lambda name, x: rounded(x) if x.dtype == np.float32 else x)
    theirs["embed"], theirs["ple.token"] = theirs["embed"] / np.sqrt(24), theirs["ple.token"] / np.sqrt(6)
    theirs = {name: array.astype(np.float32) for name, array in theirs.items()}
    run = Run(model, TOKENS, theirs)
    found = diagnose(theirs, run)
    assert found.verdict == "healthy" and found.clean
    for name in ("embed", "ple.token"):
        assert f"{name} holds the rows of its table before their scale" in found.sentence


@pytest.mark.parametrize("name", ["layers.2.attn.q", "layers.2.mlp.gate", "layers.2.resid_mid"])
def test_what_was_captured_at_another_point_is_told_from_a_mistake(name):
    model = model_of("E2B")
    theirs = recorded(model)
    theirs[name] = theirs[name] * np.linspace(0.5, 2, theirs[name].shape[-1], dtype=np.float32)
    found = compared(model, theirs)
    assert found.first_broken is None and f"{name} was captured at another point" in found.sentence
    assert found.unread == [name] and not found.clean  # of this array nothing is known
    wrong = recorded(model, tap=Edit({name: lambda x: x * np.linspace(0.5, 2, x.shape[-1], dtype=x.dtype)}))
    assert compared(model, wrong).first_broken == name


def test_a_mistake_behind_a_row_of_the_table_is_found():
    model = model_of("E2B")
    theirs = recorded_with(model, FAULTS["M2"])
    theirs["embed"] = theirs["embed"] / np.float32(np.sqrt(24))
    found = diagnose(theirs, Run(model, TOKENS, theirs))
    assert [fault.id for fault in found.faults] == ["M2"] and found.first_broken == "layers.0.attn_out"


def test_a_broken_op_is_told_from_the_drift_behind_it():
    model = model_of("E2B")
    found = compared(model, recorded_with(model, FAULTS["M2"]))
    verdicts = {row.name: row.verdict for row in found.rows}
    assert found.first_broken == "layers.0.attn_out"
    assert "post_attention_layernorm" in found.sentence
    assert {name for name, verdict in verdicts.items() if verdict == "BROKEN"} == {
        f"layers.{i}.attn_out" for i in range(model.config.num_hidden_layers)
    }
    assert verdicts["logits"] == "DRIFT"


SCALAR, NEXT = (np.ravel(model_of("E2B").weights.layers[i].layer_scalar)[0] for i in (2, 3))
WITHOUT_MORE = [f for f in FAULTS.values() if f.changes and not f.rounds
                and not set(f.needs) & {"soft", "cached", "unused"} and not f.id.startswith(("V", "S", "J1", "J2"))]
ONE_PER_OP = {fault.first: fault for fault in reversed(WITHOUT_MORE)}


@pytest.mark.parametrize("fault", ONE_PER_OP.values(), ids=lambda fault: fault.id)
def test_the_first_broken_op_is_the_one_with_the_mistake(fault):
    model = model_of("26B-A4B" if "moe" in fault.needs else MEMBERS.get(fault.id, "E2B"))
    assert applicable(fault, model.config)
    assert tap_kind(compared(model, recorded_with(model, fault)).first_broken) == fault.first


@pytest.mark.parametrize(
    "name, change, hint",
    [
        ("embed", lambda x: x / 24**0.5, "1/sqrt(D)"),
        ("embed", lambda x: x * 4.90625 / 24**0.5, "4.90625 / sqrt(D), that is sqrt(D) rounded to bfloat16"),
        ("layers.2.resid_post", lambda x: x / SCALAR, "1/layer_scalar"),
        ("layers.3.resid_pre", lambda x: x / SCALAR, "1/layer_scalar"),
        ("layers.3.resid_pre", lambda x: x * NEXT / SCALAR, "the layer_scalar of layer 3, not of layer 2"),
        ("ple.token", lambda x: x * 6**0.5, "sqrt(P)"),
        ("layers.1.attn.scores", lambda x: x * 8**-0.5, "1/sqrt(head_dim)"),
        ("layers.2.mlp.down", lambda x: -x, "-1"),
        ("ple", lambda x: np.roll(x, 1, axis=1), "layers are shifted by 1"),
        ("layers.1.attn.in", lambda x: np.roll(x, 1, axis=0), "tokens are shifted by 1"),
        ("layers.1.attn.q", lambda x: np.roll(x, 4, axis=-1), "halves of each head are swapped"),
        ("layers.1.attn.q_raw", lambda x: x[:, ::-1], "reverse order"),
        ("layers.3.mlp.up", np.zeros_like, "all zeros"),
        ("layers.3.mlp.up", lambda x: np.where(x > x.max() / 2, np.inf, x), "not finite"),
    ],
)
def test_what_the_wrong_array_looks_like_is_said(name, change, hint):
    model = model_of("E2B")
    found = compared(model, recorded(model, tap=lambda n, x: change(x).astype(x.dtype) if n == name else x))
    assert found.first_broken == name
    assert hint in found.hint


def test_scores_that_were_captured_after_the_mask_are_judged_where_they_are_seen():
    model, tap = model_of("E2B"), masking(-np.inf)
    assert {row.verdict for row in compared(model, recorded(model, tap=tap)).rows} == {"OK"}
    scaled = recorded(model, tap=lambda n, x: tap(n, x / 8**0.5 if n == "layers.1.attn.scores" else x))
    assert "1/sqrt(head_dim)" in compared(model, scaled).hint


def summing_to_1(x):
    return x / x.sum(-1, keepdims=True)


T = len(TOKENS)
ROWS, BEHIND, BEFORE = np.arange(T)[:, None], np.eye(T, k=1), np.eye(T, k=-2)  # [T, 1], the next key, the last but one
HINTS = {
    "its rows sum to 0.5 to 0.94, not to 1": lambda x: x * (1 - 0.5 ** (1 + ROWS % 4)),
    "it does not mask key 1 for query 0, which may not see it (88 such pairs)": lambda x: summing_to_1(x + BEHIND),
    "it masks key 0 for query 2, which may see it (84 such pairs)": lambda x: summing_to_1(x * (1 - BEFORE)),
    "their weights are the same: positions 18 to 20": lambda x: np.where(abs(ROWS - 19) < 2, 1 / T, x),
}


@pytest.mark.parametrize("layer", [2, 4])
@pytest.mark.parametrize("hint", HINTS)
def test_what_is_wrong_with_a_pattern_is_said(hint, layer):
    model, name = model_of("E2B"), f"layers.{layer}.attn.pattern"
    found = compared(model, recorded(model, tap=lambda n, x: HINTS[hint](x).astype(x.dtype) if n == name else x))
    assert found.first_broken == name and found.hint.endswith(hint)


@pytest.mark.parametrize("first", [0, 12])
@pytest.mark.parametrize("tap", ["attn.pattern", "attn.z"])
def test_queries_of_a_later_call_that_see_no_key_are_named(tap, first):
    """Sliding layers read the last 5 keys of a call that begins at 12: its first 6 queries see none of them."""
    model, theirs = model_of("E2B"), {}
    right, port, later = recorded(model), Port(model.config, model.weights, TOKENS), Trace()
    FAULTS["G4"].changes[0](port)
    port.run(later, cache=forward(TOKENS[:12], model.weights, model.config)[1])
    for name, array in right.items():
        keys = T - later[name].shape[-1] if "S" in axes_of(name) else 0  # that this call does not read
        wrong = np.concatenate([np.zeros_like(later[name], shape=(*later[name].shape[:-1], keys)), later[name]], -1)
        theirs[name] = np.concatenate([array.take(range(first, 12), time_axis(name)), wrong], time_axis(name))
    unseen = ("scores", "pattern") if tap == "attn.z" else "scores"
    theirs = {name: array for name, array in theirs.items() if not name.endswith(unseen)}
    run = Run(model, TOKENS, theirs, start=first)
    found = compare_traces(theirs, run)
    assert found.first_broken == f"layers.0.{tap}" and found.hint.endswith(": positions 12 to 17")
    search = Search(run, found, None)
    assert search.mends_all(search.trial(Candidate(FAULTS["G4"], FAULTS["G4"].changes[0], start=12)))


def masking(value, wider=0):
    """A tap that records scores as a port does which masks before it captures; wider: keys more in its windows."""
    layers = model_of("E2B").config.layers

    def tap(name, x):
        if not name.endswith("attn.scores"):
            return x
        window = layers[layer_of(name)].window
        seen = visible(np.arange(len(TOKENS)), len(TOKENS), window and window + wider, len(TOKENS))
        return np.where(seen, x, value)

    return tap


@pytest.mark.parametrize("value", [-np.inf, -1e9, -9984])
@pytest.mark.parametrize(
    "wider, hint", [(-1, "it masks key 0 for query 4"), (1, "it does not mask key 0 for query 5"), (0, None)]
)
def test_a_wrong_mask_shows_in_scores_that_were_captured_after_it(value, wider, hint):
    model = model_of("E2B")
    port, trace, tap = Port(model.config, model.weights, TOKENS), Trace(), masking(value, wider)
    made = {0: [], -1: ["G2b"], 1: ["G2"]}[wider]
    for id in made:
        FAULTS[id].changes[0](port)
    port.run(lambda name, x: trace(name, tap(name, x)))
    theirs = {name: array for name, array in trace.items() if name.endswith("attn.scores")}
    found = diagnose(theirs, Run(model, TOKENS, theirs))
    assert [fault.id for fault in found.faults] == made
    assert (found.first_broken, found.verdict == "healthy") == ((wider and "layers.0.attn.scores") or None, not wider)
    assert hint is None or hint in found.comparison.hint


def test_a_replay_without_a_config_takes_masked_keys_for_hidden_ones():
    model, theirs = model_of("E2B"), recorded(model_of("E2B"), tap=masking(-np.inf))
    replay = Replay(theirs)
    forward(TOKENS, model.weights, model.config, tap=replay)
    assert max(difference.error for difference in replay.found.values()) < 1e-5


def test_scores_that_are_all_masked_say_that_nothing_is_seen_and_not_that_all_is_well():
    model = model_of("E2B")
    theirs = recorded(model, tap=lambda n, x: np.full_like(x, -np.inf) if n == "layers.3.attn.scores" else x)
    assert compared(model, theirs).first_broken == "layers.3.attn.scores"


def test_an_op_that_was_left_out_equals_its_input():
    model = model_of("E2B")
    keep = {}

    def tap(name, x):
        keep[name] = x
        return keep["layers.0.attn.q_raw"] if name == "layers.0.attn.q" else x

    assert compared(model, recorded(model, tap=tap)).hint == "it equals layers.0.attn.q_raw"


def test_a_wrong_donor_is_named():
    model = model_of("E2B")
    found = compared(model, recorded_with(model, FAULTS["F5"]))
    assert found.first_broken == "layers.3.attn.scores"
    assert found.hint == "it reads the K of layer 0, not of layer 1"


def test_a_wrong_window_is_seen_at_the_first_position_beyond_it():
    model = model_of("E2B")
    found = compared(model, recorded_with(model, FAULTS["G2"]))
    start = "positions 0 to 4 are right, from 5 on all are wrong (the window is 5); "
    assert found.hint.startswith(f"{start}it does not mask key 0 for query 5, which may not see it")


def test_of_rows_that_are_nan_the_positions_are_named_and_what_follows_is_poisoned():
    """A second chunk that reads too few keys: the first queries of it see none."""
    model, empty = model_of("E2B"), np.where(np.arange(23) // 3 == 4, np.nan, 1).astype(np.float32)  # [T]
    theirs = recorded(model, tap=Edit({"layers.1.attn.pattern": lambda x: x * empty[:, None]}))
    del theirs["layers.1.attn.pattern"]
    found = compared(model, theirs)
    assert found.hint == "all of positions 12 to 14 is NaN: these queries see no key, or their scores overflow"
    assert "the broken ops: attn.z in layer 1; the first is wrong at positions 12 to 14" in found.notes[0]
    assert found.notes[0].endswith("are poisoned") and "drift" not in found.notes[0]


def test_a_mistake_between_keys_before_and_after_a_position_ends_where_the_window_ends():
    """Positions jump by 3 at position 12: from 16 on, the window of 5 holds only keys behind the jump."""
    model = model_of("E2B")
    port = Port(model.config, model.weights, TOKENS)
    placed(lambda at: at.positions + 3 * (at.positions >= 12))(port)
    trace = Trace(["layers.0.attn.z"])
    port.run(trace)
    hint = compared(model, dict(trace)).hint
    assert hint.startswith("only positions 12 to 15 are wrong, 4 of 23; from 16 on the window of 5 holds only keys")


@pytest.mark.parametrize(
    "places, words",
    [([4], "position 4"), ([3, 4, 5, 9], "positions 3 to 5, 9"), (range(0, 20, 2), "positions 0, 2, 4, 6, 8, 10, ...")],
)
def test_positions_in_words_name_runs_of_them(places, words):
    assert in_words(np.array(places)) == words


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("late", [False, True])
def test_positions_that_were_not_captured_are_not_called_right(rows, late):
    model, noise = model_of("E2B"), np.random.default_rng(1).uniform(0.5, 2, (T, 24)).astype(np.float32)
    noise[: 20 * late] = 1
    whole = recorded(model, "layers.*.resid_mid", tap=Edit({"layers.1.resid_mid": lambda x: x * noise}))
    theirs = {name: array[-rows:] for name, array in whole.items()}
    found = compare_traces(theirs, Run(model, TOKENS, theirs, start=T - rows))
    right = "positions 14 to 19 are right, from 20 on all are wrong" if late and rows > 1 else None
    assert (found.first_broken, found.hint) == ("layers.1.resid_mid", right)


@pytest.mark.parametrize("only", [None, ["embed", "layers.*.resid_post", "logits"]])
def test_another_prompt_and_other_weights_are_recognised(only):
    model = model_of("E2B")
    others = np.concatenate([TOKENS[:1], np.random.default_rng(8).integers(3, 120, 22)])
    assert compared(model, recorded(model, only, others)).identity == "other-input"
    assert compared(model, recorded(model_of("E2B", seed=9), only)).identity == "other-weights"


def test_without_the_embedding_other_weights_show_in_every_product():
    model = model_of("E2B")
    theirs = recorded(model_of("E2B", seed=9))
    found = compared(model, {name: array for name, array in theirs.items() if name != "embed"})
    assert found.identity == "other-weights"


def test_a_capture_of_the_last_position_is_judged_there(member):
    model = model_of(member)
    whole = recorded(model, ["layers.*.resid_post", "logits"])
    assert compared(model, {name: array[-1:] for name, array in whole.items()}).first_broken is None
    wrong = recorded(model, list(whole), tap=Edit({"layers.1.resid_post": lambda x: x * 2}))
    assert compared(model, {name: array[-1:] for name, array in wrong.items()}).first_broken == "layers.1.resid_post"


def test_a_wrong_shape_is_said_and_the_rest_is_still_judged():
    model = model_of("E2B")
    theirs = recorded(model)
    theirs["layers.5.mlp.gate"] = theirs["layers.5.mlp.gate"][:, :40]
    found = compared(model, theirs)
    assert found.first_broken == "layers.5.mlp.gate"
    assert "[23, 40] and should be [23, 80]" in found.sentence
    assert [row.name for row in found.rows if row.verdict != "OK"] == ["layers.5.mlp.gate"]


def test_two_captures_without_weights_are_compared_up_to_where_they_part():
    model = model_of("E2B")
    ours = recorded(model)
    assert diff_captures(ours, ours, model.config, "float32").first_broken is None
    theirs = recorded(model, tap=Edit({"layers.4.attn.o": lambda x: x * 2}))
    assert diff_captures(theirs, ours, model.config, "float32").first_broken == "layers.4.attn.o"
    theirs = recorded(model, tap=Edit({"layers.4.attn.o": lambda x: x * 1.001}))
    assert diff_captures(theirs, ours, model.config, "float32").first_broken == "layers.4.attn.o"
    assert diff_captures(theirs, ours, model.config, "bfloat16").first_broken is None
    masked = recorded(model, tap=masking(-np.inf))
    for pair in ((masked, masked), (masked, ours), (ours, masked)):
        assert diff_captures(*pair, model.config, "float32").first_broken is None


# The command line, on the tiny weights


@pytest.fixture(scope="module")
def own_trace(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("trace") / "own.safetensors")
    assert main(["trace", "Mia went to the market.", "--out", path]) == 0
    return path


def test_our_own_trace_agrees_and_the_command_returns_0(own_trace, capsys):
    assert main(["diff", own_trace]) == 0
    assert "all 261 taps agree" in capsys.readouterr().out
    assert main(["diff", own_trace, "--against", own_trace]) == 0
    assert main(["diagnose", own_trace, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["verdict"] == "healthy"


def test_python_gets_what_the_commands_print(own_trace, tmp_path):
    tiny, trace = load(), Trace.load(own_trace)
    assert diff_file(own_trace, tiny).clean and diagnose_file(own_trace, tiny).clean
    other = tiny.tokenizer.encode("Tom went to the market.")
    for found in (diff_file(own_trace, tiny, other), diagnose_file(own_trace, tiny, other)):
        assert "another prompt" in found.sentence and not found.clean
    trace.arrays["embed"] = trace["embed"].T
    trace.save(tmp_path / "t.safetensors", **trace.metadata)
    for found in (diff_file(tmp_path / "t.safetensors", tiny), diagnose_file(tmp_path / "t.safetensors", tiny)):
        assert found.unread == ["embed"] and not found.clean


def test_another_prompt_is_told_from_the_ids_and_the_command_returns_1(own_trace, capsys):
    assert main(["diff", own_trace, "--prompt", "Tom went to the market."]) == 1
    assert "another prompt" in capsys.readouterr().out
    assert main(["diagnose", own_trace, "--prompt", "Tom went to the market.", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "other-input"


def test_a_trace_of_other_weights_is_told_from_its_fingerprint(own_trace, tmp_path, capsys):
    trace = Trace.load(own_trace)
    trace.save(tmp_path / "t.safetensors", **trace.metadata | {"fingerprint": "of another model"})
    assert main(["diff", str(tmp_path / "t.safetensors")]) == 1
    assert "other weights" in capsys.readouterr().out


def test_two_traces_of_other_weights_than_the_default_are_held_against_each_other(own_trace, tmp_path, capsys):
    twin, weights = str(tmp_path / "twin.safetensors"), str(TINY.parent / "tiny-no-ple")
    assert main(["trace", "Mia went to the market.", "--weights", weights, "--out", twin]) == 0
    assert main(["diff", twin, "--against", twin]) == 0
    assert main(["diff", twin, "--against", own_trace]) == 1
    assert "other weights" in capsys.readouterr().out


def test_soft_tokens_come_from_a_file_of_positions_and_rows(tmp_path, capsys, run):
    model, soft, path = load(), str(tmp_path / "soft.safetensors"), str(tmp_path / "theirs.safetensors")
    rows = np.random.default_rng(0).standard_normal((2, model.config.hidden_size)).astype(np.float32)
    trace, tokens = Trace(), [2, 300, 4, 4, 700]
    forward(tokens, model.weights, model.config, soft_tokens=(np.array([2, 3]), rows), tap=trace)
    trace.save(path, tokens=tokens)
    table = [("positions", (2,)), ("rows", rows.shape)]
    write_safetensors(soft, "F32", table, [np.array([2, 3]), rows])
    one_line(run("diff", path, "--soft", soft), "positions are a list of integers")
    save_file({"positions": np.array([2, 3]), "rows": rows}, soft, {"format": "pt"})  # as torch's own writer does
    assert main(["diff", path, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["first_broken"], found["rows"][0]["verdict"]) == ("embed", "BROKEN")
    model(tokens, tap=trace)
    trace.save(str(tmp_path / "text.safetensors"), tokens=tokens)
    assert main(["diff", str(tmp_path / "text.safetensors"), "--soft", soft]) == 1
    assert "the first broken op is embed" in capsys.readouterr().out  # and not another prompt
    assert main(["diff", path, "--soft", soft]) == 0


def test_the_plot_is_written(own_trace, tmp_path):
    assert main(["diff", own_trace, "--plot", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere.safetensors"], "no such file"),
        (["{own}", "--ids", "2,x"], "--ids must be whole numbers"),
        (["{own}", "--against", "nowhere.safetensors"], "no such file"),
        (["{own}", "--soft", "{own}"], "must hold `positions`"),
        (["{own}", "--mapping", "nowhere.json"], "no such file"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, words, own_trace, run):
    one_line(run("diff", *(word.replace("{own}", own_trace) for word in arguments)), words)


def test_another_id_is_suspected_where_no_embedding_was_captured():
    model, others = model_of("E2B"), TOKENS.copy()
    others[9] += 1
    theirs = recorded(model, only=["layers.*.resid_post"], tokens=others)
    assert compared(model, theirs).hint.endswith(f"; is their id at 9 also {TOKENS[9]}?")


def test_an_array_that_cannot_be_read_is_told_and_is_no_clean_result(own_trace, tmp_path, capsys):
    trace, path = Trace.load(own_trace), str(tmp_path / "t.safetensors")
    trace.arrays["embed"] = trace["embed"].T
    trace.save(path, **trace.metadata)
    for command in ("diff", "diagnose"):
        assert main([command, path]) == 1
        said = capsys.readouterr().out
        assert "ignored embed: has the shape" in said
        assert said.startswith("1 of 261 arrays was not understood, 260 are judged\n")
        assert main([command, path, "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["unread"] == ["embed"]


@pytest.mark.parametrize("key", ["trunk.{i}.after", "trunk[{i}].output", "layers.{i}.output[first]"])
@pytest.mark.parametrize("command", ["diff", "diagnose"])
def test_names_that_are_not_understood_are_no_clean_result(key, command, own_trace, tmp_path, capsys):
    trace, path = Trace.load(own_trace), str(tmp_path / "t.safetensors")
    noise = np.random.default_rng(0).standard_normal(trace["embed"].shape).astype(np.float32)
    arrays = {key.replace("{i}", str(i)): noise for i in range(10)} | {"logits": trace["logits"]}
    save_file(arrays | {"tokens": np.array(trace.metadata["tokens"])}, path)
    assert main([command, path]) == 1
    said = capsys.readouterr().out
    assert said.startswith("10 of 11 arrays were not understood, 1 is judged\n")
    assert said.count("ignored") == 1  # ten names that differ in a number share a line


def test_what_is_known_to_be_no_tap_leaves_the_result_clean(own_trace, tmp_path, capsys):
    trace, path = Trace.load(own_trace), str(tmp_path / "t.safetensors")
    ids = np.array(trace.metadata["tokens"])
    cosines = {f"model.layers.{i}.post_feedforward_layernorm.input": trace["embed"] for i in range(10)}
    known = {"model.rotary_emb.output.0": trace["embed"], "attention_mask": np.ones((1, len(ids)), np.int64)}
    save_file(cosines | known | {"tokens": ids, "logits": trace["logits"]}, path)
    for command in ("diff", "diagnose"):
        assert main([command, path]) == 0
        assert "ignored 11 arrays that no tap holds" in capsys.readouterr().out


def test_an_id_is_asked_for_only_where_the_file_does_not_hold_it(own_trace, tmp_path):
    tiny, trace, path = load(), Trace.load(own_trace), tmp_path / "t.safetensors"
    trace.arrays = {"logits": trace["logits"].copy()}
    trace.arrays["logits"][5:] *= np.linspace(0.5, 2, trace["logits"].shape[1], dtype=np.float32)
    ids = trace.metadata.pop("tokens")
    trace.save(path)
    assert diff_file(path, tiny, ids).hint.endswith(f"is their id at 5 also {ids[5]}?")
    trace.save(path, tokens=ids)
    assert diff_file(path, tiny).hint == "positions 0 to 4 are right, from 5 on all are wrong"


def test_no_constant_is_named_where_one_fits_as_well():
    """Another eps changes few rows by much: the best constant is almost 1, and explains nothing."""
    model = model_of("E2B")
    rows = np.linspace(-1, 1, len(TOKENS), dtype=np.float32)[:, None]
    theirs = recorded(model, tap=Edit({"layers.2.attn_out": lambda x: x * (1 + 4e-6 * rows)}))
    found = compared(model, theirs, precision="float32")
    assert found.first_broken == "layers.2.attn_out" and "times what" not in (found.hint or "")


def test_a_constant_has_a_name_only_where_the_name_fits_as_well():
    model = model_of("E2B")
    for factor, name in ((2**0.5, ": sqrt(2)"), (1.4144, "")):
        found = compared(model, recorded(model, tap=Edit({"layers.2.mlp.down": lambda x, f=factor: x * f})))
        assert found.hint == f"it is {factor:.6g} times what it should be{name}"


def test_of_names_that_fit_a_constant_alike_all_are_said_and_head_dim_first():
    """In tiny's global layers head_dim is 64 and D is 128, so 1/sqrt(head_dim) is sqrt(2/D) too."""
    model, tokens = load(), [2, 5, 6, 7]
    theirs = recorded(model, tokens=tokens, tap=Edit({"layers.4.attn.scores": lambda x: x / 8}))
    hint = compared(model, theirs, tokens).hint
    assert hint == "it is 0.125 times what it should be: 1/sqrt(head_dim) or sqrt(2/D)"


def test_without_per_layer_embeddings_in_every_layer_the_later_layers_are_no_second_answer():
    found = diagnose(theirs := recorded_with(model := model_of("E2B"), FAULTS["B1"]), Run(model, TOKENS, theirs))
    assert found.faults[0].id == "B1" and "B11" not in {rival.id for rival in found.rivals}


@pytest.mark.parametrize("id", ["J1", "J2"])
def test_a_missing_or_a_second_bos_is_found_where_the_file_holds_no_ids(id, tmp_path, capsys, run):
    model, trace, path = load(), Trace(), str(tmp_path / "t.safetensors")
    ids = model.tokenizer.encode("Mia went to the market.")
    model(ids[1:] if id == "J1" else [ids[0], *ids], tap=trace)
    trace.save(path)
    assert main(["diagnose", path, "--prompt", "Mia went to the market."]) == 1
    assert capsys.readouterr().out.startswith(f"fault: {id}")
    one_line(run("diagnose", path, "--prompt", "Mia"), "give the ids that their run had, with --ids")


def test_ids_that_differ_in_more_than_bos_are_another_prompt(own_trace, capsys):
    count = len(Trace.load(own_trace).metadata["tokens"])
    for length in (count - 1, count, count + 1):
        assert main(["diff", own_trace, "--ids", ",".join(["7"] * length)]) == 1
        assert "another prompt" in capsys.readouterr().out


def test_a_mapping_translates_the_names_of_both_traces(own_trace, tmp_path, capsys):
    trace, mapping = Trace.load(own_trace), tmp_path / "mapping.json"
    arrays = {f"blk.{i}.q": trace[f"layers.{i}.attn.q"] for i in range(10)}
    theirs = str(tmp_path / "theirs.safetensors")
    save_file(arrays | {"tokens": np.array(trace.metadata["tokens"])}, theirs)
    mapping.write_text('{"blk.{i}.q": "layers.{i}.attn.q"}', encoding="utf-8")
    for other in (theirs, own_trace):
        assert main(["diff", theirs, "--mapping", str(mapping), "--against", other]) == 0
        assert "all 10 taps that both hold agree" in capsys.readouterr().out


def test_numbers_that_are_not_finite_are_null_in_json(own_trace, tmp_path, capsys):
    trace, path = Trace.load(own_trace), str(tmp_path / "t.safetensors")
    trace.arrays["layers.3.attn.z"] = trace["layers.3.attn.z"] * np.nan
    trace.save(path, **trace.metadata)
    assert main(["diff", path, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["rows"]
    assert next(row["own_error"] for row in rows if row["tap"] == "layers.3.attn.z") is None


@pytest.mark.parametrize("name, through", [("probabilities", np.exp), ("log-probabilities", lambda x: x)])
def test_logits_that_have_been_through_a_softmax_are_recognised(name, through):
    model = model_of("E2B")
    theirs = recorded(model)
    wide = theirs["logits"].astype(np.float64)
    theirs["logits"] = through(wide - np.log(np.exp(wide).sum(-1, keepdims=True))).astype(np.float32)
    assert compared(model, theirs).hint == f"they are {name}: capture what goes into the softmax"


def test_a_trace_without_ids_asks_for_them(own_trace, tmp_path, run):
    Trace.load(own_trace).save(tmp_path / "t.safetensors")
    one_line(run("diff", tmp_path / "t.safetensors"), "--ids")
    assert main(["diff", str(tmp_path / "t.safetensors"), "--prompt", "Mia went to the market."]) == 0


def test_a_trace_with_one_position_more_than_ids_is_an_error_unless_bos_explains_it():
    model = model_of("E2B")
    theirs = recorded(model, tokens=np.concatenate([TOKENS, TOKENS]))
    from minigemma.debug.diagnosis import diagnose

    with pytest.raises(Error, match="46 positions and the prompt 23 ids"):
        diagnose(theirs, Run(model, TOKENS, theirs))


@pytest.mark.parametrize("only", ["*", ["layers.*.resid_post"], ["logits"]])
def test_the_memory_of_a_comparison_is_estimated(only):
    model, tokens = load(), np.arange(300) + 300
    theirs = recorded(model, only, tokens)
    with peak_memory() as peak:
        run = Run(model, tokens, theirs)
        compare_traces(theirs, run)
    assert run.needs() / 2 < peak[0] < run.needs()


def test_a_comparison_that_does_not_fit_in_memory_is_refused_before_it_runs(monkeypatch):
    model = model_of("E2B")
    theirs = recorded(model)
    monkeypatch.setattr(Run, "through", lambda *_: pytest.fail("the pass ran"))
    monkeypatch.setattr("minigemma.inputs.free_memory", lambda: 10**6)
    with pytest.raises(Error, match=r"23 tokens and [0-9]+ taps takes .* GB, and 0.001 GB are free"):
        Run(model, TOKENS, theirs)


@pytest.mark.parametrize("command", [["diff"], ["diagnose"], ["check-ops", "--config", str(TINY)], ["step"]])
def test_a_command_that_does_not_fit_in_memory_says_so_in_one_line(command, tmp_path, monkeypatch, capsys):
    save_file(recorded(load(), "logits") | {"tokens": TOKENS}, path := tmp_path / "t.safetensors")
    monkeypatch.setattr("minigemma.inputs.free_memory", lambda: 1000)
    assert main([*command, "Hi" if command == ["step"] else str(path)]) == 2
    assert re.fullmatch(r"minigemma: .* takes .* GB, and 1e-06 GB are free; .*\n", capsys.readouterr().err)


def test_a_system_that_does_not_say_its_memory_is_no_obstacle(monkeypatch):
    model = model_of("E2B")
    monkeypatch.setattr("minigemma.inputs.free_memory", lambda: None)
    assert compared(model, recorded(model)).clean


def test_a_chunk_and_the_last_call_of_generate_are_judged_as_the_whole_prompt_is(tmp_path):
    """generate() keeps the keys that its next query sees, and returns one id that it never reads."""
    model, ids = load(), [2, *range(300, 349)]
    window, start, layers = model.config.sliding_window, 38, "layers.[0-4].*"
    right, wrong = Trace(layers), Trace(layers)
    model(ids, tap=right)
    model(ids, tap=lambda name, x: wrong(name, x * np.float32(1.1) if name == "layers.3.attn_out" else x))

    def written(trace, start, known):
        arrays = {}
        for name, array in trace.items():
            axis = axes_of(name).index("T")
            rows = array.take(range(start, len(ids)), axis)
            sliding = "S" in axes_of(name) and model.config.layers[layer_of(name)].window
            arrays[name] = np.ascontiguousarray(rows[..., -(len(ids) - start + window - 1) :] if sliding else rows)
        save_file(arrays | {"tokens": np.array(known)}, tmp_path / "t.safetensors")
        return tmp_path / "t.safetensors"

    cases = (start, ids, {"start": start}), (len(ids) - 1, ids, {}), (len(ids) - 1, [*ids, 400], {})
    for first, known, options in cases:
        found = diff_file(written(right, first, known), model, **options)
        assert found.clean and all(row.verdict in ("OK", "MISSING") for row in found.rows), known
        assert diff_file(written(wrong, first, known), model, **options).first_broken == "layers.3.attn_out"
    assert any("never reads" in note for note in found.notes)


@pytest.mark.parametrize("later", [False, True])
def test_a_long_trace_is_searched_in_a_prefix_unless_more_is_wrong_behind_it(later, monkeypatch):
    monkeypatch.setattr("minigemma.debug.diagnosis.PREFIX", 24)
    monkeypatch.setattr("minigemma.debug.diagnosis.BEYOND", 16)
    model, tokens = model_of("E2B"), np.random.default_rng(0).integers(3, 120, 60)
    port, trace = Port(model.config, model.weights, tokens), Trace("*.resid_post")
    FAULTS["D1"].changes[0](port)

    def wrong(name, x):
        x = x * np.where(np.arange(len(x)) < 40, 1, 1.1)[:, None] if name == "layers.2.mlp_out" and later else x
        return trace(name, x.astype(np.float32))

    port.run(wrong)
    theirs = dict(trace)
    found = diagnose(theirs, Run(model, tokens, theirs))
    assert found.faults[0].id == "D1" and found.comparison.rows[-3].shape[0] == 60
    assert ("the first 24 positions, which show the fault" in "".join(found.notes)) != later
    assert later == ("not in the catalogue" in found.sentence or len(found.faults) > 1)


def test_a_mistake_that_would_show_long_before_the_fault_is_tried_on_the_first_positions_only(monkeypatch):
    monkeypatch.setattr("minigemma.debug.diagnosis.PREFIX", 8)
    model, tokens, tried, whole = model_of("E2B"), np.random.default_rng(0).integers(3, 120, 60), [], Port.run
    theirs = captured(model, tokens, "D2", "*.resid_post", start=40)
    run = Run(model, tokens, theirs)
    search = Search(run, compare_traces(theirs, run), None)

    def counted(port, tap, **calls):
        tried.append((*port.mistakes, len(port.tokens)))
        return whole(port, tap, **calls)

    monkeypatch.setattr(Port, "run", counted)
    search.trials("known mistakes", [(one,) for one in search.candidates()])
    assert ("D2", 8) in tried and ("D2", 60) not in tried
    assert ("B2", 60) in tried  # of the second call
    assert len({one for one in tried if 60 in one}) < len({one for one in tried if 8 in one}) / 3


def test_hidden_states_of_a_later_chunk_with_its_own_ids_are_answered_with_what_to_give():
    model = model_of("E2B")
    model.config = replace(model.config, source=model.config.source | {"bos_token_id": 2})
    theirs = {name: array[20:] for name, array in recorded(model, "*.resid_post").items()}
    found = diagnose(theirs, Run(model, TOKENS[20:], theirs))
    assert not found.clean and any("of a later chunk of a prompt give --start" in note for note in found.notes)
