"""What untrained MiniLM answers in the cases of groups, as `sidecar eval --baseline` asks it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from router_training.cases import Case, check_ids, read_all
from router_training.encoding import conversation_of
from router_training.errors import InputError
from router_training.leave_out import Group
from router_training.opinions import candidates
from sidecar.evaluation import cases as evaluation
from sidecar.evaluation.minilm import minilm
from sidecar.evaluation.policies import CaseRoute
from sidecar.local import LocalError, data_file


def nearest(paths: Sequence[Path], groups: Sequence[Group]) -> list[dict[str, int]]:
    """For each group the candidate (routes in order, `other`) that is answered, by the case's id:
    the nearest route, or `other` below the threshold that is best for the group's very cases, which
    is more than the method could know in use.

    Args:
        paths: case files and folders that have the cases of the groups.

    Raises CaseError for files that cannot be read; InputError if they lack one or have two with its
    id, or if the weights of MiniLM cannot be fetched.
    """
    wanted = {(case.id, case.opinions.family) for group in groups for case in group.cases}
    cases = [case for case in read_all(paths) if (case.id, case.family) in wanted]
    check_ids(cases)
    found = {case.id: case for case in cases}
    return [_answers(group, found) for group in groups]


def _answers(group: Group, found: dict[str, Case]) -> dict[str, int]:
    for case in group.cases:
        if case.id not in found or len(found[case.id].routes) != len(case.opinions.right) - 1:
            raise InputError(f"--baseline: no case {case.id} with the routes of {group.name}")
    try:
        weights = data_file("minilm")
    except LocalError as error:
        raise InputError(f"--baseline: {error}") from None
    outcomes = minilm([_to_measure(found[case.id]) for case in group.cases], weights, _say).outcomes
    return {one.case.id: candidates(found[one.case.id]).index(one.answer) for one in outcomes}


def _to_measure(case: Case) -> evaluation.Case:
    routes = tuple(CaseRoute(route.name, route.description) for route in case.routes)
    conversation, right = conversation_of(case.request), case.request.right
    return evaluation.Case(case.id, "", case.family, conversation, routes, case.label, right)


def _say(done: int, total: int) -> None:
    end = "\n" if done == total else "\r"
    print(f"{done} of {total} texts embedded", end=end, file=sys.stderr, flush=True)  # noqa: T201
