"""Answers the requests that arrived together.

What shares a prefix is packed into one pass; a prefix is computed once and kept. A caller who has
gone costs nothing more from the next pass on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cpu_engine.answers import Answer, FreeAnswer, LabelAnswer, LiteralAnswer
from cpu_engine.errors import CancelledError, RefusedError
from cpu_engine.forward import SHARED_SEGMENT, Floats, Forward, Ints, KeyValues, Logits, Pass
from cpu_engine.prefix_cache import PrefixCache
from cpu_engine.requests import Asked
from cpu_engine.vocabulary import Vocabulary


@dataclass(slots=True, eq=False)
class Outcome:
    """The answer to one request.

    Args:
        reused_tokens: leading prompt tokens whose keys and values were not computed again.
        logits: for every chosen token where asked for, [vocabulary] or [labels] of the request.
        opinion: [routes + 1] logits of the encoder, where asked for.
    """

    answer: Answer
    reused_tokens: int
    logits: list[Floats] = field(default_factory=list)
    opinion: Floats | None = None


_NONE: Ints = np.zeros(0, np.int32)

Result = tuple[Asked, Outcome | Exception]


@dataclass(frozen=True, slots=True, eq=False)
class Undecided:
    """A request for the language model.

    Args:
        opinion: [routes + 1] logits of the encoder; None where it was not asked.
    """

    asked: Asked
    opinion: Floats | None = None


@dataclass(slots=True, eq=False)
class _Sequence:
    """A request within a pass.

    Args:
        pending: tokens whose keys and values are still to be computed.
        position: of the first of them.
        guessed: tokens computed along with them, in the hope that they will be chosen.
    """

    asked: Asked
    outcome: Outcome
    pending: list[int]
    position: int
    segment: int
    guessed: list[int] = field(default_factory=list)

    @property
    def answer(self) -> Answer:
        return self.outcome.answer

    @property
    def fed(self) -> list[int]:
        """What the next pass computes of this sequence."""
        return [*self.pending, *self.guessed]

    def take(self, logits: Floats) -> int:
        """Choose by `logits` [1 + guessed, vocabulary or labels], of the last pending and of each
        guessed token; those after a wrong guess are of no use.

        Returns:
            How many of the fed tokens are part of the prompt and answer.
        """
        known = len(self.answer.tokens)
        chosen: list[int] = []
        while not self.answer.done and chosen == self.guessed[: len(chosen)]:
            row = logits[len(chosen)]
            if self.asked.logits:
                self.outcome.logits.append(row)
            self.answer.take(row)
            chosen = self.answer.tokens[known:]
        right = _agreement(chosen, self.guessed)
        used = len(self.pending) + right
        self.position += used
        self.pending = chosen[right:]
        self.guessed = []
        return used


def _agreement(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


class Decider:
    """The language model. Not thread-safe."""

    def __init__(
        self,
        forward: Forward,
        cache: PrefixCache,
        vocabulary: Vocabulary | None,
        max_pass_tokens: int,
    ) -> None:
        """
        Args:
            vocabulary: None if the tokenizer's tokens have no bytes; text answers are refused.
            max_pass_tokens: bound of one pass, which bounds its memory and how long a
                cancellation waits.
        """
        self._forward = forward
        self._cache = cache
        self._vocabulary = vocabulary
        self._max_pass_tokens = max_pass_tokens

    def decide(self, requests: Sequence[Undecided]) -> Iterator[Result]:
        """Results as they come, one for each request."""
        for group in _by_prefix(requests):
            yield from self._decide_group(group)

    def _decide_group(self, group: Sequence[Undecided]) -> Iterator[Result]:
        try:
            prefix, reused = self._prefix([each.asked for each in group])
        except CancelledError as cancelled:
            yield from ((each.asked, cancelled) for each in group)
            return
        waiting = list(group)
        while waiting:
            sequences: list[_Sequence] = []
            room = self._max_pass_tokens
            while waiting and (not sequences or len(waiting[0].asked.suffix) <= room):
                asked, opinion = waiting[0].asked, waiting.pop(0).opinion
                if asked.is_cancelled():
                    yield asked, CancelledError()
                    continue
                try:
                    sequence = self._begin(asked, reused, len(sequences))
                except RefusedError as refused:
                    yield asked, refused
                    continue
                sequence.outcome.opinion = opinion
                sequences.append(sequence)
                room -= len(sequence.pending)
            yield from self._answer(sequences, prefix)
            reused = group[0].asked.prefix_length

    def _begin(self, asked: Asked, reused: int, segment: int) -> _Sequence:
        outcome = Outcome(self._new_answer(asked), reused)
        pending = [*asked.suffix.tolist(), *outcome.answer.tokens]
        return _Sequence(asked, outcome, pending, asked.prefix_length, segment)

    def _new_answer(self, asked: Asked) -> Answer:
        if asked.label_ids is not None:
            return LabelAnswer(asked.label_ids)
        if asked.literals is None:
            return FreeAnswer(asked.end_id, asked.max_tokens)
        if self._vocabulary is None:
            raise RefusedError("guided_decoding_guide needs a byte-level BPE tokenizer")
        return LiteralAnswer(asked.literals, self._vocabulary, asked.end_id, asked.max_tokens)

    def _prefix(self, group: Sequence[Asked]) -> tuple[KeyValues, int]:
        """The group's prefix, and how many of its tokens were held before."""
        ids = group[0].prefix
        if not len(ids):
            return self._forward.nothing, 0
        held = self._cache.get(ids)
        if held is not None:
            return held, len(ids)
        start = self._cache.longest_common(ids) or self._forward.nothing
        complete = self._extend(start, ids[len(start) :], group)
        self._cache.put(ids, complete)
        return complete, len(start)

    def _extend(self, past: KeyValues, ids: Ints, waiting: Sequence[Asked]) -> KeyValues:
        """`past` and the keys and values of `ids` after it, all of them shared."""
        for start in range(0, len(ids), self._max_pass_tokens):
            if all(asked.is_cancelled() for asked in waiting):
                raise CancelledError
            chunk = ids[start : start + self._max_pass_tokens]
            work = Pass(
                ids=chunk,
                positions=np.arange(len(past), len(past) + len(chunk), dtype=np.int32),
                segments=np.full(len(chunk), SHARED_SEGMENT, np.int32),
                rows=_NONE,
                whole=_NONE,
                label_ids=_NONE,
                keep=True,
            )
            past = past.followed_by(self._forward.run(work, past)[1])
        return past

    def _answer(self, sequences: Sequence[_Sequence], past: KeyValues) -> Iterator[Result]:
        """Passes until every answer is complete; `past` grows by what they computed."""
        active = list(sequences)
        if len(active) == 1:
            try:
                past = self._fit(active[0], past)
            except CancelledError as cancelled:
                yield active[0].asked, cancelled
                return
        while active:
            still: list[_Sequence] = []
            for sequence in active:
                if sequence.answer.done:
                    yield sequence.asked, sequence.outcome
                elif sequence.asked.is_cancelled():
                    yield sequence.asked, CancelledError()
                else:
                    still.append(sequence)
            active = still
            if not active:
                return
            together = self._together(active)
            more = any(sequence.asked.max_tokens > 1 for sequence in active)
            lengths = [len(sequence.fed) for sequence in together]
            work = _packed(together, keep=more)
            logits, present = self._forward.run(work, past)
            used = _take(together, logits, work.label_ids)
            if more:
                past = past.followed_by(present.only(_leading(used, lengths)))

    def _together(self, active: Sequence[_Sequence]) -> list[_Sequence]:
        """Those of the next pass: as many as it takes, the first in any case. What room they leave
        is for guesses."""
        together: list[_Sequence] = []
        room = self._max_pass_tokens
        for sequence in active:
            if together and len(sequence.pending) > room:
                break
            together.append(sequence)
            room -= len(sequence.pending)
        for sequence in together:
            sequence.guessed = sequence.answer.guess()[: max(room, 0)]
            room -= len(sequence.guessed)
        return together

    def _fit(self, alone: _Sequence, past: KeyValues) -> KeyValues:
        """A suffix longer than a pass, which stands alone: all but its last part is computed
        beforehand, as a prefix is."""
        head = len(alone.pending) - self._max_pass_tokens
        if head <= 0 or alone.answer.done:
            return past
        past = self._extend(past, np.array(alone.pending[:head], np.int32), [alone.asked])
        alone.pending = alone.pending[head:]
        alone.position += head
        return past


def _by_prefix(requests: Sequence[Undecided]) -> list[list[Undecided]]:
    groups: dict[bytes, list[Undecided]] = {}
    for each in requests:
        groups.setdefault(each.asked.prefix.tobytes(), []).append(each)
    return list(groups.values())


def _packed(sequences: Sequence[_Sequence], *, keep: bool) -> Pass:
    fed = [sequence.fed for sequence in sequences]
    lengths = [len(tokens) for tokens in fed]
    ends = np.cumsum(lengths)
    labels = [each.asked.label_ids for each in sequences]
    rows = [len(each.guessed) + 1 for each in sequences]
    return Pass(
        ids=np.concatenate([np.array(tokens, np.int32) for tokens in fed]),
        positions=np.concatenate(
            [
                np.arange(sequence.position, sequence.position + length, dtype=np.int32)
                for sequence, length in zip(sequences, lengths, strict=True)
            ]
        ),
        segments=np.repeat(
            np.array([sequence.segment for sequence in sequences], np.int32), lengths
        ),
        rows=np.concatenate(
            [
                np.arange(end - len(sequence.guessed) - 1, end, dtype=np.int32)
                for sequence, end in zip(sequences, ends, strict=True)
            ]
        ),
        whole=np.flatnonzero(np.repeat([ids is None for ids in labels], rows)).astype(np.int32),
        label_ids=np.unique(np.concatenate([_NONE, *(ids for ids in labels if ids is not None)])),
        keep=keep,
    )


def _take(sequences: Sequence[_Sequence], logits: Logits, label_ids: Ints) -> list[int]:
    """Give each sequence its rows; how many of its fed tokens each one used."""
    used: list[int] = []
    row = whole = 0
    for sequence in sequences:
        count = len(sequence.guessed) + 1
        labels = sequence.asked.label_ids
        if labels is None:
            used.append(sequence.take(logits.whole[whole : whole + count]))
            whole += count
        else:
            columns = np.searchsorted(label_ids, labels)
            used.append(sequence.take(logits.labels[row : row + count][:, columns]))
        row += count
    return used


def _leading(used: Sequence[int], lengths: Sequence[int]) -> npt.NDArray[np.bool_]:
    """True for the first `used` tokens of each sequence in the row of all."""
    return np.concatenate(
        [np.arange(length) < count for count, length in zip(used, lengths, strict=True)]
    )
