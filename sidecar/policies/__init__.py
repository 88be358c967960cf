"""Reading, checking and storing policies and model catalogs."""

from sidecar.policies.findings import Finding, Severity, has_errors
from sidecar.policies.loading import (
    ParsedPolicy,
    PolicySet,
    file_record,
    load_policies,
    parse_policy_yaml,
)
from sidecar.policies.rules import check_catalog, check_policy, too_many_routes
from sidecar.policies.yaml_source import MAX_BYTES

__all__ = [
    "MAX_BYTES",
    "Finding",
    "ParsedPolicy",
    "PolicySet",
    "Severity",
    "check_catalog",
    "check_policy",
    "file_record",
    "has_errors",
    "load_policies",
    "parse_policy_yaml",
    "too_many_routes",
]
