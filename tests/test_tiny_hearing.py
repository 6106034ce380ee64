"""What weights/README.md promises of the tiny audio tower, on the clips beside the weights: voices it never heard."""

import sys

import numpy as np
import pytest

import minigemma

CLIPS = sorted(minigemma.TINY.glob("*.wav"))  # each is named as its word


@pytest.fixture(scope="module")
def words():
    """The program that speaks them and asks about them, which is no part of the package."""
    sys.path.insert(0, str(minigemma.TINY.parent / "training"))
    import words

    yield words
    sys.path.remove(str(minigemma.TINY.parent / "training"))


def number_of(words, path):
    return [word for _, word in words.SPOKEN].index(path.stem)


def says(model, soft, before, behind, answer):
    """Whether greedy decoding would give the answer: each of its tokens is the most probable one there."""
    wanted = model.tokenizer.encode(answer, bos=False, special=True)
    ids = model.tokenizer.encode(f"{before}<|audio>{'<|audio|>' * len(soft)}<audio|>{behind}", special=True)
    where = np.flatnonzero(np.array(ids) == model.config.audio_token_id)
    logits, _ = model([*ids, *wanted], soft_tokens=(where, soft))
    return logits[len(ids) - 1 : -1].argmax(-1).tolist() == wanted


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem)
def test_the_answer_names_the_word_of_a_clip(tiny, words, path):
    soft, rng, number = tiny.hear(path), np.random.default_rng(0), number_of(words, path)
    for form in words.FORMS:
        before, behind, answer = words.question(number, form, rng)
        assert path.stem in answer
        assert says(tiny, soft, before, behind, answer), (before, behind)


def test_without_its_clip_it_does_not_know_the_word(tiny, words):
    """The soft tokens of a clip of another word."""
    for path, other in zip(CLIPS, CLIPS[1:] + CLIPS[:1], strict=True):
        before, behind, answer = words.question(number_of(words, path), "on", np.random.default_rng(0))
        assert not says(tiny, tiny.hear(other), before, behind, answer), path


def test_the_tiny_weights_and_their_clips_are_small():
    assert len(CLIPS) >= 4
    assert sum(path.stat().st_size for path in CLIPS) < 300e3
    assert sum(path.stat().st_size for path in minigemma.TINY.iterdir()) < 12e6
