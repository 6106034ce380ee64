"""Measures the tiny weights on held-out stories and prints the tables of weights/README.md.

    python weights/training/evaluate.py --weights weights/tiny

The 4-gram baseline reads every document that the model was trained on (made again from the seed). Its one free number
is fitted on the validation split, and it predicts the same held-out tokens. The model computes in float32 with the
saved bfloat16 weights.
"""

import argparse
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from stories import FACTS, KINDS, MOMENTS, PARTS, PLOTS, SUM, tell_story
from tokenizers import Tokenizer
from train import (
    BOS,
    DOCUMENTS,
    END_OF_TURN,
    EOS,
    FOCUS,
    ROW,
    VALIDATION,
    VOCABULARY,
    WINDOW,
    documents,
    encode,
    focus_documents,
)
from transformers import AutoModelForCausalLM

HELDOUT = 1500  # documents scored; questions are asked about as many stories


# ------------------------------------------------------------------------------------------------------ 4-gram model
class KneserNey:
    """Interpolated modified Kneser-Ney over ids: three discounts an order, from the counts, times one fitted scale."""

    def __init__(self, stream, order=4):
        self.order = order
        grams = np.zeros(len(stream), np.int64)
        keys = {}
        for size in range(1, order + 1):
            grams = grams[: len(stream) - size + 1] * VOCABULARY + stream[size - 1 :]
            keys[size] = grams
        self.tables = {order: self._table(*np.unique(keys[order], return_counts=True))}
        types = np.unique(keys[order])
        for size in range(order - 1, 0, -1):  # lower orders count how many different tokens come before
            types, counts = np.unique(types % VOCABULARY**size, return_counts=True)
            self.tables[size] = self._table(types, counts)
            if size > 1:
                types = np.unique(keys[size])

    @staticmethod
    def _table(grams, counts):
        """What one order needs: its n-grams and counts, its contexts with totals and numbers of rare successors."""
        n1, n2, n3, n4 = (int((counts == n).sum()) + 1 for n in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]).clip(0)
        contexts, place = np.unique(grams // VOCABULARY, return_inverse=True)
        totals = np.bincount(place, counts)
        rare = [np.bincount(place, counts == n) for n in (1, 2)] + [np.bincount(place, counts >= 3)]
        return grams, counts, contexts, totals, np.stack(rare), discounts

    def probabilities(self, stream, scale):
        """The probability of stream[i] after the three tokens before it, for i >= 3. [len(stream) - 3]"""
        result = np.full(len(stream) - self.order + 1, 1.0 / VOCABULARY)
        for size in range(1, self.order + 1):
            grams, counts, contexts, totals, rare, discounts = self.tables[size]
            ends = np.arange(self.order - 1, len(stream))
            key = np.zeros(len(ends), np.int64)
            for back in range(size - 1, -1, -1):
                key = key * VOCABULARY + stream[ends - back]
            count, _ = self._find(grams, counts, key)
            total, place = self._find(contexts, totals, key // VOCABULARY)
            discounts = discounts * scale
            kept = np.maximum(count - discounts[np.minimum(count, 3).astype(int)], 0)
            freed = discounts[1:] @ rare[:, place]
            known = total > 0
            result = np.where(known, (kept + freed * result) / np.maximum(total, 1), result)
        return result

    @staticmethod
    def _find(keys, values, wanted):
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[place] == wanted, values[place], 0), place


def four_gram_loss(train, validation, heldout):
    """-> (mean loss on held-out, scale of the discounts that was best on validation). Documents as lists of ids."""
    model = KneserNey(np.concatenate(train).astype(np.int64))

    def loss(texts, scale):
        stream = np.concatenate([[EOS] * 3, *texts]).astype(np.int64)
        chances = model.probabilities(stream, scale)
        return float(-np.log(chances[stream[3:] != BOS]).mean())  # <bos> is given, never predicted

    scales = np.arange(0.4, 1.31, 0.1)
    best = float(min(scales, key=lambda scale: loss(validation, scale)))
    return loss(heldout, best), best


# --------------------------------------------------------------------------------------------------------- the model
def load(weights):
    return AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()


@torch.no_grad()
def logits_of(model, ids):
    """ids [B, T], padded at the end -> [B, T, V]. Where PLE is off transformers needs output_hidden_states."""
    return model(input_ids=ids, use_cache=False, output_hidden_states=True).logits


def padded(texts, size=32):
    """Batches of documents of similar length: (numbers, ids [B, T] padded with 0)."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        width = max(len(texts[number]) for number in numbers)
        ids = torch.zeros(len(numbers), width, dtype=torch.long)
        for row, number in enumerate(numbers):
            ids[row, : len(texts[number])] = torch.from_numpy(texts[number].astype(np.int64))
        yield numbers, ids


def model_loss(model, texts):
    total, tokens = 0.0, 0
    for _, ids in padded(texts):
        logits = logits_of(model, ids)[:, :-1].flatten(0, 1)
        each = F.cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=0, reduction="sum")
        total, tokens = total + float(each), tokens + int((ids[:, 1:] != 0).sum())
    return total / tokens


@torch.no_grad()
def without_ple(weights):
    """The same model, but PLE adds nothing to any layer: its projection is zero, and so is the norm of that."""
    model = load(weights)
    for layer in model.get_decoder().layers:
        layer.per_layer_projection.weight.zero_()
    return model


# ------------------------------------------------------------------------------------------------------------ recall
def recall_questions(tokenizer, count):
    """Questions about held-out stories -> [dict].

    `distance`: tokens from the last mention of the value in the prompt to the first token of the answer. Above the
    window no sliding layer sees the mention.
    """
    found = []
    for number in range(count):
        story = tell_story("heldout", number)
        for question in story.questions:
            prompt = f"<bos><|turn>user\n{story.text}\n{question.question}<turn|>\n<|turn>model\n"
            encoding = tokenizer.encode(prompt, add_special_tokens=False)
            mentions = list(re.finditer(rf"\b{re.escape(question.value)}\b", prompt, re.IGNORECASE))
            ends = [encoding.char_to_token(match.end() - 1) for match in mentions]
            answer = tokenizer.encode(question.answer + "<turn|>", add_special_tokens=False).ids
            found.append({
                "ids": np.array(encoding.ids + answer), "prompt": len(encoding.ids), "kind": question.kind,
                "value": question.value, "rivals": question.rivals,
                "distance": len(encoding.ids) - ends[-1] if ends else 0})
    return found


def answered(model, questions):
    """Whether greedy decoding gives each expected answer completely, with the end of the turn. -> [bool]"""
    right = [False] * len(questions)
    for numbers, ids in padded([question["ids"] for question in questions]):
        best = logits_of(model, ids).argmax(-1)
        for row, number in enumerate(numbers):
            question = questions[number]
            first, last = question["prompt"], len(question["ids"])
            right[number] = bool((best[row, first - 1 : last - 1] == ids[row, first:last]).all())
    return right


def recall_table(questions, right):
    """Rows (name, questions, right, any rival at random, the commonest value of the kind always)."""
    commonest = {kind: Counter(q["value"] for q in questions if q["kind"] == kind).most_common(1)
                 for kind in [*KINDS, "sum"]}
    far = [(q, ok) for q, ok in zip(questions, right, strict=True) if q["kind"] != "sum" and q["distance"] > WINDOW]
    rows = [("all beyond the window", far),
            ("of these, with rivals", [(q, ok) for q, ok in far if len(q["rivals"]) > 1])]
    rows += [(f"distance {low} to {high}", [(q, ok) for q, ok in far if low <= q["distance"] <= high])
             for low, high in ((WINDOW + 1, 64), (65, 128), (129, 256), (257, ROW))]
    rows += [(kind, [(q, ok) for q, ok in far if q["kind"] == kind]) for kind in KINDS]
    rows += [("within the window", [(q, ok) for q, ok in zip(questions, right, strict=True)
                                    if q["kind"] != "sum" and 0 < q["distance"] <= WINDOW]),
             ("sum (not recall)", [(q, ok) for q, ok in zip(questions, right, strict=True) if q["kind"] == "sum"])]
    table = []
    for name, asked in rows:
        if asked:
            table.append((name, len(asked), np.mean([ok for _, ok in asked]),
                          np.mean([1 / len(q["rivals"]) for q, _ in asked]),
                          np.mean([q["value"] == commonest[q["kind"]][0][0] for q, _ in asked])))
    return table


# ----------------------------------------------------------------------------------------------------------- samples
@torch.no_grad()
def greedy(model, tokenizer, prompt, limit=250):
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
    ids_out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, temperature=None, top_k=None, top_p=None,
        max_new_tokens=limit, eos_token_id=[EOS, END_OF_TURN])
    return tokenizer.decode(ids_out[0, ids.shape[1] :].tolist(), skip_special_tokens=True)


def sample_prompts():
    """Of the first ten held-out stories that have a plot: the first sentence of five, a request for five."""
    stories = (tell_story("heldout", number) for number in itertools.count())
    for number, story in enumerate(itertools.islice((story for story in stories if not story.brief), 10)):
        if number < 5:
            yield "<bos>" + re.match(r".*?[.!?]\"?(?=\s)", story.text)[0]
        else:
            yield "<bos><|turn>user\nTell me a story about {} and {}.<turn|>\n<|turn>model\n".format(*story.people)


# ------------------------------------------------------------------------------------------------------------ corpus
def sentences(text):
    return re.findall(r"[^.!?\n]+[.!?]\"?", text)


def frame_count():
    """How many sentence frames there are; the questions, the chat and the links between sentences are not counted."""
    facts = sum(len(kind[part]) for kind in FACTS.values() for part in ("lead", "tell", "back"))
    others = (MOMENTS, PARTS["opening"], PARTS["ending"], PARTS["next"], SUM["more"], SUM["fewer"])
    return facts + sum(len(step) for plot in PLOTS for step in plot) + sum(map(len, others))


def corpus_facts(count, heldout):
    """Counts over `count` training stories, and how many held-out stories and sentences are new. -> dict"""
    words, known, stories, senses = Counter(), set(), set(), Counter()
    for number in range(count):
        story = tell_story("train", number)
        words.update(re.findall(r"[a-z]+(?:[-'][a-z]+)*", story.text.lower()))
        known.update(sentences(story.text))
        stories.add(story.text)
        senses.update((word, sense) for *_, word, sense in story.senses)
    fresh = [tell_story("heldout", number).text for number in range(heldout)]
    lines = [sentence for text in fresh for sentence in sentences(text)]
    ranks = np.arange(1, 1501)
    slope = np.polyfit(np.log(ranks), np.log(sorted(words.values(), reverse=True)[:1500]), 1)[0]
    return {"frames": frame_count(), "stories": count, "different stories": len(stories), "words": sum(words.values()),
            "different words": len(words), "slope of log count over log rank, ranks 1 to 1500": round(float(slope), 2),
            "words with two senses": len({word for word, _ in senses}), "senses": len(senses),
            "least seen sense": min(senses.values()),
            "held-out stories": len(fresh), "held-out stories seen in training": sum(t in stories for t in fresh),
            "held-out sentences not in training, in %": round(100 * np.mean([s not in known for s in lines]), 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--heldout", type=int, default=HELDOUT)
    parser.add_argument("--only", choices=["corpus", "loss", "model", "recall", "samples"],
                        help="one part; \"model\" is the loss without the 4-gram baseline")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.weights / "tokenizer.json"))
    model = load(args.weights)
    if args.only in (None, "corpus"):
        for name, number in corpus_facts(DOCUMENTS + FOCUS, args.heldout).items():
            print(f"{name}: {number:,}")
    if args.only in (None, "loss"):
        train, validation, heldout = (encode(tokenizer, texts) for texts in (
            documents("train", DOCUMENTS) + focus_documents(), documents("validation", VALIDATION),
            documents("heldout", args.heldout)))
        print(f"training tokens: {sum(map(len, train)):,}; held-out tokens: {sum(map(len, heldout)):,}")
        baseline, scale = four_gram_loss(train, validation, heldout)
        ours = model_loss(model, heldout)
        print(f"4-gram, discounts x {scale:.1f}: {baseline:.4f} nats per token")
        print(f"model: {ours:.4f} nats per token, {baseline - ours:.4f} below")
        if model.config.hidden_size_per_layer_input:
            print(f"the same with nothing added by PLE: {model_loss(without_ple(args.weights), heldout):.4f}")
    if args.only == "model":
        heldout = encode(tokenizer, documents("heldout", args.heldout))
        print(f"model: {model_loss(model, heldout):.4f} nats per token")
    if args.only in (None, "recall"):
        questions = recall_questions(tokenizer, args.heldout)
        print("| questions | number | right | a rival at random | the commonest value |\n" + "| --- " * 5 + "|")
        for name, number, right, rival, common in recall_table(questions, answered(model, questions)):
            print(f"| {name} | {number:,} | {right:.1%} | {rival:.1%} | {common:.1%} |")
    if args.only in (None, "samples"):
        for number, prompt in enumerate(sample_prompts(), 1):
            print(f"\n{number}. {prompt!r}\n\n{greedy(model, tokenizer, prompt)}", flush=True)


if __name__ == "__main__":
    main()
