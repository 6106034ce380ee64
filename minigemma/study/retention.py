"""All measures at every depth of a model, and several models side by side."""

import numpy as np

from ..errors import Error
from ..files import progress
from ..ops import linear, rms_norm, softcap
from ..taps import Trace
from .measures import RETRIEVAL, by_column, measures_of, nearest_tokens, over_texts, retrieval_ranks, table_mean
from .ple import interventions
from .states import gather, state_names
from .texts import documents

SENTENCE = "Tom put the kite in the barn."


# ---------------------------------------------------------------------------------------------------------- together
def hidden_states(model, docs, positions, sentence):
    """Every measure at every depth of `model`, what the parts of its layers add, and one sentence in detail -> a dict.

    The tokens before and after a position already say much about its token. So the probe for the token is also trained
    on the embeddings of these two alone: "from neighbours".
    """
    head, names = model.weights.embed_tokens, state_names(model.config)
    after = state_names(model.config, before_ple=False)
    with progress(f"{model.directory.name}, hidden states", len(docs)) as advance:
        sample = gather(model, docs, names, positions, advance, with_writes=True)
    drawn, texts, middle = sample.drawn, sample.texts[sample.drawn], table_mean(head)
    asked, limit = np.flatnonzero(drawn), max(1, RETRIEVAL // (head.shape[0] * head.shape[1]))
    asked = asked[:: -(-len(asked) // limit)]  # evenly from all texts
    columns = np.stack([sample.tokens, sample.following], axis=-1)[asked]  # [asked, 2]
    means = {name: states[drawn].mean(0) for name, states in sample.states.items()}  # [D] each
    measures = measures_of(sample, asked, head.shape[0])
    found = {measure.name: {} for measure in measures}
    with progress(f"{model.directory.name}, measures", len(names)) as advance:
        for name, states in sample.states.items():
            ranks = retrieval_ranks(states[asked], columns, head, means[name], middle)
            read = {"all": states, "drawn": states[drawn], "ranks": ranks}
            for measure in measures:
                found[measure.name][name] = measure.of(read[measure.reads])
            advance(1)
    neighbours = (sample.previous[drawn], sample.following[drawn])
    beside = np.concatenate([np.asarray(head[ids]) for ids in neighbours], axis=-1)  # [drawn, 2D]
    return {
        "loss": over_texts(sample.losses, np.arange(len(docs)), sample.counts),
        "texts": len(docs),
        "positions": int(drawn.sum()),
        "retrieval positions": len(asked),
        "sense labels": int((sample.words != "").sum()),
        "measures": {
            measure.name: {
                "chance": measure.chance,
                "from neighbours": measure.of(beside) if measure.neighbours else None,
                "after": by_column([found[measure.name][name] for name in after]),
                "before PLE": by_column([found[measure.name][name] for name in names[len(after) :]]),
            }
            for measure in measures
        },
        "writes": {name: by_column([over_texts(row, texts) for row in rows]) for name, rows in sample.writes.items()},
        "sentence": lenses(model, sentence, means, middle),
    }


def lenses(model, sentence, means, middle):
    """One sentence at every depth: the rank of its own tokens, and what two lenses read from the states -> a dict.

    input lens: the row of the token table nearest to the state, centred as in `retrieval_ranks` by means (state name ->
    [D]) and middle [D]. logit lens: the token that the state would predict if this depth were the last (final norm,
    token table, softcap). Raises Error if the sentence has no token but <bos>.
    """
    config, weights, names = model.config, model.weights, state_names(model.config)
    ids, trace = np.array(model.tokenizer.encode(sentence)), Trace(names)
    if len(ids) < 2:
        raise Error("the sentence is empty; give at least one word (--sentence)")
    model(ids, tap=trace)
    result = {"tokens": [model.tokenizer.token(id) for id in ids[1:]], "rank": {}, "input lens": {}, "logit lens": {}}
    states = {name: trace[name][1:] for name in names}  # [T-1, D] each, without <bos>
    together = np.concatenate(list(states.values()))  # [depths*(T-1), D]: the table is then read once
    centre = np.repeat([means[name] for name in names], len(ids) - 1, axis=0)  # [depths*(T-1), D]
    own = np.tile(ids[1:], len(names))[:, None]  # [depths*(T-1), 1]
    ranks = retrieval_ranks(together, own, weights.embed_tokens, centre, middle).reshape(len(names), -1)
    nearest = nearest_tokens(together, weights.embed_tokens, centre, middle).reshape(len(names), -1)
    with progress(f"{model.directory.name}, one sentence", len(names)) as advance:
        for name, rank, near in zip(names, ranks, nearest, strict=True):
            normed = rms_norm(states[name], weights.norm, config.rms_norm_eps)
            logits = softcap(linear(normed, weights.embed_tokens), config.final_logit_softcapping)  # [T-1, V]
            result["rank"][name] = rank.tolist()
            result["input lens"][name] = [model.tokenizer.token(id) for id in near]
            result["logit lens"][name] = [model.tokenizer.token(id) for id in logits.argmax(-1)]
            advance(1)
    return result


def measure(paths, texts, load, *, count, length, positions, intervention_texts, sentence=SENTENCE):
    """Measure each checkpoint, one after the other -> a list of dicts for JSON.

    load: a function from a path to a Model. count: number of texts; length: tokens read of each; positions: hidden
    states of all texts together; intervention_texts: texts for the interventions, 0 for no interventions.
    Raises Error, before it measures anything, if a path cannot be loaded or has no tokenizer.
    """
    models = [load(path) for path in paths]
    for model in models:
        if model.tokenizer is None:
            raise Error(f"{model.directory}: has no tokenizer.json to read texts with; download the whole repository")
    results = []
    for model in models:
        limit, changed = min(length, model.config.max_position_embeddings), []
        kept = hidden_states(model, documents(model.tokenizer, texts[:count], limit), positions, sentence)
        if intervention_texts:
            docs = documents(model.tokenizer, texts[:intervention_texts], limit)
            changed = interventions(model, docs, positions)
        sizes = {"texts": count, "length": length, "positions": positions, "intervention texts": intervention_texts}
        results.append({
            "weights": str(model.directory),
            "layers": [layer.kind for layer in model.config.layers],
            "ple": bool(model.config.hidden_size_per_layer_input),
            "settings": sizes,
            **kept,
            "interventions": changed,
        })  # fmt: skip
    return results
