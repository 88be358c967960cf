"""Days as they are written: `2026-08-21`."""

from __future__ import annotations

import re
from datetime import date

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def parsed_day(text: str) -> date | None:
    """None if it is none. `date.fromisoformat` also takes weeks, and days without dashes."""
    if not _DAY.fullmatch(text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
