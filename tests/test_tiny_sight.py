"""What weights/README.md promises of the tiny vision tower, measured with minigemma on held-out pictures."""

import itertools
import sys

import numpy as np
import pytest

import minigemma

WEIGHTS = minigemma.TINY.parent
PICTURES = 36
GOALS = {"one colour": 0.98, "colour of several": 0.95, "count": 0.9}  # shares of right answers


@pytest.fixture(scope="module")
def pictures():
    """The program that draws them, which is no part of the package."""
    sys.path.insert(0, str(WEIGHTS / "training"))
    import pictures

    yield pictures
    sys.path.remove(str(WEIGHTS / "training"))


def reading(model, image, question):
    """A picture and a question in one turn -> the ids that the model reads, and the places of the soft tokens."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    ids = model.chat_ids([{"role": "user", "content": content}], budget=70)
    return ids, np.flatnonzero(np.array(ids) == model.config.image_token_id)


def says(model, image, soft, question, answer):
    """Whether greedy decoding would give the answer and end the turn: each token is the most probable one there."""
    ids, where = reading(model, image, question)
    wanted = [*model.tokenizer.encode(answer, bos=False), model.tokenizer.id("<turn|>")]
    logits, _ = model([*ids, *wanted], soft_tokens=(where, soft))
    return logits[len(ids) - 1 : -1].argmax(-1).tolist() == wanted


def test_it_tells_colours_and_counts_of_held_out_pictures(tiny, pictures):
    right = {"one colour": [], "colour of several": [], "count": []}
    for number in range(PICTURES):
        drawn = pictures.picture("heldout", number)
        soft = tiny.see(drawn.image, 70)
        several = "one colour" if len(drawn.facts) == 1 else "colour of several"
        for question, answer in drawn.questions[:1]:
            kind = several if drawn.kind == "colour" else "count"
            right[kind].append(says(tiny, drawn.image, soft, question, answer))
    shares = {kind: np.mean(answers) for kind, answers in right.items()}
    assert all(shares[kind] >= goal for kind, goal in GOALS.items()), shares


def test_without_its_picture_it_does_not_know_the_answers(tiny, pictures):
    """The soft tokens of another picture: an answer is right only by chance."""
    drawn = [pictures.picture("heldout", number) for number in range(12)]
    right = []
    for one, other in itertools.pairwise(drawn):
        right.append(says(tiny, one.image, tiny.see(other.image, 70), *one.questions[0]))
    assert np.mean(right) < 0.3


def test_a_picture_depends_on_its_number_alone(pictures):
    for number in range(3):
        first, again = (pictures.picture("heldout", number) for _ in range(2))
        assert np.array_equal(first.image, again.image) and first.facts == again.facts
    assert not np.array_equal(first.image, pictures.picture("train", 2).image)


@pytest.mark.parametrize("path", sorted(minigemma.TINY.glob("*.png")), ids=lambda path: path.stem)
def test_the_pictures_beside_the_weights_are_held_out_ones_and_are_told_right(tiny, pictures, path):
    drawn = pictures.picture("heldout", int(path.stem.split("-")[-1]))
    assert np.array_equal(minigemma.read_image(path), drawn.image)
    for question, answer in drawn.questions:
        assert says(tiny, drawn.image, tiny.see(path, 70), question, answer)
