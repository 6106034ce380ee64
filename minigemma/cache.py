"""The KV cache: a value. A call of `forward` returns a new one, and the old one stays valid.

Appending is still amortised constant time: the arrays behind a cache have room to grow, and a cache remembers how much
of them is its own. The first continuation of a cache writes into the free room; a second one finds the room taken and
copies. A sliding layer's entry holds only the keys that its next query can see; rows before them stay in memory behind
it until its room is used up.
"""

from typing import NamedTuple

import numpy as np


class Buffer:
    """K and V of one layer in arrays with spare room, [capacity, K, H] each; `used` rows are some cache's."""

    def __init__(self, k, v, capacity):
        self.k = np.empty((capacity, *k.shape[1:]), k.dtype)
        self.v = np.empty((capacity, *v.shape[1:]), v.dtype)
        self.k[: len(k)], self.v[: len(v)] = k, v
        self.used = len(k)


class Entry(NamedTuple):
    """The rows start:end of a buffer."""

    buffer: Buffer
    start: int
    end: int

    @property
    def k(self):
        return self.buffer.k[self.start : self.end]  # [S, K, H]

    @property
    def v(self):
        return self.buffer.v[self.start : self.end]  # [S, K, H]

    def append(self, k, v):
        """This entry's rows followed by k and v, each [T, K, H]."""
        buffer, start, old, new = self.buffer, self.start, self.end, self.end + len(k)
        if old != buffer.used or new > len(buffer.k):  # another branch took the room, or there is none left
            start, old, new = 0, old - start, new - start
            buffer = Buffer(self.k, self.v, capacity=2 * new)
        buffer.k[old:new], buffer.v[old:new] = k, v
        buffer.used = new
        return Entry(buffer, start, new)

    def trim(self, window):
        """What the next query needs: window - 1 keys before its own on a sliding layer, all on a global one."""
        return self if window is None else self._replace(start=max(self.start, self.end - (window - 1)))


class Cache(NamedTuple):
    """Positions 0 to length - 1 of one sequence; `entries` holds the layers that write K and V, by number."""

    length: int
    entries: dict[int, Entry]

    def append(self, layer, k, v):
        """The Entry of `layer` with this call's k and v behind what is cached."""
        return self.entries[layer].append(k, v) if layer in self.entries else Entry(Buffer(k, v, len(k)), 0, len(k))

    @property
    def nbytes(self):
        """Bytes of the K and V that this cache holds (the room to grow not counted)."""
        return sum(entry.k.nbytes + entry.v.nbytes for entry in self.entries.values())


EMPTY = Cache(0, {})
