"""Imports point one way, and generated code stays at the gRPC edges."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sidecar"

CORE = {"core"}
INNER = CORE | {"prompts", "policies", "inference"}
ALLOWED = {
    "core": CORE,
    "prompts": CORE | {"prompts"},
    "policies": CORE | {"policies"},
    "inference": CORE | {"inference"},
    "routing": INNER | {"routing"},
    # Beside the rest: they build and run what the sidecar talks to.
    "engines": {"engines"},
    "local": {"local"},
    "capacity": {"capacity"},
    # Edges: each adapts the core alone; what brings them together is the composition root.
    "observability": CORE | {"observability"},
    "admin": CORE | {"observability", "admin"},
    "grpc_api": CORE | {"policies", "grpc_api", "_generated"},
    "evaluation": CORE | {"policies", "engines", "evaluation"},
    "ext_proc": CORE | {"ext_proc", "_generated"},
    "config": {
        "policies",
        "config_ext_proc",
        "config_fields",
        "config_policy_store",
        "config_sections",
    },
    "config_sections": {"policies", "config_fields"},
    "config_policy_store": {"policies", "config_fields"},
    "config_ext_proc": CORE | {"policies", "config_fields"},
    "config_fields": {"policies"},
}
GENERATED_FOR = {"grpc_api", "ext_proc", "cli", "bench"}


def imports(path: Path) -> Iterator[str]:
    """Parts of the sidecar that the module imports: `core`, `routing`, …"""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "sidecar" and rest:
                yield rest.split(".")[0]


def modules() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if "_generated" not in p.parts]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_module_imports_only_what_stands_before_it(path: Path) -> None:
    part = part_of(path)
    imported = set(imports(path)) - {"__version__"}
    if part not in GENERATED_FOR:
        assert "_generated" not in imported
    if part in ALLOWED:
        assert imported <= ALLOWED[part], f"{part} must not import {imported - ALLOWED[part]}"
