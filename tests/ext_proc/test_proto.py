"""Our copies of Envoy's messages are the same on the wire."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar._generated.envoy.config.core.v3 import base_pb2
from sidecar._generated.envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2
from sidecar._generated.envoy.type.v3 import http_status_pb2
from tests.ext_proc.record_envoy_messages import described

# From xds-protos 1.85.0; recorded because that package cannot be installed beside the sidecar.
ENVOYS: dict[str, Any] = json.loads(
    (Path(__file__).with_name("fixtures") / "envoy_messages.json").read_text()
)
OURS: dict[str, Any] = {
    name: members
    for module in (base_pb2, processing_mode_pb2, http_status_pb2, external_processor_pb2)
    for name, members in described(module.DESCRIPTOR).items()
}


@pytest.mark.parametrize("name", OURS)
def test_message_is_the_same_on_the_wire(name: str) -> None:
    envoys = ENVOYS[name]

    for member, ours in OURS[name].items():
        assert ours == envoys[member], f"{name}.{member}"


def test_every_kind_of_part_and_answer_is_known() -> None:
    """One that our copy lacks would arrive as a message with nothing set."""
    for name in ("ProcessingRequest", "ProcessingResponse"):
        full = f"envoy.service.ext_proc.v3.{name}"
        kinds = {member for member, field in ENVOYS[full].items() if field["oneof"]}

        assert kinds <= OURS[full].keys()


def test_method_has_the_path_that_envoy_calls() -> None:
    service = external_processor_pb2.DESCRIPTOR.services_by_name["ExternalProcessor"]

    assert service.full_name == "envoy.service.ext_proc.v3.ExternalProcessor"
    assert list(service.methods_by_name) == ["Process"]
