"""What a caller hands to `forward`, checked before any work. Every function raises Error with one line: what to mend.

Letters: T new tokens, D hidden_size, N query heads, P hidden_size_per_layer_input, M soft tokens.
"""

import numpy as np

from .errors import Error


def check_model(weights, config, logits):
    """Raise Error where the weights are not those of this config, or `logits` is not a choice that `forward` has."""
    if logits not in ("all", "last", None):
        raise Error(f'logits must be "all", "last" or None, not {logits!r}')
    if not hasattr(weights, "layers") or not hasattr(config, "vocab_size"):
        raise Error("forward takes tokens, weights and config, in this order")
    D, N, P = config.hidden_size, config.num_attention_heads, config.hidden_size_per_layer_input
    if len(weights.layers) != config.num_hidden_layers:
        raise Error(f"the weights have {len(weights.layers)} layers and the config {config.num_hidden_layers}")
    _check_shapes("", weights, {"embed_tokens": (config.vocab_size, D)})
    for layer, w in zip(config.layers, weights.layers, strict=True):
        shapes = {"q_proj": (N * layer.head_dim, D)}
        if not layer.shares_kv:
            shapes["k_proj"] = layer.num_key_value_heads * layer.head_dim, D
        if P:
            shapes["per_layer_input_gate"] = P, D
        if config.enable_moe_block:
            shapes["router_proj"] = config.num_experts, D
        _check_shapes(f"layers.{layer.index}.", w, shapes)


def _check_shapes(prefix, owner, shapes):
    for name, shape in shapes.items():
        found = getattr(owner, name, None)
        if found is None or found.shape != shape:
            held = "are missing" if found is None else f"have shape {list(found.shape)}"
            raise Error(f"these weights belong to another config: {prefix}{name} must have {list(shape)} and {held}")


def as_tokens(tokens, cache, config):
    """Token ids as a new array [T] of int64. Raises Error for none, for ids outside the vocabulary, for too many."""
    try:
        ids = np.asarray(tokens)
    except ValueError:  # a ragged list
        ids = np.empty((0, 0))
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise Error(f"tokens must be a non-empty list of ids, not {type(tokens).__name__} of shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        wrong = ids[(ids < 0) | (ids >= config.vocab_size)][0]
        raise Error(f"token id {wrong} is outside the vocabulary, 0 to {config.vocab_size - 1}")
    if cache.length + len(ids) > config.max_position_embeddings:
        raise Error(
            f"{cache.length} cached and {len(ids)} new tokens are more than the model's "
            f"{config.max_position_embeddings} positions (max_position_embeddings)"
        )
    return ids.astype(np.int64)  # [T]


def as_soft_tokens(soft_tokens, count, config):
    """(positions [M], rows [M, D]) as arrays. Raises Error where they do not fit `count` tokens of this model."""
    if config.use_bidirectional_attention:
        raise Error("soft tokens: this model's images need bidirectional attention, and minigemma's pass is causal")
    try:
        where, rows = (np.asarray(part) for part in soft_tokens)  # [M], [M, D]
    except (TypeError, ValueError):  # not a pair, or a ragged list in it
        raise Error("soft tokens: give a pair, positions [M] and rows [M, hidden_size]") from None
    if where.ndim != 1 or (where.size and where.dtype.kind not in "iu"):
        raise Error(f"soft tokens: positions are a list of integers, not {where.dtype} of shape {list(where.shape)}")
    if rows.shape != (where.size, config.hidden_size) or rows.dtype.kind not in "fiu":
        raise Error(
            f"soft tokens: {where.size} position(s) need rows of {config.hidden_size} numbers, "
            f"not {rows.dtype} of shape {list(rows.shape)}"
        )
    for position in where:
        if not 0 <= position < count:
            raise Error(f"soft tokens: position {position} is outside this call's {count} tokens")
    if len(np.unique(where)) != len(where):
        raise Error("soft tokens: a position is given twice")
    return where.astype(np.int64), rows  # [M], [M, D]


def check_tap(tap, config):
    """Raise Error where `tap` is no function of a name and an array, or names a tap that this model does not have.

    A tap that knows the names it waits for (Trace, Edit, the interventions) has a method `check(config)`.
    """
    if not callable(tap) or isinstance(tap, type):
        raise Error(f"tap must be a function of a name and an array, such as Trace(), not {tap!r}")
    if hasattr(tap, "check"):
        tap.check(config)


def as_tap(tap, config):
    """`tap`, checked here against the model, and at each call: it must return the dtype and the shape it was given."""
    check_tap(tap, config)

    def checked(name, array):
        result = tap(name, array)
        if result is array:
            return result
        if not isinstance(result, np.ndarray):
            raise Error(f"{name}: the tap returned {type(result).__name__}, not an array; it must return one")
        if result.dtype != array.dtype or result.shape != array.shape:
            raise Error(
                f"{name}: the tap returned {result.dtype} of shape {list(result.shape)} "
                f"and must return {array.dtype} of shape {list(array.shape)}"
            )
        return result

    return checked
