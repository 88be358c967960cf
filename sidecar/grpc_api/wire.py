"""How many fields an encoded request has, before it is decoded.

Decoding makes an object of each message and of each part, which takes a microsecond for what takes
two bytes as encoded, and holds up the event loop: a second and a half for 16 MB of nothing, which
compress to some kilobytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from sidecar.core.errors import ErrorCode, SidecarError

MAX_FIELDS = 65_536
"""Of a request and of those of its messages that are looked into; parts and tool calls are not, nor
are the inline policies of a batch."""

MAX_BATCH_POLICY_FIELDS = 8 * MAX_FIELDS
"""Of the inline policies of a batch, which can be many and large, and of what is around them: as
many as 16 MiB hold where each has 32 bytes."""

_LEAST_BYTES = 2
"""Of a field."""

Fields: TypeAlias = "Mapping[int, Fields]"
"""Numbers of the fields that hold messages -> the same of these."""

_ROUTE_OF_A_POLICY: Fields = {3: {}}
_POLICY: Fields = {3: _ROUTE_OF_A_POLICY, 4: {}}
ROUTE: Fields = {1: {}, 3: _POLICY}
BATCH: Fields = {1: {1: {}}}
BATCH_POLICIES: Fields = {1: {3: _POLICY}}
STREAM: Fields = {2: ROUTE}


def too_long(data: bytes, max_bytes: int, remedy: str) -> SidecarError | None:
    """REQUEST_TOO_LARGE for a request that is not to be decoded; None if it is."""
    if len(data) <= max_bytes:
        return None
    return SidecarError(
        ErrorCode.REQUEST_TOO_LARGE,
        f"the request has {len(data)} bytes, more than the {max_bytes} that are read; {remedy}",
    )


def refusal(data: bytes, within: Fields, max_bytes: int | None = None) -> SidecarError | None:
    """As `too_long`, for requests with messages.

    Args:
        max_bytes: None: as many as a message of the server may have.
    """
    if max_bytes is not None:
        long = too_long(data, max_bytes, "leave out the oldest messages")
        if long is not None:
            return long
    if has_too_many(data, within):
        return SidecarError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"the request has more than the {MAX_FIELDS} fields that are read of one; "
            "leave out the oldest messages, and join text parts",
        )
    return None


def batch_refusal(data: bytes) -> SidecarError | None:
    """As `refusal`, for a batch."""
    refused = refusal(data, BATCH)
    if refused is None and has_too_many(data, BATCH_POLICIES, MAX_BATCH_POLICY_FIELDS):
        return SidecarError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"requests: with their inline policies they have more than the "
            f"{MAX_BATCH_POLICY_FIELDS} fields that are read of a batch; send several, or keep the "
            "policies in the policy store and name them",
        )
    return refused


def has_too_many(data: bytes, within: Fields, most: int = MAX_FIELDS) -> bool:
    """True if there are more than `most`. Never raises: it is for the decoder to say that
    something cannot be decoded."""
    if len(data) <= most * _LEAST_BYTES:
        return False
    try:
        return _left(data, within, most) < 0
    except IndexError:
        return False


def _left(data: bytes, within: Fields, left: int) -> int:
    """`left` less the fields of `data`, as far as they can be decoded; below 0 as soon as that is
    sure. Raises IndexError where the last one ends too soon.

    Without a call for each field or message, and with most numbers read where they stand: it would
    take many times as long as to decode them. A policy that comes again is not counted again: the
    requests of a batch often bring the same one.
    """
    position, end = 0, len(data)
    around: list[tuple[int, Fields, bytes, int]] = []
    of_policy: dict[bytes, int] = {}
    while left >= 0:
        if position >= end:
            if not around:
                return left
            # Also where its last field would go on behind it: the decoder may not look at it.
            position = end
            end, within, policy, before = around.pop()
            if policy:
                of_policy[policy] = before - left
            continue
        left -= 1
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(data, position - 1)
        kind = tag & 7
        if kind == 2:
            size = data[position]
            position += 1
            if size >= 0x80:
                size, position = _varint(data, position - 1)
            inner = within.get(tag >> 3)
            if inner is None:
                position += size
            elif position + size > end:
                position = end
            elif size:
                policy = data[position : position + size] if inner is _POLICY else b""
                if policy in of_policy:
                    left -= of_policy[policy]
                    position += size
                else:
                    around.append((end, within, policy, left))
                    end, within = position + size, inner
        elif kind == 0:
            if data[position] < 0x80:
                position += 1
            else:
                _, position = _varint(data, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind > 5:
            position = end
        # What remains begins or ends a group, whose fields are counted as if it were not there.
    return left


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number, and where it ends. Raises IndexError."""
    byte = data[position]
    position += 1
    if byte < 0x80:
        return byte, position
    value, shift = byte & 0x7F, 7
    while byte >= 0x80 and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, position
