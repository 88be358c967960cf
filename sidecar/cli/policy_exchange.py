"""`sidecar policy import|export`: other routers' files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from sidecar.cli.failures import Failure
from sidecar.cli.policy_options import at_option, place
from sidecar.cli.policy_place import PolicyPlace, is_path, present, resource_name
from sidecar.cli.printing import echo
from sidecar.core.policy import ApiDialect
from sidecar.policies import Severity, check_catalog, check_policy
from sidecar.policies.documents import catalog_document, policy_document, yaml_text
from sidecar.policies.exchange import FORMATS, Imported, UnreadableFileError
from sidecar.policies.findings import quoted
from sidecar.routing.registry import missing_models

_OWNED = re.compile(r"(?P<kind>models|routes)\[(?P<owner>[^]]*)\]\.(?P<what>.*)")

_TRIES = 3
"""Of reading policy and catalog, which are two reads."""

_FORMAT_HELP = "; ".join(f"{name}: {known.about}" for name, known in FORMATS.items())


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--from", "kind", required=True, type=click.Choice(list(FORMATS)), help=_FORMAT_HELP)
@click.option("--name", default="default", show_default=True, help="Name of the policy.")
@click.option(
    "--out",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; without it standard output.",
)
def import_(file: Path, kind: str, name: str, out: Path | None) -> None:
    """Turn FILE of another router into a policy and a model catalog, as YAML that `apply` takes.

    What the file says and a policy cannot is named on standard error, and so is what has to be
    corrected before the result can be used.
    """
    if out is not None and _is_read(out, file):
        raise click.UsageError(f"--out {out} is the file that is imported; name another")
    try:
        text = file.read_text(encoding="utf-8-sig")
        found = FORMATS[kind].read(text, name)
    except (UnreadableFileError, UnicodeDecodeError) as error:
        raise Failure(f"{file}: {error}") from None
    for line in grouped(found.lost):
        echo(f"{file}: {line}", err=True)
    if bare := [each.id for each in found.catalog.values() if not each.capabilities]:
        why = "is not in the file; requests with images or tools pass these over until you add it"
        echo(f"{file}: models[*].capabilities: {why} ({', '.join(bare)})", err=True)
    every = frozenset(ApiDialect)
    if told := [each.id for each in found.catalog.values() if each.dialects != every]:
        why = "is not in the file; what the provider answers is taken, and nothing is translated"
        echo(f"{file}: models[*].dialects: {why} ({', '.join(told)})", err=True)
    _report_errors(found)
    documents = [catalog_document(found.catalog.values())]
    if found.policy is not None:
        documents.append(policy_document(found.policy))
    _write(yaml_text(*documents), out)


def grouped(lines: Iterable[str]) -> list[str]:
    """`lines`, but what is the same of several models or routes in one line that names them all."""
    owners: dict[str, list[str]] = {}
    for line in lines:
        owned = _OWNED.fullmatch(line)
        key = f"{owned['kind']}[*].{owned['what']}" if owned else line
        owners.setdefault(key, []).append(owned["owner"] if owned else "")
    return [_line(key, names) for key, names in owners.items()]


def _line(key: str, names: Sequence[str]) -> str:
    if not names[0]:
        return key
    return f"{key} ({', '.join(names)})" if len(names) > 1 else key.replace("[*]", f"[{names[0]}]")


def _report_errors(found: Imported) -> None:
    findings = list(check_catalog(tuple(found.catalog.values())))
    if found.policy is not None:
        findings += check_policy(found.policy, found.catalog)
    for finding in findings:
        if finding.severity is Severity.ERROR:
            echo(f"to correct: {finding}", err=True)


@click.command("export")
@click.argument("name", default="default")
@click.option("--to", "kind", required=True, type=click.Choice(list(FORMATS)), help=_FORMAT_HELP)
@click.option(
    "--out",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; without it standard output.",
)
@at_option
def export(name: str, kind: str, out: Path | None, at: str) -> None:
    """Write the policy NAME and the model catalog as a file of another router.

    What that file cannot say is named on standard error.
    """
    if out is not None and is_path("--at", at) and _is_read(out, Path(at)):
        raise click.UsageError(f"--out {out} is a file that --at names; name another")
    with place(at) as found:
        content = _present(found, name, kind)
    try:
        written = FORMATS[kind].write(content)
    except UnreadableFileError as error:
        raise Failure(str(error)) from None
    for line in grouped(written.lost):
        echo(line, err=True)
    _write(written.text, out)


def _present(found: PolicyPlace, name: str, kind: str) -> Imported:
    """Raises Failure."""
    for _ in range(_TRIES):
        models = found.catalog().models
        if kind == "litellm":
            return Imported(models)
        policy = present(found.get(resource_name(name)))
        lacking = missing_models(policy, models)
        if not lacking:
            return Imported(models, policy)
        # Both were changed in between.
    raise Failure(
        f"{policy.resource_name} names the model {quoted(lacking[0])}, which the model catalog "
        "lacks; apply a catalog that has it"
    )


def _is_read(out: Path, source: Path) -> bool:
    """True if `out` is there and is the file, or one in the folder, `source`."""
    if not out.exists():
        return False
    return out.samefile(source) or out.resolve().parent == source.resolve()


def _write(text: str, out: Path | None) -> None:
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"--out {out}: {error.strerror or error}") from None
