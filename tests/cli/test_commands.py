"""Commands without a server: help, usage and errors."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sidecar.cli import cli
from sidecar.config import ServerSettings
from sidecar.local import CACHE_VARIABLE, LocalError, cache_dir, free_ports
from tests.policies.stores import parts

COMMANDS = ["demo", "eval", "model", "policy", "report", "route", "serve", "settings", "up"]

# A shell script that starts the tests in the background has them ignore Ctrl-C, and all they start.
INTERRUPTIBLE = """
import signal, sys
from pathlib import Path
from sidecar.cli import main, route

def read(path):
    print("reading", file=sys.stderr, flush=True)
    return sys.stdin.read()

route.read_case_file = read
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


def sidecar(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "sidecar.cli", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_list_exists_and_has_help(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert f"Usage: cli {command}" in result.output


def test_help_lists_the_commands_without_importing_them() -> None:
    program = (
        "import sys; from sidecar.cli import cli; cli(['--help'], standalone_mode=False); "
        "print(sorted({'grpc', 'openvino', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert all(f"  {command} " in result.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nothing"], 2, "No such command 'nothing'"),
        (["route"], 2, "give a text or --file"),
        (["route", "  "], 2, "the text is empty"),
        (["route", "a", "--file", "-"], 2, "give a text or --file"),
        (["route", "--file", "/nowhere.json"], 2, "'/nowhere.json' does not exist"),
        (["route", "--policy", "No such", "a"], 1, "'No such' is not of the form"),
        (
            ["route", "a", "--timeout", "0"],
            2,
            "must be more than 0 and at most 86400 seconds, not 0",
        ),
        (["route", "a", "--timeout", "-1"], 2, "must be more than 0"),
        (["route", "a", "--timeout", "nan"], 2, "must be more than 0"),
        (["route", "a", "--timeout", "inf"], 2, "must be more than 0"),
        (["route", "a", "--address", ""], 1, "the address of the sidecar is empty; write it as"),
        (["policy", "list", "--at", f"unix:/{'a' * 107}"], 1, "is longer than the 107 bytes that"),
        (["route", "a", "--address", "http://a:1/"], 1, "http://a:1/ is a URL; the address of a"),
        (["route", "a\udcff"], 1, "Error: the text: holds half a character"),
        (["demo", "--conversations", sys.executable], 1, ": not UTF-8; save it in UTF-8"),
        (["model", "build", "--source", __file__], 2, "--source needs --prompt-format"),
        (["model", "info", "/"], 1, "is not an engine directory"),
        (["serve"], 1, "routing_model.directory is not set"),
        (["up", "--envoy-keys", "/"], 2, "--envoy-keys needs --envoy"),
        (["up", "--envoy-provider", "a=http://b"], 2, "--envoy-provider needs --envoy"),
        (["up", "--envoy", "--envoy-provider", "a=b"], 2, "'--envoy-provider': write NAME="),
        (["up", "--envoy-port", "10000"], 2, "--envoy-port needs --envoy"),
        (["bench", "--json", "/no/such/x.json"], 2, "the folder /no/such does not exist"),
        (["soak", "--json", "/no/such/x.json"], 2, "the folder /no/such does not exist"),
        (["capacity", "simulate", "--per-second", "0"], 2, "must be more than 0, not 0"),
        (["capacity", "simulate", "--per-second", "nan"], 2, "must be more than 0, not nan"),
        (["capacity", "simulate", "--service-ms", "-3"], 2, "must be more than 0, not -3"),
        (["capacity", "simulate", "--policies", "-1"], 2, "-1 is not in the range x>=0"),
        (["capacity", "simulate", "--answer", "0"], 2, "0 is not in the range x>=1"),
        (["settings", "--config", __file__], 1, "test_commands.py:"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_said_without_a_traceback(
    arguments: list[str], status: int, message: str
) -> None:
    result = sidecar(*arguments)
    assert result.returncode == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_weight_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    arguments = ["--prompt-format", "compact-v1", "--out", str(tmp_path / "engine")]
    result = sidecar("model", "build", "--source", __file__, *arguments)
    assert result.returncode == 1
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("data", [b'["caf\xe9"]', b"\n[\xff]"], ids=["first-line", "second-line"])
def test_a_file_that_is_not_utf_8_is_named_with_the_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "latin.json"
    path.write_bytes(data)
    line = 1 + data.count(b"\n")
    result = sidecar("route", "--file", str(path))
    assert result.returncode == 1
    assert result.stderr == f"Error: {path}:{line}: not UTF-8; save it in UTF-8\n"


@pytest.mark.parametrize("command", ["serve", "up"])
def test_the_help_of_every_option_says_what_it_is(command: str) -> None:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    for parameter in found.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert len((parameter.help or "").split()) > 3, parameter.name


@pytest.mark.parametrize("command", ["route", "policy list", "policy test"])
def test_help_names_the_variables_that_say_how_the_sidecar_is_reached(command: str) -> None:
    shown = CliRunner().invoke(cli, [*command.split(), "--help"]).output
    assert "SIDECAR_ADDRESS" in shown
    assert "SIDECAR_TLS_CA" in shown


def test_the_help_of_serve_is_that_of_the_settings() -> None:
    shown = " ".join(CliRunner().invoke(cli, ["serve", "--help"]).output.split())
    description = ServerSettings.model_fields["http_address"].description
    assert f"{description} Setting server.http_address." in shown


def test_without_a_sidecar_route_says_how_to_start_one() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    result = sidecar("route", "hello", "--address", address)
    assert result.returncode == 1
    assert result.stderr == (
        f"Error: no sidecar answers at {address}; start one with `sidecar up`, or name another "
        "with --address\n"
    )


def test_settings_in_force_can_be_used_as_a_file(tmp_path: Path) -> None:
    first = sidecar("settings")
    path = tmp_path / "settings.yaml"
    path.write_text(first.stdout)
    assert "decision_budget_ms" in first.stdout
    assert sidecar("settings", "--config", str(path)).stdout == first.stdout


def test_a_policy_that_is_got_is_written_in_utf_8_wherever_it_is_run(tmp_path: Path) -> None:
    parts.write_files(tmp_path, parts.policy())
    command = [sys.executable, "-m", "sidecar.cli", "policy", "get", "support", "--at"]

    result = subprocess.run(
        [*command, str(tmp_path)],
        capture_output=True,
        # As by LANG=de_DE.
        env=os.environ | {"PYTHONIOENCODING": "iso-8859-1"},
    )

    assert "“everything” with money; 金額" in result.stdout.decode()


def test_a_disk_without_room_is_an_error_without_a_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "sidecar.cli", "settings"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            # Unbuffered, nothing is left to be written in the end.
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
    assert (result.returncode, result.stderr) == (1, "Error: [Errno 28] No space left on device\n")


def test_ctrl_c_ends_any_command_with_the_status_of_an_interrupted_one() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "route", "--file", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "Interrupted.\n")


def test_without_a_home_folder_the_variable_that_helps_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(LocalError, match=f"no home folder.*{CACHE_VARIABLE}"):
        cache_dir()


def test_shells_can_complete_commands_of_modules_that_are_not_imported_yet() -> None:
    asked = {
        "_SIDECAR_COMPLETE": "bash_complete",
        "COMP_WORDS": "sidecar policy l",
        "COMP_CWORD": "2",
    }
    result = subprocess.run(
        [sys.executable, "-m", "sidecar.cli"],
        capture_output=True,
        text=True,
        env=os.environ | asked,
    )
    assert result.stdout.split() == ["plain,lint", "plain,list"]
