"""The JSON document and the page."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from sidecar.cli.eval_view import print_results
from sidecar.core.policy import OTHER
from sidecar.evaluation.baselines import majority
from sidecar.evaluation.metrics import measure
from sidecar.evaluation.outcomes import Outcome
from sidecar.evaluation.policies import CaseRoute
from sidecar.evaluation.report import render_report
from sidecar.evaluation.results import Run, RunFacts, document, interrupted
from tests.evaluation.making import case, outcome, with_candidates

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
FACTS = RunFacts("engine", "model@1", "compact-v1", "0.1", 2.0, 4, True, 1.0, 2)
SHOWN = {"code": 0.9, "billing": 0.1, "weather": 0.0, OTHER: 0.0}
NASTY = "<script>alert('x')</script> & \"quotes\""


def outcomes() -> list[Outcome]:
    return [
        replace(with_candidates(case("code", id="1", file="a", family="x"), SHOWN), reason="m"),
        with_candidates(case("billing", id="2", file="a", family="y", text=NASTY), SHOWN),
        with_candidates(case(OTHER, id="3", file="b", family="y"), SHOWN),
        outcome(False, of=case(OTHER, id="4", file="b", family="y"), answer=""),
    ]


def run() -> Run:
    found = outcomes()
    cases = [o.case for o in found]
    return Run(FACTS, found, found[:3], found, {"majority": majority(cases)}, fit=True)


def test_the_document_has_overall_files_and_families() -> None:
    results = document(run())
    assert results["overall"]["turn_accuracy"] == 0.25
    # Families count the same, whatever their sizes: (1 + 0) / 2.
    assert results["overall"]["macro_turn_accuracy"] == 0.5
    assert {name: m["turn_accuracy"] for name, m in results["files"].items()} == {"a": 0.5, "b": 0}
    assert {name: m["cases"] for name, m in results["families"].items()} == {"x": 1, "y": 3}
    assert results["baselines"]["majority"]["overall"]["turn_accuracy"] == 0.5
    assert [d["right"] for d in results["decisions"]] == [True, False, False, False]


def test_the_document_is_json_that_every_reader_takes() -> None:
    bare = Run(replace(FACTS, temperature=None), [outcome(True)])
    for each in (run(), bare):
        read = json.loads(json.dumps(document(each), allow_nan=False))
        assert len(read["decisions"]) == len(each.outcomes)


def test_a_tag_that_looks_like_a_number_is_a_tag() -> None:
    """`²` is a digit to Python, and no number."""
    tagged = replace(case(), tags=("²", "9" * 5000, "b", "a"), granularity="①")
    found = document(Run(FACTS, [outcome(True, of=tagged)]))["breakdowns"]
    assert list(found["tags"]) == ["9" * 5000, "a", "b", "²"]
    assert list(found["granularity"]) == ["①"]


def test_numbers_of_routes_and_turns_are_in_their_order() -> None:
    many = [CaseRoute(f"r{number}", "d") for number in range(60)]
    found = [outcome(True, of=case(routes=many[:count])) for count in (60, 12, 1, 25, 4)]
    routes = document(Run(FACTS, found))["breakdowns"]["routes"]
    assert list(routes) == ["1-2", "3-5", "10-14", "20-29", "50+"]


def test_the_temperature_is_that_of_the_engine_times_the_factor() -> None:
    found = document(run())["calibration"]
    assert found["temperature"] == pytest.approx(2.0 * found["factor"])


def test_another_form_is_compared_over_the_cases_that_both_asked() -> None:
    found = document(run())["robustness"]["shuffled_routes"]
    assert (found["accuracy_cost"], found["compared_cases"]) == (0.0, 3)


def test_interruptions_are_said() -> None:
    results = document(replace(run(), facts=replace(FACTS, cases=9, complete=False)))
    assert interrupted(results) == "Interrupted: 4 of 9 cases were asked."
    assert "4 of 9 cases" in render_report(results, outcomes())


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    page = render_report(document(run()), outcomes())
    _Balanced().check(page)
    assert not re.search(r"\b(src|href)=|@import|url\(|http", page)


def test_the_page_shows_text_as_text() -> None:
    page = render_report(document(run()), outcomes())
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page


@pytest.mark.parametrize(
    "title",
    ["By file", "By family", "Reliability", "Confusion between routes", "Robustness", "Baselines",
     "Temperature", "Worst misses", "What a minimum confidence gives"],
)  # fmt: skip
def test_the_page_has_every_part(title: str) -> None:
    assert f"<h2>{title}</h2>" in render_report(document(run()), outcomes())


def test_a_page_can_be_made_of_outcomes_without_confidence() -> None:
    found = [outcome(True), outcome(False)]
    page = render_report(document(Run(FACTS, found)), found)
    _Balanced().check(page)
    assert "<h2>Reliability</h2>" not in page


def test_an_answer_that_counts_as_right_is_no_confusion() -> None:
    also = case("code", also_ok=["billing"])
    found = [outcome(True, of=also, answer="billing"), outcome(False, of=case("weather"))]
    page = render_report(document(Run(FACTS, found)), found)
    row = re.search(r'scope="row">code</th>(.*?)</tr>', page)
    assert row
    # Billing, which the weather was taken for, is a column before that of code.
    assert re.findall(r"<td.*?>(\d*)</td>", row[1]) == ["", "1", ""]
    assert "var(--good)" in row[1]


def test_every_metric_is_documented() -> None:
    documented = set(re.findall(r"`([a-z0-9_]+)`", DOCS.read_text(encoding="utf-8")))
    results = document(run())
    wanted = {*results, *results["run"], *measure(outcomes()), *results["calibration"]}
    wanted |= {*results["breakdowns"], *results["robustness"]["opaque_names"]}
    assert wanted - documented == set()


class _Balanced(HTMLParser):
    """Fails for a tag that is not closed, or not in its order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self._open: list[str] = []

    def check(self, page: str) -> None:
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.mark.parametrize(
    ("reason", "told"),
    [("deadline_exceeded", True), ("warming", True), ("model_unavailable", False)],
)
def test_who_measured_a_lack_of_time_is_told_of_the_budget(reason: str, told: bool) -> None:
    shown = io.StringIO()
    late = replace(outcome(False, answer=""), source="fallback", reason=reason)
    print_results(document(Run(FACTS, [late])), Console(file=shown, width=200))
    assert "1 cases were not decided, and count as wrong" in shown.getvalue()
    assert ("decision_budget_ms" in shown.getvalue()) == told


def test_names_of_others_are_shown_on_a_terminal_and_not_obeyed() -> None:
    terminal = io.StringIO()
    facts = replace(FACTS, routing_model="[bold]m[/nothing]")
    found = [outcome(True, of=case(file="a\x1b[31m[red]"))]
    print_results(document(Run(facts, found)), Console(file=terminal, width=200))
    assert "a\\x1b[31m[red]" in terminal.getvalue()
    assert "[bold]m[/nothing], compact-v1" in terminal.getvalue()
