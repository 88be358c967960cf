"""YAML documents to core types and the findings about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sidecar.core.policy import Catalog, Model, Policy
from sidecar.policies.findings import Finding, closest, error, has_errors, quoted, spelled
from sidecar.policies.rules import MAX_FINDINGS, check_catalog, check_policy, limited
from sidecar.policies.schema import (
    API_VERSION,
    CatalogShape,
    PolicyShape,
    ShapeRead,
    read_shape,
    unused_weighting,
)
from sidecar.policies.yaml_source import Document


@dataclass(frozen=True, slots=True)
class PolicyDraft:
    """A policy as read; what is wrong with its shape is blank in `policy`.

    Args:
        document: for its lines; its value is gone, and so is the shape that was `read`: of
            thousands of files these take more memory than the policies.
        unused: what `unused_weighting` found.
    """

    policy: Policy
    document: Document
    file: str
    read: ShapeRead[PolicyShape]
    unused: Sequence[Finding]

    def check(self, catalog: Catalog | None) -> tuple[Finding, ...]:
        """All findings, placed. Warnings only where there are no errors.

        Args:
            catalog: None if there is none, and models are not looked up.
        """
        ruled = [*check_policy(self.policy, catalog), *self.unused]
        findings = [*self.read.findings, *self.read.without_consequences(ruled)]
        if has_errors(findings):
            findings = [finding for finding in findings if has_errors([finding])]
        return _first_placed(findings, self.document, self.file)


@dataclass(frozen=True, slots=True)
class CatalogDraft:
    """The models of one catalog document as read, and all findings about it, placed."""

    models: tuple[Model, ...]
    document: Document
    file: str
    findings: tuple[Finding, ...]


def read_document(
    document: Document, file: str
) -> PolicyDraft | CatalogDraft | tuple[Finding, ...]:
    """The policy or catalog in `document`; the placed findings alone if it is neither."""
    if not isinstance(document.value, dict):
        wrong = error("", "must be a mapping that begins with apiVersion and kind")
        return tuple(placed(document.findings or [wrong], document, file))
    value = dict(document.value)
    findings = [*document.findings, *_version_findings(value)]
    if value.get("kind") not in (PolicyShape.KIND, CatalogShape.KIND):
        return tuple(placed([*findings, _kind_finding(value)], document, file))
    # Reported above: the shape need not say it again.
    value["apiVersion"] = API_VERSION
    if value["kind"] == PolicyShape.KIND:
        return _policy_draft(value, document, file, findings)
    return _catalog_draft(value, document, file, findings)


def placed(findings: Iterable[Finding], document: Document, file: str) -> list[Finding]:
    """`findings` with file and line."""
    return [
        replace(finding, file=file, line=finding.line or document.line_of(finding.path))
        for finding in findings
    ]


def _first_placed(
    findings: Iterable[Finding], document: Document, file: str
) -> tuple[Finding, ...]:
    """As `placed`, of the first; that there are more is said behind them, whoever sorts them."""
    found = placed(limited(findings), document, file)
    if len(found) > MAX_FINDINGS:
        found[-1] = replace(found[-1], line=max(each.line for each in found))
    return tuple(found)


def _policy_draft(
    value: dict[str, object], document: Document, file: str, findings: list[Finding]
) -> PolicyDraft | tuple[Finding, ...]:
    read = read_shape(value, PolicyShape, findings)
    if read.shape is None:
        return _first_placed(read.findings, document, file)
    return PolicyDraft(
        read.shape.to_core(),
        replace(document, value=None),
        file,
        replace(read, shape=None),
        unused_weighting(read.shape),
    )


def _catalog_draft(
    value: dict[str, object], document: Document, file: str, findings: list[Finding]
) -> CatalogDraft | tuple[Finding, ...]:
    read = read_shape(value, CatalogShape, findings)
    if read.shape is None:
        return _first_placed(read.findings, document, file)
    models = read.shape.to_core()
    found = [*read.findings, *read.without_consequences(check_catalog(models))]
    return CatalogDraft(models, document, file, _first_placed(found, document, file))


def _version_findings(value: dict[str, object]) -> list[Finding]:
    version = value.get("apiVersion")
    if version == API_VERSION:
        return []
    if "apiVersion" not in value:
        return [error("apiVersion", f"missing; add `apiVersion: {API_VERSION}`")]
    return [error("apiVersion", f"{spelled(str(version))} is not known; write {API_VERSION}")]


def _kind_finding(value: dict[str, object]) -> Finding:
    kinds = (PolicyShape.KIND, CatalogShape.KIND)
    if "kind" not in value:
        return error("kind", f"missing; add `kind: {kinds[0]}` or `kind: {kinds[1]}`")
    kind = str(value["kind"])
    if (meant := closest(kind, kinds)) is not None:
        return error("kind", f"unknown kind {spelled(kind)}; did you mean {quoted(meant)}?")
    return error("kind", f"unknown kind {spelled(kind)}; the kinds are {' and '.join(kinds)}")
