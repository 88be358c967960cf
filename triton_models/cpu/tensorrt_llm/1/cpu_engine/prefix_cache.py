"""Keys and values of the prefixes that requests share."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from cpu_engine.forward import Ints, KeyValues


class PrefixCache:
    """Least recently used first out, bounded in bytes; but what was never found again goes before
    what was, so that a flood of prefixes used once does not push out those in constant use."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[bytes, KeyValues] = OrderedDict()
        # Held but never found as a whole since.
        self._unused: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, ids: Ints) -> KeyValues | None:
        """The whole prefix, if it is held."""
        key = ids.tobytes()
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            self._unused.discard(key)
        return entry

    def longest_common(self, ids: Ints) -> KeyValues | None:
        """As many leading tokens of `ids` as some held prefix begins with: a policy's new revision
        mostly begins as the old one did."""
        best, best_tokens = None, 0
        for key, entry in self._entries.items():
            tokens = _common(np.frombuffer(key, np.int32), ids)
            if tokens > best_tokens:
                best, best_tokens = entry, tokens
        return None if best is None else best.first(best_tokens)

    def put(self, ids: Ints, entry: KeyValues) -> None:
        """Hold `entry`; what exceeds the bound goes, and a prefix larger than the bound is not held
        at all.

        What `ids` begins with and nobody asked for goes too: a long prefix comes in pieces, each
        of them longer than the one before, and only the last is asked for.
        """
        key = ids.tobytes()
        self._drop(key)
        if entry.nbytes > self.max_bytes:
            return
        for piece in [held for held in self._unused if key.startswith(held)]:
            self._drop(piece)
        self._entries[key] = entry
        self._unused.add(key)
        self.nbytes += entry.nbytes
        while self.nbytes > self.max_bytes:
            self._drop(self._least_worth(beside=key))

    def _least_worth(self, beside: bytes) -> bytes:
        unused = (key for key in self._entries if key in self._unused and key != beside)
        return next(unused, next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        self._unused.discard(key)
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.nbytes -= entry.nbytes


def _common(left: Ints, right: Ints) -> int:
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length
