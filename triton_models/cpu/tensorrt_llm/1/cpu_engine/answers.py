"""Chooses the tokens of an answer from logits, one request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cpu_engine.forward import Floats, Ints
from cpu_engine.vocabulary import Vocabulary


class Answer(Protocol):
    """An answer in the making.

    Attributes:
        tokens: chosen so far, without the end token.
        log_probs: of each of them, natural logarithm.
        cum_log_prob: of the whole answer, its end included where the end was chosen.
        done: nothing more is to be computed.
    """

    tokens: list[int]
    log_probs: list[float]
    cum_log_prob: float
    done: bool

    def take(self, logits: Floats) -> None:
        """Choose the next token by `logits`, [vocabulary] or of the labels that the answer was made
        with, and whatever follows from it alone."""
        ...

    def guess(self) -> list[int]:
        """Tokens that will probably follow. They are computed along with what must be, and count
        only where `take` then chooses the same: a wrong guess costs time, never the answer."""
        ...


class FreeAnswer:
    """Greedy text: the most probable token until the end token or the length."""

    def __init__(self, end_id: int, max_tokens: int) -> None:
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.cum_log_prob = 0.0
        self.done = False
        self._end_id = end_id
        self._max_tokens = max_tokens

    def take(self, logits: Floats) -> None:
        token = int(np.argmax(logits))
        log_prob = float(_log_softmax(logits)[token])
        self.cum_log_prob += log_prob
        # As in TensorRT-LLM (samplingTopKKernels.cu), the end token is not part of the answer.
        if token == self._end_id:
            self.done = True
            return
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.done = len(self.tokens) == self._max_tokens

    def guess(self) -> list[int]:
        return []


class LabelAnswer:
    """One of some tokens; no others' logits are computed, so there are no probabilities."""

    def __init__(self, label_ids: Ints) -> None:
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.cum_log_prob = 0.0
        self.done = False
        self._label_ids = label_ids

    def take(self, logits: Floats) -> None:
        self.tokens.append(int(self._label_ids[np.argmax(logits)]))
        self.done = True

    def guess(self) -> list[int]:
        return []


class LiteralAnswer:
    """Greedy text that must be one of the literals.

    Probabilities are conditional on the grammar, as TensorRT-LLM's are: the softmax goes over the
    tokens that some literal left allows. Where only one token is allowed, or one literal is left,
    the rest is certain and needs no logits.
    """

    def __init__(
        self, literals: tuple[bytes, ...], vocabulary: Vocabulary, end_id: int, max_tokens: int
    ) -> None:
        """
        Raises:
            RefusedError: a literal cannot be spelt in tokens.
        """
        vocabulary.check_spelling(literals)
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.cum_log_prob = 0.0
        self.done = False
        self._left: Sequence[bytes] = literals
        self._vocabulary = vocabulary
        self._end_id = end_id
        self._max_tokens = max_tokens
        self._options: dict[int, list[bytes]] = {}
        self._follow_certain()

    def take(self, logits: Floats) -> None:
        ids = list(self._options)
        log_probs = _log_softmax(logits[ids])
        best = int(np.argmax(log_probs))
        self._choose(ids[best], float(log_probs[best]))
        self._follow_certain()

    def guess(self) -> list[int]:
        """What all literals left begin with, cut into the longest tokens: models were trained on
        such a cut, and seldom choose another."""
        # What the first and the last in order have in common, all have.
        common = _common_beginning(min(self._left), max(self._left))
        tokens: list[int] = []
        while common and len(tokens) < self._max_tokens - len(self.tokens):
            *_, (piece, token) = self._vocabulary.prefixes(common)
            tokens.append(token)
            common = common[len(piece) :]
        return tokens

    def _follow_certain(self) -> None:
        while not self.done:
            if len(self._left) == 1:
                self._spell(self._left[0])
                return
            self._options = self._allowed()
            if len(self._options) > 1:
                return
            self._choose(next(iter(self._options)), 0.0)

    def _allowed(self) -> dict[int, list[bytes]]:
        """Allowed token -> what is then left of the literals that it agrees with."""
        allowed: dict[int, list[bytes]] = {}
        for literal in self._left:
            if not literal:
                allowed[self._end_id] = []
            for piece, token in self._vocabulary.prefixes(literal):
                allowed.setdefault(token, []).append(literal[len(piece) :])
        return allowed

    def _choose(self, token: int, log_prob: float) -> None:
        self.cum_log_prob += log_prob
        if token == self._end_id:
            self.done = True
            return
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self._left = self._options[token]
        self.done = len(self.tokens) == self._max_tokens

    def _spell(self, text: bytes) -> None:
        # The text is decided, so how it is cut into tokens changes nothing that anybody reads.
        tokens = self._vocabulary.fewest_tokens(text)[: self._max_tokens - len(self.tokens)]
        self.tokens += tokens
        self.log_probs += [0.0] * len(tokens)
        self.done = True


def _common_beginning(left: bytes, right: bytes) -> bytes:
    pairs = zip(left, right, strict=False)
    return left[: next((i for i, (a, b) in enumerate(pairs) if a != b), len(left))]


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max()
    result: Floats = shifted - np.log(np.exp(shifted).sum())
    return result
