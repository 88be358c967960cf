"""How the surroundings of a request choose its policy, made of the settings."""

from __future__ import annotations

from sidecar.config import Settings
from sidecar.core.naming import PolicyRule, PolicySelection


def call_selection(settings: Settings) -> PolicySelection:
    """For calls of the gRPC API, by their metadata."""
    return PolicySelection(settings.server.policy_metadata, policy_rules(settings))


def policy_rules(settings: Settings) -> tuple[PolicyRule, ...]:
    """For both edges."""
    rules = []
    for entry in settings.policies.rules:
        condition, _, policy = entry.rpartition("=>")
        header, _, value = condition.partition("=")
        rules.append(PolicyRule(header, value, policy))
    return tuple(rules)
