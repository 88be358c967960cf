"""The tables of docs/scaling.md, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sidecar.capacity.queueing import Load, replicas_needed, simulate
from sidecar.capacity.roofline import ARCH_ROUTER, ASSUMED, GPUS, IDEAL, Engine, Gpu, Shape, Work

PROMPTS = (300, 800, 2000)
NEW_TOKENS = 96
"""New in a prompt whose beginning is reused."""
TEXT_TOKENS, LABEL_TOKENS = 8, 1

DOLLARS_PER_HOUR = {"L4": 0.8, "L40S": 1.9, "H100-SXM": 4.0}
"""Assumptions: prices differ between providers and contracts by more than a factor of two."""

_SERVERS = [Engine(gpu, ARCH_ROUTER, fp8) for gpu in GPUS[1:] for fp8 in (False, True)]
_FLEETS = ((50, 2.0), (200, 2.0), (1000, 2.0), (5000, 2.0))
"""Sidecars, and decisions a second of each."""
_P99_MS = 100


def roofline(gpus: Sequence[Gpu] = GPUS, shape: Shape = ARCH_ROUTER) -> str:
    """Milliseconds of one decision on an idle GPU."""
    head = ("GPU", "precision", "prompt", "answer", "ideal", "assumed", "reuse, ideal")
    return _table((*head, "reuse, assumed"), _roofline_rows(gpus, shape))


def _roofline_rows(gpus: Sequence[Gpu], shape: Shape) -> Iterator[Sequence[str]]:
    for gpu in gpus:
        for fp8 in (False, True):
            engine = Engine(gpu, shape, fp8)
            for prompt in PROMPTS:
                for answer in (TEXT_TOKENS, LABEL_TOKENS):
                    whole = Work(prompt, answer=answer)
                    reused = Work(prompt, max(0, prompt - NEW_TOKENS), answer)
                    yield (
                        gpu.name,
                        "fp8" if fp8 else "bf16",
                        str(prompt),
                        "label" if answer == 1 else f"{answer} tokens",
                        *(
                            f"{engine.decision_ms(work, how):.2f}"
                            for work in (whole, reused)
                            for how in (IDEAL, ASSUMED)
                        ),
                    )


def throughput(batch: int = 32) -> str:
    """Decisions a second and per dollar of one GPU that is never idle, prompts of 800 tokens."""
    head = ("GPU", "precision", "answer", "reuse", "decisions/s", "million per dollar")
    return _table(head, _throughput_rows(batch))


def _throughput_rows(batch: int) -> Iterator[Sequence[str]]:
    for engine in _SERVERS:
        for answer in (TEXT_TOKENS, LABEL_TOKENS):
            for reused in (0, 800 - NEW_TOKENS):
                work = Work(800, reused, answer)
                rate = engine.decisions_per_second(work, ASSUMED, batch)
                per_dollar = rate * 3600 / DOLLARS_PER_HOUR[engine.gpu.name] / 1e6
                yield (
                    engine.gpu.name,
                    "fp8" if engine.fp8 else "bf16",
                    "label" if answer == 1 else f"{answer} tokens",
                    "yes" if reused else "no",
                    f"{rate:.0f}",
                    f"{per_dollar:.1f}",
                )


def fleet() -> str:
    """GPUs that a number of sidecars needs: prompts of 800 tokens with reuse, p99 of 100 ms."""
    head = ("sidecars", "decisions/s", "GPU", "answer", "replicas", "p50 ms", "p99 ms", "busy")
    return _table(head, _fleet_rows())


def _fleet_rows() -> Iterator[Sequence[str]]:
    for sidecars, each in _FLEETS:
        for engine in (Engine(gpu, ARCH_ROUTER) for gpu in GPUS[1:]):
            for answer in (TEXT_TOKENS, LABEL_TOKENS):
                found = replicas_needed(
                    sidecars * each,
                    batch_ms(engine, Work(800, 800 - NEW_TOKENS, answer)),
                    _P99_MS,
                    request_ms=ASSUMED.request_ms,
                )
                assert found is not None
                replicas, outcome = found
                yield (
                    str(sidecars),
                    f"{sidecars * each:.0f}",
                    engine.gpu.name,
                    "label" if answer == 1 else f"{answer} tokens",
                    str(replicas),
                    f"{outcome.p50_ms:.1f}",
                    f"{outcome.p99_ms:.1f}",
                    f"{outcome.busy:.0%}",
                )


def affinity() -> str:
    """What it costs to keep each policy at one replica, and what it costs not to: 4 L40S, bf16,
    labels, 1,000 decisions a second, prompts of 800 tokens."""
    engine = Engine(GPUS[1], ARCH_ROUTER)
    kept = batch_ms(engine, Work(800, 800 - NEW_TOKENS))
    anew = batch_ms(engine, Work(800))
    rows = []
    for policies, cached, what in (
        (0, kept, "any replica, routes in the cache of all"),
        (40, kept, "the policy's replica, 40 policies"),
        (5, kept, "the policy's replica, 5 policies"),
        (0, anew, "any replica, routes computed anew each time"),
    ):
        if 1000 * cached(64) / 1000 / 64 >= 4:
            rows.append((what, "cannot keep up", "", ""))
            continue
        found = simulate(Load(1000, 4, policies=policies), cached, ASSUMED.request_ms)
        rows.append((what, f"{found.p50_ms:.1f}", f"{found.p99_ms:.1f}", f"{found.busy:.0%}"))
    return _table(("a decision goes to", "p50 ms", "p99 ms", "busy"), rows)


def batch_ms(engine: Engine, work: Work) -> Callable[[int], float]:
    """Service time for the simulation; batch sizes repeat, so each is computed once."""
    known: dict[int, float] = {}

    def of(batch: int) -> float:
        if batch not in known:
            known[batch] = engine.batch_ms(work, ASSUMED, batch)
        return known[batch]

    return of


TABLES: dict[str, Callable[[], str]] = {
    "roofline": roofline,
    "throughput": throughput,
    "fleet": fleet,
    "affinity": affinity,
}


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"
