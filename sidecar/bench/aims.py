"""What a soak run should show, and whether it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.bench.soak import Called, Soaked, failed

_DECIDED = 0.99
_RECOVERY_S = 2.0
_GROWTH = 0.05
"""Of the memory beside the caches, from the first third of the run on: less is noise."""

_UNLABELLED = "unspecified"


@dataclass(frozen=True, slots=True)
class Aim:
    """One of them.

    Args:
        reached: None where the run was too short to tell.
        told: what was found, and the aim.
    """

    name: str
    reached: bool | None
    told: str

    def __str__(self) -> str:
        verdict = (
            "not told" if self.reached is None else "reached" if self.reached else "NOT reached"
        )
        return f"{self.name}: {verdict}: {self.told}"


def aims(found: Soaked) -> Iterator[Aim]:
    """All of them, of one run."""
    unanswered = failed(found.calls)
    yield Aim("calls without an answer", unanswered == 0, f"{unanswered}, at most 0")
    labelled = sum(_is_labelled(each) for each in found.calls)
    told = f"{labelled} of {len(found.calls)}, all"
    yield Aim("calls that say what decided", labelled == len(found.calls), told)
    yield _decided(found)
    yield _recovered(found)
    yield _memory(found)


def _is_labelled(call: Called) -> bool:
    return not call.sample.failed and _UNLABELLED not in call.sample.source


def _decided(found: Soaked) -> Aim:
    name, between = "by the model or the cache outside faults", found.between()
    if not between:
        return Aim(name, None, "there was no call")
    share = sum(each.decided for each in between) / len(between)
    return Aim(name, share >= _DECIDED, f"{share:.2%}, at least {_DECIDED:.0%}")


def _recovered(found: Soaked) -> Aim:
    name, times = "the model decides again after a fault", [w.recovery_s for w in found.windows]
    known = [each for each in times if each is not None]
    aim = f"at most {_RECOVERY_S:g} s"
    if len(known) < len(times):
        return Aim(name, False, f"{len(times) - len(known)} times not within a minute, {aim}")
    slowest = max(known, default=0.0)
    return Aim(name, slowest <= _RECOVERY_S, f"the slowest time within {slowest:.1f} s, {aim}")


def _memory(found: Soaked) -> Aim:
    name, slope = "growth of the memory beside the caches", found.bytes_per_hour()
    if slope is None:
        return Aim(name, None, "the run was too short")
    later = found.memory[len(found.memory) // 3 :]
    hours = (later[-1].at_s - later[0].at_s) / 3600
    growth = slope * hours / max(later[0].beside, 1)
    return Aim(
        name, growth <= _GROWTH, f"{growth:+.1%} after the first third, at most {_GROWTH:.0%}"
    )
