"""Writes fixtures/envoy_messages.json: the messages of Envoy's own ext_proc protocol.

Run it where `xds-protos` is installed and the sidecar is not, since xds-protos overwrites files of
googleapis-common-protos:

    python -m venv /tmp/xds && /tmp/xds/bin/pip install xds-protos==1.85.0
    /tmp/xds/bin/python tests/ext_proc/record_envoy_messages.py
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

MODULES = (
    "envoy.service.ext_proc.v3.external_processor_pb2",
    "envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2",
    "envoy.config.core.v3.base_pb2",
    "envoy.type.v3.http_status_pb2",
)
OUT = Path(__file__).with_name("fixtures") / "envoy_messages.json"


def described(file: Any) -> dict[str, Any]:
    """Full name -> what matters on the wire, for all messages, enums and services of a file."""
    found: dict[str, Any] = {}
    for message in file.message_types_by_name.values():
        _describe(message, found)
    for enum in file.enum_types_by_name.values():
        found[enum.full_name] = {value.name: value.number for value in enum.values}
    for service in file.services_by_name.values():
        found[service.full_name] = {
            method.name: [method.input_type.full_name, method.output_type.full_name]
            for method in service.methods
        }
    return found


def _describe(message: Any, found: dict[str, Any]) -> None:
    found[message.full_name] = {field.name: _field(field) for field in message.fields}
    for nested in message.nested_types:
        _describe(nested, found)
    for enum in message.enum_types:
        found[enum.full_name] = {value.name: value.number for value in enum.values}


def _field(field: Any) -> dict[str, Any]:
    named = field.message_type or field.enum_type
    return {
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "of": named.full_name if named else "",
        "oneof": field.containing_oneof.name if field.containing_oneof else "",
    }


def main() -> None:
    found: dict[str, Any] = {}
    for name in MODULES:
        found |= described(importlib.import_module(name).DESCRIPTOR)
    wanted = {name: found[name] for name in sorted(found) if _used(name)}
    OUT.write_text(json.dumps(wanted, indent=1) + "\n")


def _used(name: str) -> bool:
    """base.proto has many more messages, of which the filter uses none."""
    kept = ("HeaderValue", "HeaderMap", "Metadata")
    package, _, rest = name.partition(".v3.")
    return package != "envoy.config.core" or rest.startswith(kept)


if __name__ == "__main__":
    main()
