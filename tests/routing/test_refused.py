"""How long a policy that the model server refuses is left alone."""

from __future__ import annotations

import pytest

from sidecar.routing.refused import Refused

PAUSES = {1: 1, 2: 2, 3: 4, 6: 32, 7: 60, 20: 60}


@pytest.mark.parametrize(("errors", "pause_s"), PAUSES.items())
def test_it_is_left_alone_for_longer_after_every_error(errors: int, pause_s: float) -> None:
    now = 0.0
    refused = Refused(lambda: now)
    for number in range(errors):
        refused.add("digest", f"error {number}")
    just_before, now = now, pause_s - 0.1
    then = refused.why("digest")
    now = just_before + pause_s

    assert then == f"error {errors - 1}"
    assert refused.why("digest") == ""


def test_what_was_computed_meanwhile_begins_anew() -> None:
    now = 0.0
    refused = Refused(lambda: now)
    for _ in range(5):
        refused.add("digest", "too long")
    refused.forget("digest")
    computed = refused.why("digest")
    refused.add("digest", "too long")
    now = 1.0

    assert computed == ""
    assert refused.why("digest") == ""


def test_of_another_server_nothing_is_known() -> None:
    refused = Refused(lambda: 0.0)
    refused.add("digest", "too long")
    refused.clear()

    assert refused.why("digest") == ""


def test_only_so_many_are_remembered() -> None:
    refused = Refused(lambda: 0.0)
    for number in range(5000):
        refused.add(str(number), "too long")

    assert refused.why("0") == ""
    assert refused.why("4999") == "too long"
