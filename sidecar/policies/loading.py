"""YAML files to a checked set of policies and the catalog they name models of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from sidecar.core.decision import PolicyName
from sidecar.core.policy import Catalog, Model, Policy, PolicyRecord
from sidecar.policies.drafts import CatalogDraft, PolicyDraft, placed, read_document
from sidecar.policies.findings import (
    Finding,
    error,
    errors_first,
    has_errors,
    item,
    member,
    quoted,
    warning,
)
from sidecar.policies.yaml_source import MAX_BYTES, Document, decode, read_documents

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class PolicySet:
    """What a set of files holds.

    Args:
        catalog: of all `ModelCatalog` documents together.
        records: policies without errors by resource name, in the order they were read. Files have
            no history: each has revision 1 and an etag made from its content.
        findings: errors first.
        files: those that were read.
        unread: a file or folder could not be, which may be otherwise the next time.
        origins: the file of each of the records.
        documents: the document of each of the records.
        own_catalog: the catalog is that of the files.
    """

    catalog: Catalog
    records: Mapping[str, PolicyRecord]
    findings: tuple[Finding, ...] = ()
    files: tuple[str, ...] = ()
    unread: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, Document] = field(default_factory=dict, repr=False)
    own_catalog: bool = False

    @property
    def valid(self) -> bool:
        return not has_errors(self.findings)

    @property
    def policies(self) -> tuple[Policy, ...]:
        return tuple(record.policy for record in self.records.values())

    def record(self, name: PolicyName) -> PolicyRecord | None:
        return self.records.get(name.resource_name)

    def placed(self, name: str, findings: Iterable[Finding]) -> list[Finding]:
        """`findings` about the record of that resource name, with file and line."""
        return placed(findings, self.documents[name], self.origins[name])


@dataclass(frozen=True, slots=True)
class ParsedPolicy:
    """One policy document. `policy` is None where it could not be read far enough; with errors
    among the findings it is for display only. `document` is what it was read from."""

    policy: Policy | None
    findings: tuple[Finding, ...]
    document: Document | None = field(default=None, repr=False)

    @property
    def valid(self) -> bool:
        return self.policy is not None and not has_errors(self.findings)

    def placed(self, findings: Iterable[Finding]) -> list[Finding]:
        """`findings` about the policy, with lines."""
        return list(findings) if self.document is None else placed(findings, self.document, "")


def file_record(policy: Policy) -> PolicyRecord:
    """The record of a policy that has no history: revision 1."""
    digest = policy.digest()
    return PolicyRecord(policy, revision=1, etag=f"1-{digest[7:23]}", digest=digest)


def is_policy_file(name: str) -> bool:
    """True for what is read of a folder.

    Names that begin with a dot are left out: editors' files, and the folders (`..data`) that
    Kubernetes' volumes point their links at (pkg/volume/util/atomic_writer.go).
    """
    return name.endswith(_SUFFIXES) and not name.startswith(".")


def load_policies(
    paths: Iterable[str | Path], known: Catalog | None = None, pipes: bool = True
) -> PolicySet:
    """Reads files, and the *.yaml and *.yml files of folders; never raises for what they hold.

    A policy may name models of a catalog in any of the files.

    Args:
        known: the catalog of files that have none.
        pipes: `paths` may name pipes as well; False where nobody is at the other end.
    """
    loading = _Loading(known)
    for path in map(Path, paths):
        for file in loading.files_of(path):
            if file != path:
                loading.read(file, "take it out of the folder")
            else:
                loading.read(file, "" if pipes else "name a file or a folder")
    return loading.finish()


def parse_policy_yaml(text: str, catalog: Catalog) -> ParsedPolicy:
    """Reads text that must hold exactly one document, of kind Policy."""
    decoded, problem = decode(text.encode())
    if problem is not None:
        return ParsedPolicy(None, (problem,))
    documents, problems = read_documents(decoded)
    if not problems and len(documents) != 1:
        problems = [error("", f"holds {len(documents)} documents; give exactly one policy")]
    if problems:
        return ParsedPolicy(None, tuple(problems))
    draft = read_document(documents[0], "")
    if isinstance(draft, PolicyDraft):
        return ParsedPolicy(draft.policy, errors_first(draft.check(catalog)), documents[0])
    if isinstance(draft, CatalogDraft):
        wrong = error("kind", '"ModelCatalog" is not a policy; give a document of kind Policy')
        return ParsedPolicy(None, tuple(placed([wrong], documents[0], "")))
    return ParsedPolicy(None, draft)


class _Loading:
    """Documents as they are read, checked together once all are there."""

    def __init__(self, known: Catalog | None) -> None:
        self._known_catalog = known
        self._files: list[str] = []
        self._places: set[str] = set()
        self._catalogs: list[CatalogDraft] = []
        self._policies: list[PolicyDraft] = []
        self._findings: list[Finding] = []
        self._unread = False

    def files_of(self, path: Path) -> list[Path]:
        """`path` itself, or the files of the folder by name."""
        try:
            if not path.is_dir():
                return [path]
            found = sorted(
                file for file in path.iterdir() if is_policy_file(file.name) and not file.is_dir()
            )
        except OSError as problem:
            self._report_unread(path, problem)
            return []
        if not found:
            self._report_file(path, "has no *.yaml or *.yml file; add a policy, or name a file")
        return found

    def read(self, path: Path, instead: str) -> None:
        """`instead`: what to do where it is no regular file; empty: read it."""
        file, place = str(path), os.path.realpath(path)
        if place in self._places:
            return  # Named twice, as by itself and by its folder.
        self._places.add(place)
        self._files.append(file)
        try:
            if instead and path.exists() and not path.is_file():
                # A pipe that nobody writes to would be waited for without end.
                self._report_file(path, f"is no regular file; {instead}")
                return
            with path.open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
        except OSError as problem:
            self._report_unread(path, problem)
            return
        text, problem_found = decode(data)
        documents, problems = read_documents(text)
        if problem_found is not None:
            problems = [problem_found]
        elif not documents and not problems:
            self._findings.append(replace(warning("", "holds no document"), file=file))
        self._findings += [replace(finding, file=file) for finding in problems]
        for document in documents:
            draft = read_document(document, file)
            if isinstance(draft, PolicyDraft):
                self._policies.append(draft)
            elif isinstance(draft, CatalogDraft):
                self._catalogs.append(draft)
            else:
                self._findings += draft

    def finish(self) -> PolicySet:
        unreadable = has_errors(self._findings)
        catalog = self._merge_catalogs()
        if not self._catalogs and self._known_catalog is not None:
            catalog = dict(self._known_catalog)
        elif not self._catalogs and self._policies and not unreadable:
            self._report_no_catalog()
        known = MappingProxyType(catalog)
        checked = bool(self._catalogs) or self._known_catalog is not None
        records = self._check_policies(known if checked else None)
        firsts = {each.policy.resource_name: each for each in reversed(self._policies)}
        return PolicySet(
            known,
            MappingProxyType(records),
            self._sorted_findings(),
            tuple(self._files),
            self._unread,
            MappingProxyType({name: each.file for name, each in firsts.items()}),
            MappingProxyType({name: each.document for name, each in firsts.items()}),
            bool(self._catalogs),
        )

    def _sorted_findings(self) -> tuple[Finding, ...]:
        order = {file: number for number, file in enumerate(self._files)}
        by_file = sorted(self._findings, key=lambda finding: order.get(finding.file, -1))
        return errors_first(by_file)

    def _merge_catalogs(self) -> dict[str, Model]:
        catalog: dict[str, Model] = {}
        origin: dict[str, tuple[CatalogDraft, str]] = {}
        for draft in self._catalogs:
            self._findings += draft.findings
            for index, model in enumerate(draft.models):
                if not model.id:
                    continue
                path = member(item("models", index), "id")
                first, first_path = origin.setdefault(model.id, (draft, path))
                if first is draft:
                    catalog.setdefault(model.id, model)
                else:
                    where = f"{first.file}:{first.document.line_of(first_path)}"
                    message = f"{quoted(model.id)} is already the id of a model in {where}"
                    self._report_duplicate(path, message, draft)
        return catalog

    def _check_policies(self, catalog: Catalog | None) -> dict[str, PolicyRecord]:
        records: dict[str, PolicyRecord] = {}
        origin: dict[str, PolicyDraft] = {}
        for draft in self._policies:
            findings = draft.check(catalog)
            self._findings += findings
            policy = draft.policy
            first = origin.setdefault(policy.resource_name, draft)
            if first is not draft and policy.name:
                where = f"{first.file}:{first.document.line_of('name')}"
                message = (
                    f"{quoted(policy.name)} is already the name of a policy in {where} "
                    f"(namespace {quoted(policy.namespace)})"
                )
                self._report_duplicate("name", message, draft)
            elif catalog is not None and not has_errors(findings):
                records[policy.resource_name] = file_record(policy)
        return records

    def _report_duplicate(self, path: str, message: str, draft: PolicyDraft | CatalogDraft) -> None:
        wrong = error(path, f"{message}; rename one of them")
        self._findings += placed([wrong], draft.document, draft.file)

    def _report_no_catalog(self) -> None:
        first = self._policies[0]
        wrong = error(
            "",
            "none of the files has a document of kind ModelCatalog, so the models of its policies "
            "are unknown; name the catalog's file as well",
        )
        self._findings.append(replace(wrong, file=first.file))

    def _report_unread(self, path: Path, problem: OSError) -> None:
        self._unread = True
        self._report_file(path, f"cannot be read: {problem.strerror}")

    def _report_file(self, path: Path, message: str) -> None:
        self._findings.append(replace(error("", message), file=str(path)))
