"""`sidecar eval` as a user runs it, with a real Triton."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sidecar.app import Sidecar
from sidecar.cli import cli
from sidecar.cli.eval_progress import Progress
from sidecar.cli.eval_targets import Target, _some_model, local_router, running_sidecar
from sidecar.cli.failures import Failure
from sidecar.config import load_settings
from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Decision, RoutingRequest
from sidecar.engines import EngineInfo
from sidecar.evaluation.asking import Decide, ask
from sidecar.evaluation.cases import Case, read_cases
from sidecar.evaluation.outcomes import Outcome
from sidecar.local import LocalError, TritonServer, cache_dir
from sidecar.policies.stores import ChangeKind
from tests.cli.test_commands import sidecar
from tests.evaluation.making import case, line, outcome, write_cases
from tests.evaluation.test_asking import DECISION
from tests.grpc_api.stored import stored
from tests.integration.running_sidecar import POLICIES
from tests.policies.stores import parts

UNCLEAR = ("There is a problem with the service you gave me.", "And what about the other one?")
"""So that the temperature has decisions to be fitted to: the encoder is not sure of them by itself,
and each is right under one label at most."""
REQUESTS = {
    "code": ["Fix this Python function.", "Why does my loop never end?", *UNCLEAR],
    "weather": ["Will it rain tomorrow?", *UNCLEAR],
    "billing": ["I was charged twice.", *UNCLEAR],
    # The last is labelled wrongly, so that a good model, too, has a miss to report.
    "other": ["Thanks, bye!", "Fix this Rust function."],
}
# A shell script that starts the tests in the background has them ignore Ctrl-C, and all they start.
INTERRUPTIBLE = """
import signal
from sidecar.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


def lines() -> list[dict[str, Any]]:
    pairs = [(label, text) for label, texts in REQUESTS.items() for text in texts]
    return [
        line(
            id=str(number),
            label=label,
            conversation=[{"role": "user", "content": text}],
            dialogue_id="d" if number < 3 else None,
            turn_index=number,
        )
        for number, (label, text) in enumerate(pairs)
    ]


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    return write_cases(tmp_path / "mine.jsonl", lines())


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (["--json", "mine.jsonl"], "--json mine.jsonl would be written over the cases"),
        (["--report", "./mine.jsonl"], "--report mine.jsonl would be written over the cases"),
        (["--json", "x", "--report", "x"], "--report x would be written over --json"),
    ],
    ids=["json", "report", "each other"],
)
def test_results_are_not_written_over_what_is_read(
    cases: Path, monkeypatch: pytest.MonkeyPatch, outputs: list[str], says: str
) -> None:
    monkeypatch.chdir(cases.parent)
    before = cases.read_bytes()
    result = CliRunner().invoke(cli, ["eval", "--cases", ".", *outputs])
    assert (result.exit_code, cases.read_bytes()) == (2, before)
    assert f"{says}; name another" in result.stderr


def test_a_run_measures_reports_and_leaves_nothing_behind(tmp_path: Path, cases: Path) -> None:
    results, report = tmp_path / "results.json", tmp_path / "report.html"
    arguments = ["eval", "--cases", str(cases), "--json", str(results), "--report", str(report)]
    of_others = set(folders_of_the_ended())
    done = sidecar(*arguments, "--shuffle-routes", "1", "--opaque-names", "--fit-temperature")
    assert done.returncode == 0, done.stderr
    assert "turn accuracy" in done.stdout
    found = json.loads(results.read_text())
    count = len(lines())
    assert found["run"]["complete"]
    assert found["overall"]["cases"] == found["files"]["mine"]["cases"] == count
    assert found["overall"]["conversations"] == 1
    assert found["overall"]["undecided"] == 0
    assert [each["id"] for each in found["decisions"]] == [each["id"] for each in lines()]
    assert all(0 < each["confidence"] <= 1 for each in found["decisions"])
    assert found["robustness"]["shuffled_routes"]["compared_cases"] == count
    assert found["robustness"]["opaque_names"]["compared_cases"] == count
    assert found["calibration"]["nll_after"] <= found["calibration"]["nll_before"]
    assert "<h2>Worst misses</h2>" in report.read_text()
    assert set(folders_of_the_ended()) <= of_others


def folders_of_the_ended() -> list[Path]:
    """What runs of `sidecar eval` have left; others may run now."""
    folders = (cache_dir() / "run").glob("eval-*")
    return [each for each in folders if not Path("/proc", each.name.split("-")[1]).exists()]


def test_an_interrupted_run_shows_what_was_done(tmp_path: Path) -> None:
    many = [line(id=str(number)) for number in range(2000)]
    cases = write_cases(tmp_path / "many.jsonl", many)
    results = tmp_path / "results.json"
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "eval", "--cases", cases, "--json", results],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        # Bounded by the time limit of the test.
        next(text for text in process.stderr if " of 2000" in text)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert process.returncode == 130
    assert "Interrupted:" in output
    assert "Traceback" not in errors
    found = json.loads(results.read_text())
    assert not found["run"]["complete"]
    assert 0 < found["overall"]["cases"] < 2000


async def test_a_running_sidecar_decides_as_the_router_in_this_process(
    triton: TritonServer, cpu_engine: EngineInfo, cases: Path
) -> None:
    read = read_cases([cases])
    async with local_router(cpu_engine, triton.grpc_address, lambda: None) as target:
        here = await _answers(read, target.decide, target.model_id)
    running = Sidecar(
        load_settings(
            flags={
                "server": {"grpc_address": "127.0.0.1:0", "http_address": ""},
                "policies": {"paths": (POLICIES,)},
                "routing": {"decision_budget_ms": 60_000},
                "triton": {"address": triton.grpc_address},
                "routing_model": {"directory": cpu_engine.path},
            },
            environ={},
        )
    )
    await running.start()
    try:
        async with running_sidecar(f"127.0.0.1:{running.grpc.port}") as target:
            there = await _answers(read, target.decide, target.model_id)
            refused = await _answers(too_large(), target.decide, target.model_id)
    finally:
        await running.stop(1)
    assert there == here
    assert refused == {"4 MiB": ("", 0), "4,096 messages": ("", 0)}


def too_large() -> list[Case]:
    """Cases that a sidecar refuses, and that end no run."""
    message = Message(Role.USER, "hello")
    return [
        case(text="w" * 5_000_000, id="4 MiB"),
        replace(case(id="4,096 messages"), conversation=Conversation((message,) * 4097)),
    ]


async def _answers(
    cases: list[Case], decide: Decide, model_id: str
) -> dict[str, tuple[str, float]]:
    outcomes: list[Outcome] = []
    await ask(cases, decide, outcomes.append, model_id=model_id)
    return {o.case.id: (o.answer, round(o.confidence or 0, 3)) for o in outcomes}


def test_what_was_decided_before_a_sidecar_died_is_shown(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the sidecar: a real one does not die at a given case."""

    @asynccontextmanager
    async def dying(address: str, tls: None) -> AsyncIterator[Target]:
        asked: list[RoutingRequest] = []

        async def decide(request: RoutingRequest) -> Decision:
            asked.append(request)
            if len(asked) > 3:
                raise Failure("it has died")
            return DECISION

        yield Target(decide, "m", lambda: None)

    monkeypatch.setattr("sidecar.cli.eval.running_sidecar", dying)
    # It would write to the stream of this one run in all tests that follow.
    monkeypatch.setattr("sidecar.cli.eval.configure_logging", lambda options: None)
    results = tmp_path / "results.json"
    arguments = ["eval", "--cases", cases, "--target", "a:1", "--json", results]
    done = CliRunner().invoke(cli, [*map(str, arguments), "--concurrency", "1"])
    assert done.exit_code == 1
    assert f"Interrupted: 3 of {len(lines())} cases were asked." in done.output
    assert "Error: it has died" in done.output
    assert json.loads(results.read_text())["overall"]["cases"] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_was_decided_before_a_signal_is_shown(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """As before Ctrl-C."""

    @asynccontextmanager
    async def ended(*_: object) -> AsyncIterator[Target]:
        asked: list[RoutingRequest] = []

        async def decide(request: RoutingRequest) -> Decision:
            asked.append(request)
            if len(asked) == 4:
                asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
                await asyncio.sleep(0)
            return DECISION

        yield Target(decide, "m", lambda: None)

    monkeypatch.setattr("sidecar.cli.eval.running_sidecar", ended)
    monkeypatch.setattr("sidecar.cli.eval.configure_logging", lambda options: None)
    results = tmp_path / "results.json"
    arguments = ["eval", "--cases", cases, "--target", "a:1", "--json", results]
    # Else it would end the tests, were it not caught.
    before = signal.signal(number, lambda *_: None)
    try:
        done = CliRunner().invoke(cli, [*map(str, arguments), "--concurrency", "1"])
    finally:
        signal.signal(number, before)
    assert done.exit_code == 130
    assert f"Interrupted: 3 of {len(lines())} cases were asked." in done.output
    assert json.loads(results.read_text())["overall"]["cases"] == 3


def test_what_cannot_be_written_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an emoji is in what the report quotes."""

    @asynccontextmanager
    async def standing_in(*_: object) -> AsyncIterator[Target]:
        async def decide(request: RoutingRequest) -> Decision:
            return replace(DECISION, route="billing")

        yield Target(decide, "m", lambda: None)

    monkeypatch.setattr("sidecar.cli.eval.running_sidecar", standing_in)
    monkeypatch.setattr("sidecar.cli.eval.configure_logging", lambda options: None)
    text = [{"role": "user", "content": "hello \ud83d"}]
    cases = write_cases(tmp_path / "mine.jsonl", [line(conversation=text)])
    report = tmp_path / "report.html"
    arguments = ["eval", "--cases", cases, "--target", "a:1", "--json", "/dev/full"]
    done = CliRunner().invoke(cli, [*map(str, arguments), "--report", str(report)])
    assert done.exit_code == 1
    assert "turn accuracy" in done.output
    assert "Error: /dev/full: cannot be written: No space left on device" in done.output
    assert "hello \\ud83d" in report.read_text()


async def test_cases_are_routed_to_the_model_with_the_most_room(tmp_path: Path) -> None:
    """Else a long case would find no model, and count as wrong."""
    store = parts.sqlite(tmp_path, parts.policy())
    narrow = [replace(parts.LARGE, id=f"acme/{n}", context_window=n) for n in (900, 900_000)]
    async with stored(store) as api:
        parts.write_catalog(store, parts.LARGE, parts.FAST, *narrow)
        assert await _some_model(api.channel, "a:1", None) == parts.FAST.id
        parts.write(store, ChangeKind.DELETE, "support")
        parts.write_catalog(store, parts.LARGE, *narrow)
        assert await _some_model(api.channel, "a:1", None) == "acme/900000"


async def test_an_address_where_nothing_listens_is_said() -> None:
    with pytest.raises(Failure, match=r"no sidecar answers at 127\.0\.0\.1:1"):
        async with running_sidecar("127.0.0.1:1"):
            pass


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--cases", "{cases}", "--model", "/", "--target", "a:1"], 2, "--model or --target"),
        (["--cases", "{cases}", "--write-temperature"], 2, "--write-temperature needs --model"),
        (["--cases", "{cases}", "--json", "/no/such/x.json"], 2, "the folder /no/such does not"),
        (["--cases", "{bad}"], 1, "bad.jsonl:1: label: missing"),
        (["--cases", "{cases}", "--limit", "0"], 2, "--limit"),
        ([], 2, "Missing option '--cases'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_said_before_anything_starts(
    tmp_path: Path, cases: Path, arguments: list[str], status: int, message: str
) -> None:
    bad = write_cases(tmp_path / "bad.jsonl", [line(label=None)])
    filled = [each.format(cases=cases, bad=bad) for each in arguments]
    result = CliRunner().invoke(cli, ["eval", *filled])
    assert (result.exit_code, message in result.output) == (status, True)


def test_a_baseline_whose_weights_cannot_be_fetched_says_so_before_anything_starts(
    cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str, report: object) -> Path:
        raise LocalError(f"cannot download {name}")

    monkeypatch.setattr("sidecar.cli.eval.data_file", unreachable)
    result = CliRunner().invoke(cli, ["eval", "--cases", str(cases), "--baseline"])
    assert str(result.exception) == "cannot download minilm"
    assert "Starting" not in result.output


def test_progress_tells_how_far_and_how_right(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(4) as progress:
        progress.took(outcome(True))
    assert "1 of 4, 100.0% right" in capsys.readouterr().err
