"""The client's own id of a conversation, from a field of the body."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from sidecar.ext_proc.dialects.json_fields import Fields

MAX_KEY_BYTES = 256

_MAX_FIELD_BYTES = 4096
_ANY = msgspec.json.Decoder()
# Claude Code until 2.1.77: `user_<hash>_account_<uuid>_session_<uuid>`; since then JSON with a
# `session_id` (coder/aibridge#241).
_SESSION = re.compile(r"(?:^|_)session_([0-9A-Za-z-]{8,64})$")


def conversation_key(fields: Fields, paths: Iterable[str]) -> str:
    """The first of the dotted `paths` that has an id; empty if none has. See `bounded_key`."""
    for path in paths:
        key = _key_at(fields, path)
        if key:
            return bounded_key(key)
    return ""


def bounded_key(key: str) -> str:
    """`key`, or its hash where it is longer than what the rest of the sidecar takes."""
    data = key.encode(errors="replace")
    return key if len(data) <= MAX_KEY_BYTES else hashlib.sha256(data).hexdigest()


def _key_at(fields: Fields, path: str) -> str:
    first, *rest = path.split(".")
    value = fields.get(first)
    if value is None or len(memoryview(value)) > _MAX_FIELD_BYTES:
        return ""
    try:
        found: Any = _ANY.decode(value)
    except msgspec.DecodeError:
        return ""
    for name in rest:
        found = found.get(name) if isinstance(found, dict) else None
    if path == "metadata.user_id":
        return _session(found)
    if isinstance(found, dict):
        # The `conversation` of Responses is an id or an object with one.
        found = found.get("id")
    return found if isinstance(found, str) else ""


def _session(user_id: object) -> str:
    """The session in an id of a user; empty if there is none, since the id alone names all
    conversations of the user."""
    if not isinstance(user_id, str):
        return ""
    if user_id.startswith("{"):
        try:
            parts = _ANY.decode(user_id.encode())
        except (msgspec.DecodeError, UnicodeEncodeError):
            return ""
        session = parts.get("session_id") if isinstance(parts, dict) else None
        return session if isinstance(session, str) else ""
    match = _SESSION.search(user_id)
    return match[1] if match else ""
