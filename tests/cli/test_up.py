"""`sidecar up` and `sidecar demo` with a real Triton, started and stopped as a user does."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sidecar.app_policies import open_policies
from sidecar.cli import cli, stack
from sidecar.cli.client import SidecarClient
from sidecar.cli.failures import Failure
from sidecar.cli.policy_remote import SidecarPlace
from sidecar.cli.steps import Steps
from sidecar.cli.tls_options import Tls
from sidecar.cli.up import check_policies, chosen_engine, own_name, with_console, with_policies
from sidecar.config import load_settings
from sidecar.engines import EngineInfo
from sidecar.grpc_api.health import ROUTING_MODEL
from sidecar.local import LocalError, cache_dir, free_ports, preflight
from sidecar.local.process import children
from tests.certificates import Authority
from tests.cli.test_commands import sidecar

ROOT = Path(__file__).parents[2]
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
from tests.own_ports import draw_own_ports
signal.signal(signal.SIGINT, signal.default_int_handler)
draw_own_ports(started=True)
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
        for pid in children(self.process.pid):
            with suppress(OSError):  # it has ended meanwhile
                command = Path("/proc", str(pid), "cmdline").read_text(errors="replace")
                for name, word in {"Triton": "tritonserver", "the sidecar": "sidecar.cli"}.items():
                    if word in command:
                        found[name] = pid
        return found

    def child(self, name: str) -> int:
        """Pid of what it started, once it has; bounded by the time limit of the test."""
        while True:
            # One look: at the moment of an exec(3) the kernel shows no command line.
            if pid := self.children().get(name):
                return pid
            time.sleep(0.02)


def _leftovers(pid: int) -> list[Path]:
    shared = Path("/dev/shm").glob(f"llm_routing_sidecar_{pid}_*")
    return [*shared, *(cache_dir() / "run").glob(f"*-{pid}-*")]


@contextmanager
def _started(policies: Path, address: str, *more: str) -> Iterator[Up]:
    environment = os.environ | {
        "SIDECAR_SERVER__GRPC_ADDRESS": address,
        "SIDECAR_SERVER__HTTP_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}",
        # Other tests compute beside these.
        "SIDECAR_ROUTING__DECISION_BUDGET_MS": "60000",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", UP, "up", "--policies", str(policies), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
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
    _check_console(up)
    started = up.children()
    with _triton_log(up).open() as log:
        up.process.send_signal(signal.SIGTERM)
        assert "stopped" in up.rest()
        end = log.read()
    assert up.process.returncode == 0
    assert "successfully unloaded" in end
    assert "Exit timeout expired" not in end
    # The seconds it may take; an idle computer needs two of them, a busy one more.
    assert "Timeout 5: Found 1 live models" in end
    assert set(started) == {"Triton", "the sidecar"}
    assert not any(Path("/proc", str(pid)).exists() for pid in started.values())
    assert _leftovers(up.process.pid) == []


def _triton_log(up: Up) -> Path:
    (path,) = re.findall(r"^Triton .* log (.+)$", "".join(up.lines), re.MULTILINE)
    return Path(path)


def _check_answers(up: Up, tmp_path: Path) -> None:
    patient = ("--address", up.address, "--timeout", "60")
    text = sidecar("route", "Fix this shell script, please.", *patient)
    assert text.returncode == 0
    assert re.search(r"^source +model, matched", text.stdout, re.MULTILINE)

    arguments = ["route", "--file", "-", "--explain", "--output", "json", *patient]
    answer = json.loads(sidecar(*arguments, stdin=CONVERSATION).stdout)
    assert answer["source"] == "DECISION_SOURCE_MODEL"
    assert answer["route"] in {"code", "weather"}
    assert "Fix this Python function" in answer["explanation"]["prompt"]

    several = tmp_path / "several.jsonl"
    several.write_text(f"{CONVERSATION}\n{CONVERSATION}\n")
    arguments = ["route", "--file", str(several), "--output", "json", *patient]
    assert len(sidecar(*arguments).stdout.splitlines()) == 2

    unknown = sidecar("route", "hello", "--policy", "unknown", *patient)
    assert unknown.returncode == 1
    assert "there is no policy namespaces/default/policies/unknown" in unknown.stderr


def _check_console(up: Up) -> None:
    (page,) = re.findall(r"^Console +(http://\S+)$", "".join(up.lines), re.MULTILINE)
    asked = {"messages": [{"role": "ROLE_USER", "parts": [{"text": "Fix my shell script."}]}]}
    tried = Request(f"{page}/try", json.dumps(asked).encode(), {"Content-Type": "application/json"})
    with urlopen(page) as shown, urlopen(tried) as answered:
        assert "<title>LLM Routing Sidecar</title>" in shown.read().decode()
        assert json.load(answered)["source"] == "model"


LOOPBACK, OPEN = "127.0.0.1:9091", "0.0.0.0:9091"
CONSOLES: dict[str, tuple[dict[str, dict[str, object]], bool]] = {
    "loopback": ({"server": {"http_address": LOOPBACK}}, True),
    "loopback, switched off": (
        {"server": {"http_address": LOOPBACK}, "admin": {"console": False}},
        False,
    ),
    "others can reach it": ({"server": {"http_address": OPEN}}, False),
    "others can, and shall": (
        {"server": {"http_address": OPEN}, "admin": {"console": True}},
        True,
    ),
    "no http": ({"server": {"http_address": ""}}, False),
    "a socket alone": ({"server": {"grpc_address": "", "uds_path": "/run/s"}}, False),
    "callers need certificates": (
        {"server": {"tls_certificate": "c", "tls_key": "k", "tls_client_ca": "a"}},
        False,
    ),
}


@pytest.mark.parametrize("name", CONSOLES)
def test_up_has_the_console_where_this_machine_alone_reaches_it(name: str) -> None:
    flags, console = CONSOLES[name]

    assert with_console(load_settings(flags=flags, environ={})).admin.console is console


def test_up_says_which_models_envoy_sends_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "policies.yaml"
    path.write_text(POLICY.replace("model: large,", "model: large, cluster: opnai,"))
    envoy, address = (str(port) for port in free_ports(2))
    with _started(path, f"127.0.0.1:{address}", "--envoy", "--envoy-port", envoy) as up:
        up.read_until("Ready.")
        up.process.send_signal(signal.SIGINT)
        up.rest()

    warnings = [line.strip() for line in up.lines if " warning: " in line]
    assert [line.split(":")[1].split(" has ")[0] for line in warnings] == [
        ' "a/large"',
        ' "a/small"',
    ]


@pytest.mark.parametrize("part", ["Triton", "the sidecar"])
def test_up_says_which_part_has_died_and_stops_the_other(up: Up, part: str) -> None:
    started = up.children()
    os.kill(started[part], signal.SIGKILL)
    assert f"Error: {part} has died (signal SIGKILL)" in up.rest()
    _check_all_stopped(up, started)


def test_up_says_that_the_routing_models_process_has_died_and_stops_all(up: Up) -> None:
    started = up.children()
    (stub,) = children(started["Triton"])
    os.kill(stub, signal.SIGKILL)
    assert "Error: the routing model's process in Triton" in up.rest()
    _check_all_stopped(up, started)


def _check_all_stopped(up: Up, started: dict[str, int]) -> None:
    assert up.process.returncode == 1
    assert not any(Path("/proc", str(pid)).exists() for pid in started.values())
    assert _leftovers(up.process.pid) == []


def test_up_can_be_interrupted_while_it_starts(policies: Path) -> None:
    with _started(policies, f"127.0.0.1:{free_ports(1)[0]}") as running:
        running.read_until("Preparing Triton")
        triton = running.child("Triton")
        running.process.send_signal(signal.SIGINT)
        assert "Traceback" not in running.rest()
        assert running.process.returncode == 130
        assert not Path("/proc", str(triton)).exists()
        assert _leftovers(running.process.pid) == []


def test_a_large_model_has_more_time_to_load(cpu_engine: EngineInfo, tmp_path: Path) -> None:
    with (tmp_path / "model.bin").open("wb") as weights:
        weights.truncate(3 * 10**9)
    assert stack.load_timeout_s(replace(cpu_engine, path=tmp_path)) == 120 + 150


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_signals_interrupt_unless_they_are_ignored_as_nohup_has_it(
    number: signal.Signals, before: signal.Handlers
) -> None:
    at_first = signal.signal(number, before)
    interrupted = False
    try:
        with stack.interrupted_by_signals():
            os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        after = signal.signal(number, at_first)
    assert (interrupted, after) == (before is signal.SIG_DFL, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_while_an_object_is_finalized_ends_the_watch(
    number: signal.Signals, cpu_engine: EngineInfo
) -> None:
    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    made = stack.LocalStack(cpu_engine, load_settings(environ={}))
    before = signal.signal(number, signal.default_int_handler)
    try:
        with made.noted_interrupts():
            finalized = Finalized()
            # Here Python drops what the handler raises.
            del finalized
            with pytest.raises(KeyboardInterrupt):
                made.watch()
    finally:
        signal.signal(number, before)
        made.stop()


@pytest.mark.parametrize("key", ["grpc_address", "http_address"])
def test_up_wants_a_port_that_callers_can_know(key: str) -> None:
    settings = load_settings(flags={"server": {key: "127.0.0.1:0"}}, environ={})
    with pytest.raises(Failure, match=rf"port 0 is not known to callers.*server\.{key}"):
        stack.check_addresses(settings)


def test_up_says_before_it_starts_anything_that_envoys_socket_cannot_be(tmp_path: Path) -> None:
    flags: dict[str, dict[str, object]] = {
        "server": {"grpc_address": f"127.0.0.1:{free_ports(1)[0]}", "http_address": ""},
        "ext_proc": {"uds_path": tmp_path / "no-such-folder" / "envoy.sock"},
    }
    with pytest.raises(Failure, match=r"make the folder .*ext_proc\.uds_path"):
        stack.check_addresses(load_settings(flags=flags, environ={}))


def test_a_machine_that_cannot_serve_an_engine_is_not_made_to_build_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arm = replace(preflight.this_machine(), architecture="aarch64")
    monkeypatch.setattr(preflight, "this_machine", lambda: arm)
    monkeypatch.setattr("sidecar.cli.up.default_model", lambda report: pytest.fail("was built"))
    with pytest.raises(LocalError, match="Linux aarch64"):
        chosen_engine(None, load_settings(environ={}), Steps())


def test_up_says_before_it_starts_anything_that_its_address_is_taken(policies: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with _started(policies, address) as running:
            output = running.rest()
    assert output == (
        f"Error: cannot listen on {address}: another process listens there; stop it or choose "
        "another port (setting server.grpc_address, or SIDECAR_SERVER__GRPC_ADDRESS in the "
        "environment)\n"
    )
    assert running.process.returncode == 1


def test_the_answers_of_another_sidecar_are_not_taken_for_those_of_the_one_that_was_started(
    policies: Path, cpu_engine: EngineInfo
) -> None:
    # A fake, for what a second sidecar does that takes the address while Triton starts.
    other = grpc.server(ThreadPoolExecutor(1))
    service = health.HealthServicer()
    service.set(ROUTING_MODEL, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(service, other)
    address = f"127.0.0.1:{other.add_insecure_port('127.0.0.1:0')}"
    other.start()
    flags = {"server": {"grpc_address": address, "http_address": ""}}
    settings = with_policies(load_settings(flags=flags, environ={}), (policies,))
    try:
        with (
            pytest.raises(Failure, match="the sidecar has died"),
            stack.running(stack.LocalStack(cpu_engine, settings, quiet=True)),
        ):
            pass
    finally:
        other.stop(None)


def test_up_serves_with_tls(policies: Path, cpu_engine: EngineInfo, tmp_path: Path) -> None:
    """With mutual TLS, of which the command has no certificate as a client."""
    authority = Authority(tmp_path / "ca")
    server = authority.issue(tmp_path / "server")
    client = authority.issue(tmp_path / "client", "operator")
    flags = {
        "server": {
            "grpc_address": f"127.0.0.1:{free_ports(1)[0]}",
            "http_address": "",
            "tls_certificate": server.certificate,
            "tls_key": server.key,
            "tls_client_ca": authority.certificate,
        }
    }
    settings = with_policies(load_settings(flags=flags, environ={}), (policies,))
    tls = Tls(authority.certificate, client.certificate, client.key)
    with (
        stack.running(stack.LocalStack(cpu_engine, settings, quiet=True)) as running,
        SidecarClient(running.address, 10, tls) as asking,
    ):
        assert running.address.startswith("127.0.0.1:")
        assert asking.decides_by_model()
        assert SidecarPlace(running.plaintext_address, 10).catalog().models


def test_up_shows_what_is_wrong_with_policies_before_it_starts_anything(tmp_path: Path) -> None:
    path = tmp_path / "policies.yaml"
    path.write_text(POLICY.replace("[a/large]}", "[a/larger]}"))
    validated = sidecar("policy", "validate", str(path))
    result = sidecar("up", "--policies", str(path))
    assert "a/larger" in validated.stdout
    assert result.stderr == (
        f"{validated.stdout}Error: the policies have errors; nothing was started\n"
    )
    assert result.returncode == 1


def test_up_says_that_no_policy_is_the_default_one_before_it_starts_anything(
    tmp_path: Path,
) -> None:
    path = tmp_path / "policies.yaml"
    path.write_text(POLICY.replace("name: default", "name: platform"))
    flags = {"policies": {"paths": (path,)}}

    with pytest.raises(Failure, match=r"DEFAULT_POLICY to one of these: .*/platform"):
        check_policies(load_settings(flags=flags, environ={}))
    named = {"SIDECAR_POLICIES__DEFAULT_POLICY": "platform"}
    check_policies(load_settings(flags=flags, environ=named))


def test_up_looks_at_the_files_only_where_the_database_has_no_policies(tmp_path: Path) -> None:
    path = tmp_path / "policies.yaml"
    path.write_text(POLICY)
    store = {"url": f"sqlite:{tmp_path / 'policies.db'}"}
    paths = {"paths": (path,)}
    settings = load_settings(flags={"policies": paths, "policy_store": store}, environ={})
    open_policies(settings).close()
    path.write_text(POLICY.replace("[a/large]}", "[a/larger]}"))

    check_policies(settings)
    (tmp_path / "policies.db").unlink()
    with pytest.raises(Failure, match="the policies have errors"):
        check_policies(settings)


def test_up_says_before_it_starts_anything_that_its_database_cannot_be_used(tmp_path: Path) -> None:
    store = {"url": f"sqlite:{tmp_path / 'none' / 'policies.db'}"}
    with pytest.raises(Failure, match=r"policy_store\.url: .*none is no folder"):
        check_policies(load_settings(flags={"policy_store": store}, environ={}))


def test_the_demo_shows_what_is_wrong_with_policies_before_it_starts_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "wrong.yaml").write_text(POLICY.replace("name: code", "name: 7"))
    conversations = tmp_path / "conversations.jsonl"
    conversations.write_text(CONVERSATION)
    monkeypatch.setattr("sidecar.cli.up.EXAMPLES", tmp_path)
    result = CliRunner().invoke(cli, ["demo", "--conversations", str(conversations)])
    assert result.exit_code == 1
    assert "wrong.yaml:" in result.output
    assert "Preparing" not in result.output


def test_the_demo_prints_a_decision_by_the_model_for_every_conversation(
    cpu_engine: EngineInfo,
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", UP, "demo"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"\d+ of 12 as a person would route them; 12 of 12 decided", result.stdout)
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    assert "\x1b" not in result.stdout + result.stderr
    note = "has not been trained to route" in " ".join(result.stdout.split())
    assert note is not cpu_engine.router.trained


@pytest.mark.parametrize(
    ("started", "installed", "said"),
    [
        (".venv/bin/sidecar", False, ".venv/bin/sidecar"),
        (".venv/bin/sidecar", True, "sidecar"),
        ("/src/sidecar/cli/__main__.py", False, "sidecar"),
    ],
    ids=["make up", "in the path", "as a module"],
)
def test_what_to_try_can_be_typed_as_it_is_printed(
    started: str, installed: bool, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", [started, "up"])
    monkeypatch.setenv("PATH", str(tmp_path))
    if installed:
        (tmp_path / "sidecar").touch(0o755)

    assert own_name() == said
