"""`sidecar demo`: the whole product in one command, with conversations that come along."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from sidecar.cli.client import SidecarClient
from sidecar.cli.common_options import model_option
from sidecar.cli.conversations import Case, read_case_file
from sidecar.cli.decision_view import Row, table
from sidecar.cli.demo_gateway import print_reached, send_all, stub_providers
from sidecar.cli.gateway import GatewayWish
from sidecar.cli.stack import LocalStack, running
from sidecar.cli.steps import Steps
from sidecar.cli.up import EXAMPLES, check_policies, chosen_engine, with_policies
from sidecar.config import Settings, load_settings
from sidecar.core.decision import Decision, PolicyName, Reason, RoutingRequest, Source
from sidecar.engines import EngineInfo
from sidecar.grpc_api.convert.decisions import decision_to_core
from sidecar.local import free_ports

_TIMEOUT_S = 30.0
_WARM_S = 60.0
_LOOK_S = 0.1
_BUDGET_MS = 10_000


@click.command()
@click.option(
    "--conversations",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=EXAMPLES / "demo" / "conversations.jsonl",
    help="JSON Lines with `messages`, `policy` and `expected`; by default those that come along.",
)
@model_option
def demo(conversations: Path, model: Path | None) -> None:
    """Start Triton, the sidecar and Envoy, route example conversations over gRPC and as plain HTTP,
    stop.

    Nothing is sent to any of the models that are chosen.
    """
    cases = read_case_file(conversations)
    settings = _settings()
    check_policies(settings)
    steps = Steps()
    engine = chosen_engine(model, settings, steps)
    with stub_providers() as providers:
        wish = GatewayWish(free_ports(1)[0], providers=providers)
        stack = LocalStack(engine, settings, quiet=True, steps=steps, gateway=wish)
        with running(stack):
            with steps.step(f"Routing {len(cases)} conversations over gRPC"):
                rows = _route(stack, cases)
            with steps.step("Sending them as plain HTTP through Envoy"):
                reached = send_all(wish.url, cases)
            stack.check()
            _print(rows, engine)
            print_reached(reached, Console())


def _settings() -> Settings:
    """Of its own: neither the environment's nor the ports of a sidecar that runs already."""
    flags: dict[str, dict[str, object]] = {
        "server": {"grpc_address": f"127.0.0.1:{free_ports(1)[0]}", "http_address": ""},
        # So that a slow or busy computer shows decisions and their times, not fallbacks.
        "routing": {"decision_budget_ms": _BUDGET_MS},
        "ext_proc": {"message_timeout_ms": _BUDGET_MS + 1000},
    }
    return with_policies(load_settings(flags=flags, environ={}), ())


def _route(stack: LocalStack, cases: list[Case]) -> list[Row]:
    rows = []
    with SidecarClient(stack.address, _TIMEOUT_S) as client:
        for case in cases:
            request = RoutingRequest(case.conversation, policy=PolicyName(case.policy))
            decision = _decided(client, request)
            rows.append(Row(case.conversation, decision, case.expected))
    return rows


def _decided(client: SidecarClient, request: RoutingRequest) -> Decision:
    """The decision once the policy is warm: right after the start its routes may still be read."""
    end = time.monotonic() + _WARM_S
    while True:
        decision = decision_to_core(client.route(request))
        if decision.reason is not Reason.WARMING or time.monotonic() > end:
            return decision
        time.sleep(_LOOK_S)


def _print(rows: list[Row], engine: EngineInfo) -> None:
    console = Console()
    console.print()
    console.print(table(rows, console))
    judged = [row for row in rows if row.right is not None]
    right = sum(row.right is True for row in judged)
    # That no route fits is the model's decision, too.
    by_model = sum(
        row.decision.source is Source.MODEL or row.decision.reason is Reason.NO_MATCH
        for row in rows
    )
    console.print(
        f"\n{right} of {len(judged)} as a person would route them; {by_model} of {len(rows)} "
        "decided by the routing model. The models that were chosen have not been called.",
        highlight=False,
    )
    if not engine.router.trained:
        console.print(Text(_UNTRAINED.format(model=engine.router.model_id), style="yellow"))


_UNTRAINED = (
    "\nNote: {model} is a general chat model that has not been trained to route, so most of its "
    "routes are wrong. The path is the real one; install a trained router to get good routes "
    "(sidecar model build --source …)."
)
