"""The results as one HTML page without external parts, to be looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sidecar.core.policy import OTHER
from sidecar.evaluation.baselines import request_text
from sidecar.evaluation.charts import (
    bar,
    confusion_matrix,
    confusion_rows,
    percent,
    reliability_diagram,
)
from sidecar.evaluation.metrics import ECE_BINS, confusions, reliability
from sidecar.evaluation.outcomes import Outcome
from sidecar.evaluation.report_style import CSS
from sidecar.evaluation.results import Document, interrupted

_CONFUSIONS_SHOWN = 25
_SINGLE_CONFUSIONS_SHOWN = 8
"""Of those that happened once, which make no pattern."""
_MATRIX_LABELS = 16
"""More do not fit on a page; the largest confusions are listed in any case."""
_MISSES_SHOWN = 30
_CANDIDATES_SHOWN = 5
_MESSAGE_CHARS = 600
_EARLIER_SHOWN = 4
_THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

_BREAKDOWNS = {
    "routes": ("By number of routes", "Routes that the case offers, `other` not counted."),
    "turn": ("By turn", "User messages in the conversation, the one to be routed included."),
    "granularity": ("By granularity", "As the cases say."),
    "tags": ("By tag", "A case can have several."),
}
_MISTAKES = {
    "wrong_route": "another route than the right one",
    "other_instead_of_route": "`other`, where a route was right",
    "route_instead_of_other": "a route, where `other` was right",
    "undecided": "nothing was decided",
}


def render_report(results: Document, outcomes: Sequence[Outcome]) -> str:
    """The page. It quotes the conversations of the worst misses.

    Args:
        results: made by `results.document` from the same outcomes.
    """
    sections = [
        _header(results),
        _tiles(results["overall"]),
        _files(results),
        _pair(_reliability(outcomes), _thresholds(outcomes)),
        _pair(*(_breakdown(kind, results) for kind in ("routes", "turn"))),
        _pair(*(_breakdown(kind, results) for kind in ("granularity", "tags"))),
        _confusions(outcomes, results),
        _pair(_families(results), _how(results)),
        _robustness(results),
        _baselines(results),
        _calibration(results),
        _misses(outcomes),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Routing evaluation</title><style>{CSS}</style></head>\n"
        f"<body><main>{chr(10).join(filter(None, sections))}</main></body></html>\n"
    )


# --- Parts ----------------------------------------------------------------------------------------


def _section(title: str, body: str, note: str = "") -> str:
    if not body:
        return ""
    said = f'<p class="note">{_prose(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{said}{body}</section>"


def _pair(*sections: str) -> str:
    there = [section for section in sections if section]
    return f'<div class="pair">{"".join(there)}</div>' if there else ""


def _table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: int = 1,
    last_is_total: bool = False,
) -> str:
    """Cells are HTML; the first `texts` columns are text, the others numbers; an empty heading is
    that of a bar."""

    def kind(index: int) -> str:
        if index < texts:
            return "name"
        return "n" if headings[index] else "bar"

    head = "".join(f'<th class="{kind(i)}">{escape(h)}</th>' for i, h in enumerate(headings))
    body = []
    for number, row in enumerate(rows):
        total = ' class="total"' if last_is_total and number == len(rows) - 1 else ""
        cells = "".join(f'<td class="{kind(i)}">{cell}</td>' for i, cell in enumerate(row))
        body.append(f"<tr{total}>{cells}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _prose(text: str) -> str:
    """Escaped, with `code` set as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# --- Sections -------------------------------------------------------------------------------------


def _header(results: Document) -> str:
    run, overall = results["run"], results["overall"]
    lines = [
        "<h1>Routing evaluation</h1>",
        f'<p class="dim">{overall["cases"]} cases, decided by '
        f"<code>{escape(run['routing_model'])}</code>, prompt format "
        f"<code>{escape(run['prompt_format'])}</code>, sidecar {escape(run['sidecar_version'])}"
        "</p>",
    ]
    if not run["complete"]:
        text = interrupted(results)
        lines.append(f'<p class="warn">{text}</p>')
    if overall["undecided"]:
        text = f"Not decided, and counted as wrong: {overall['undecided']}."
        lines.append(f'<p class="warn">{text}</p>')
    return "".join(lines)


def _tiles(overall: Mapping[str, Any]) -> str:
    low, high = overall["turn_accuracy_low"], overall["turn_accuracy_high"]
    tiles = [
        ("Turn accuracy", percent(overall["turn_accuracy"]),
         f"95 %: {percent(low)} to {percent(high)}"),
        ("Mean of families", percent(overall["macro_turn_accuracy"]), "each counts the same"),
        ("Conversations", percent(overall["conversation_accuracy"]),
         f"of {overall['conversations']} are right"),
        ("Answer is other", percent(overall["other_accuracy"]),
         f"of {overall['other_cases']} cases"),
        ("20 routes or more", percent(overall["many_routes_accuracy"]),
         f"of {overall['many_routes_cases']} cases"),
        ("Calibration error", _decimal(overall["ece"]), f"ECE, {ECE_BINS} bins"),
        ("Coverage", percent(overall["coverage_95"]), "at 95 % precision"),
    ]  # fmt: skip
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{value}</b><span>{escape(note)}</span>'
        "</div>"
        for name, value, note in tiles
    ) + "</div>"  # fmt: skip


def _files(results: Document) -> str:
    headings = ["file", "cases", "", "turn", "span", "conversation", "other", "20+ routes", "ECE"]
    groups = [*results["files"].items(), ("overall", results["overall"])]
    rows = [
        (
            escape(name),
            str(m["cases"]),
            bar(m["turn_accuracy"]),
            percent(m["turn_accuracy"]),
            percent(m["span_accuracy"]),
            percent(m["conversation_accuracy"]),
            percent(m["other_accuracy"]),
            percent(m["many_routes_accuracy"]),
            _decimal(m["ece"]),
        )
        for name, m in groups
    ]
    note = (
        "Turn: cases that are right. Span: runs of turns with the same label that are right "
        "throughout. Conversation: dialogues of several turns that are right throughout."
    )
    return _section("By file", _table(headings, rows, last_is_total=True), note)


def _families(results: Document) -> str:
    if len(results["families"]) < 2:
        return ""
    rows = _bars(results["families"])
    return _section("By family", _table(["family", "", "right", "cases"], rows))


def _bars(groups: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (escape(name), bar(m["turn_accuracy"]), percent(m["turn_accuracy"]), str(m["cases"]))
        for name, m in groups.items()
    ]


def _breakdown(kind: str, results: Document) -> str:
    groups = results["breakdowns"][kind]
    # One group says nothing that the overall figure does not.
    if len(groups) < 2:
        return ""
    title, note = _BREAKDOWNS[kind]
    return _section(title, _table([kind, "", "right", "cases"], _bars(groups)), note)


def _reliability(outcomes: Sequence[Outcome]) -> str:
    bins = reliability(outcomes)
    note = (
        "Decisions by confidence. On the dashed line a confidence is the probability of being "
        "right; below it the model is too sure. The bars count decisions."
    )
    return _section("Reliability", reliability_diagram(bins) if bins else "", note)


def _confusions(outcomes: Sequence[Outcome], results: Document) -> str:
    found = confusions(outcomes)
    if not found:
        return ""
    kinds = ", ".join(
        f"{percent(part, 0)} {_prose(_MISTAKES[kind])}"
        for kind, part in results["mistakes"].items()
    )
    body = f'<p class="note">Of the wrong answers: {kinds}.</p>'
    body += _matrix(outcomes)
    headings = ["right", "answered", "times", "of its cases", "cases"]
    repeated = sum(each.count > 1 for each in found)
    shown = found[: min(_CONFUSIONS_SHOWN, max(repeated, _SINGLE_CONFUSIONS_SHOWN))]
    more = len(found) - len(shown)
    said = "The largest confusions." + (f" {more} smaller ones are not shown." if more > 0 else "")
    body += f'<p class="note below">{said}</p>'
    return _section(
        "Confusion between routes", body + _table(headings, confusion_rows(shown), texts=2)
    )


def _matrix(outcomes: Sequence[Outcome]) -> str:
    """Empty where there are too many labels."""
    counts = Counter((o.case.label, o.case.label if o.right else o.answer) for o in outcomes)
    labels = {name for pair in counts for name in pair if name}
    if len(labels) > _MATRIX_LABELS:
        return ""
    ordered = sorted(labels, key=lambda name: (name == OTHER, name))
    note = (
        '<p class="note">Rows are the right routes, columns those that were answered; all that '
        "counts as right is on the diagonal.</p>"
    )
    return note + confusion_matrix(ordered, counts)


def _thresholds(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for threshold in _THRESHOLDS:
        sure = [o for o in outcomes if o.confidence is not None and o.confidence >= threshold]
        right = sum(o.right for o in sure)
        rows.append(
            (
                f"{threshold:g}",
                bar(len(sure) / len(outcomes)),
                percent(len(sure) / len(outcomes)),
                percent(right / len(sure)) if sure else "-",
            )
        )
    note = "What is decided with at least this confidence, and how much of that is right."
    headings = ["confidence", "", "decided", "right of these"]
    return _section("What a minimum confidence gives", _table(headings, rows), note)


def _how(results: Document) -> str:
    overall = results["overall"]
    reasons = [
        (escape(name.replace("_", " ")), bar(part), percent(part))
        for name, part in overall["reasons"].items()
    ]
    body = _table(["reason", "", "share"], reasons)
    times = [
        (name, *(f"{ms:.0f}" for ms in each.values()))
        for name, each in (
            ("all", overall["latency_ms"]),
            ("routes asked before", overall["latency_ms_shared_prefix"]),
        )
        if each is not None
    ]
    if times:
        keys = list(overall["latency_ms"])
        body += _table(["milliseconds", *keys], times)
    at_once = results["run"]["concurrency"]
    note = f"Time of a decision in the sidecar, {at_once} in flight at once."
    return _section("How decisions came about", body, note)


def _robustness(results: Document) -> str:
    rows = [
        (
            escape(name.replace("_", " ")),
            percent(found["turn_accuracy"]),
            "-" if found["accuracy_cost"] is None else f"{found['accuracy_cost'] * 100:.1f}",
            percent(found["same_decision"]),
            percent(found["confident_same_decision"]),
            str(found["confident_cases"]),
        )
        for name, found in results["robustness"].items()
    ]
    headings = ["asked with", "turn accuracy", "cost in points", "same decision",
                "same where confident", "confident cases"]  # fmt: skip
    note = "The same cases asked again. Confident: decided with at least 0.8 the first time."
    return _section("Robustness", _table(headings, rows) if rows else "", note)


def _baselines(results: Document) -> str:
    if not results["baselines"]:
        return ""
    groups = {"routing model": results, **results["baselines"]}
    families = list(results["families"])
    rows = [
        (
            escape(family),
            *(percent(each["families"][family]["turn_accuracy"]) for each in groups.values()),
        )
        for family in families
    ]
    rows.append(("overall", *(percent(g["overall"]["turn_accuracy"]) for g in groups.values())))
    headings = ["turn accuracy", *(name.replace("_", " ") for name in groups)]
    note = (
        "MiniLM: cosine of the newest message with each route. Word overlap: shared words. Both "
        "answer `other` below the threshold that is best for these very cases. Majority: the most "
        "frequent label that the case may answer."
    )
    return _section("Baselines", _table(headings, rows, last_is_total=True), note)


def _calibration(results: Document) -> str:
    found = results["calibration"]
    if found is None:
        return ""
    rows = [
        ("calibration error (ECE)", _decimal(found["ece_before"]), _decimal(found["ece_after"])),
        ("loss, nats", _decimal(found["nll_before"]), _decimal(found["nll_after"])),
    ]
    if found["temperature"] is not None:
        before = results["run"]["temperature"]
        rows.insert(0, ("temperature", _decimal(before), _decimal(found["temperature"])))
    note = "Fitted to these cases: do not quote the error after it as a measurement."
    return _section("Temperature", _table(["", "now", "fitted"], rows), note)


# --- Misses ---------------------------------------------------------------------------------------


def _misses(outcomes: Sequence[Outcome]) -> str:
    wrong = [o for o in outcomes if not o.right and o.answer]
    worst = sorted(wrong, key=lambda o: -(o.confidence or 0.0))[:_MISSES_SHOWN]
    note = "Wrong answers with the highest confidence."
    return _section("Worst misses", "".join(map(_miss, worst)), note)


def _miss(outcome: Outcome) -> str:
    case = outcome.case
    shown = {each.name: each.probability for each in outcome.candidates[:_CANDIDATES_SHOWN]}
    for each in outcome.candidates[_CANDIDATES_SHOWN:]:
        if case.accepts(each.name):
            shown[each.name] = each.probability
    rows = [(_candidate(outcome, name), bar(p), percent(p)) for name, p in shown.items()]
    right = ", ".join([case.label, *sorted(case.also_ok - {case.label})])
    newest = _cut(request_text(case), 110)
    return (
        f'<details><summary><b class="bad">{escape(outcome.answer)}</b> '
        f'<span class="dim">{percent(outcome.confidence)} instead of</span> '
        f'<b class="good">{escape(right)}</b> <span class="dim">— {escape(newest)} '
        f"({escape(case.id)})</span></summary>"
        f'<div class="miss"><div>{_conversation(outcome)}</div>'
        f"<div>{_table(['route', '', 'probability'], rows)}</div></div></details>"
    )


def _candidate(outcome: Outcome, name: str) -> str:
    description = next((r.description for r in outcome.case.routes if r.name == name), "")
    kind = "bad" if name == outcome.answer else "good" if outcome.case.accepts(name) else ""
    about = f'<br><span class="note">{escape(_cut(description, 160))}</span>' if description else ""
    return f'<code class="{kind}">{escape(name)}</code>{about}'


def _conversation(outcome: Outcome) -> str:
    messages = outcome.case.conversation.messages
    shown = messages[-_EARLIER_SHOWN - 1 :]
    left_out = len(messages) - len(shown)
    parts = [f'<p class="note">{left_out} earlier messages</p>'] if left_out else []
    parts += [
        f'<div class="say {escape(m.role)}"><span class="note">{escape(m.role)}</span>\n'
        f"{escape(_cut(m.text, _MESSAGE_CHARS))}</div>"
        for m in shown
    ]
    return "".join(parts)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
