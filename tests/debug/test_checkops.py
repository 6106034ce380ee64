"""`check-ops`: ops without weights are judged on another engine's own arrays, with nothing but the config."""

import json

import numpy as np
import pytest
from family import small
from safetensors.numpy import save_file

from minigemma import TINY, Error, Trace, forward
from minigemma.__main__ import main
from minigemma.debug.catalogue import FAULTS
from minigemma.debug.checkops import check_file, check_ops
from minigemma.debug.port import Port
from minigemma.packed import narrow, widen
from minigemma.taps import axes_of

TOKENS = np.random.default_rng(3).integers(3, 120, 23)
ROUNDED = {
    "float32": lambda x: x, "bfloat16": lambda x: widen(narrow(x)),
    "float16": lambda x: x.astype(np.float16).astype(np.float32),
}  # fmt: skip


def captured(member, tap=lambda name, x: x, weights=None):
    """A config and what an engine captured, all taps changed by `tap`."""
    config, own = small(member)
    trace = Trace()
    forward(TOKENS, weights or own, config, tap=lambda name, x: trace(name, tap(name, x)))
    return config, dict(trace)


def captured_with(fault, member="E2B"):
    config, weights = small(member)
    port, trace = Port(config, weights, TOKENS), Trace()
    FAULTS[fault].changes[0](port)
    port.run(trace)
    return config, dict(trace)


@pytest.mark.parametrize("precision", ROUNDED)
def test_an_engine_that_only_rounds_is_healthy(precision, member):
    config, theirs = captured(member, lambda name, x: ROUNDED[precision](x) if x.dtype == np.float32 else x)
    found = check_ops(theirs, config, len(TOKENS))
    assert (found.precision, found.first_broken) == (precision, None)
    assert len(found.rows) > 0.5 * len(theirs)


@pytest.mark.parametrize(
    ("fault", "tap"),
    [
        ("E8", "layers.0.attn.rot_q"),  # RoPE of neighbours
        ("E5", "layers.4.attn.rot_q"),  # a wrong base on global layers
        ("A9", "layers.0.mlp.act"),  # GELU in the erf form
        ("G2b", "layers.0.attn.pattern"),  # a window that is too short
        ("F5", "layers.5.attn.scores"),  # a wrong donor
        ("D1", "layers.0.attn.scores"),  # scores divided by sqrt(head_dim)
        ("D2", "layers.0.attn.v"),  # no v_norm
        ("D9", "layers.0.attn.q"),  # no q_norm: a fitted weight does not hide it
        ("B7", "ple"),  # no 2**-0.5
        ("B1", "layers.0.ple_out"),  # no PLE
        ("C2", "layers.0.resid_post"),  # layer_scalar before PLE's output
    ],
)
def test_a_mistake_in_an_op_without_weights_is_found_at_this_op(fault, tap):
    config, theirs = captured_with(fault)
    assert check_ops(theirs, config, len(TOKENS)).first_broken == tap


@pytest.mark.parametrize("name", ["layers.2.resid_mid", "layers.2.resid_ffn"])
def test_a_wrong_residual_sum_is_found_on_every_member(name, member):
    config, theirs = captured(member, lambda other, x: x * 1.01 if other == name else x)
    assert check_ops(theirs, config, len(TOKENS)).first_broken == name


def test_logits_above_the_softcap_are_broken_and_logits_below_it_are_not_judged():
    config, theirs = captured("E2B")
    assert "logits" not in {row.name for row in check_ops(theirs, config, len(TOKENS)).rows}
    theirs["logits"] = theirs["logits"] * 1.2 * config.final_logit_softcapping / np.abs(theirs["logits"]).max()
    assert check_ops(theirs, config, len(TOKENS)).first_broken == "logits"


def test_an_op_whose_inputs_are_not_captured_is_not_judged():
    config, theirs = captured_with("E8")
    some = {name: array for name, array in theirs.items() if not name.endswith((".q", ".k"))}
    assert check_ops(some, config, len(TOKENS)).first_broken is None
    with pytest.raises(Error, match="23 positions and the prompt 22 ids"):
        check_ops(theirs, config, len(TOKENS) - 1)
    with pytest.raises(Error, match="no op can be judged"):
        check_ops({"layers.0.attn.q": theirs["layers.0.attn.q"]}, config, len(TOKENS))


def test_a_coarser_number_format_that_explains_all_is_named():
    noise = np.random.default_rng(1)
    config, theirs = captured("E2B", lambda name, x: x * (1 + noise.uniform(-1, 1, x.shape).astype(x.dtype) * 2**-6))
    found = check_ops(theirs, config, len(TOKENS))
    assert found.first_broken and "give --precision bfloat16" in found.sentence
    assert check_ops(theirs, config, len(TOKENS), precision="bfloat16").clean


def test_a_capture_of_the_last_position_is_judged_there():
    config, theirs = captured("E2B")
    some = {name: x[-1:] for name, x in theirs.items() if name.startswith("layers.9.") and ".attn." not in name}
    some |= {"layers.9.attn.q": theirs["layers.9.attn.q"][-1:], "layers.9.attn.rot_q": theirs["layers.9.attn.rot_q"]}
    some["layers.9.attn.rot_q"] = some["layers.9.attn.rot_q"][-1:]
    found = check_ops(some, config, len(TOKENS))
    assert found.clean and "layers.9.attn.rot_q" in {row.name for row in found.rows}


def test_the_command_reads_a_config_only_and_returns_1_for_a_fault(tmp_path, capsys):
    out, config = str(tmp_path / "t.safetensors"), tmp_path / "config.json"
    config.write_bytes((TINY / "config.json").read_bytes())
    assert main(["trace", "Mia went to the market.", "--out", out]) == 0
    assert main(["check-ops", out, "--config", str(config)]) == 0
    assert "ops that need no weights are right" in capsys.readouterr().out
    arrays = dict(Trace.load(out))
    arrays["layers.2.attn.v"] = arrays["layers.2.attn.v"] * 2
    save_file(arrays, out)
    assert main(["check-ops", out, "--config", str(config), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["first_broken"] == "layers.2.attn.v"


def test_a_later_chunk_is_judged_at_its_own_positions(tmp_path):
    for fault, first in ((None, None), ("E8", "layers.0.attn.rot_q")):
        config, theirs = captured_with(fault) if fault else captured("E2B")
        rows = {name: array[9:] for name, array in theirs.items() if axes_of(name)[0] == "T"}
        save_file({name: np.ascontiguousarray(array) for name, array in rows.items()}, tmp_path / "chunk")
        found = check_file(tmp_path / "chunk", config, start=9)
        assert found.first_broken == first and found.clean == (first is None)
        assert check_file(tmp_path / "chunk", config).first_broken == "layers.0.attn.rot_q"
