"""Which policy decides a request that names none itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Value = Callable[[str], str]
"""A header of a request, or a key of a gRPC call's metadata, by its name in lower case; empty if it
is not there."""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """Requests in which `header` has exactly this value are decided by `policy`.

    Args:
        header: in lower case.
        policy: an id of the namespace `default`, or a resource name.
    """

    header: str
    value: str
    policy: str


@dataclass(frozen=True, slots=True)
class PolicySelection:
    """How the surroundings of a request choose its policy.

    Args:
        header: names the policy by its value; empty for none.
        rules: the first that fits counts, where that header is not there.
    """

    header: str = "x-llm-policy"
    rules: tuple[PolicyRule, ...] = ()

    def chosen(self, value: Value) -> tuple[str, str]:
        """Header and policy; both empty where the surroundings choose none. A policy that `header`
        names is as the caller wrote it."""
        if self.header and (named := value(self.header).strip()):
            return self.header, named
        for rule in self.rules:
            if value(rule.header) == rule.value:
                return rule.header, rule.policy
        return "", ""
