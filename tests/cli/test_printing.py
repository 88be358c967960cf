"""Of what others wrote a terminal obeys nothing, and hides nothing."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sidecar.cli import main, policy_place
from sidecar.cli.decision_view import Row, print_decision, table
from sidecar.cli.policy_compare import Compared, Outcome, print_compared
from sidecar.cli.policy_place import PlaceFailure
from sidecar.cli.policy_trial import _print_results
from sidecar.core.errors import ErrorCode
from sidecar.core.shown import is_shown, shown
from sidecar.engines.errors import EngineError
from sidecar.policies.documents import policy_from
from sidecar.policies.examples import Example, ExampleResult
from sidecar.policies.yaml_source import read_documents
from tests.cli.policy_commands import done, edit, sidecar
from tests.cli.test_decision_view import conversation, decision
from tests.policies.stores.parts import changed, policy

HOSTILE = "\x1b]0;title\x07\x9b31m\x7f\u202eback\u2066"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m\x07\x7f", "\\x9b31m\\x07\\x7f"),
        ("one\ntwo\r", "one\ntwo\\r"),
        ("one\u2028two\x85", "one\\u2028two\\x85"),
        ("abc\u202ecba\u200b", "abc\\u202ecba\\u200b"),
        ("\U000e0041", "\\U000e0041"),
        ("\udcff", "\\udcff"),
        ("a\tb", "a\tb"),
        ("請求書\u3000支払い\xa0é", "請求書\u3000支払い\xa0é"),
        ("می\u200cشود 👩\u200d🔧", "می\u200cشود 👩\u200d🔧"),
        ("C:\\x1b", "C:\\x1b"),
    ],
    ids=repr,
)
def test_what_a_terminal_obeys_or_hides_is_shown_as_an_escape(text: str, seen: str) -> None:
    assert shown(text) == seen
    assert is_shown(text.replace("\n", "")) is (seen == text)


def harmless(output: str) -> str:
    assert "title" in output
    assert [line for line in output.split("\n") if not is_shown(line)] == []
    return output


@pytest.fixture
def hostile(at: str, folder: Path) -> str:
    """A store that somebody else filled, past the rules."""
    done("apply", edit(folder), "--at", at)
    new = f"'{json.dumps(HOSTILE)}'"
    content = f"replace(replace(content, '\"second\"', {new}), '\"large-1\"', {new})"
    note = f"author = '{HOSTILE}', message = '{HOSTILE}'"
    changed(at, f"UPDATE changes SET {note}, content = {content}")
    return at


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "support"),
        ("list",),
        ("history", "support"),
        ("diff", "support", "--from", "1"),
        ("catalog",),
        ("watch", "--after", "0", "--count", "3"),
    ],
    ids=lambda each: each[0],
)
@pytest.mark.parametrize("output", ["text", "json", "yaml"])
def test_stored_text_is_printed_without_what_a_terminal_obeys(
    hostile: str, arguments: Sequence[str], output: str
) -> None:
    harmless(done(*arguments, "--output", output, "--at", hostile))


def test_stored_text_can_be_read_again(hostile: str) -> None:
    text = done("get", "support", "--at", hostile)
    as_json = json.loads(done("get", "support", "--output", "json", "--at", hostile))

    (document,), _ = read_documents(text)
    assert isinstance(document.value, dict)
    for read in (document.value, as_json["policy"]):
        assert policy_from(read).description == HOSTILE
    assert as_json["author"] == HOSTILE


@pytest.mark.parametrize("arguments", [("validate",), ("lint",), ("apply", "--at", "none:1")])
def test_findings_about_files_are_printed_so(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    command, *options = arguments
    file = tmp_path / "title\x1b[31m.yaml"
    file.write_text('apiVersion: llmrouter.v1\nkind: Policy\n"name\\e]0;": x\n')
    if options:
        options = ["--at", f"sqlite:{tmp_path / 'policies.db'}"]

    result = sidecar(command, file, *options)

    harmless(result.output + result.stderr)


def test_failures_are_printed_so(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PlaceFailure(ErrorCode.INTERNAL, HOSTILE)

    monkeypatch.setattr(policy_place.StorePlace, "get", refused)

    assert harmless(sidecar("get", "support", "--at", at).stderr).startswith("Error: \\x1b]0;")


def test_expected_errors_are_printed_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise EngineError(HOSTILE)

    monkeypatch.setattr("sidecar.cli.cli", broken)
    monkeypatch.setattr(sys, "argv", ["sidecar"])
    with pytest.raises(SystemExit):
        main()

    harmless(capsys.readouterr().err)


def test_results_of_examples_are_printed_so(capsys: pytest.CaptureFixture[str]) -> None:
    result = ExampleResult(Example("", "", HOSTILE), True, HOSTILE, 0.5, HOSTILE)
    _print_results([(replace(policy(), name=HOSTILE), result)])
    harmless(capsys.readouterr().out)


def test_comparisons_are_printed_so(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = (Outcome(each, HOSTILE, 0.5, "matched") for each in ("a", HOSTILE))
    print_compared(HOSTILE, "after", [Compared(1, conversation(HOSTILE), before, after)])
    harmless(capsys.readouterr().out)


def test_decisions_are_printed_so() -> None:
    console = Console(file=io.StringIO(), width=90)
    made = replace(decision(HOSTILE), detail=HOSTILE, routing_model=HOSTILE)
    print_decision(made, console)
    console.print(table([Row(conversation("[/b] " + HOSTILE), made, HOSTILE)], console))
    assert isinstance(console.file, io.StringIO)
    harmless(console.file.getvalue())
