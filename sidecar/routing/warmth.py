"""Which policies' prefixes the model server holds, as far as we know."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace

import structlog

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.model import InferenceError, InferenceFailure, RouteTexts, RoutingModel
from sidecar.inference.calls import decision_trace
from sidecar.inference.load import PASS_TOKENS, Load
from sidecar.routing.refused import Refused
from sidecar.routing.registry import CompiledPolicy

_log = structlog.get_logger(__name__)

Warming = asyncio.Task[InferenceError | None]
"""Prefixes that are being computed; ends with the error of the last one that was not."""

WARMED_AT_RECOVERY = 16
"""Prefixes computed again after an outage: those of the most recently used policies and of the
default. The rest are computed when they are first asked for."""

_REMEMBERED = 4096
"""Policies whose last use is remembered; far more than a model server keeps prefixes of."""

_LATE_IN_A_ROW = 3
"""Late decisions of one policy after which its prefix is computed again."""

_SURELY_HELD_S = 3.0
"""How long after a decision in time its prefix is surely there: what was used last goes last, when
others have filled the memory, which takes a server longer. Late is then what a busy one is."""

_AT_ONCE = 8
"""Prefixes that may be asked for at the same time, so that a flood of inline policies does not keep
the model server from deciding."""

_WANTED_S = 10.0
"""How long after its last request, and the time that this may take, an inline policy's prefix is
still computed. It may never come again, and of several with hundreds of routes each the last would
be there minutes later, until when the language model has little time for any other policy."""

PIECE_TOKENS = 256
"""Tokens of a prefix that are computed in one call. Decisions get their turn between two of them:
a server that computes one request after the other would else be taken for seconds by one large
policy. It is what a pass of the CPU engine takes (`CpuRepositoryOptions.max_pass_tokens`)."""

GAP_TOKENS = 32
"""Likewise of a policy's next revision while decisions are made, which must not wait for it: on two
CPU cores they take 90 ms, half as long as a decision. Fewer would take hardly less, for a pass has
to read all of the weights."""

_GAP_LOOK_S = 0.005

_IN_USE_S = 1.0
"""How long after a decision the next one is expected."""

_DOUBLINGS = 20
"""Of the time in which a server that was late has to decide: far beyond any bound of it."""

_PROBE = Conversation((Message(Role.USER, "Hello"),))

_AFTER_RECOVERY = "after recovery"
_LOOK_S = 0.02


class Warmth:
    """Warms prefixes, each at most once at a time.

    Args:
        policies: the named policies, the default first.
        timeout_s: how long one prefix may take.
        busy: True while the model server works on decisions, which what nobody has asked for yet
            must not delay: on a CPU a prefix takes as long as several decisions.
        quiet_s: how long it must not have been busy before that is warmed: callers who were
            answered `warming` come back within that time.
        load: of the model server; warming counts as work.
        piece_tokens: most tokens of a prefix that one call computes.
        gap_tokens: likewise, of a next revision while decisions are made.
        patience_s: how long each of its pieces may wait for a gap between decisions; what one does
            not use is left to the others. A server that is always busy gets them all the same.
        in_time_s: what a decision may take. A server that was only late is asked for one within
            that time, and within twice as much after every second failure: it is still late if it
            needs longer, and one that is in time again is found while an earlier question waits.
    """

    def __init__(
        self,
        policies: Callable[[], Sequence[CompiledPolicy]],
        timeout_s: float,
        busy: Callable[[], bool],
        quiet_s: float = 0.5,
        *,
        load: Load | None = None,
        piece_tokens: int = PIECE_TOKENS,
        gap_tokens: int = GAP_TOKENS,
        patience_s: float = 0.5,
        in_time_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policies = policies
        self._timeout_s = timeout_s
        self._busy = busy
        self._quiet_s = quiet_s
        self._clock = clock
        self._asked_at = -math.inf
        # Prefixes believed to be warm, by digest, those computed or asked for last at the end.
        self._warm: dict[str, _Late] = {}
        # When policies were asked for last, by digest, the latest last.
        self._asked: dict[str, float] = {}
        self._tasks: dict[str, Warming] = {}
        self._refused = Refused(clock)
        self._load = load or Load()
        self._piece_tokens = piece_tokens
        self._gap_tokens = gap_tokens
        self._patience_s = patience_s
        self._in_time_s = in_time_s
        self._late_again = self._others_tried = 0
        # One piece at a time, so that what is warmed takes turns with decisions, not decisions
        # with all that is warmed.
        self._turn = asyncio.Lock()

    @property
    def under_way(self) -> int:
        """Prefixes being computed or waiting for their turn."""
        return len(self._tasks)

    def is_warm(self, compiled: CompiledPolicy) -> bool:
        """True if the prefix was computed since the last outage; counts as a use of it."""
        digest = compiled.ref.digest
        self._asked_at = self._clock()
        self._asked.pop(digest, None)
        self._asked[digest] = self._asked_at
        if len(self._asked) > _REMEMBERED:
            del self._asked[next(iter(self._asked))]
        return digest in self._warm

    def late(self, compiled: CompiledPolicy, began: float, apart_s: float) -> bool:
        """A decision was late. True if the prefix is now believed to have been evicted: a busy
        server is late too, but not with every decision of one policy.

        Args:
            began: when the decision did, in seconds of any clock.
            apart_s: how much later than the last one that counted it must have begun.
        """
        digest = compiled.ref.digest
        late = self._warm.get(digest)
        if late is None:
            return True
        if began < late.next_from or self._clock() < late.held_until:
            return False
        late.in_a_row += 1
        late.next_from = began + apart_s
        if late.in_a_row < _LATE_IN_A_ROW:
            return False
        del self._warm[digest]
        return True

    def in_time(self, compiled: CompiledPolicy) -> None:
        """A decision was not late, so its prefix is there now."""
        self._computed(compiled.ref.digest)
        self._warm[compiled.ref.digest].held_until = self._clock() + _SURELY_HELD_S

    def holds(self, digest: str) -> bool:
        """True if the prefix of the policy with that digest was computed since the last outage."""
        return digest in self._warm

    def computes(self, compiled: CompiledPolicy) -> bool:
        """True if the prefix is being computed, or waits for its turn."""
        return compiled.ref.digest in self._tasks

    def refused(self, compiled: CompiledPolicy) -> str:
        """What the server said when it would not compute the prefix; empty if it did, was not
        asked, or is to be asked again by now."""
        return self._refused.why(compiled.ref.digest)

    def cold_tokens(self, compiled: CompiledPolicy) -> int:
        """Tokens of the prefix that the next decision has to wait for, as far as is known."""
        if compiled.prompt is None or compiled.ref.digest in self._warm:
            return 0
        return min(len(compiled.prompt.prefix_ids), self._piece_tokens)

    async def prepare(self, compiled: CompiledPolicy, model: RoutingModel, within_s: float) -> bool:
        """Have a prefix that one call may not compute as a whole computed but for its last piece,
        which the decision itself may.

        Returns:
            False if it was not within `within_s`; it goes on and the next request finds it.

        Raises:
            InferenceError: it will not be, or the server refused it a moment ago.
        """
        assert compiled.prompt is not None, "only policies with routes are asked"
        digest = compiled.ref.digest
        length = len(compiled.prompt.prefix_ids)
        if digest in self._warm or length <= self._piece_tokens:
            return True
        task = self._tasks.get(digest)
        if task is None:
            if why := self.refused(compiled):
                raise InferenceError(InferenceFailure.ERROR, why)
            if len(self._tasks) >= _AT_ONCE:
                return False
            last = (length - 1) // self._piece_tokens * self._piece_tokens
            task = self._start(digest, self._warm_in_turn([compiled], model, up_to=last))
        done, _ = await asyncio.wait({task}, timeout=within_s)
        if done and not task.cancelled() and (error := task.result()) is not None:
            raise error
        return digest in self._warm

    def request(self, compiled: CompiledPolicy, model: RoutingModel) -> None:
        """Warm the policy in the background unless that is under way, too much else is, or the
        server refused it a moment ago: a later request asks again."""
        if compiled.prompt is None or compiled.ref.digest in self._tasks:
            return
        if len(self._tasks) < _AT_ONCE and not self.refused(compiled):
            self._start(compiled.ref.digest, self._warm_in_turn([compiled], model))

    def succeed(
        self, compiled: CompiledPolicy, model: RoutingModel, present: Sequence[int] = ()
    ) -> Warming | None:
        """As `request`, of a policy's next revision: in the gaps between decisions, which the
        present one goes on to make, and then in small pieces.

        Args:
            present: the prefix of the present one; what the next begins with is held.

        Returns:
            What is under way; None if nothing is. When it ends, `holds` says whether it succeeded.
        """
        under_way = self._tasks.get(compiled.ref.digest)
        if compiled.prompt is None or under_way is not None or len(self._tasks) >= _AT_ONCE:
            return under_way
        held = _common(present, compiled.prompt.prefix_ids)
        return self._start(compiled.ref.digest, self._warm_in_gaps(compiled, model, held))

    def abandon(self, compiled: CompiledPolicy) -> None:
        """A next revision that has been replaced by another need not be computed any more."""
        if (task := self._tasks.get(compiled.ref.digest)) is not None:
            task.cancel()

    async def recover(self, model: RoutingModel, only_late: bool) -> None:
        """After an outage: warm the policy used last, then others while no decision waits; until
        its turn each of them answers `warming`.

        One that the server answers with an error, as a prefix that is too long for it, keeps no
        other from being decided: another is tried.

        Args:
            only_late: the server was late but did not go away, so what was warm still counts.

        Raises:
            InferenceError: neither could be warmed.
        """
        for task in self._tasks.values():
            task.cancel()
        if not only_late:
            self._warm.clear()
            self._refused.clear()
        self._load.forget()
        used = self._most_used()
        if not used:
            return
        rest = await self._probe_any(used, model, self._probe_s(only_late))
        # How long that took says how long the server was held up, not how fast it is.
        self._load.forget()
        self._late_again = 0
        if rest:
            self._start(_AFTER_RECOVERY, self._warm_in_turn(rest, model, unasked=True))

    async def close(self) -> None:
        """Stop what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _probe_s(self, only_late: bool) -> float:
        if not only_late:
            self._late_again = 0
            return self._timeout_s
        in_time = self._in_time_s * 2.0 ** min(self._late_again // 2, _DOUBLINGS)
        self._late_again += 1
        return min(self._timeout_s, in_time)

    def _most_used(self) -> list[CompiledPolicy]:
        # One that is not compiled was not asked for lately.
        named = {each.ref.digest: each for each in self._policies() if each.prompt is not None}
        recent = [named[digest] for digest in reversed(self._asked) if digest in named]
        others = [named[digest] for digest in named if digest not in self._asked]
        return (recent + others)[:WARMED_AT_RECOVERY]

    def _start(self, key: str, warming: Coroutine[None, None, InferenceError | None]) -> Warming:
        # For all decisions of the policy, and so in the trace of none.
        context = copy_context()
        context.run(decision_trace.set, None)
        task = asyncio.create_task(warming, name="warm-prefix", context=context)
        self._tasks[key] = task

        def forget(_: Warming) -> None:
            if self._tasks.get(key) is task:
                del self._tasks[key]

        task.add_done_callback(forget)
        return task

    async def _warm_in_turn(
        self,
        policies: Sequence[CompiledPolicy],
        model: RoutingModel,
        unasked: bool = False,
        up_to: int | None = None,
    ) -> InferenceError | None:
        last = None
        # A turn later: who asks the encoder alone meanwhile comes before the prefix, not after it.
        await asyncio.sleep(0)
        for compiled in policies:
            try:
                await self._warm_one(compiled, model, unasked, up_to)
            except InferenceError as error:
                last = self._not_warmed(compiled, error)
        return last

    def _not_warmed(self, compiled: CompiledPolicy, error: InferenceError) -> InferenceError:
        _log.warning("policy not warmed", policy=compiled.ref.name, why=str(error))
        if error.failure is InferenceFailure.ERROR:
            self._refused.add(compiled.ref.digest, str(error))
        return error

    async def _until_quiet(self) -> None:
        quiet_s = 0.0
        while quiet_s < self._quiet_s:
            await asyncio.sleep(_LOOK_S)
            quiet_s = 0.0 if self._busy() else quiet_s + _LOOK_S

    async def _warm_one(
        self, compiled: CompiledPolicy, model: RoutingModel, unasked: bool, up_to: int | None
    ) -> None:
        if compiled.prompt is None:
            return
        ids = compiled.prompt.prefix_ids[:up_to]
        for piece in self._pieces(ids, compiled.prompt.route_texts):
            # At the start nobody asks yet, and being ready soon is what counts. It ends with the
            # first request, of whatever policy: behind piece after piece it would be too late.
            if unasked and self._asked:
                await self._until_quiet()
            if compiled.ref.digest in self._warm or self._is_forgotten(compiled):
                return
            await self._warm_piece(piece, ids, model, self._timeout_s)
        self._computed(compiled.ref.digest)

    def _is_forgotten(self, compiled: CompiledPolicy) -> bool:
        """True if nobody asks for it any more, or waits."""
        asked_at = self._asked.get(compiled.ref.digest, -math.inf)
        return compiled.inline and self._clock() - asked_at > _WANTED_S + self._in_time_s

    async def _warm_in_gaps(
        self, compiled: CompiledPolicy, model: RoutingModel, held: int
    ) -> InferenceError | None:
        prompt = compiled.prompt
        if prompt is None or compiled.ref.digest in self._warm:
            return None
        # The last token at least: it is the whole prefix that has to be kept.
        ids = prompt.prefix_ids
        start = at = min(held, len(ids) - 1)
        pieces = math.ceil((len(ids) - start) / self._gap_tokens)
        # Whoever waits for it gives up after `timeout_s`.
        patience_s = min(self._patience_s * pieces, self._timeout_s / 2)
        try:
            while at < len(ids):
                patience_s -= await self._until_gap(patience_s)
                end = min(at + self._next_tokens(), len(ids))
                piece = _piece(range(start, len(ids)), at, end, prompt.route_texts)
                # So small, they would have decisions refused that can be made in time.
                await self._warm_piece(piece, ids, model, self._timeout_s, measured=False)
                at = end
        except InferenceError as error:
            return self._not_warmed(compiled, error)
        self._computed(compiled.ref.digest)
        return None

    def _next_tokens(self) -> int:
        in_use = self._clock() - self._asked_at < _IN_USE_S
        return self._gap_tokens if in_use else self._piece_tokens

    async def _until_gap(self, patience_s: float) -> float:
        """Seconds that it took."""
        waited_s = 0.0
        while self._busy() and waited_s < patience_s:
            await asyncio.sleep(_GAP_LOOK_S)
            waited_s += _GAP_LOOK_S
        return waited_s

    def _pieces(self, ids: Sequence[int], routes: RouteTexts) -> Iterator[_Piece]:
        whole = range(len(ids))
        for at in whole[:: self._piece_tokens]:
            yield _piece(whole, at, min(at + self._piece_tokens, len(ids)), routes)

    async def _warm_piece(
        self,
        piece: _Piece,
        ids: Sequence[int],
        model: RoutingModel,
        timeout_s: float,
        measured: bool = True,
    ) -> None:
        async with self._turn:
            with self._load.working(piece.end - piece.start + PASS_TOKENS, measured):
                await model.warm(ids[: piece.end], timeout_s, piece.routes)

    async def _probe_any(
        self, policies: Sequence[CompiledPolicy], model: RoutingModel, timeout_s: float
    ) -> Sequence[CompiledPolicy]:
        """By the first of `policies`, or where the server refuses that, by another one; another at
        each try, since a server that is broken should not have to compute them all.

        Returns:
            Those that are left to be warmed.
        """
        first, *others = policies
        if await self._answers(first, model, timeout_s, refused_is_error=not others):
            return others
        other = others[self._others_tried % len(others)]
        self._others_tried += 1
        await self._probe(other, model, timeout_s)
        # It may as well be that the server was not back yet when it was asked by the first.
        await self._answers(first, model, timeout_s)
        return [each for each in policies if each is not other]

    async def _answers(
        self,
        compiled: CompiledPolicy,
        model: RoutingModel,
        timeout_s: float,
        *,
        refused_is_error: bool = False,
    ) -> bool:
        """False if the server refuses to decide by that policy."""
        try:
            await self._probe(compiled, model, timeout_s)
        except InferenceError as error:
            if error.failure is not InferenceFailure.ERROR or refused_is_error:
                raise
            return False
        return True

    async def _probe(self, compiled: CompiledPolicy, model: RoutingModel, timeout_s: float) -> None:
        """Warms by a decision whose outcome nobody needs: a server that is ready and answers what
        is no answer must not count as recovered, or each recovery would cost callers again."""
        prompt = compiled.prompt
        if prompt is None:
            return
        last = (len(prompt.prefix_ids) - 1) // self._piece_tokens * self._piece_tokens
        for piece in self._pieces(prompt.prefix_ids[:last], prompt.route_texts):
            await self._warm_piece(piece, prompt.prefix_ids, model, timeout_s)
        rendered = prompt.render(_PROBE)
        if rendered.second_opinion is not None:
            # Not by the encoder alone: it is the language model that has to have read the prefix.
            both = replace(rendered.second_opinion, enough=None)
            rendered = replace(rendered, second_opinion=both)
        await model.infer(rendered, prompt.answer_form, timeout_s)
        self._computed(compiled.ref.digest)

    def _computed(self, digest: str) -> None:
        self._refused.forget(digest)
        self._warm.pop(digest, None)
        self._warm[digest] = _Late()
        if len(self._warm) > _REMEMBERED:
            del self._warm[next(iter(self._warm))]


@dataclass(slots=True)
class _Late:
    """Late decisions of one policy, when the next one must have begun to count, and until when none
    counts."""

    in_a_row: int = 0
    next_from: float = -math.inf
    held_until: float = -math.inf


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens `start` to `end` of a prefix, and what the encoder reads along with them."""

    start: int
    end: int
    routes: RouteTexts


def _piece(whole: range, start: int, end: int, routes: RouteTexts) -> _Piece:
    """Of `routes` it gets as large a share as of the `whole`."""
    first, last = (len(routes) * (at - whole.start) // len(whole) for at in (start, end))
    return _Piece(start, end, routes[first:last])


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(left, right, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
