"""Resource names: `namespaces/{namespace}` and `namespaces/{namespace}/policies/{policy}`."""

from __future__ import annotations

import re

from sidecar.core.decision import PolicyName
from sidecar.grpc_api.convert.violations import invalid, shown

ALL_NAMESPACES = "-"

_ID = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_POLICY = re.compile(rf"namespaces/(?P<namespace>{_ID})/policies/(?P<policy>{_ID})")
_NAMESPACE = re.compile(rf"namespaces/(?P<namespace>{_ID}|{ALL_NAMESPACES})")
_RULE = "an id has 1 to 63 lower-case letters, digits and inner hyphens"


def policy_name(value: str, field: str, *, bare: bool = False) -> PolicyName:
    """The policy that `value` names.

    Args:
        bare: accept the id alone, of the namespace `default`, and nothing for the default policy.

    Raises:
        SidecarError: INVALID_REQUEST naming `field`.
    """
    if bare:
        if not value:
            return PolicyName()
        if re.fullmatch(_ID, value):
            return PolicyName(value)
    match = _POLICY.fullmatch(value)
    if match is None:
        expected = "namespaces/{namespace}/policies/{policy}"
        raise invalid(field, f"{shown(value)} is not of the form {expected}; {_RULE}")
    return PolicyName(match["policy"], match["namespace"])


def namespace(value: str, field: str) -> str:
    """The namespace that `value` names, or `ALL_NAMESPACES`. Raises SidecarError like above."""
    match = _NAMESPACE.fullmatch(value)
    if match is None:
        expected = "namespaces/{namespace} or namespaces/-"
        raise invalid(field, f"{shown(value)} is not of the form {expected}; {_RULE}")
    return match["namespace"]
