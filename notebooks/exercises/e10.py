"""The exercises of notebook 10."""

from minigemma import Trace
from minigemma.account.memory import memory_account
from minigemma.account.parameters import count

from . import Values

E2B = count("E2B")
LONGEST = E2B.config.max_position_embeddings


def saved():
    ways = memory_account(E2B, LONGEST)["kv_cache"]
    return ways["unshared, bounded"] - ways["shared, bounded"]


def row_of_a_picture(model):
    """What PLE looks up at a position that has a soft token, [L, P]."""
    trace = Trace("ple.token")
    model([2, 3, 4], tap=trace, soft_tokens=([1], model.weights.embed_tokens[[7]]))
    return trace["ple.token"][1]


TARGETS = {
    "10.1": lambda model: Values(saved()),
    "10.2": lambda model: Values(sum(n.shares_kv and n.window is not None for n in E2B.config.layers)),
    "10.3": lambda model: Values(row_of_a_picture(model), "L P"),
    "10.4": lambda model: Values(max(n for n in range(LONGEST) if n * (280 + 2) + 1000 <= LONGEST)),
}
