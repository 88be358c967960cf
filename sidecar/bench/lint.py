"""How many overlaps of routes `sidecar policy lint --by-model` finds, and how often it is wrong:
`python -m sidecar.bench.lint [FOLDER]`.

The folder has policies whose overlaps are known (`pairs.json`), in one file for each set, and one
large policy of another router that is taken to have none. They are linted by the routing model that
comes along, through a sidecar and Triton, by the functions that the command uses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from sidecar.cli.model import default_model
from sidecar.cli.policy_trial import Trial, ask_model
from sidecar.cli.stack import LocalStack, running
from sidecar.cli.up import with_policies
from sidecar.config import load_settings
from sidecar.core.policy import Catalog, Policy
from sidecar.engines import read_engine
from sidecar.local import free_ports
from sidecar.policies import Finding, load_policies
from sidecar.policies.exchange import FORMATS
from sidecar.policies.findings import quoted
from sidecar.policies.lint import lint

FOLDER = Path(__file__).parents[2] / "tests" / "policies" / "overlaps"
SETS = ("twenty.yaml", "held_back.yaml", "unseen.yaml")
LARGE = "huggingchat.json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What lint said about a policy.

    Args:
        seeded: names of the two routes that overlap; empty if none do.
        found: the finding that names them together; empty if there is none.
        false_alarms: other descriptions that it said are alike or taken by another route.
        astray: examples that did not go to their route, those of the seeded routes left out.
    """

    policy: str
    seeded: tuple[str, ...]
    found: str
    false_alarms: tuple[str, ...]
    astray: tuple[str, ...]


def verdict(policy: Policy, seeded: tuple[str, ...], findings: tuple[Finding, ...]) -> Verdict:
    """Sorts the findings of one policy."""
    found = ""
    alarms: list[str] = []
    astray: list[str] = []
    for each in findings:
        owner, _, what = each.path.partition("].")
        if not owner.startswith("routes[") or not what:
            continue
        name = policy.routes[int(owner.removeprefix("routes["))].name
        within = name in seeded and any(quoted(o) in each.message for o in seeded if o != name)
        if what == "description":
            if within:
                found = found or each.message
            else:
                alarms.append(str(each))
        elif what.startswith("examples[") and not within:
            astray.append(str(each))
    return Verdict(policy.name, seeded, found, tuple(alarms), tuple(astray))


def linted(
    policies: Iterable[Policy], catalog: Catalog, trial: Trial, pairs: Mapping[str, list[str]]
) -> Iterator[Verdict]:
    for policy in policies:
        findings = (*lint(policy, catalog), *ask_model(policy, trial))
        yield verdict(policy, tuple(pairs.get(policy.name, ())), findings)


def _told(title: str, verdicts: Iterator[Verdict]) -> None:
    known = found = alarms = astray = 0
    for each in verdicts:
        known += bool(each.seeded)
        found += bool(each.found)
        alarms += len(each.false_alarms)
        astray += len(each.astray)
        state = ("found" if each.found else "MISSED") if each.seeded else "large"
        click.echo(f"  {state:7} {each.policy}: {', '.join(each.seeded)}")
        for line in filter(None, (each.found, *each.false_alarms, *each.astray)):
            click.echo(f"          {line}")
    seeded = f"{found} of {known} seeded overlaps found, " if known else ""
    click.echo(f"{title}: {seeded}{alarms} false alarms, {astray} other examples astray")


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path), default=FOLDER)
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="Folder of an engine.")
@click.option("--only", type=click.Choice([*SETS, LARGE]), help="This set alone.")
def main(folder: Path, model: Path | None, only: str | None) -> None:
    """Lint the policies in FOLDER and print what was found and what was not."""
    pairs = json.loads((folder / "pairs.json").read_text())
    flags: dict[str, dict[str, object]] = {
        "server": {"grpc_address": f"127.0.0.1:{free_ports(1)[0]}", "http_address": ""},
        # A policy that is read for the first time takes seconds.
        "routing": {"decision_budget_ms": 60_000},
        "logging": {"level": "error"},
    }
    settings = with_policies(load_settings(flags=flags, environ={}), ())
    engine = read_engine(model) if model else default_model(Console(stderr=True).print)
    with running(LocalStack(engine, settings, quiet=True)) as stack, Trial(stack.address) as trial:
        for name in SETS if only is None else set(SETS) & {only}:
            loaded = load_policies([folder / "catalog.yaml", folder / name])
            if not loaded.valid:
                raise click.ClickException(
                    f"{folder / name} has errors; `sidecar policy validate "
                    f"{folder / 'catalog.yaml'} {folder / name}` shows them"
                )
            _told(name, linted(loaded.policies, loaded.catalog, trial, pairs))
        if only not in (None, LARGE):
            return
        imported = FORMATS["huggingchat"].read((folder / LARGE).read_text(), "huggingchat")
        assert imported.policy is not None, "a route file has a policy"
        _told(LARGE, linted((imported.policy,), imported.catalog, trial, pairs))


if __name__ == "__main__":
    main()
