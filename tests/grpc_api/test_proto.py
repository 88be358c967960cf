"""The .proto files, the code made of them and the released API agree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from sidecar.local import LocalError, tool

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
GENERATED = ROOT / "sidecar" / "_generated"
RELEASED = PROTO / "released" / "llmrouter.v1.binpb"
DOCUMENTED = re.compile(r"^- `RoutingService`.*?(?=^- `grpc)", re.MULTILINE | re.DOTALL)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_committed_code_is_what_the_protos_generate(tmp_path: Path) -> None:
    out = tmp_path / "generated"
    subprocess.run([sys.executable, PROTO / "generate.py", "--out", out], check=True)

    fresh, committed = files(out), files(GENERATED)

    assert fresh.keys() == committed.keys()
    changed = [name for name in fresh if fresh[name] != committed[name]]
    assert not changed, "run `make proto`"


@pytest.mark.parametrize("path", [RELEASED, GENERATED / "llmrouter.v1.binpb"], ids=lambda p: p.name)
def test_descriptor_set_is_complete_and_documented(path: Path) -> None:
    described = FileDescriptorSet.FromString(path.read_bytes())
    names = {file.name for file in described.file}

    for file in described.file:
        assert set(file.dependency) <= names
    routing = next(file for file in described.file if file.name.endswith("v1/routing.proto"))
    assert any(
        "Makes routing decisions" in at.leading_comments for at in routing.source_code_info.location
    )


def test_every_documented_method_is_released() -> None:
    """What is not released may be renumbered without `buf breaking` noticing it."""
    released = FileDescriptorSet.FromString(RELEASED.read_bytes())
    methods = {
        method.name for file in released.file for each in file.service for method in each.method
    }
    listed = DOCUMENTED.search((ROOT / "docs" / "api.md").read_text())
    assert listed, "docs/api.md lists the services' methods"
    documented = set(re.findall(r"`([A-Z]\w+)`", listed[0])) - {"RoutingService", "PolicyService"}

    missing = documented - methods
    assert documented
    assert not missing, "run `python proto/generate.py --release`"


@pytest.fixture(scope="session")
def buf() -> Path:
    try:
        return tool("buf")
    except LocalError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "arguments",
    [
        ["lint"],
        ["format", "--diff", "--exit-code", "--exclude-path", "google"],
        ["breaking", "--against", str(RELEASED)],
    ],
    ids=["lint", "format", "breaking"],
)
def test_buf_is_satisfied(buf: Path, arguments: list[str], tmp_path: Path) -> None:
    ran = subprocess.run(
        [buf, *arguments],
        cwd=PROTO,
        capture_output=True,
        text=True,
        # Its cache belongs neither into the home folder nor into the repository.
        env={"HOME": str(tmp_path), "BUF_CACHE_DIR": str(tmp_path)},
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_change_that_breaks_callers_is_noticed(buf: Path, tmp_path: Path) -> None:
    """The comparison with the released API would otherwise pass by comparing nothing."""
    for path in PROTO.rglob("*.proto"):
        copy = tmp_path / path.relative_to(PROTO)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(
            path.read_text().replace("string decision_id = 1;", "int64 decision_id = 1;")
        )
    (tmp_path / "buf.yaml").write_text((PROTO / "buf.yaml").read_text())

    ran = subprocess.run(
        [buf, "breaking", "--against", RELEASED],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "BUF_CACHE_DIR": str(tmp_path)},
        check=False,
    )

    assert ran.returncode != 0
    assert "decision_id" in ran.stdout
