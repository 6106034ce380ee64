"""The KV cache: a value. A call of `forward` returns a new one, and the old one stays valid.

Appending still takes amortised constant time: the arrays behind a cache have spare room, and a buffer knows how many of
its rows are taken. The first continuation of a cache claims the room behind it and writes there. A second one, also one
in another thread, finds the room taken and copies. A sliding layer's entry holds only the keys that its next query can
see; earlier rows stay in memory behind it until its room is used up.
"""

import threading
from typing import NamedTuple

import numpy as np

from .errors import Error

CLAIM = threading.Lock()  # one for all buffers: a buffer with a lock inside could be neither copied nor pickled


class Buffer:
    """K and V of one layer in arrays with spare room, [capacity, K, H] each; the first `used` rows are taken."""

    def __init__(self, k, v, capacity):
        self.k = np.empty((capacity, *k.shape[1:]), k.dtype)
        self.v = np.empty((capacity, *v.shape[1:]), v.dtype)
        self.k[: len(k)], self.v[: len(v)] = k, v
        self.used = len(k)

    def claim(self, start, end):
        """Take the rows start:end, if they are the next free ones and there is room -> whether they were."""
        with CLAIM:
            free = start == self.used and end <= len(self.k)
            if free:
                self.used = end
            return free


class Entry(NamedTuple):
    """The rows start:end of a buffer."""

    buffer: Buffer
    start: int
    end: int

    @property
    def k(self):
        """The keys, normed and rotated, [S, K, H]."""
        return self.buffer.k[self.start : self.end]

    @property
    def v(self):
        """The values, normed, [S, K, H]."""
        return self.buffer.v[self.start : self.end]

    def extended(self, k, v):
        """This entry's rows followed by k and v, each [T, K, H] -> Entry."""
        buffer, start, old, new = self.buffer, self.start, self.end, self.end + len(k)
        if not buffer.claim(old, new):
            start, old, new = 0, old - start, new - start
            buffer = Buffer(self.k, self.v, capacity=2 * new)
            buffer.used = new
        buffer.k[old:new], buffer.v[old:new] = k, v
        return Entry(buffer, start, new)

    def trim(self, window):
        """What the next query needs: the last window - 1 rows on a sliding layer, all on a global one (window None)."""
        return self if window is None else self._replace(start=max(self.start, self.end - (window - 1)))


class Cache(NamedTuple):
    """Positions 0 to length - 1 of one sequence; `entries` has an Entry for each layer that writes K and V."""

    length: int
    entries: dict[int, Entry]

    def extended(self, layer, k, v):
        """Cached keys and values of `layer`, followed by this call's k and v, each [T, K, H] -> Entry."""
        return self.entries[layer].extended(k, v) if layer in self.entries else Entry(Buffer(k, v, len(k)), 0, len(k))

    @property
    def nbytes(self):
        """Bytes of the K and V that this cache holds (the room to grow not counted)."""
        return sum(entry.k.nbytes + entry.v.nbytes for entry in self.entries.values())


EMPTY = Cache(0, {})


def check_cache(cache, config, dtype):
    """Raise Error where a pass of this config that computes in `dtype` cannot continue `cache`."""
    if not isinstance(cache, Cache):
        raise Error(f"cache must be the Cache that forward returned beside the logits, or EMPTY, not {cache!r:.50}")
    writing = [layer for layer in config.layers if not layer.shares_kv] if cache.length else []
    if set(cache.entries) != {layer.index for layer in writing}:
        raise Error(
            f"the cache belongs to another model: it holds K and V of {len(cache.entries)} layers, and this model "
            f"writes those of {len(writing)}; run the whole prompt with this model"
        )
    for layer in writing:
        entry = cache.entries[layer.index]
        S = cache.length if layer.window is None else min(cache.length, layer.window - 1)
        shape = S, layer.num_key_value_heads, layer.head_dim
        if entry.k.shape != shape or entry.v.shape != shape or entry.k.dtype != dtype:
            raise Error(
                f"the cache belongs to another model: layer {layer.index} holds {entry.k.dtype} {list(entry.k.shape)}, "
                f"and this model needs {dtype} {list(shape)} (keys, heads, width); run the whole prompt with this model"
            )
