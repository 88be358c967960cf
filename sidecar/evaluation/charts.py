"""Charts as inline SVG and HTML; colours by class, see `report_style`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from sidecar.evaluation.metrics import Bin, Confusion

_SIZE = 320
_LEFT, _BOTTOM, _TOP, _RIGHT = 40, 34, 10, 12
_COUNTS = 60
"""Height of the chart of counts below the diagram."""


def percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value * 100:.{digits}f} %"


def bar(share: float | None) -> str:
    """A horizontal bar; the number stands beside it, so that it need not be read off."""
    width = 0.0 if share is None else max(0.0, min(1.0, share)) * 100
    return f'<div class="track" aria-hidden="true"><i style="width:{width:.1f}%"></i></div>'


def reliability_diagram(bins: Sequence[Bin]) -> str:
    """Accuracy against confidence, and how many decisions there are at each confidence."""
    parts = [*_frame(), _line(0, 0, 1, 1, "ideal")]
    most = max((each.count for each in bins), default=1)
    base = _TOP + _SIZE + _BOTTOM + _COUNTS
    for each in bins:
        title = (
            f"{each.count} decisions with confidence {each.low:.2f} to {each.high:.2f}: "
            f"mean {each.confidence:.3f}, right {each.accuracy:.3f}"
        )
        height = each.count / most * (_COUNTS - 8)
        left, right = _x(each.low) + 1, _x(each.high) - 1
        parts.append(_line(each.confidence, each.confidence, each.confidence, each.accuracy, "gap"))
        parts.append(
            f'<rect class="count" x="{left:.1f}" y="{base - height:.1f}" '
            f'width="{right - left:.1f}" height="{height:.1f}"><title>{title}</title></rect>'
        )
    points = " ".join(f"{_x(b.confidence):.1f},{_y(b.accuracy):.1f}" for b in bins)
    parts.append(f'<polyline class="curve" points="{points}"/>')
    for each in bins:
        parts.append(
            f'<circle class="dot" cx="{_x(each.confidence):.1f}" cy="{_y(each.accuracy):.1f}" '
            f'r="4"><title>mean confidence {each.confidence:.3f}, right {each.accuracy:.3f}, '
            f"{each.count} decisions</title></circle>"
        )
    parts.append(f'<text x="{_LEFT - 6}" y="{base}" text-anchor="end">0</text>')
    parts.append(f'<text x="{_LEFT - 6}" y="{base - _COUNTS + 16}" text-anchor="end">{most}</text>')
    label = "Reliability diagram: share that is right against mean confidence"
    height = base + 6
    return (
        f'<svg viewBox="0 0 {_LEFT + _SIZE + _RIGHT} {height}" role="img" aria-label="{label}" '
        f'style="max-width:460px">{"".join(parts)}</svg>'
    )


def confusion_matrix(labels: Sequence[str], counts: Mapping[tuple[str, str], int]) -> str:
    """Rows are right answers, columns given ones."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in labels)
    rows = []
    for right in labels:
        total = sum(counts.get((right, given), 0) for given in labels)
        cells = "".join(
            _cell(counts.get((right, given), 0), total, right == given) for given in labels
        )
        rows.append(f'<tr><th class="row" scope="row">{escape(right)}</th>{cells}</tr>')
    return (
        '<div class="wide"><table class="matrix"><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def confusion_rows(confusions: Sequence[Confusion]) -> list[tuple[str, ...]]:
    """Cells of a table, as HTML."""
    return [
        (
            f"<code>{escape(each.label)}</code>",
            f"<code>{escape(each.answer or '(undecided)')}</code>",
            str(each.count),
            percent(each.count / each.of, 0),
            str(each.of),
        )
        for each in confusions
    ]


def _cell(count: int, total: int, diagonal: bool) -> str:
    if count == 0:
        return "<td></td>"
    colour = "--good" if diagonal else "--bad"
    strength = 8 + 52 * count / total
    style = f"background:color-mix(in srgb, var({colour}) {strength:.0f}%, transparent)"
    return f'<td style="{style}">{count}</td>'


def _frame() -> list[str]:
    parts = []
    for step in range(6):
        value = step / 5
        parts.append(_line(0, value, 1, value, "axis"))
        parts.append(_line(value, 0, value, 1, "axis"))
        parts.append(
            f'<text x="{_LEFT - 6}" y="{_y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>'
        )
        parts.append(
            f'<text x="{_x(value):.1f}" y="{_TOP + _SIZE + 16}" text-anchor="middle">'
            f"{value:.1f}</text>"
        )
    middle = _LEFT + _SIZE / 2
    parts.append(
        f'<text x="{middle}" y="{_TOP + _SIZE + 31}" text-anchor="middle">confidence</text>'
    )
    parts.append(
        f'<text x="11" y="{_TOP + _SIZE / 2}" text-anchor="middle" '
        f'transform="rotate(-90 11 {_TOP + _SIZE / 2})">right</text>'
    )
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return (
        f'<line class="{kind}" x1="{_x(x1):.1f}" y1="{_y(y1):.1f}" x2="{_x(x2):.1f}" '
        f'y2="{_y(y2):.1f}"/>'
    )


def _x(value: float) -> float:
    return _LEFT + value * _SIZE


def _y(value: float) -> float:
    return _TOP + (1 - value) * _SIZE
