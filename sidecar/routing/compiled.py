"""Compiled prompts of policies, within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict

from sidecar.core.model import CompiledPrompt

_ID_BYTES = 40
"""Of a token id in a tuple: the reference and, since few ids are small, an integer of its own."""

_ROUTE_BYTES = 600
"""Of a route's name, label, place in the answer form and tuple of ids."""


class CompiledPrompts:
    """Prompts by policy digest; those used least recently go first.

    A prompt is kept even where it is larger than the bound by itself: the request that needs it
    has to have it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, tuple[CompiledPrompt, int]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, digest: str) -> CompiledPrompt | None:
        """Counts as a use."""
        if (found := self._kept.get(digest)) is None:
            return None
        self._kept.move_to_end(digest)
        return found[0]

    def peek(self, digest: str) -> CompiledPrompt | None:
        """Counts as none."""
        found = self._kept.get(digest)
        return None if found is None else found[0]

    def put(self, digest: str, prompt: CompiledPrompt) -> None:
        self.drop(digest)
        size = prompt_bytes(prompt)
        self._kept[digest] = (prompt, size)
        self.nbytes += size
        while self.nbytes > self._max_bytes and len(self._kept) > 1:
            _, (_, dropped) = self._kept.popitem(last=False)
            self.nbytes -= dropped

    def drop(self, digest: str) -> None:
        """Does nothing where there is none."""
        if (found := self._kept.pop(digest, None)) is not None:
            self.nbytes -= found[1]


def prompt_bytes(prompt: CompiledPrompt) -> int:
    """Memory of a compiled prompt, by estimate: what it has ids of, not what it is made of."""
    routes = max(len(prompt.route_texts), 1)
    ids = len(prompt.prefix_ids) + sum(map(len, prompt.route_texts))
    return _ID_BYTES * ids + _ROUTE_BYTES * routes
