"""A log that nobody reads holds nobody up."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator

import pytest

from sidecar.observability.background import logging_in_background


class Stalling(io.StringIO):
    """Takes nothing until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.released.wait(30)
        return super().write(text)


@pytest.fixture
def stream(logging_undone: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stalling]:
    # On a busy machine the two seconds of service may pass before the writer has its turn.
    monkeypatch.setattr("sidecar.observability.background._END_S", 60)
    root, stalling = logging.getLogger(), Stalling()
    root.handlers = [logging.StreamHandler(stalling)]
    root.setLevel(logging.INFO)
    yield stalling
    stalling.released.set()


def test_what_is_logged_is_written_before_the_end(stream: Stalling) -> None:
    stream.released.set()
    with logging_in_background():
        for number in range(100):
            logging.info("entry %d", number)

    assert stream.getvalue().splitlines() == [f"entry {number}" for number in range(100)]


def test_entries_that_nobody_takes_are_dropped_and_counted(stream: Stalling) -> None:
    with logging_in_background(max_entries=10):
        for number in range(100):
            logging.info("entry %d", number)
        # All of them were logged although not one could be written.
        stream.released.set()

    lines = stream.getvalue().splitlines()
    kept = [line for line in lines if line.startswith("entry")]
    (told,) = [line for line in lines if "dropped" in line]
    assert 10 <= len(kept) <= 12
    assert told.startswith(f"{100 - len(kept)} log entries were dropped")


def test_the_end_does_not_wait_for_a_reader_that_has_stalled(
    stream: Stalling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.observability.background._END_S", 0.05)
    with logging_in_background(max_entries=5):
        for number in range(20):
            logging.info("entry %d", number)

    assert stream.getvalue() == ""
