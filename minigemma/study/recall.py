"""Where is the kite? Questions about a fact that lies beyond the window, asked with a view of attention taken away."""

from dataclasses import dataclass

import numpy as np

from ..taps import Edit

PLACES = ("barn", "tent", "cave", "garden", "kitchen", "cellar", "attic", "museum")
THINGS = ("kite", "doll", "drum", "ball", "book", "lamp", "coin", "basket")
STORY = (
    "Tom was going to visit his mother in the city. The station was full, and a man blew a whistle. "
    "Fields and houses flew past. Tom fell asleep and missed the stop. They had to wait, so everybody shared food. "
    "His mother was waiting with open arms. The stars came out one by one, and Tom fell asleep. "
)


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt up to the word that answers; `right` is the id of the place asked for, `other` that of the other one."""

    ids: list
    right: int
    other: int


def questions(model):
    """Two questions about each of eight pairs of facts, with a story between facts and question -> [Question]."""
    between = STORY * -(-3 * model.config.sliding_window // 2 // len(model.tokenizer.encode(STORY)))
    found = []
    for a, b, x, y in zip(THINGS, THINGS[1:] + THINGS[:1], PLACES, PLACES[1:] + PLACES[:1], strict=True):
        facts = f"Anna put the {a} in the {x}. Lily hid the {b} in the {y}. "
        one, two = (model.tokenizer.encode(f" {place}", bos=False)[0] for place in (x, y))
        for thing, right, other in ((a, one, two), (b, two, one)):
            asked = model.chat_ids([{"role": "user", "content": f"{facts}{between}\nWhere is the {thing}?"}])
            found.append(Question(asked + model.tokenizer.encode(f"The {thing} is in the", bos=False), right, other))
    return found


def answers(model, asked, edits=lambda question: {}):
    """How many of the questions get the right place, the other place, something else.

    edits: a Question -> the functions of an Edit, by tap.
    """
    right = other = 0
    for question in asked:
        best = int(model(question.ids, tap=Edit(edits(question)), logits="last")[0].argmax())
        right, other = right + (best == question.right), other + (best == question.other)
    return right, other, len(asked) - right - other


def blind(layers, window):
    """The last query of these layers sees the last `window` positions only -> edits."""

    def hide(scores):
        scores = scores.copy()
        scores[:, -1, :-window] = -np.inf
        return scores

    return lambda question: {f"layers.{i}.attn.scores": hide for i in layers}


def unlinked(i, back):
    """In layer i the two places do not see what is `back` positions before them -> edits."""

    def edits(question):
        where = np.array([question.ids.index(place) for place in (question.right, question.other)])

        def cut(scores):
            scores = scores.copy()
            scores[:, where, where - back] = -np.inf
            return scores

        return {f"layers.{i}.attn.scores": cut}

    return edits
