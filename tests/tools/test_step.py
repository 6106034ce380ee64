"""The pass shown tap by tap."""

import linecache

import numpy as np
import pytest

from minigemma import Trace, model
from minigemma.__main__ import main
from minigemma.taps import names_of
from minigemma.tools.step import Quit, Step, best_tokens, numbers


def test_step_shows_every_tap_in_order_with_the_line_that_makes_it(tiny, capsys):
    tiny([2, 5], tap=Step(tiny, "*", lambda: None))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == names_of(tiny.config)
    shown = next(line for line in lines if 'at("attn.pattern"' in line)
    place, _, text = shown.strip().partition("  ")
    assert linecache.getline(model.__file__, int(place.removeprefix("model.py:"))).strip() == text


def test_the_lens_of_the_last_states_is_the_prediction_of_the_model(tiny):
    trace = Trace(["layers.9.resid_post", "final_norm", "logits"])
    logits, _ = tiny([2, 5, 6], tap=trace)
    first = tiny.tokenizer.token(int(logits[-1].argmax()))
    read = [best_tokens(name, array, tiny) for name, array in trace.items()]
    assert all(line.startswith(repr(first)) for line in read)


def test_values_that_are_not_finite_are_counted_and_do_not_hide_the_others():
    assert numbers(np.array([3.0, -4.0, np.nan, np.inf])) == "rms 3.536, from -4 to 3, 2 not finite"
    assert numbers(np.array([np.nan])) == "1 not finite"


def test_a_reader_who_quits_sees_no_later_tap(tiny, capsys):
    def wait():
        raise Quit

    with pytest.raises(Quit):
        tiny([2, 5], tap=Step(tiny, "layers.3.*", wait))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == ["layers.3.resid_pre"]


def test_the_command_prints_all_that_fit_from_a_pipe_and_waits_at_a_terminal(monkeypatch, capsys):
    assert main(["step", "Once", "--at", "*.attn.pattern"]) == 0
    assert capsys.readouterr().out.count("[N, T, S]  the mask") == 10
    monkeypatch.setattr("minigemma.__main__._is_terminal", lambda stream: True)
    answers = iter(["", "q"])
    monkeypatch.setattr("builtins.input", lambda: next(answers))
    assert main(["step", "Once", "--at", "*.attn.pattern"]) == 0
    assert capsys.readouterr().out.count("[N, T, S]  the mask") == 2
