"""`sidecar policy apply|delete|undelete|rollback|prune`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from sidecar.cli.failures import Failure
from sidecar.cli.findings_view import count, print_findings
from sidecar.cli.policy_files import PolicyPath
from sidecar.cli.policy_options import (
    NUMBER,
    at_option,
    dry_run_option,
    etag_option,
    note_of,
    note_options,
    output_option,
    place,
)
from sidecar.cli.policy_place import (
    NOT_FOUND,
    Missing,
    PlaceFailure,
    PolicyPlace,
    StorePlace,
    failing,
    resource_name,
)
from sidecar.cli.policy_view import emit, print_diff
from sidecar.cli.printing import echo
from sidecar.core.errors import ErrorCode
from sidecar.core.policy import (
    Catalog,
    CatalogRecord,
    Model,
    Policy,
    PolicyRecord,
)
from sidecar.policies import PolicySet, load_policies
from sidecar.policies.differences import catalog_diff, unified_diff
from sidecar.policies.editing import check_users

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one policy, or of the catalog."""

    name: str
    what: str
    revision: int
    diff: str = ""

    def as_plain(self, dry_run: bool) -> dict[str, object]:
        """For programs; with the difference in a dry run."""
        plain = {"name": self.name, "result": self.what, "revision": self.revision}
        return {**plain, "diff": self.diff} if dry_run else plain


@click.command()
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="PATH...",
    type=PolicyPath(),
)
@at_option
@note_options
@dry_run_option
@click.option(
    "--require-examples-pass",
    "examples_pass",
    is_flag=True,
    help="Refuse a policy of which an example would go to another route; takes a running sidecar.",
)
@output_option
def apply(
    paths: tuple[Path, ...],
    at: str,
    author: str,
    message: str,
    dry_run: bool,
    examples_pass: bool,
    output: str,
) -> None:
    """Create or update the policies, and replace the model catalog, that files or folders hold, or
    standard input where PATH is -.

    Policies that are the same already are left alone, and so are those that no file names. Each is
    a change by itself; when one is refused, those before it stay, and are printed.
    """
    done: list[Applied] = []
    # Files with errors make no database.
    with place(at, Missing.FORESEEN) as found:
        files, models = _read(paths, found)
    with place(at, Missing.FORESEEN if dry_run else Missing.MADE) as found:
        applying = _Applying(found, author, message, dry_run, examples_pass)
        try:
            for each in applying.all(files, models):
                done.append(each)
                if output == "text":
                    _print_applied(each, dry_run)
        finally:
            if output != "text":
                emit([each.as_plain(dry_run) for each in done], output)


def _print_applied(each: Applied, dry_run: bool) -> None:
    echo(f"{each.name}: {each.what} (revision {each.revision})")
    if dry_run and each.diff:
        print_diff(each.diff)


def _read(paths: Sequence[Path], found: PolicyPlace) -> tuple[PolicySet, Catalog | None]:
    """What the files hold, and the catalog among them; None if there is none. Raises Failure."""
    known, unread = _catalog_of(found)
    # Once: what comes by a pipe cannot be read again.
    files = load_policies(paths, known=None if unread is not None else known.models)
    if unread is not None and not files.own_catalog:
        raise unread
    with_catalog = files.own_catalog and bool(files.catalog)
    if not files.valid:
        print_findings(files, Console(stderr=True))
        raise Failure("the files have errors; nothing was changed")
    if not with_catalog and not files.policies:
        raise Failure("the files hold no policy and no model catalog; nothing was changed")
    return files, files.catalog if with_catalog else None


def _catalog_of(found: PolicyPlace) -> tuple[CatalogRecord, PlaceFailure | None]:
    """The model catalog. One that cannot be read has no models, and why is told beside it: another
    one may be put in its place. Raises PlaceFailure."""
    try:
        return found.catalog(), None
    except PlaceFailure as failure:
        if not failure.unreadable:
            raise
        return CatalogRecord({}, failure.unreadable, failure.etag), failure


def _after_conflict(failure: PlaceFailure, read: Callable[[], T]) -> T:
    """What is there now that somebody else was faster: of several who apply the same files at once
    nobody has failed. Raises `failure` if it is another one."""
    if failure.code is not ErrorCode.POLICY_CONFLICT:
        raise failure
    return read()


class _Applying:
    def __init__(
        self, found: PolicyPlace, author: str, message: str, dry_run: bool, examples_pass: bool
    ) -> None:
        self._place = found
        self._examples_pass = examples_pass
        self._author = author
        self._message = message
        self._dry_run = dry_run

    def all(self, files: PolicySet, models: Catalog | None) -> Iterator[Applied]:
        """Makes the changes, each when it is asked for. `models`: None leaves those of the place as
        they are by then; in which order they come says nothing."""
        present, unread = _catalog_of(self._place)
        if unread is not None and models is None:
            raise unread
        wanted = dict(present.models if models is None else models)
        removed = {key: model for key, model in present.models.items() if key not in wanted}
        if self._dry_run and wanted != present.models:
            first = {**removed, **wanted} if files.policies else wanted
            made = self._catalog(first, present)
            yield made
            yield from (self._tried(each, present.models) for each in files.policies)
            if files.policies and removed:
                yield self._foreseen_removal(files, first, made.revision + 1)
            return
        if not files.policies or wanted == present.models:
            removed = {}
        # Models go last: policies that are about to change may still name them.
        first = {**removed, **wanted}
        yield self._catalog(first, present)
        yield from map(self._policy, files.policies)
        if removed:
            yield self._removal(wanted, first)

    def _removal(self, wanted: dict[str, Model], first: dict[str, Model]) -> Applied:
        """`first`: what this command has left there."""
        present = self._place.catalog()
        if present.models not in (wanted, first):
            raise PlaceFailure(
                ErrorCode.POLICY_CONFLICT,
                "somebody else has changed the model catalog meanwhile, so the models that the "
                "files lack were left in it; look at it with `sidecar policy catalog`, and apply "
                "again",
            )
        return self._catalog(wanted, present)

    def _catalog(self, wanted: dict[str, Model], present: CatalogRecord) -> Applied:
        if wanted == present.models:
            return Applied("model catalog", "unchanged", present.revision)
        note = note_of(self._author, self._message, present.etag)
        try:
            made = self._place.update_catalog(tuple(wanted.values()), note, self._dry_run)
        except PlaceFailure as failure:
            now = _after_conflict(failure, self._place.catalog)
            if now.models != wanted:
                raise
            return Applied("model catalog", "unchanged", now.revision)
        what = "updated" if present.revision else "created"
        names = (f"model catalog@{present.revision}", "model catalog in the files")
        # Shown in a dry run alone, and slow to make of thousands.
        diff = catalog_diff(present.models, wanted, names) if self._dry_run else ""
        return Applied("model catalog", self._tense(what), made.revision, diff)

    def _policy(self, policy: Policy) -> Applied:
        name = policy.resource_name
        present = self._record(name)
        if present is None or present.deleted:
            return self._created(policy)
        if present.digest == policy.digest():
            return Applied(name, "unchanged", present.revision)
        # The etag: what somebody else writes from now on is not overwritten unseen.
        note = note_of(self._author, self._message, present.etag)
        try:
            made = self._place.update(policy, note, self._dry_run, self._examples_pass)
        except PlaceFailure as failure:
            now = _after_conflict(failure, lambda: self._place.get(name))
            if now.deleted or now.digest != policy.digest():
                raise
            return Applied(name, "unchanged", now.revision)
        diff = _diff(present, policy) if self._dry_run else ""
        return Applied(name, self._tense("updated"), made.revision, diff)

    def _created(self, policy: Policy) -> Applied:
        name = policy.resource_name
        note = note_of(self._author, self._message)
        try:
            made = self._place.create(policy, note, self._dry_run, self._examples_pass)
        except PlaceFailure as failure:
            if failure.code is not ErrorCode.POLICY_EXISTS:
                raise
            # Deleted, but it can be undeleted; or somebody was faster.
            present = self._present(name)
            if present is None or present.digest != policy.digest():
                raise PlaceFailure(ErrorCode.POLICY_CONFLICT, failure.message) from None
            return Applied(name, "unchanged", present.revision)
        return Applied(name, self._tense("created"), made.revision)

    def _tried(self, policy: Policy, known: Catalog) -> Applied:
        """What would come of a policy, by the place if that knows its models."""
        lists = (policy.default, *(route.models for route in policy.routes))
        if all(entry.id in known for models in lists for entry in models.models):
            return self._policy(policy)
        if not self._examples_pass:
            return self._foreseen(policy)
        try:
            return self._policy(policy)
        except PlaceFailure as failure:
            remedy = "apply the model catalog first, or leave out --require-examples-pass"
            raise PlaceFailure(failure.code, f"{failure}; {remedy}") from None

    def _foreseen(self, policy: Policy) -> Applied:
        """What would come of a policy once the catalog is there."""
        name = policy.resource_name
        present = self._present(name)
        if present is None:
            return Applied(name, self._tense("created"), 1)
        if present.digest == policy.digest():
            return Applied(name, "unchanged", present.revision)
        return Applied(name, self._tense("updated"), present.revision + 1, _diff(present, policy))

    def _foreseen_removal(
        self, files: PolicySet, present: dict[str, Model], revision: int
    ) -> Applied:
        """What would come of models that the files lack once their policies are there."""
        others = {
            record.policy.resource_name: record
            for record in self._place.list("-").records
            if record.policy.resource_name not in files.records
        }
        with failing():
            check_users(others, files.catalog)
        names = (f"model catalog@{revision - 1}", "model catalog in the files")
        diff = catalog_diff(present, files.catalog, names)
        return Applied("model catalog", self._tense("updated"), revision, diff)

    def _record(self, name: str) -> PolicyRecord | None:
        try:
            return self._place.get(name)
        except PlaceFailure as failure:
            if failure.exit_code == NOT_FOUND:
                return None
            raise

    def _present(self, name: str) -> PolicyRecord | None:
        record = self._record(name)
        if record is not None and record.deleted:
            raise Failure(f"{name} was deleted; undelete it first")
        return record

    def _tense(self, what: str) -> str:
        return f"would be {what}" if self._dry_run else what


def _diff(present: PolicyRecord, policy: Policy) -> str:
    name = policy.resource_name
    return unified_diff(
        present.policy, policy, (f"{name}@{present.revision}", f"{name} in the file")
    )


@click.command()
@click.argument("name")
@at_option
@etag_option
@note_options
@dry_run_option
@output_option
def delete(
    name: str, at: str, etag: str, author: str, message: str, dry_run: bool, output: str
) -> None:
    """Delete the policy NAME. Its history stays; `undelete` brings it back."""
    with place(at) as found:
        made = found.delete(resource_name(name), note_of(author, message, etag), dry_run)
    _report(made, "deleted", dry_run, output)


@click.command()
@click.argument("name")
@at_option
@etag_option
@note_options
@dry_run_option
@output_option
def undelete(
    name: str, at: str, etag: str, author: str, message: str, dry_run: bool, output: str
) -> None:
    """Bring the deleted policy NAME back as it was."""
    with place(at) as found:
        made = found.undelete(resource_name(name), note_of(author, message, etag), dry_run)
    _report(made, "undeleted", dry_run, output)


@click.command()
@click.argument("name")
@click.argument("revision", type=NUMBER)
@at_option
@etag_option
@note_options
@dry_run_option
@output_option
def rollback(
    name: str,
    revision: int,
    at: str,
    etag: str,
    author: str,
    message: str,
    dry_run: bool,
    output: str,
) -> None:
    """Make a new revision of the policy NAME with the content of an earlier one."""
    message = message or f"rollback to revision {revision}"
    with place(at) as found:
        note = note_of(author, message, etag)
        made = found.rollback(resource_name(name), revision, note, dry_run)
    _report(made, f"rolled back to revision {revision}", dry_run, output)


@click.command()
@click.option(
    "--keep",
    required=True,
    type=NUMBER,
    help="How many revisions of each stay, the latest; 1: the present ones alone.",
)
@at_option
@output_option
def prune(keep: int, at: str, output: str) -> None:
    """Take old revisions of all policies, and of the model catalog, out of a database.

    They cannot be shown or rolled back to any more.
    """
    with place(at) as found:
        if not isinstance(found, StorePlace):
            raise Failure("a running sidecar's history is not pruned; name its database with --at")
        pruned = found.prune(keep)
    if output == "text":
        click.echo(f"{count(pruned, 'revision')} pruned")
    else:
        emit({"pruned": pruned}, output)


def _report(made: PolicyRecord, what: str, dry_run: bool, output: str) -> None:
    what = f"would be {what}" if dry_run else what
    name = made.policy.resource_name
    if output == "text":
        echo(f"{name}: {what} (revision {made.revision})")
    else:
        result: dict[str, Any] = {"name": name, "result": what, "revision": made.revision}
        emit(result, output)
