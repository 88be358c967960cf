"""Decisions made before, by what they were made of."""

from __future__ import annotations

import hashlib
import sys
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar.core.conversation import Conversation
from sidecar.core.model import Answer

CacheKey = bytes
"""SHA-256 of everything that an answer depends on."""

_QUICKLY_HASHED = 32 * 1024
"""Characters: a tenth of a millisecond."""

_ENTRY_BYTES = 450
"""Of an entry without its candidates: key, answer, and the table's share, measured on CPython
3.11 with tracemalloc and rounded up."""

_CANDIDATE_BYTES = 96
"""Of a candidate: the object, its probability, its place. Names are the policy's own strings."""


def cache_key(
    policy_digest: str, prompt_format: str, routing_model: str, asked: Sequence[int]
) -> CacheKey:
    """The key of a conversation as the routing model would read it.

    A decision is a pure function of these four. The rendered conversation (`asked`: `Prompt.asked`)
    stands for the conversation, so that what the prompt leaves out (system prompts, old turns) does
    not count.
    """
    content = hashlib.sha256("\0".join((policy_digest, prompt_format, routing_model, "")).encode())
    content.update(array("q", asked).tobytes())
    return content.digest()


def said_key(
    policy_digest: str, prompt_format: str, routing_model: str, conversation: Conversation
) -> CacheKey | None:
    """The key of a conversation as it was said: what is equal here is equal as it is read, and
    this is known without tokenizing. None for a long conversation, which takes long to hash."""
    shown = conversation.shown_to_router()
    if sum(len(message.text) for message in shown) > _QUICKLY_HASHED:
        return None
    parts = [policy_digest, prompt_format, routing_model]
    for message in shown:
        # With its length, so that no text can be taken for two.
        parts += (message.role, str(len(message.text)), message.text)
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: Answer
    size: int
    expires: float


class DecisionCache:
    """Answers of the routing model, bounded in bytes, each kept for a time.

    The answer is kept rather than the decision: a request with other needs or a higher minimum
    confidence gets what follows from it for that request. Only answers that led to a route belong
    here; fallbacks do not.

    Args:
        max_bytes: of all entries, by estimate. Least recently used go first.
        ttl_s: seconds after which an entry counts no more.
        clock: seconds, monotonic.
    """

    def __init__(
        self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[CacheKey, _Entry] = OrderedDict()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Estimated bytes of all entries."""
        return self._nbytes

    def get(self, key: CacheKey) -> Answer | None:
        """The answer of `key`; counts as a use of it."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.answer

    def put(self, key: CacheKey, answer: Answer) -> None:
        """Keep `answer`, in place of what `key` had."""
        self._drop(key)
        size = _size(answer)
        if size > self._max_bytes:
            return
        self._entries[key] = _Entry(answer, size, self._clock() + self._ttl_s)
        self._nbytes += size
        self._evict()

    def link(self, key: CacheKey, known: CacheKey) -> None:
        """Have `key` find what `known` does, for as long as that would be kept."""
        entry = self._entries.get(known)
        if entry is not None:
            self._drop(key)
            self._entries[key] = entry
            self._nbytes += entry.size
            self._evict()

    def _evict(self) -> None:
        while self._nbytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: CacheKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._nbytes -= entry.size


def _size(answer: Answer) -> int:
    return _ENTRY_BYTES + _CANDIDATE_BYTES * len(answer.candidates) + sys.getsizeof(answer.text)
