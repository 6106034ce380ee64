"""The exercises of notebook 10."""

from minigemma import Trace
from minigemma.account.memory import kv_cache, memory_account
from minigemma.account.parameters import count

from . import Calls, Values

E2B = count("E2B")
LONGEST = E2B.config.max_position_embeddings
SIZES = [(name, length) for name in ("E2B", "E4B", "31B") for length in (1024, 10_000, 100_000, LONGEST)]


def saved():
    ways = memory_account(E2B, LONGEST)["kv_cache"]
    return ways["unshared, bounded"] - ways["shared, bounded"]


def two_shares(parts):
    tables = sum(parts.get(name, 0) for name in ("token table", "PLE table"))
    text = sum(size for name, size in parts.items() if name not in ("vision", "audio", "unused"))
    return tables / sum(parts.values()), tables / text


def cache_is_smaller(name, length):
    one = count(name)
    return sum(kv_cache(one.config, length, itemsize=1)) < 2 * one.parts["vision"]


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
    "10.5": lambda model: Calls(two_shares, {name: (count(name).parts,) for name in ("E2B", "12B")}),
    "10.6": lambda model: Calls(cache_is_smaller, {f"{name}, {n:,} tokens": (name, n) for name, n in SIZES}),
}
