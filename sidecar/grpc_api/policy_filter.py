"""The filter of ListPolicies."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from sidecar.core.policy import PolicyRecord
from sidecar.grpc_api.convert.violations import invalid, shown

MAX_FILTER = 500
_TERM = re.compile(r'(?:[^\s"]|"[^"]*")+')

Matches = Callable[[PolicyRecord], bool]


def _composed(text: str) -> str:
    """Letters with accents can be written in two ways that look alike."""
    return unicodedata.normalize("NFC", text)


def _route(name: str) -> Matches:
    return lambda record: record.policy.route(name) is not None


def _model(model: str) -> Matches:
    def named(record: PolicyRecord) -> bool:
        lists = (record.policy.default, *(route.models for route in record.policy.routes))
        return any(entry.id == model for models in lists for entry in models.models)

    return named


def _author(author: str) -> Matches:
    wanted = _composed(author)

    def wrote(record: PolicyRecord) -> bool:
        return record.attribution is not None and _composed(record.attribution.author) == wanted

    return wrote


def _words(text: str) -> Matches:
    wanted = _composed(text).casefold()

    def says(record: PolicyRecord) -> bool:
        policy = record.policy
        described = _composed(policy.description).casefold()
        return wanted in policy.resource_name or wanted in described

    return says


_KEYS: dict[str, Callable[[str], Matches]] = {
    "route": _route,
    "model": _model,
    "author": _author,
}


def policy_filter(text: str) -> Matches:
    """True for the records that meet every term. Raises SidecarError INVALID_REQUEST."""
    if len(text) > MAX_FILTER:
        raise invalid("filter", f"has {len(text)} characters, at most {MAX_FILTER} are allowed")
    if text.count('"') % 2:
        raise invalid("filter", "has a double quote that is not closed; close it")
    terms: list[Matches] = []
    for term in _TERM.findall(text):
        key, colon, value = term.partition(":")
        value = value.replace('"', "")
        if not colon or term.startswith('"'):
            terms.append(_words(term.replace('"', "")))
        elif key in _KEYS and value:
            terms.append(_KEYS[key](value))
        else:
            keys = ", ".join(f"{known}:…" for known in _KEYS)
            raise invalid("filter", f"{shown(term)} is no term; use {keys} or a word")
    return lambda record: all(matches(record) for matches in terms)
