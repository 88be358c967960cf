"""Collects the wrong fields of one request, so that the caller sees all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sidecar.core.errors import ErrorCode, FieldViolation, SidecarError

_SHOWN_CHARS = 80


def shown(value: str) -> str:
    """`value` quoted for an error text, cut to a readable length.

    Only for names and keys that callers choose; never for the content of a message.
    """
    return repr(value if len(value) <= _SHOWN_CHARS else value[:_SHOWN_CHARS] + "…")


class Violations:
    """Wrong fields of one request, in the order they were found."""

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []

    def __len__(self) -> int:
        return len(self._violations)

    def __iter__(self) -> Iterator[FieldViolation]:
        return iter(self._violations)

    def extend(self, violations: Iterable[FieldViolation]) -> None:
        self._violations.extend(violations)

    def add(self, field: str, description: str) -> None:
        self._violations.append(FieldViolation(field, description))

    def raise_if_any(self, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> None:
        """Raises SidecarError with all of them; its text is the first."""
        if not self._violations:
            return
        first = self._violations[0]
        more = len(self._violations) - 1
        text = f"{first.field}: {first.description}"
        if more:
            text += f" ({more} more wrong field{'s' if more > 1 else ''})"
        raise SidecarError(code, text, self._violations)


def invalid(field: str, description: str) -> SidecarError:
    """The error for one wrong field."""
    return SidecarError(
        ErrorCode.INVALID_REQUEST,
        f"{field}: {description}",
        [FieldViolation(field, description)],
    )
