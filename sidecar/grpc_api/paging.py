"""Pages of a sorted list, with tokens that mean nothing to the caller (AIP-158)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable
from typing import TypeVar

from sidecar.grpc_api.convert.violations import invalid

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 2 * 1024 * 1024
"""Half of the 4 MiB that gRPC clients accept by default; a page holds one item at least."""

T = TypeVar("T")


def page_size(value: int) -> int:
    """Raises SidecarError INVALID_REQUEST for a negative size."""
    if value < 0:
        raise invalid("page_size", f"{value} is negative; send 0 for {DEFAULT_PAGE_SIZE}")
    return min(value or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def page(
    items: Iterable[T], limit: int, size: Callable[[T], int], name: Callable[[T], str]
) -> tuple[list[T], str]:
    """The first items within both limits, and the name of the last one if more follow (else "")."""
    kept: list[T] = []
    total = 0
    for item in items:
        total += size(item)
        if kept and (len(kept) == limit or total > MAX_PAGE_BYTES):
            return kept, name(kept[-1])
        kept.append(item)
    return kept, ""


def token_after(parent: str, name: str) -> str:
    """The token of the page that follows `name`; empty for no further page.

    It holds a name rather than a number, so that a policy that comes or goes between two pages
    neither repeats nor hides another.
    """
    if not name:
        return ""
    return base64.urlsafe_b64encode(json.dumps([parent, name]).encode()).decode()


def name_before(parent: str, token: str) -> str:
    """The name that the page of `token` follows. Raises SidecarError INVALID_REQUEST."""
    if not token:
        return ""
    try:
        listed, name = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        listed, name = None, None
    # What a database cannot even be asked about is none of the names that tokens are made of.
    if not isinstance(name, str) or not name.isprintable() or listed != parent:
        raise invalid(
            "page_token",
            "is not a token of this list; send next_page_token of the previous page with the same "
            "parent, or nothing for the first page",
        )
    return name
