"""`sidecar up` and `sidecar demo` with a real Triton, started and stopped as a user does."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.engines import EngineInfo
from sidecar.local import cache_dir, free_ports
from tests.cli.test_commands import sidecar

pytestmark = pytest.mark.timeout(240)

POLICY = """
apiVersion: llmrouter.v1
kind: ModelCatalog
models:
  - {id: a/large, upstream_model: large, dialects: [openai-chat]}
  - {id: a/small, upstream_model: small, dialects: [openai-chat]}
---
apiVersion: llmrouter.v1
kind: Policy
name: default
default: {models: [a/small]}
routes:
  - {name: code, description: Writing and fixing programs., models: [a/large]}
  - {name: weather, description: Weather and forecasts., models: [a/small]}
"""
# A shell script that starts the tests in the background has them ignore Ctrl-C, and all they start.
UP = """
import signal
from sidecar.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
CONVERSATION = json.dumps([{"role": "user", "content": "Fix this Python function, please."}])


class Up:
    """A running `sidecar up`."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        self.address = address
        self.lines: list[str] = []

    def read_until(self, text: str) -> None:
        """Read its output up to the line with `text`; bounded by the time limit of the test."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError(f"ended without {text!r}:\n{''.join(self.lines)}")

    def rest(self) -> str:
        output, _ = self.process.communicate()
        return output

    def children(self) -> dict[str, int]:
        """Pids of what it started, by a word of the command line."""
        found = {}
        for name, word in {"Triton": "tritonserver", "the sidecar": "sidecar.cli"}.items():
            for path in Path("/proc").glob("[0-9]*/stat"):
                if _parent(path) != self.process.pid:
                    continue
                if word in (path.parent / "cmdline").read_text(errors="replace"):
                    found[name] = int(path.parent.name)
        return found


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _leftovers(pid: int) -> list[Path]:
    shared = Path("/dev/shm").glob(f"llm_routing_sidecar_{pid}_*")
    return [*shared, *(cache_dir() / "run").glob(f"*-{pid}-*")]


@contextmanager
def _started(policies: Path, address: str) -> Iterator[Up]:
    environment = os.environ | {
        "SIDECAR_SERVER__GRPC_ADDRESS": address,
        "SIDECAR_SERVER__HTTP_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", UP, "up", "--policies", str(policies)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        yield Up(process, address)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "policies.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def up(policies: Path) -> Iterator[Up]:
    with _started(policies, f"127.0.0.1:{free_ports(1)[0]}") as running:
        running.read_until("Ready.")
        yield running


def test_up_answers_and_ends_well_when_asked_to(up: Up, tmp_path: Path) -> None:
    _check_answers(up, tmp_path)
    children = up.children()
    up.process.send_signal(signal.SIGTERM)
    assert "stopped" in up.rest()
    assert up.process.returncode == 0
    assert set(children) == {"Triton", "the sidecar"}
    assert not any(Path("/proc", str(pid)).exists() for pid in children.values())
    assert _leftovers(up.process.pid) == []


def _check_answers(up: Up, tmp_path: Path) -> None:
    text = sidecar("route", "Fix this Python function, please.", "--address", up.address)
    assert text.returncode == 0
    assert re.search(r"^source +model, matched", text.stdout, re.MULTILINE)

    arguments = ["route", "--file", "-", "--explain", "--output", "json", "--address", up.address]
    answer = json.loads(sidecar(*arguments, stdin=CONVERSATION).stdout)
    assert answer["source"] == "DECISION_SOURCE_MODEL"
    assert answer["route"] in {"code", "weather"}
    assert "Fix this Python function" in answer["explanation"]["prompt"]

    several = tmp_path / "several.jsonl"
    several.write_text(f"{CONVERSATION}\n{CONVERSATION}\n")
    arguments = ["route", "--file", str(several), "--output", "json", "--address", up.address]
    assert len(sidecar(*arguments).stdout.splitlines()) == 2

    unknown = sidecar("route", "hello", "--policy", "unknown", "--address", up.address)
    assert unknown.returncode == 1
    assert "there is no policy namespaces/default/policies/unknown" in unknown.stderr


@pytest.mark.parametrize("part", ["Triton", "the sidecar"])
def test_up_says_which_part_has_died_and_stops_the_other(up: Up, part: str) -> None:
    children = up.children()
    os.kill(children[part], signal.SIGKILL)
    assert f"Error: {part} has died (signal SIGKILL)" in up.rest()
    assert up.process.returncode == 1
    assert not any(Path("/proc", str(pid)).exists() for pid in children.values())
    assert _leftovers(up.process.pid) == []


def test_up_can_be_interrupted_while_it_starts(policies: Path) -> None:
    with _started(policies, f"127.0.0.1:{free_ports(1)[0]}") as running:
        running.read_until("Preparing Triton")
        _wait_for(lambda: "Triton" in running.children())
        triton = running.children()["Triton"]
        running.process.send_signal(signal.SIGINT)
        assert "Traceback" not in running.rest()
        assert running.process.returncode == 130
        assert not Path("/proc", str(triton)).exists()
        assert _leftovers(running.process.pid) == []


def test_up_says_that_its_address_is_taken(policies: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with _started(policies, address) as running:
            output = running.rest()
    assert f"cannot listen on {address}: another process listens there" in output
    assert "Error: the sidecar has died (exit status 1)" in output
    assert "Traceback" not in output
    assert running.process.returncode == 1
    assert _leftovers(running.process.pid) == []


def test_the_demo_prints_a_decision_by_the_model_for_every_conversation(
    cpu_engine: EngineInfo,
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sidecar.cli", "demo"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"\d+ of 12 as a person would route them; 12 of 12 decided", result.stdout)
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    assert "\x1b" not in result.stdout + result.stderr
    note = "has not been trained to route" in " ".join(result.stdout.split())
    assert note is not cpu_engine.router.trained


def _wait_for(condition: Callable[[], bool]) -> None:
    while not condition():  # bounded by the time limit of the test
        time.sleep(0.02)
