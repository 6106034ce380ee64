"""What it costs to round weights to few bits: by part of the model, and by depth."""

from types import SimpleNamespace

import numpy as np

from ..compressed import GROUP, packs, rounded
from ..files import progress, table
from ..interventions import log_softmax, token_losses
from ..model import forward
from ..tensors import text_tensors
from .measures import over_texts


def round_weights(weights, config, bits, chosen):
    """Weights whose matrices with chosen(tensor) are rounded as `quantize` does -> (weights, numbers rounded).

    The token table is two things to the pass: the embedding and the output head. Both are rounded with it.
    """
    copy = SimpleNamespace(**vars(weights) | {"layers": [SimpleNamespace(**vars(layer)) for layer in weights.layers]})
    count = 0
    for tensor in filter(packs, filter(chosen, text_tensors(config))):
        owner = copy if tensor.layer is None else copy.layers[tensor.layer]
        matrix = np.asarray(getattr(owner, tensor.attribute), np.float32)
        setattr(owner, tensor.attribute, rounded(matrix, bits, GROUP))
        count += matrix.size
    return copy, count


def choices(config):
    """What to round -> {name: chosen(tensor)}: everything, each part of the model, and each layer."""
    found = {"everything": lambda tensor: True}
    for part in dict.fromkeys(tensor.part for tensor in text_tensors(config) if packs(tensor)):
        found[part] = lambda tensor, part=part: tensor.part == part
    for layer in config.layers:
        found[f"layer {layer.index}"] = lambda tensor, index=layer.index: tensor.layer == index
    return found


def costs(model, docs, bits=4, names=None):
    """The rounding of each of `choices` -> [dict]; names: only these.

    numbers: how many weights are rounded. loss: the change of the loss in nats per token. kl: the divergence of the
    rounded model's next-token probabilities from the model's own. Both are (mean, standard error over texts).
    """
    tried = {name: chosen for name, chosen in choices(model.config).items() if names is None or name in names}
    with progress("rounding", (1 + len(tried)) * len(docs)) as advance:
        plain = []
        for doc in docs:
            plain.append(log_softmax(model(doc.ids)[0]))  # [T, V]
            advance(1)
        rows = []
        for name, chosen in tried.items():
            weights, count = round_weights(model.weights, model.config, bits, chosen)
            losses, divergences, texts = [], [], []
            for i, (doc, own) in enumerate(zip(docs, plain, strict=True)):
                theirs = log_softmax(forward(doc.ids, weights, model.config)[0])  # [T, V]
                losses.append(token_losses(theirs, doc.ids) - token_losses(own, doc.ids))
                divergences.append((np.exp(own) * (own - theirs)).sum(-1)[:-1])
                texts += [i] * (len(doc.ids) - 1)
                advance(1)
            row = {"rounded": name, "bits": bits, "numbers": count}
            row["loss"] = over_texts(np.concatenate(losses), np.array(texts))
            rows.append(row | {"kl": over_texts(np.concatenate(divergences), np.array(texts))})
    return rows


def costs_text(rows):
    """The table that people read."""

    def stated(mean, error, sign=""):
        return f"{mean:{sign}.5f}" + ("" if error is None else f" ± {error:.5f}")

    lines = [(row["rounded"], row["numbers"], stated(*row["loss"], "+"), stated(*row["kl"])) for row in rows]
    heads = [f"rounded to {rows[0]['bits']} bits", "numbers", "loss, nats per token", "KL, nats per token"]
    return table(heads, lines)
