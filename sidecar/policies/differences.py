"""How two policies, or two of their revisions, differ."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sidecar.core.policy import Catalog, Policy
from sidecar.policies.documents import catalog_document, policy_document, yaml_text
from sidecar.policies.findings import member


@dataclass(frozen=True, slots=True)
class Difference:
    """`path` names routes by their names: `routes[refund].description`. A value that is not there
    is None."""

    path: str
    before: object
    after: object


def differences(before: Policy | None, after: Policy) -> tuple[Difference, ...]:
    """Every value that is not the same, in the order of the policy. `before`: None if there was
    none."""
    return tuple(_between("", _document(before), policy_document(after)))


def unified_diff(before: Policy | None, after: Policy, names: tuple[str, str]) -> str:
    """The two as YAML in the form of `diff -u`; empty if they are equal. `before`: None if there
    was none."""
    return _unified(_document(before), policy_document(after), names)


def catalog_diff(before: Catalog, after: Catalog, names: tuple[str, str]) -> str:
    """As `unified_diff`, of model catalogs; in which order they have their models says nothing."""
    one, other = (
        catalog_document(models[id] for id in sorted(models)) for models in (before, after)
    )
    return _unified(one, other, names)


def _document(policy: Policy | None) -> dict[str, object]:
    return {} if policy is None else policy_document(policy)


def _unified(
    before: Mapping[str, object], after: Mapping[str, object], names: tuple[str, str]
) -> str:
    lines = difflib.unified_diff(
        yaml_text(before).splitlines(keepends=True) if before else [],
        yaml_text(after).splitlines(keepends=True),
        *names,
    )
    return "".join(lines)


def value_text(value: object) -> str:
    """A value of a difference as YAML; empty for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return yaml_text(value)
    return yaml_text({"value": value}).removeprefix("value:").strip()


def _between(path: str, before: object, after: object) -> Iterator[Difference]:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            yield from _between(member(path, key), before.get(key), after.get(key))
    elif path == "routes" and isinstance(before, Sequence) and isinstance(after, Sequence):
        yield from _between_routes(before, after)
    else:
        yield Difference(path, before, after)


def _between_routes(before: Sequence[object], after: Sequence[object]) -> Iterator[Difference]:
    old, new = _by_name(before), _by_name(after)
    for name in dict.fromkeys([*old, *new]):
        path = f"routes[{name}]"
        if name in old and name in new:
            yield from _between(path, old[name], new[name])
        else:
            yield Difference(path, old.get(name), new.get(name))
    kept = [name for name in old if name in new]
    moved = [name for name in new if name in old]
    if kept != moved:
        # The routing model reads the routes in their order.
        yield Difference("routes", kept, moved)


def _by_name(routes: Sequence[object]) -> dict[str, object]:
    return {str(route["name"]): route for route in routes if isinstance(route, Mapping)}
