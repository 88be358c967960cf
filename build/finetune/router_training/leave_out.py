"""Cross-validation over groups of families: of each group's cases, what models say that were
trained without the group. How they become one is fitted on the other groups, so that neither the
models nor the fusion have seen a family on which they are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_training.cases import OTHER, Case, Request, RouteText
from router_training.errors import InputError
from router_training.fusion import Opinions, fit_fusion, fit_temperature, fused
from router_training.scoring import Scored, summary
from sidecar.engines.engine_directory import FusionFacts

_DIGITS = 4
_SCORES = ("cases", "turn_accuracy", "macro_turn_accuracy", "other_accuracy", "ece", "log_loss")
_ANSWERS_ONLY = _SCORES[:4]

LANGUAGE_MODEL, ENCODER, FUSED, MINILM = "language_model", "encoder", "fused", "minilm"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A case of a family that the models had not seen.

    Args:
        other: whether its label is `other`.
    """

    id: str
    other: bool
    opinions: Opinions


@dataclass(frozen=True, slots=True)
class Group:
    """What models trained without the families `without` say of cases new to them."""

    without: tuple[str, ...]
    cases: tuple[LeftOut, ...]

    @property
    def name(self) -> str:
        return ",".join(self.without)

    @property
    def families(self) -> frozenset[str]:
        return frozenset(case.opinions.family for case in self.cases)


@dataclass(frozen=True, slots=True)
class Fitted:
    """With which numbers opinions become probabilities: each model's by itself, and both."""

    language_model: FusionFacts
    encoder: FusionFacts
    fused: FusionFacts

    def ways(self) -> dict[str, FusionFacts]:
        return {LANGUAGE_MODEL: self.language_model, ENCODER: self.encoder, FUSED: self.fused}


def group_to_json(group: Group) -> dict[str, Any]:
    """Log-probabilities and logits rounded to four digits."""
    return {"without": list(group.without), "cases": [_case_to_json(one) for one in group.cases]}


def group_from_json(content: Mapping[str, Any]) -> Group:
    """Raises KeyError, TypeError or ValueError if `content` is no group."""
    return Group(tuple(content["without"]), tuple(map(_case_from_json, content["cases"])))


def cross_fitted(groups: Sequence[Group]) -> list[Fitted]:
    """Of each group, what is fitted to the cases of the others, each family with the same share.
    Families that the group has itself are left out of them, whichever group they are in.

    Raises InputError if that leaves no case.
    """
    return [_fitted(group, groups) for group in groups]


def measured(
    groups: Sequence[Group], answers: Sequence[Mapping[str, int]] | None = None
) -> dict[str, Any]:
    """Scores by group and family, and of all, ready for JSON.

    Args:
        answers: of untrained MiniLM, for each group: the candidate (routes in order, `other`) that
            it answers, by the case's id.

    Raises InputError as `cross_fitted`.
    """
    fits = cross_fitted(groups)
    everything: dict[str, list[Scored]] = {}
    tables: list[dict[str, Any]] = []
    for index, (group, fit) in enumerate(zip(groups, fits, strict=True)):
        scored = {way: _decided(group, _as(facts)) for way, facts in fit.ways().items()}
        if answers is not None:
            scored[MINILM] = _decided(group, _answered(answers[index]))
        for way, own in scored.items():
            everything.setdefault(way, []).extend(own)
        families = {family: _row(_of_family(scored, family)) for family in sorted(group.families)}
        fusion = fit.fused
        numbers = [fusion.language_model, fusion.encoder, fusion.other_bias]
        tables.append(
            {"without": group.name, "fusion": numbers, **_row(scored), "families": families}
        )
    known = {case.opinions.family for group in groups for case in group.cases}
    return {
        "all": _row(everything),
        "families": {family: _row(_of_family(everything, family)) for family in sorted(known)},
        "groups": tables,
    }


def table(result: Mapping[str, Any]) -> str:
    """What `measured` gives, for reading: accuracies in percent, differences in points."""
    lines = [_heading(result["all"])]
    for group in result["groups"]:
        lines += [_line(f"  {family}", row) for family, row in group["families"].items()]
        lines.append(_line(f"without {group['without']}", group))
    lines.append(_line("all", result["all"]))
    return "\n".join(lines)


def _case_to_json(case: LeftOut) -> dict[str, Any]:
    opinions = case.opinions
    return {
        "id": case.id,
        "family": opinions.family,
        "routes": len(opinions.right) - 1,
        "other": case.other,
        "right": opinions.right.astype(int).tolist(),
        "language_model": opinions.language_model.round(_DIGITS).tolist(),
        "encoder": opinions.encoder.round(_DIGITS).tolist(),
    }


def _case_from_json(content: Mapping[str, Any]) -> LeftOut:
    opinions = Opinions(
        content["family"],
        np.array(content["language_model"], np.float64),
        np.array(content["encoder"], np.float64),
        np.array(content["right"], np.bool_),
    )
    lengths = {len(opinions.right), len(opinions.language_model), len(opinions.encoder)}
    if lengths != {content["routes"] + 1}:
        raise InputError(f"case {content['id']} does not have one number a route and `other`")
    return LeftOut(content["id"], bool(content["other"]), opinions)


def _fitted(group: Group, groups: Sequence[Group]) -> Fitted:
    cases = [
        case.opinions
        for other in groups
        if other is not group
        for case in other.cases
        if case.opinions.family not in group.families
    ]
    if not cases:
        raise InputError(f"no other group has cases of other families than {group.name}")
    fusion = fit_fusion(cases)
    return Fitted(
        FusionFacts(1.0, 0.0, temperature=fit_temperature(cases)),
        FusionFacts(0.0, fusion.alone_encoder, fusion.alone_other_bias),
        fusion,
    )


def _decided(group: Group, probabilities: Callable[[LeftOut], NDArray[np.float64]]) -> list[Scored]:
    return [_scored(case, probabilities(case)) for case in group.cases]


def _as(facts: FusionFacts) -> Callable[[LeftOut], NDArray[np.float64]]:
    return lambda case: fused(case.opinions, facts)


def _answered(answers: Mapping[str, int]) -> Callable[[LeftOut], NDArray[np.float64]]:
    return lambda case: np.eye(len(case.opinions.right))[answers[case.id]]


def _scored(case: LeftOut, probabilities: NDArray[np.float64]) -> Scored:
    """Routes are called by their number: a group's file has no texts."""
    right = case.opinions.right
    names = [*(str(number) for number in range(len(right) - 1)), OTHER]
    label = OTHER if case.other else names[int(right.argmax())]
    request = Request(
        (), frozenset(name for name, is_right in zip(names, right, strict=True) if is_right)
    )
    routes = tuple(RouteText(name, "") for name in names[:-1])
    written = Case(case.id, case.opinions.family, "", routes, request, label, case.id, frozenset())
    return Scored(written, names[int(probabilities.argmax())], probabilities)


def _of_family(scored: Mapping[str, Sequence[Scored]], family: str) -> dict[str, list[Scored]]:
    return {
        way: [one for one in all_of_it if one.case.family == family]
        for way, all_of_it in scored.items()
    }


def _row(scored: Mapping[str, Sequence[Scored]]) -> dict[str, Any]:
    """Scores by way; of MiniLM, which has no probabilities, accuracies alone, and by how many
    points the mean over the families is above its."""
    row: dict[str, Any] = {}
    for way, decided in scored.items():
        scores = summary(decided)
        row[way] = {key: scores[key] for key in (_ANSWERS_ONLY if way == MINILM else _SCORES)}
    if MINILM in row:
        key = "macro_turn_accuracy"
        row["points_above_minilm"] = round(100 * (row[FUSED][key] - row[MINILM][key]), 2)
    return row


_COLUMNS = (
    ("turn", "turn_accuracy", 100.0, 1),
    ("macro", "macro_turn_accuracy", 100.0, 1),
    ("other", "other_accuracy", 100.0, 1),
    ("ece", "ece", 1.0, 3),
    ("loss", "log_loss", 1.0, 3),
)
_NAME_WIDTH, _WIDTH = 36, 7


def _heading(row: Mapping[str, Any]) -> str:
    ways = [way for way in (LANGUAGE_MODEL, ENCODER, FUSED, MINILM) if way in row]
    columns = {way: [name for name, key, *_ in _COLUMNS if key in row[way]] for way in ways}
    above = "".join(f" |{way:<{_WIDTH * len(columns[way])}}" for way in ways)
    below = "".join(" |" + "".join(f"{name:>{_WIDTH}}" for name in columns[way]) for way in ways)
    points = "  points" if MINILM in row else ""
    return f"{'':<{_NAME_WIDTH}}{'':>6}{above}\n{'':<{_NAME_WIDTH}}{'cases':>6}{below}{points}"


def _line(name: str, row: Mapping[str, Any]) -> str:
    line = f"{name:<{_NAME_WIDTH}}{row[FUSED]['cases']:>6}"
    for way in (LANGUAGE_MODEL, ENCODER, FUSED, MINILM):
        if way in row:
            line += " |"
            for _, key, factor, digits in _COLUMNS:
                if key in row[way]:
                    value = row[way][key]
                    shown = "-" if value is None else f"{factor * value:.{digits}f}"
                    line += f"{shown:>{_WIDTH}}"
    return line + (f"{row['points_above_minilm']:>+8.1f}" if MINILM in row else "")
