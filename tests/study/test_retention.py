"""The measures recover what is known of made-up hidden states, fall to chance where there is nothing, and run whole."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from family import small
from processes import command, one_line, python

import minigemma
from minigemma import Error, Trace, forward
from minigemma.study import handover, measures, report, retention, states
from minigemma.study.handover import MIXED, REVERSED, Swaps, gather_swaps, read
from minigemma.study.handover import conditions as swap_conditions
from minigemma.study.measures import (
    CrossProbe,
    at_depth,
    balanced,
    fit_probe,
    moments,
    over_texts,
    probe_types,
    retrieval_ranks,
    sense_separation,
    shared_variance,
    standardised,
)
from minigemma.study.ple import conditions, quantise
from minigemma.study.states import gather, state_names, writes
from minigemma.study.texts import documents, read_texts, token_ends

ROOT = Path(__file__).parents[2]
TEXTS = ROOT / "weights" / "texts.jsonl"
TRIALS = 60  # made-up data sets for each measure


class Mixture:
    """Hidden states of which a known share is a token's own vector and the rest noise.

    The share differs from text to text, as in real text, so that positions of one text are not independent.
    """

    def __init__(self, seed, share=0.6, count=60, each=25, kinds=20, width=48):
        rng = np.random.default_rng(seed)
        self.table = rng.normal(0, 1, (kinds, width)).astype(np.float32)
        self.texts = np.repeat(np.arange(count), each)
        self.labels = rng.integers(0, kinds, count * each)
        shares = np.clip(rng.normal(share, 0.15, count), 0, 1)
        keeps = rng.random(count * each) < shares[self.texts]
        noise = rng.normal(0, 1, (count * each, width))
        drift = rng.normal(0, 0.1, (count, width))[self.texts]  # shared by the positions of a text
        self.states = 3 + np.where(keeps[:, None], 2 * self.table[self.labels], 2 * noise) + drift
        self.states[:, 0] *= 100  # one coordinate has most of the variance
        self.states = self.states.astype(np.float32)
        self.shuffled = rng.permutation(self.labels)


def retrieval(data, labels):
    states = standardised(data.states, moments(data.states))
    ranks = retrieval_ranks(states, labels[:, None], data.table, moments(data.table))
    return over_texts(ranks[:, 0] == 1, data.texts)


def linear_probe(data, labels):
    kinds = np.arange(len(data.table))
    right = CrossProbe(data.states, labels, data.texts, kinds, splits=1)(data.states, data.texts) == labels
    return balanced(right.mean(0), labels, data.texts, kinds)


def senses(data, labels):
    """Tokens 0 to 9 as words of which the even and odd half of the vocabulary are two senses."""
    words, kinds = np.char.add("word ", (labels // 2).astype(str)), np.array(["a", "b"])[labels % 2]
    return sense_separation(data.states, words, kinds, data.texts)


# measure, the value that a share of 0.6 gives, chance
KNOWN = {
    "retrieval": (retrieval, 0.6 + 0.4 / 20, 1 / 20),
    "linear probe": (linear_probe, 0.6 + 0.4 / 20, 1 / 20),
    "senses": (senses, 0.6 + 0.4 / 2, 1 / 2),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_measure_recovers_a_known_share_of_identity_within_its_error(name):
    """Two standard errors should hold the truth in 95 of 100 data sets; the mean of many data sets is close to it."""
    measure, value, _ = KNOWN[name]
    found = np.array([measure(data, data.labels) for data in map(Mixture, range(TRIALS))])  # [trials, 2]
    assert np.mean(np.abs(found[:, 0] - value) < 2 * found[:, 1]) >= 0.85
    assert abs(found[:, 0].mean() - value) < 0.015
    assert 0.75 < found[:, 1].mean() / found[:, 0].std() < 1.35  # the error is the spread of repeated measurements


@pytest.mark.parametrize("name", KNOWN)
def test_a_measure_falls_to_chance_with_shuffled_labels(name):
    measure, _, chance = KNOWN[name]
    found = np.array([measure(data, data.shuffled) for data in map(Mixture, range(TRIALS))])
    assert np.mean(np.abs(found[:, 0] - chance) < 2 * found[:, 1]) >= 0.85
    assert abs(found[:, 0].mean() - chance) < 0.01


def blend(seed, share, uneven=False, count=40, each=25, kinds=150, width=16):
    """States whose variance is to `share` the token's and else noise, half of it common to a text -> states, labels.

    uneven: rare tokens' states have the less noise the rarer they are, as in a trained model.
    """
    rng = np.random.default_rng(seed)
    texts = np.repeat(np.arange(count), each)
    weights = 1 / np.arange(1, kinds + 1)
    labels = rng.choice(kinds, count * each, p=weights / weights.sum())
    table = rng.normal(0, 1, (kinds, width))
    table -= np.bincount(labels, minlength=kinds) @ table / len(labels)
    table /= np.sqrt((table[labels] ** 2).mean())
    noise = rng.normal(0, np.sqrt(0.9), (len(labels), width)) + rng.normal(0, np.sqrt(0.1), (count, width))[texts]
    if uneven:
        scale = 1 / np.arange(1, kinds + 1)
        noise *= np.sqrt(scale / scale[labels].mean())[labels, None]
    return (np.sqrt(share) * table[labels] + np.sqrt(1 - share) * noise).astype(np.float32), labels, texts, rng


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_shared_variance_recovers_the_known_share_though_many_labels_are_rare(share, uneven):
    found = np.array([shared_variance(*blend(seed, share, uneven)[:3]) for seed in range(TRIALS)])
    assert np.mean(np.abs(found[:, 0] - share) < 2 * found[:, 1]) >= 0.85
    assert abs(found[:, 0].mean() - share) < 0.015
    assert found[:, 1].mean() < 0.03


def test_shared_variance_depends_little_on_the_size_of_the_sample():
    found = [np.mean([shared_variance(*blend(seed, 0.5, True, each=each)[:3])[0] for seed in range(TRIALS)])
             for each in (25, 80)]  # fmt: skip
    assert abs(found[0] - found[1]) < 0.02
    assert shared_variance(np.eye(4, dtype=np.float32), np.arange(4), np.arange(4)) is None


def test_shared_variance_of_shuffled_labels_is_0_and_of_a_function_of_the_label_1():
    found = []
    for seed in range(TRIALS):
        states, labels, texts, rng = blend(seed, 0.7)
        found.append(shared_variance(states, rng.permutation(labels), texts))
    found = np.array(found)
    assert np.mean(np.abs(found[:, 0]) < 2 * found[:, 1]) >= 0.85
    assert abs(found[:, 0].mean()) < 0.005
    assert shared_variance(np.eye(150, dtype=np.float32)[labels], labels, texts)[0] == pytest.approx(1)


def test_the_error_over_texts_is_that_of_texts_and_not_of_positions():
    """Ten equal positions in every text hold no more than one."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 50)
    one = over_texts(values, np.arange(50))
    ten = over_texts(np.repeat(values, 10), np.repeat(np.arange(50), 10))
    assert ten == pytest.approx(one)
    assert one[1] == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    assert over_texts(values, np.zeros(50, int))[1] is None


def test_ranks_by_chance_are_uniform_and_the_own_row_of_a_large_table_is_found(monkeypatch):
    monkeypatch.setattr(measures, "BLOCK", 64)  # several blocks, the last one short
    rng = np.random.default_rng(0)
    table = rng.normal(0, 1, (1000, 32)).astype(np.float32)
    labels = rng.integers(0, 1000, (400, 2))
    states, scale = 5 * table[labels[:, 0]] + 1, measures.table_moments(table)
    assert np.allclose(scale, moments(table), atol=1e-6)
    states = standardised(states, moments(states))
    ranks = retrieval_ranks(states, labels, table, scale)
    assert (ranks[:, 0] == 1).mean() > 0.99
    assert abs(ranks[:, 1].mean() - 500.5) < 4 * 1000 / np.sqrt(12 * 400)
    near = measures.nearest_tokens(states, table, scale)
    assert np.array_equal(near == labels[:, 0], ranks[:, 0] == 1)


def test_a_probe_asks_for_the_types_that_many_texts_have_the_most_frequent_first():
    _, labels, texts, _ = blend(0, 0.5, count=200)
    types = probe_types(labels, texts)
    seen = np.bincount(labels)
    assert (np.diff(seen[types]) <= 0).all()
    for kind in range(150):
        assert (kind in types) == (len(np.unique(texts[labels == kind])) >= measures.TEXTS_EACH)


def test_a_probe_reads_only_texts_that_it_was_not_trained_on():
    """Each text has states of its own: who has seen them knows the label, nobody else can."""
    texts = np.repeat(np.arange(30), 20)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 30)[texts]
    states = np.eye(30)[texts] + rng.normal(0, 0.01, (600, 30))
    right = CrossProbe(states, labels, texts, np.arange(5))(states, texts) == labels
    assert right.mean() < 0.4
    assert (fit_probe(states, labels, texts)(states) == labels).mean() > 0.9


def test_held_out_texts_choose_the_regularisation():
    """Few noisy states with many coordinates need a strong one, many clear states a weak one."""
    rng = np.random.default_rng(0)
    texts, labels = np.repeat(np.arange(20), 6), rng.integers(0, 4, 120)
    directions = rng.normal(0, 1, (4, 100))
    noisy = 0.35 * directions[labels] + rng.normal(0, 1, (120, 100))
    chosen = [np.log10(fit_probe(x, labels, texts).ridge) for x in (noisy, directions[labels] + 0.1 * noisy)]
    assert chosen[0] > chosen[1]


class Made:
    """A made-up Sample: each state is a mix of what the labels of the position before, here and next are."""

    def __init__(self, seed=0, n=2400, D=24, V=60):
        rng = np.random.default_rng(seed)
        self.tokens, self.previous, self.following = rng.integers(0, V, (3, n))
        self.texts, self.drawn = np.repeat(np.arange(n // 30), 30), rng.random(n) < 0.9
        self.words, self.senses = rng.choice(["bat", "bow"], n), rng.choice(["a", "b"], n)
        self.table = rng.normal(0, 1, (V, D)).astype(np.float32)
        self.noise = rng.normal(0, 1, (n, D))
        self.types = probe_types(self.tokens[self.drawn], self.texts[self.drawn])

    def measured(self, states):
        asked = np.flatnonzero(self.drawn)
        return at_depth(states, self, asked, self.types, self.table, moments(self.table))[0]


def test_states_that_know_nothing_give_each_measure_its_chance_level():
    made = Made()
    found = made.measured(made.noise)
    chance = measures.chances(made.types, len(made.table))
    assert {"probe, token, rare", "probe, next, frequent", "retrieval", "senses"} <= set(chance)
    for name, (value, error) in found.items():
        if error is not None:
            assert abs(value - chance.get(name, 0)) < 4 * error, name


def test_an_outlier_coordinate_moves_no_measure_but_the_raw_one_and_the_share_that_warns():
    """As in released weights: one coordinate of every state, not of the table, gets 90% of the variance."""
    made = Made()
    states = made.table[made.tokens] + made.noise
    before = made.measured(states)
    after = made.measured(states * np.where(np.arange(24) == 3, 15.0, 1))
    assert before["largest coordinate"][0] < 0.1
    assert after["largest coordinate"][0] > 0.9
    assert abs(after["variance, token, raw"][0] - before["variance, token, raw"][0]) > 2 * before["variance, token"][1]
    for name in set(before) - {"largest coordinate", "variance, token, raw"}:
        assert after[name][0] == pytest.approx(before[name][0], abs=before[name][1] / 2), name


def test_variance_less_the_leading_components_does_not_count_a_direction_that_carries_the_token_alone():
    made = Made(D=64)
    kind, direction = made.tokens % 2, np.random.default_rng(1).normal(0, 1, 64)
    found = made.measured(made.noise + 3 * np.outer(2 * kind - 1, direction))
    assert found["variance, token"][0] > 0.6
    assert abs(found["variance, token, less 3 components"][0]) < 0.05


SHARES = np.array([[0.95, 0.05], [0.6, 0.3], [0.1, 0.7]])  # [depths, 2] of the embedding's word and of PLE's


def mixed_swaps(seed, made, n=240):
    """States at three depths that are the first word's to a known share, the second's to another, else a third's."""
    rng = np.random.default_rng(seed)
    texts = np.arange(n) % (1 + made.texts.max())
    first, second, third, fourth = np.argsort(rng.random((n, len(made.table))))[:, :4].T
    states = {}
    for depth, (one, two) in enumerate(SHARES):
        draw = rng.random(n)
        word = np.where(draw < one, first, np.where(draw < one + two, second, fourth))
        states[f"depth {depth}"] = {MIXED: made.table[word] + rng.normal(0, 0.05, (n, made.table.shape[1]))}
    everywhere = {"all": np.ones(n, bool)}
    return Swaps(texts, {MIXED: (first, second)}, third, everywhere, states, {MIXED: rng.random(n) < 0.7})


def test_the_hand_over_recovers_known_shares_of_two_identities_and_the_depth_where_they_cross():
    """Noise, an outlier coordinate and a drift shared by each text are in the states."""
    made = Made(D=48)
    outlier, drift = np.where(np.arange(48) == 5, 30.0, 1), np.random.default_rng(2).normal(0, 0.05, (80, 48))
    train = (made.table[made.tokens] + 0.05 * made.noise + drift[made.texts]) * outlier
    probe = CrossProbe(train, made.tokens, made.texts, np.arange(60))
    inside, crossings = [], []
    for seed in range(12):
        swaps = mixed_swaps(seed, made)
        for rows in swaps.states.values():
            rows[MIXED] = (rows[MIXED] + drift[swaps.texts]) * outlier
        row = read(swaps, dict.fromkeys(swaps.states, probe))["conditions"][MIXED]
        for word, known in (("first", SHARES[:, 0]), ("second", SHARES[:, 1]), ("third", np.zeros(3))):
            mean, error = (np.array(row[word][column]) for column in ("mean", "error"))
            inside += list(np.abs(mean - known) <= 2 * error + 0.01)
        assert abs(row["obeys"][0] - 0.7) < 4 * row["obeys"][1]
        assert row["groups"]["all"]["first"] == row["first"]
        crossings += row["crossing"]
    assert np.mean(inside) >= 0.85
    assert np.mean(crossings) == pytest.approx(1 + 0.3 / 0.9, abs=0.1)  # the lead goes from -0.3 to +0.6


def test_without_a_crossing_there_is_none():
    made = Made()
    swaps = mixed_swaps(0, made)
    first = {"depth 0": swaps.states["depth 0"]}
    swaps.states = first
    probe = CrossProbe(made.table[made.tokens], made.tokens, made.texts, np.arange(60), splits=2)
    assert read(swaps, {"depth 0": probe})["conditions"][MIXED]["crossing"] == [None, None]


def test_the_hand_over_mixes_the_words_where_it_says(tiny):
    """Checked on the taps of the passes themselves."""
    seen, names = [], ["embed", "layers.9.resid_post"]
    docs = documents(tiny.tokenizer, read_texts(TEXTS)[:6], 40)
    types = np.unique(np.concatenate([doc.ids for doc in docs]))
    swaps = gather_swaps(tiny, docs, names, 12, types, seen.append)
    assert len(seen) == 6
    assert len(swaps.texts) == 12
    own, other = swaps.words["undisturbed"]
    assert (own != other).all()
    assert ((swaps.third != own) & (swaps.third != other)).all()
    scaled = (
        np.asarray(tiny.weights.embed_tokens[own]) * 128**0.5,
        np.asarray(tiny.weights.embed_tokens[other]) * 128**0.5,
    )
    for condition, row in (("undisturbed", 0), (MIXED, 0), ("another word", 1), (REVERSED, 1)):
        assert np.allclose(swaps.states["embed"][condition], scaled[row], atol=1e-5), condition
    end = swaps.states["layers.9.resid_post"]
    at = int(np.flatnonzero(docs[0].ids == own[0])[0])
    for place in np.flatnonzero(docs[0].ids == own[0]):
        trace = Trace("layers.9.resid_post")
        tiny(docs[0].ids[: place + 1], tap=trace)
        at = at if not np.allclose(trace["layers.9.resid_post"][-1], end["undisturbed"][0], atol=1e-4) else int(place)
    ids = docs[0].ids[: at + 1].copy()
    whole, ple = Trace("layers.9.resid_post"), Trace("ple")
    tiny(np.append(ids[:-1], other[0]), tap=ple)
    tiny(ids, tap=minigemma.interventions.chain(minigemma.interventions.patch("ple", ple, at), whole))
    assert np.allclose(whole["layers.9.resid_post"][-1], end[MIXED][0], atol=1e-3)
    assert not np.allclose(end[MIXED], end["undisturbed"], atol=0.1)


def test_the_hand_over_is_bounded_in_memory(tiny, monkeypatch):
    docs = documents(tiny.tokenizer, read_texts(TEXTS)[:6], 30)
    types = np.unique(np.concatenate([doc.ids for doc in docs]))
    size = 4 * 128 * len(swap_conditions(tiny.config, (0, 0), ({}, {}), 0))  # bytes of a position
    monkeypatch.setattr(handover, "STATE_BYTES", 9 * size)
    assert len(gather_swaps(tiny, docs, ["embed"], 60, types, lambda count: None).texts) <= 9


def test_a_model_without_ple_has_the_swap_and_no_mix():
    config, _ = small("31B")
    assert set(swap_conditions(config, (1, 2), ({}, {}), 0)) == {"undisturbed", "another word"}


def test_the_lookup_share_is_1_without_the_context_and_0_without_the_lookup():
    config, weights = small("E2B")
    tokens, rows = np.arange(1, 15), np.arange(1, 13)

    def share(tap):
        trace = Trace(states.WRITES)
        forward(tokens, weights, config, tap=minigemma.interventions.chain(tap, trace))
        return writes(trace, weights, config, rows)["lookup"]

    both = share(lambda name, array: array)
    assert np.allclose(share(minigemma.interventions.zero("ple.context")), 1, atol=1e-4)
    assert np.allclose(share(minigemma.interventions.zero("ple.token")), 0)
    assert both.shape == (10, 12)
    assert (np.abs(both - 0.5) < 5).all()


def test_writes_are_norms_relative_to_what_they_are_added_to():
    config, weights = small("E2B")
    trace = Trace()
    forward(np.arange(1, 15), weights, config, tap=trace)
    found = writes(trace, weights, config, np.array([3, 7]))
    for name, added, to in (("attention", "attn_out", "resid_pre"), ("ple", "ple_out", "resid_ffn")):
        norms = [np.linalg.norm(trace[f"layers.6.{part}"][7]) for part in (added, to)]
        assert found[name][6, 1] == pytest.approx(norms[0] / norms[1], rel=1e-5)
    assert found["gate open"][2, 0] == (trace["layers.2.ple.gate"][3] > 0).mean()


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_quantised_rows_have_so_many_values_and_are_off_by_half_a_step_at_most(bits):
    lookup = np.random.default_rng(0).normal(0, 1, (5, 4, 300)).astype(np.float32)
    lookup[:, 1] *= 10  # a loud layer costs the others when they share one scale
    for per, axes in (("row", (1, 2)), ("slice", (2,))):
        rounded = quantise(lookup, bits, per)
        step = np.ptp(lookup, axes, keepdims=True) / (2**bits - 1)
        assert (np.abs(rounded - lookup) <= 0.501 * step).all()
        assert len(np.unique(rounded[0, 1])) <= 2**bits
    errors = {per: np.abs(quantise(lookup, bits, per) - lookup)[:, [0, 2, 3]].mean() for per in ("row", "slice")}
    assert errors["slice"] < errors["row"] / 2


def test_interventions_change_ple_where_they_say():
    config, weights = small("E2B")
    tokens = np.arange(1, 15)
    plain, donor = Trace(), Trace(["ple", "ple.token"])
    forward(tokens, weights, config, tap=plain)
    forward(tokens[::-1], weights, config, tap=donor)
    seen = {}
    for kind, at, make in conditions(config):
        trace = Trace()
        tap = minigemma.interventions.chain(make(donor, len(tokens)), trace)
        forward(tokens, weights, config, tap=tap)
        seen[kind, at] = trace
    assert np.array_equal(seen["off everywhere", None]["logits"], seen["off from layer", 0]["logits"])
    assert np.array_equal(seen["off in layer", 9]["logits"], seen["off from layer", 9]["logits"])
    token = plain["ple.token"]
    pruned = seen["lookup pruned in layer", 3]["ple.token"]
    assert not pruned[:, 3].any()
    assert np.array_equal(np.delete(pruned, 3, 1), np.delete(token, 3, 1))
    two = seen["lookup in 2 bits in layer", 3]["ple.token"]
    assert np.array_equal(two[:, 3], quantise(token, 2, "slice")[:, 3])
    assert np.array_equal(np.delete(two, 3, 1), np.delete(token, 3, 1))
    others = seen["another token's lookup", None]
    assert np.array_equal(others["ple.token"][0], token[0])
    assert np.array_equal(others["ple.token"][1:], donor["ple.token"][1:])
    assert np.array_equal(others["ple.context"], plain["ple.context"])
    assert np.allclose(seen["lookup only", None]["ple"], token * 2**-0.5)
    assert not np.allclose(seen["write set to its mean", None]["logits"], seen["off everywhere", None]["logits"])


def test_sense_labels_sit_on_the_last_token_of_their_word(tiny):
    texts = read_texts(TEXTS)[:60]
    labelled = 0
    for text, doc in zip(texts, documents(tiny.tokenizer, texts, 400), strict=True):
        assert len(doc.senses) == len(text["senses"])
        ends = token_ends(tiny.tokenizer, doc.ids, text["text"])
        assert ends[-1] == len(text["text"].encode())
        for position, (_, end, word, sense) in zip(doc.senses, text["senses"], strict=True):
            assert doc.senses[position] == (word, sense)
            assert ends[position] >= end > ends[position - 1]  # a full stop may be part of the token
            labelled += 1
    assert labelled > 60


def test_tokens_of_bytes_are_counted_as_bytes(tiny):
    ids = tiny.tokenizer.encode("a 猫 b")
    assert token_ends(tiny.tokenizer, ids, "a 猫 b")[-1] == len("a 猫 b".encode())


def test_the_texts_are_the_held_out_stories_that_their_program_writes():
    run = python("weights/training/stories.py", "--split", "heldout", "-n", 40, "--jsonl")
    lines = run.stdout.splitlines()
    assert len(lines) > 20
    assert TEXTS.read_text(encoding="utf-8").splitlines()[: len(lines)] == lines
    assert TEXTS.stat().st_size <= 500_000


def test_texts_are_read_from_plain_text_and_json_lines_and_mistakes_are_named(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("One story.\nIts second line.\n\n \nAnother.\n", encoding="utf-8")
    assert [text["text"] for text in read_texts(path)] == ["One story.\nIts second line.", "Another."]
    path = tmp_path / "texts.jsonl"
    for line, words in (
        ("", "has no text in it"),
        ('{"text": "a"}\n{', "line 2: not JSON"),
        ('{"words": 3}', 'line 1: expected an object with a "text"'),
        ('{"text": "bat", "senses": [[0, 9, "bat", "animal"]]}', "a sense must be"),
        ('{"text": "bat", "senses": 4}', "a sense must be"),
    ):
        path.write_text(line, encoding="utf-8")
        with pytest.raises(Error, match=words):
            read_texts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Error, match="UTF-8"):
        read_texts(path)
    with pytest.raises(Error, match="no such file"):
        read_texts(tmp_path / "nothing")


def test_hidden_states_are_bounded_in_memory_and_drawn_at_the_same_places_every_time(tiny, monkeypatch):
    docs = documents(tiny.tokenizer, read_texts(TEXTS)[:6], 60)
    names = state_names(tiny.config)
    first, again = (gather(tiny, docs, names, 120, lambda count: None) for _ in range(2))
    assert first.drawn.sum() == 120
    assert np.array_equal(first.states["layers.4.resid_post"], again.states["layers.4.resid_post"])
    trace = Trace(names)
    tiny(docs[2].ids, tap=trace)
    row = np.flatnonzero(first.texts == 2)[0]
    (place,) = np.flatnonzero((trace["layers.4.resid_ffn"] == first.states["layers.4.resid_ffn"][row]).all(-1))
    assert (docs[2].ids[place - 1 : place + 2] == [first.previous[row], first.tokens[row], first.following[row]]).all()
    monkeypatch.setattr(states, "STATE_BYTES", 4 * 128 * len(names) * 30)
    assert gather(tiny, docs, names, 120, lambda count: None).drawn.sum() == 30


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The command's JSON, for the tiny weights beside a model without PLE, and the directory of its figures."""
    directory = tmp_path_factory.mktemp("retention")
    config, weights = small("31B", vocab_size=2560)
    minigemma.save(directory / "without", weights, config, "bfloat16")
    shutil.copy(minigemma.TINY / "tokenizer.json", directory / "without")
    sizes = ["--count", "12", "--length", "60", "--positions", "600", "--swaps", "24", "--interventions", "1"]
    weights = ["--weights", minigemma.TINY, directory / "without"]
    run = command("retention", *weights, *sizes, "--plots", directory / "figures", "--json", env={"MPLBACKEND": "agg"})
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), directory / "figures"


def test_the_command_measures_several_checkpoints_at_every_depth(measured):
    (with_ple, without), _ = measured
    assert [result["ple"] for result in (with_ple, without)] == [True, False]
    for result in (with_ple, without):
        depth = len(result["layers"]) + 1
        for name, measure in result["measures"].items():
            assert len(measure["after"]["mean"]) == len(measure["after"]["error"]) == depth, name
            assert len(measure["before PLE"]["mean"]) == (depth - 1) * result["ple"]
        assert result["measures"]["variance, token"]["after"]["mean"][0] == pytest.approx(1, abs=1e-4)
        assert result["measures"]["retrieval"]["after"]["mean"][0] > 0.95
        assert set(result["writes"]) >= {"attention", "mlp"}
        ranks = result["sentence"]["rank"]["embed"]
        assert ranks == [1] * len(result["sentence"]["tokens"])
    assert with_ple["sentence"]["logit lens"]["layers.9.resid_post"] != with_ple["sentence"]["tokens"]
    handed = with_ple["handover"]["conditions"]
    assert handed[MIXED]["first"]["mean"][0] > 0.9
    assert handed[MIXED]["second"]["mean"][0] < 0.1
    assert set(without["handover"]["conditions"]) == {"undisturbed", "another word"}


def test_the_command_reports_every_intervention_in_order_with_errors(measured):
    (with_ple, without), _ = measured
    config = minigemma.Config.from_json(minigemma.TINY)
    expected = [("plain", None), *((kind, at) for kind, at, _ in conditions(config))]
    assert [(row["kind"], row["at"]) for row in with_ple["interventions"]] == expected
    assert [row["kind"] for row in without["interventions"]] == ["plain"]
    rows = {(row["kind"], row["at"]): row for row in with_ple["interventions"]}
    assert rows["off everywhere", None]["change"][0] > 1
    assert all(len(row["identity"]["mean"]) == 11 for row in rows.values())


def test_the_figures_are_written_and_the_report_names_every_measure(measured):
    results, figures = measured
    names = {"retention", "outliers", "context", "senses", "sentence", "swap", "handover", "dose"}
    names |= {"interventions", "ablations", "quantisation"}
    assert {path.stem for path in figures.iterdir()} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.iterdir())
    text = report.study_text(results)
    for word in (
        "retrieval",
        "senses",
        "chance",
        "lookup pruned in layer 9",
        "input lens",
        "layer 3 before PLE",
        MIXED,
    ):
        assert word in text


def test_a_plain_script_measures_without_a_main_guard(tmp_path):
    """Students write scripts without `if __name__ == "__main__"`; a pool of processes would start the script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import minigemma\n"
        "from minigemma.study import retention\n"
        'texts = [{"text": "Tom saw a cat by the lake. It was late.", "senses": []}] * 4\n'
        "sizes = {'count': 4, 'length': 20, 'positions': 40, 'swaps': 2, 'intervention_texts': 1}\n"
        "(result,) = retention.measure([minigemma.TINY], texts, minigemma.load, **sizes)\n"
        "print(result['positions'], len(result['interventions']) > 1)\n",
        encoding="utf-8",
    )
    run = python(script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-400:]
    assert run.stdout.split() == ["40", "True"]


def test_the_estimate_counts_the_passes_that_follow(tiny, monkeypatch):
    counted = []

    class Counting(type(tiny)):
        def __call__(self, ids, *args, **kwargs):
            counted.append(len(ids))
            return super().__call__(ids, *args, **kwargs)

    model = Counting(**{field.name: getattr(tiny, field.name) for field in fields(tiny)})
    docs = documents(tiny.tokenizer, read_texts(TEXTS)[:4], 30)
    monkeypatch.setattr(measures, "TEXTS_EACH", 2)
    texts, singles = retention.passes(model, docs, 8, 1)
    retention.hidden_states(model, docs, 60, "Tom saw it.", 8)
    retention.interventions(model, docs[:1], 60)
    assert sum(count for count in counted if count > 1) == pytest.approx(texts, rel=0.1)
    assert counted.count(1) == pytest.approx(singles, abs=8)


def test_a_model_without_a_tokenizer_is_refused_before_the_first_is_measured(checkpoint, monkeypatch):
    monkeypatch.setattr(retention, "hidden_states", None)
    sizes = {"count": 4, "length": 20, "positions": 9, "swaps": 0, "intervention_texts": 0}
    with pytest.raises(Error, match=r"tokenizer\.json"):
        retention.measure([minigemma.TINY, checkpoint], read_texts(TEXTS), minigemma.load, **sizes)


def test_texts_without_labels_and_models_without_a_tokenizer(tmp_path, checkpoint):
    path = tmp_path / "own.txt"
    path.write_text("\n\n".join(["Tom saw a cat by the lake.", "It was late.", "Mia ran home.", "Oh no!"]), "utf-8")
    sizes = {"count": 9, "length": 60, "positions": 50, "swaps": 0, "intervention_texts": 0}
    with pytest.raises(Error, match="shorter than 4 tokens"):
        documents(minigemma.load().tokenizer, [{"text": "a", "senses": []}], 60)
    (found,) = retention.measure([minigemma.TINY], read_texts(path), minigemma.load, **sizes)
    assert found["measures"]["senses"]["after"]["mean"] == [None] * 11
    assert "senses" in report.study_text([found])
    assert "hand-over: none" in report.study_text([found])
    with pytest.raises(Error, match="sentence is empty"):
        retention.lenses(minigemma.load(), "", {}, None)
    with pytest.raises(Error, match=r"tokenizer\.json"):
        retention.measure([checkpoint], read_texts(path), minigemma.load, **sizes)


def test_a_size_too_small_to_measure_is_refused(run):
    for flag in ("--count", "--positions", "--swaps"):
        one_line(run("retention", flag, -1), flag)
