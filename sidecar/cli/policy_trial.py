"""`sidecar policy test|lint`: what the routing model of a running sidecar makes of a policy."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.cli.client import SidecarClient, Unreached
from sidecar.cli.conversations import read_case_file
from sidecar.cli.failures import Failure
from sidecar.cli.findings_view import finding_text, print_findings
from sidecar.cli.policy_compare import (
    Compared,
    Outcome,
    Side,
    compared_as_plain,
    outcome_of,
    print_compared,
)
from sidecar.cli.policy_files import PolicyPath
from sidecar.cli.policy_options import output_option
from sidecar.cli.policy_place import (
    PlaceFailure,
    is_path,
    is_sidecar,
    present,
    resource_name,
)
from sidecar.cli.policy_remote import SidecarPlace
from sidecar.cli.policy_view import emit
from sidecar.cli.printing import plain
from sidecar.cli.tls_options import Tls, given_tls, tls_options
from sidecar.config import ServerSettings
from sidecar.core.conversation import Conversation, Role
from sidecar.core.decision import Decision, Reason, RoutingRequest
from sidecar.core.policy import Catalog, Model, ModelList, PinMode, Policy, WeightedModel
from sidecar.grpc_api.convert.decisions import decision_to_core
from sidecar.policies import Finding, PolicySet, Severity, load_policies
from sidecar.policies.examples import ExampleResult, examples_of, heard, result_of
from sidecar.policies.findings import error, findings_as_plain, has_errors
from sidecar.policies.lint import crowded, unreached
from sidecar.policies.lint import lint as lint_policy
from sidecar.policies.overlaps import (
    Alone,
    misread,
    overlaps,
    probes,
    requests_of,
    suspects,
    without,
)
from sidecar.policies.prices import MAX_AGE_DAYS, today

_TIMEOUT_S = 60.0
_TRIES = 20
_AGAIN_S = 0.5

_address = click.option(
    "--at",
    "--address",
    "address",
    envvar="SIDECAR_ADDRESS",
    show_envvar=True,
    default=ServerSettings().grpc_address,
    show_default=True,
    metavar="HOST:PORT",
    help="The running sidecar to ask: host:port or unix:path.",
)
_paths = click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="PATH...",
    type=PolicyPath(),
)


class Trial:
    """Routes requests under policies that the sidecar does not have."""

    def __init__(self, address: str, tls: Tls | None = None) -> None:
        if not is_sidecar(address):
            raise Failure(
                f"{address} is not the address of a running sidecar (host:port or unix:path), "
                "which it takes to ask a routing model"
            )
        self._place = SidecarPlace(address, _TIMEOUT_S, tls)
        try:
            models = self._place.catalog().models
        except BaseException:
            self._place.close()
            raise
        if not models:
            self._place.close()
            raise Failure(f"the sidecar at {address} has no model catalog; apply one first")
        # Which models a route has does not matter to the routing model, and the sidecar may not
        # know those of the file. One for each set of capabilities, that with the most room: without
        # any that can take a conversation there would be no route.
        able = {each.capabilities: each.id for each in sorted(models.values(), key=_room)}
        self._models = ModelList(tuple(map(WeightedModel, able.values())))
        self.catalog = models
        self._client = SidecarClient(address, _TIMEOUT_S, tls)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.__exit__(None, None, None)
        self._place.close()

    def budget(self, policy: Policy) -> list[Finding]:
        """What of the routing model's prompt the policy takes: an error where it does not fit."""
        told = self._place.validated(self._tried(policy))
        errors = [
            error(each.field, each.message)
            for each in told.findings
            if each.severity == policy_pb2.SEVERITY_ERROR
        ]
        return errors or list(crowded(told.prefix_tokens, told.max_prompt_tokens))

    def decide(self, policy: Policy, conversation: Conversation) -> Decision:
        """The decision; asked again while the sidecar answers by fallback. Raises Failure."""
        request = RoutingRequest(conversation, policy=self._tried(policy))
        for attempt in range(_TRIES):
            try:
                decision = decision_to_core(self._client.route(request))
            except Unreached as failure:
                # An outage is no example that has failed: its exit status is another.
                raise PlaceFailure(None, failure.message) from None
            if _settled(decision) or attempt == _TRIES - 1:
                return decision
            # The first time the routing model reads the policy, it may be late.
            time.sleep(_AGAIN_S)
        raise AssertionError("returned in the last round")

    def _tried(self, policy: Policy) -> Policy:
        routes = tuple(replace(route, models=self._models) for route in policy.routes)
        # Each request by itself: what was asked before must not keep its route.
        return replace(policy, routes=routes, default=self._models, pin=PinMode.OFF)

    def policy(self, name: str) -> Policy:
        """The sidecar's own of that resource name. Raises PlaceFailure."""
        return present(self._place.get(name))

    def answer(self, policy: Policy, conversation: Conversation) -> Decision:
        """As `decide`, and by the routing model. Raises Failure."""
        decision = self.decide(policy, conversation)
        if not _settled(decision):
            raise Failure(
                f"the routing model of the sidecar does not answer ({decision.reason.value}: "
                f"{decision.detail}); nothing can be said about {policy.name} until it "
                "does: the logs of the sidecar and its model server say why"
            )
        return decision

    def results(self, policy: Policy) -> list[ExampleResult]:
        """Every example of the policy, routed."""
        return [
            result_of(example, self.decide(policy, example.conversation))
            for example in examples_of(policy)
        ]


def _room(model: Model) -> float:
    return math.inf if model.context_window is None else model.context_window


def _settled(decision: Decision) -> bool:
    """True if asking again would not change it."""
    return heard(decision) or decision.reason is Reason.NOTHING_TO_ROUTE


def _policies(
    paths: Sequence[Path], known: Catalog | None = None, output: str = "text"
) -> PolicySet:
    """Raises Failure.

    Args:
        known: the catalog of files that have none.
        output: how programs are told what is wrong.
    """
    found = load_policies(paths, known)
    if not found.valid:
        if output == "text":
            print_findings(found, Console(stderr=True))
        else:
            emit(findings_as_plain(found.findings), output)
        raise Failure("the files have errors; nothing was tried")
    if not found.records:
        raise Failure("the files hold no policy")
    return found


@click.command()
@_paths
@click.option(
    "--conversations",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Instead of the examples: route the conversations of this file (as `sidecar route --file` "
    "takes them) under the policy and under the one to compare with.",
)
@click.option(
    "--against",
    metavar="NAME-OR-FILE",
    help="With --conversations: the policy to compare with, the sidecar's own of that name or the "
    "one in a file; without it the sidecar's own of the same name.",
)
@_address
@tls_options
@output_option
def test(
    paths: tuple[Path, ...],
    conversations: Path | None,
    against: str | None,
    address: str,
    output: str,
) -> None:
    """Route every example of the policies in files, as unit tests of their routes.

    Says which route takes each and how sure the routing model is. Exit status: 0 if each goes to
    the route that has it, 1 if not, 5 if the sidecar cannot be reached.

    With --conversations, the one policy in the files is compared with another: which conversations
    would get another route or model. Exit status: 0.
    """
    if against == "":
        raise click.UsageError("--against is empty; name a policy or a file")
    if conversations is not None:
        _compare(paths, conversations, against, address, output)
        return
    if against is not None:
        raise click.UsageError("--against needs --conversations")
    results: list[tuple[Policy, ExampleResult]] = []
    with Trial(address, given_tls()) as trial:
        for policy in _policies(paths, trial.catalog).policies:
            results += [(policy, result) for result in trial.results(policy)]
    if output == "text":
        _print_results(results)
    else:
        emit(
            [
                {
                    "policy": policy.resource_name,
                    "path": result.example.path,
                    "example": result.example.text,
                    "expected": result.example.route,
                    "route": result.route,
                    "confidence": result.confidence,
                    "reason": result.reason,
                    "passed": result.passed,
                }
                for policy, result in results
            ],
            output,
        )
    if not results:
        raise Failure("there are no examples; give the routes some under `examples:`")
    sys.exit(0 if all(result.passed for _, result in results) else 1)


def _compare(
    paths: tuple[Path, ...], conversations: Path, against: str | None, address: str, output: str
) -> None:
    """Raises Failure."""
    cases = [case.conversation for case in read_case_file(conversations)]
    with Trial(address, given_tls()) as trial:
        after = _side(paths, trial, "")
        before = _other(against or after.policy.resource_name, trial, after.policy.resource_name)
        rows = [_compared(n, case, before, after, trial) for n, case in enumerate(cases, 1)]
    names = against or f"{before.policy.resource_name} of {address}", ", ".join(map(str, paths))
    if output == "text":
        print_compared(*names, rows)
    else:
        emit(compared_as_plain(*names, rows), output)


def _compared(
    number: int, conversation: Conversation, before: Side, after: Side, trial: Trial
) -> Compared:
    """Raises Failure."""
    sides = (_outcome(side, conversation, trial) for side in (before, after))
    try:
        return Compared(number, conversation, *sides)
    except PlaceFailure as failure:
        raise PlaceFailure(failure.code, f"conversation {number}: {failure}") from None
    except Failure as failure:
        raise Failure(f"conversation {number}: {failure}") from None


def _outcome(side: Side, conversation: Conversation, trial: Trial) -> Outcome:
    asked = _deciding(side.policy, conversation)
    return outcome_of(side, conversation, trial.answer(side.policy, asked))


def _deciding(policy: Policy, conversation: Conversation) -> Conversation:
    """What is decided by in service: where a task keeps its route, not by what the answering model
    writes between its tool calls."""
    messages = conversation.messages
    said = [each.role is Role.USER and bool(each.text or each.images) for each in messages]
    turns = [number for number, by_user in enumerate(said, 1) if by_user]
    if policy.pin is PinMode.OFF or not turns:
        return conversation
    return Conversation(messages[: turns[-1]])


def _other(against: str, trial: Trial, name: str) -> Side:
    """What to compare with; `name`: of the policy to be taken from a file with several."""
    if is_path("--against", against):
        return _side((Path(against),), trial, name)
    return Side(trial.policy(resource_name(against)), trial.catalog)


def _side(paths: Sequence[Path], trial: Trial, name: str) -> Side:
    """The only policy in the files, or the one of that resource name. Raises Failure."""
    found = _policies(paths, trial.catalog)
    record = found.records.get(name)
    if record is not None:
        return Side(record.policy, found.catalog)
    if len(found.policies) != 1:
        files = ", ".join(map(str, paths))
        raise Failure(
            f"{files}: {len(found.policies)} policies ({', '.join(found.records)}); conversations "
            "are compared under one, so name a file with that alone, and the catalog's if need be"
        )
    return Side(found.policies[0], found.catalog)


def _print_results(results: Sequence[tuple[Policy, ExampleResult]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "POLICY", "ROUTE", "TAKEN BY", "SURE", "EXAMPLE"):
        table.add_column(heading, overflow="fold")
    for policy, result in results:
        taken = result.route or ("the default" if result.decided else "undecided")
        sure = "" if result.confidence is None else f"{result.confidence:.2f}"
        table.add_row(
            Text("ok" if result.passed else "FAILED", "green" if result.passed else "bold red"),
            plain(policy.name),
            plain(result.example.route),
            plain(f"{taken} ({result.reason})" if not result.passed else taken),
            sure,
            plain(result.example.text.replace("\n", " ")[:60]),
        )
    Console().print(table)
    passed = sum(result.passed for _, result in results)
    click.echo(f"{passed} of {len(results)} examples go to their route")


@click.command()
@_paths
@click.option(
    "--by-model",
    is_flag=True,
    help="Also ask the routing model of a running sidecar: which routes take each other's "
    "descriptions, and which ones no example reaches.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings, too.")
@click.option(
    "--max-price-age",
    metavar="DAYS",
    type=click.IntRange(min=1),
    default=MAX_AGE_DAYS,
    show_default=True,
    help="Older prices of models are doubtful.",
)
@_address
@tls_options
@output_option
def lint(
    paths: tuple[Path, ...],
    by_model: bool,
    strict: bool,
    max_price_age: int,
    address: str,
    output: str,
) -> None:
    """Point out what is doubtful about the policies in files.

    Exit status: 0 without errors, 1 with errors, or with warnings where --strict is given.
    """
    with ExitStack() as stack:
        trial = stack.enter_context(Trial(address, given_tls())) if by_model else None
        found = _policies(paths, trial.catalog if trial is not None else None, output)
        findings = list(found.findings)
        for name, record in found.records.items():
            more = list(lint_policy(record.policy, found.catalog, today(), max_price_age))
            if trial is not None:
                budget = trial.budget(record.policy)
                more += budget
                # What is too large is asked nothing, and does not keep the others from being.
                more += [] if has_errors(budget) else ask_model(record.policy, trial)
            findings += found.placed(name, more)
    findings.sort(key=lambda finding: finding.severity is not Severity.ERROR)
    if output == "text":
        console = Console()
        for finding in findings:
            console.print(finding_text(finding), highlight=False, soft_wrap=True)
        click.echo(f"{len(findings)} finding{'' if len(findings) == 1 else 's'}")
    else:
        emit(findings_as_plain(findings), output)
    errors = any(finding.severity is Severity.ERROR for finding in findings)
    sys.exit(1 if errors or (strict and findings) else 0)


def ask_model(policy: Policy, trial: Trial) -> list[Finding]:
    """What the routing model makes of the policy's descriptions and examples. Raises Failure."""
    whole = {each.index: trial.answer(policy, each.conversation) for each in probes(policy)}
    pairs = suspects(policy, whole)
    # One after the other: each is a policy of its own for the model server.
    alone = {
        index: _asked_without(policy, index, trial)
        for index in sorted({index for pair in pairs for index in pair})
    }
    return [
        *overlaps(policy, pairs, alone),
        *misread(policy, whole),
        *unreached(policy, trial.results(policy)),
    ]


def _asked_without(policy: Policy, index: int, trial: Trial) -> Alone:
    """Raises Failure."""
    rest, requests = without(policy, index), requests_of(policy.routes[index])

    def asked(conversations: Sequence[Conversation]) -> list[Decision]:
        return [trial.answer(rest, each) for each in conversations]

    return Alone(asked(requests.described), asked(requests.examples))
