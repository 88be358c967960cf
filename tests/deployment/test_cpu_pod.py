"""The overlay `cpu`: its pod's commands, run for real where only its volumes can be written."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.cli.model import default_model
from sidecar.local import TritonServer, cache_dir, free_ports
from tests.cli.test_commands import sidecar
from tests.deployment.test_kubernetes import ROOT, deployment, needs_kubectl

# Mounts are made that end with the process, as a container's do.
POD = """
set -eu
for writable in /tmp {volume}; do mount --bind $writable $writable; done
for fixed in {image} {root}; do mount --bind $fixed $fixed; mount -o remount,bind,ro $fixed; done
mount -o remount,bind,ro /
! touch {image}/written
! touch {root}/written
{prepare}
exec {main}
"""
may_mount = subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0

pytestmark = [
    needs_kubectl,
    pytest.mark.skipif(not may_mount, reason="mounting takes root"),
]


@pytest.fixture
def volume() -> Iterator[Path]:
    """With a path as short as /cache, beside whose folders there is room for sockets."""
    with tempfile.TemporaryDirectory(prefix="pod-") as folder:
        yield Path(folder)


def test_decides_by_the_model_with_a_root_that_cannot_be_written(volume: Path) -> None:
    # What the image has in /opt/cache.
    default_model(lambda line: None)
    TritonServer(Path("/")).prepare()
    pod = deployment("cpu", "llm-router")
    [prepare], [container] = pod["initContainers"], pod["containers"]
    image = cache_dir()
    [script] = prepare["args"]
    grpc, http = (f"127.0.0.1:{port}" for port in free_ports(2))
    environment = {each["name"]: each["value"] for each in container["env"]} | {
        "LLM_ROUTING_SIDECAR_CACHE": str(volume),
        "SIDECAR_POLICIES__PATHS": str(ROOT / "examples" / "policies"),
        "SIDECAR_SERVER__GRPC_ADDRESS": grpc,
        "SIDECAR_SERVER__HTTP_ADDRESS": http,
        # Other tests compute beside this one.
        "SIDECAR_ROUTING__DECISION_BUDGET_MS": "60000",
    }
    commands = POD.format(
        volume=shlex.quote(str(volume)),
        image=shlex.quote(str(image)),
        root=shlex.quote(str(ROOT)),
        prepare=script.replace("/opt/cache/", f"{image}/").replace(" /cache/", f" {volume}/"),
        main=shlex.join([sys.executable, "-m", "sidecar.cli", *container["args"]]),
    )
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", commands],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None
        output = ""
        while "Ready." not in output:
            line = process.stdout.readline()
            assert line, output
            output += line
        assert output.count("Read-only file system") == 2
        asked = "Write a polite email to my landlord about the broken heating."
        answer = sidecar("route", asked, "--address", grpc, "--output", "json", "--timeout", "60")
        assert json.loads(answer.stdout)["source"] == "DECISION_SOURCE_MODEL", answer.stdout
        path = container["readinessProbe"]["httpGet"]["path"]
        assert urllib.request.urlopen(f"http://{http}{path}", timeout=60).status == 200
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=pod["terminationGracePeriodSeconds"])
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, rest
    assert list((volume / "run").iterdir()) == []
