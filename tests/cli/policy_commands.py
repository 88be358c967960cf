"""`sidecar policy` as tests run it, and the files that they give it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from sidecar.cli import cli
from sidecar.core.policy import Policy
from sidecar.policies.documents import policy_document, yaml_text
from tests.grpc_api.stored import Stored
from tests.policies.stores.parts import name_of, policy

SUPPORT = name_of("support")


def sidecar(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["policy", *map(str, arguments)])


def done(*arguments: object) -> str:
    result = sidecar(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def plain(*arguments: object) -> Any:
    return json.loads(done(*arguments, "--output", "json"))


def edited(content: Policy) -> str:
    return yaml_text(policy_document(content))


def edit(folder: Path, description: str = "second", **more: Any) -> Path:
    file = folder / "default-support.yaml"
    file.write_text(edited(policy(description=description, **more)))
    return file


def only_fast() -> dict[str, object]:
    return {
        "apiVersion": "llmrouter.v1",
        "kind": "Policy",
        "name": "support",
        "default": {"models": ["acme/fast"]},
    }


async def beside(api: Stored, *arguments: object) -> Result:
    """Runs a command while the sidecar of this event loop answers it."""
    address = f"127.0.0.1:{api.server.port}"
    return await asyncio.to_thread(sidecar, *arguments, "--at", address)


BILLING = """\
apiVersion: llmrouter.v1
kind: Policy
name: trial
default: {models: [acme/fast]}
routes:
  - name: billing
    description: Invoices and payments, and everything about being charged for something.
    models: [acme/fast]
    examples: [Where is my invoice?]
  - name: refunds
    description: Invoices and payments, and everything about being charged for it.
    models: [acme/fast]
    examples: [I want my money back]
"""
