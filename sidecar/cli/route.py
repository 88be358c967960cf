"""`sidecar route`: one question to a running sidecar."""

from __future__ import annotations

from pathlib import Path

import click
from google.protobuf.json_format import MessageToDict

from sidecar._generated.llmrouter.v1 import decision_pb2
from sidecar.cli.client import SidecarClient
from sidecar.cli.conversations import Case, checked_text, read_case_file
from sidecar.cli.decision_view import print_decision
from sidecar.cli.failures import Failure
from sidecar.cli.tls_options import given_tls, tls_options
from sidecar.config import ServerSettings
from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import PolicyName, RoutingRequest
from sidecar.core.errors import SidecarError
from sidecar.grpc_api.convert.decisions import decision_to_core
from sidecar.grpc_api.convert.resource_names import policy_name
from sidecar.policies.documents import json_text

_LONGEST_S = 86_400


def _timeout(_context: click.Context, _option: click.Parameter, value: float) -> float:
    # Written so that it is false for nan, which click's ranges let through.
    if not 0 < value <= _LONGEST_S:
        raise click.BadParameter(
            f"must be more than 0 and at most {_LONGEST_S} seconds, not {value:g}"
        )
    return value


@click.command()
@click.argument("text", required=False)
@click.option(
    "--file",
    "-f",
    "file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Conversations as JSON (OpenAI's `messages`) or JSON Lines; `-` is standard input.",
)
@click.option(
    "--address",
    envvar="SIDECAR_ADDRESS",
    show_envvar=True,
    default=ServerSettings().grpc_address,
    show_default=True,
    help="gRPC address of the sidecar: host:port or unix:path.",
)
@tls_options
@click.option("--policy", default="", help="Policy to use; without it the sidecar's default.")
@click.option("--explain", is_flag=True, help="Also show what the routing model saw and weighed.")
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="`json`: the API's decision message, one a line.",
)
@click.option(
    "--timeout",
    default=10.0,
    show_default=True,
    callback=_timeout,
    help="Seconds to wait for an answer.",
)
def route(
    text: str | None,
    file: Path | None,
    address: str,
    policy: str,
    explain: bool,
    output: str,
    timeout: float,
) -> None:
    """Ask a running sidecar which model should answer TEXT.

    Exit status: 0 with an answer (also a fallback), 1 without, 2 for wrong usage.
    """
    cases = _cases(text, file)
    with SidecarClient(address, timeout, given_tls()) as client:
        for number, case in enumerate(cases):
            decision = client.route(
                RoutingRequest(
                    case.conversation,
                    policy=_policy_name(policy or case.policy),
                    explain=explain,
                )
            )
            _print(decision, output, first=number == 0)


def _cases(text: str | None, file: Path | None) -> list[Case]:
    if (text is None) == (file is None):
        raise click.UsageError("give a text or --file, not both and not neither")
    if text is not None:
        if not text.strip():
            raise click.UsageError("the text is empty")
        return [Case(Conversation((Message(Role.USER, checked_text(text, "the text")),)))]
    assert file is not None
    return read_case_file(file)


def _policy_name(value: str) -> PolicyName:
    try:
        return policy_name(value, "policy", bare=True)
    except SidecarError as error:
        raise Failure(error.message) from None


def _print(decision: decision_pb2.Decision, output: str, first: bool) -> None:
    if output == "json":
        message = MessageToDict(decision, preserving_proto_field_name=True)
        click.echo(json_text(message))
        return
    if not first:
        click.echo()
    print_decision(decision_to_core(decision))
