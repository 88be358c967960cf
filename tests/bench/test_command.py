"""`sidecar bench` at its smallest, with all real parts. No time is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.cli import cli
from sidecar.cli.bench import GROUPS
from sidecar.engines import EngineInfo
from tests.bench.patient import patient


@pytest.fixture(scope="module")
def ran(cpu_engine: EngineInfo, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What it printed, and its JSON."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    result = patient(10_000, "bench", "--tiny", "--json", str(path))
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, path


def test_every_row_states_its_size_and_who_decided(ran: tuple[str, Path]) -> None:
    rows = json.loads(ran[1].read_text())["rows"]
    measured = [each for each in rows if each["calls"]]

    assert len(measured) > 15
    for each in measured:
        assert each["message_bytes"] > 0, each
        assert sum(each["sources"].values()) == pytest.approx(1), each
        assert not any(source.startswith("failed") for source in each["sources"]), each


def test_known_conversations_are_answered_from_the_cache(ran: tuple[str, Path]) -> None:
    rows = json.loads(ran[1].read_text())["rows"]
    known = [
        each for each in rows if "known conversation" in f"{each['group']} {each['name']}".lower()
    ]
    measured = [each for each in known if each["calls"]]

    assert {each["group"] for each in measured} == {
        "The sidecar's own share",
        "Known conversations while others send much",
        "An application and its provider",
    }
    assert {tuple(each["sources"]) for each in measured} == {("cache",)}


def test_every_group_is_there(ran: tuple[str, Path]) -> None:
    groups = {each["group"] for each in json.loads(ran[1].read_text())["rows"]}

    assert groups == {
        "One caller",
        "One caller, by kind of request",
        "The sidecar's own share",
        "Batch and stream",
        "The model server alone",
        "Capacity",
        "At random, by rate",
        "Known conversations while others send much",
        "Cold and warm policy",
        "Many policies",
        "An application and its provider",
        "Echoes",
        "llama.cpp's server",
        "Memory and start",
        "Targets",
    }
    assert len(GROUPS) == 12


def test_transports_and_numbers_of_policies_are_compared(ran: tuple[str, Path]) -> None:
    names: dict[str, list[str]] = {}
    for each in json.loads(ran[1].read_text())["rows"]:
        names.setdefault(each["group"], []).append(each["name"])

    for group in ("Batch and stream", "The sidecar's own share"):
        over_socket = [name for name in names[group] if name.endswith("UDS")]
        assert len(over_socket) * 2 == len(names[group]), names[group]
    assert [name.partition(" of ")[0] for name in names["Many policies"]] == ["1", "3"]
    assert [name.partition(",")[0] for name in names["Cold and warm policy"]] == ["cold", "warm"]


def test_a_language_model_that_always_decides_is_measured_beside_the_encoder(
    ran: tuple[str, Path],
) -> None:
    rows = json.loads(ran[1].read_text())["rows"]
    never = [
        each for each in rows if each["name"].endswith("the encoder never alone") and each["calls"]
    ]

    assert {each["group"] for each in never} == {
        "One caller, by kind of request",
        "The model server alone",
        "Capacity",
        "At random, by rate",
    }
    assert {each["by_encoder"] for each in never} == {0}


def test_the_machine_is_named(ran: tuple[str, Path]) -> None:
    printed, path = ran
    document = json.loads(path.read_text())

    assert document["machine"]["cores"] >= 1
    assert document["routing_model"] in printed


def test_without_the_examples_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in the images."""
    monkeypatch.setattr("sidecar.cli.bench.EXAMPLES", tmp_path / "gone")
    result = CliRunner().invoke(cli, ["bench"])
    assert (result.exit_code, result.output) == (
        1,
        "Error: examples/ is not part of this installation; measure from a clone\n",
    )
