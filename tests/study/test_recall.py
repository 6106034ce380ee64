"""A fact that lies beyond the window is answered through one link of each kind of layer (tiny weights)."""

from minigemma.study.recall import answers, blind, questions, unlinked


def test_a_fact_beyond_the_window_needs_a_short_link_and_a_long_look(tiny):
    asked, W = questions(tiny)[:6], tiny.config.sliding_window
    assert all(len(question.ids) - 1 - question.ids.index(question.right) > W for question in asked)
    assert answers(tiny, asked) == (6, 0, 0)
    assert answers(tiny, asked, blind([9], W))[0] == 0  # the long look, in the last global layer
    assert answers(tiny, asked, blind([4], W))[0] == 6
    assert answers(tiny, asked, unlinked(3, 3))[0] < 3  # place to thing, three words back
    assert answers(tiny, asked, unlinked(3, 5))[0] == 6  # place to verb, five words back
