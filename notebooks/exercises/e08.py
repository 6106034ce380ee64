"""The exercises of notebook 08."""

import numpy as np

from minigemma import count
from minigemma.account import compute

from . import Calls, Values

E2B = count("E2B")
SMALL = [E2B, count("E4B")]


def fitting_definition():
    """The one that gives the published numbers of E2B and of E4B."""
    both = [effective["candidates"] for effective in compute.overview()["effective"].values()]
    (name,) = [name for name in both[0] if all(candidates[name]["reproduces"] for candidates in both)]
    return name


def most_pages(page=4096):
    """How many pages a row of E2B's PLE table touches at most: all rows are tried."""
    config = E2B.config
    row = 2 * config.num_hidden_layers * config.hidden_size_per_layer_input
    starts = np.arange(config.vocab_size_per_layer_input) * row
    return int(((starts + row - 1) // page - starts // page + 1).max())


def layer_parameters(layer, D, N, P):
    account = next(account for account in SMALL if any(layer is one for one in account.config.layers))
    return account.layers[layer.index]["total"]


def some_layers():
    """The first sliding, global and sharing layer of two models, with the sizes of the model."""
    for account in SMALL:
        config = account.config
        sizes = config.hidden_size, config.num_attention_heads, config.hidden_size_per_layer_input
        for i in (0, next(n.index for n in config.layers if not n.window), config.first_kv_shared_layer):
            yield f"{account.name}, layer {i}", (config.layers[i], *sizes)


TARGETS = {
    "08.1": lambda model: Values(E2B.layers[0]["parts"]["attention"]),
    "08.2": lambda model: Values(E2B.parts["PLE table"]),
    "08.3": lambda model: Values(compute.overview()["models"]["E2B"]["computed"]),
    "08.4": lambda model: Values(fitting_definition()),
    "08.5": lambda model: Values(most_pages()),
    "08.6": lambda model: Calls(layer_parameters, dict(some_layers())),
}
