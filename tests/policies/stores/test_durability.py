"""What was acknowledged is there, whoever is killed when; and nothing is there by half.

`make prove` kills 500 times, `make test` 20 times.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.local import PostgresServer
from sidecar.policies.stores import Change, PolicyHistory, PolicyStore, open_store
from tests.policies.stores import parts
from tests.policies.stores.parts import name_of, policy

PROVE = bool(os.environ.get("SIDECAR_PROVE"))
KILLS = 500 if PROVE else 20
CRASHES = 20 if PROVE else 2
SUPPORT = name_of("support")
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.timeout(3600 if PROVE else 900)


class Writer:
    """A program that makes writing children, one at a time."""

    def __init__(self, url: str) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.policies.stores.writer", url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._child = 0

    def begin(self) -> int:
        """The process id of a new child, which is writing."""
        assert self._program.stdin is not None
        self._program.stdin.write("go\n")
        self._child = int(self._line().removeprefix("pid "))
        return self._child

    def acks(self) -> Iterator[tuple[int, int, str]]:
        """Change, revision and digest of each acknowledged write, until the child is gone."""
        while (line := self._line()) != "gone":
            assert line.startswith("ack "), line
            number, revision, digest = line.removeprefix("ack ").split()
            yield int(number), int(revision), digest
        # From now on another process may have its id.
        self._child = 0

    def close(self) -> None:
        """Leaves nothing running, whatever a test did or failed to do."""
        self._program.kill()
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
        self._program.communicate()

    def _line(self) -> str:
        assert self._program.stdout is not None
        line = self._program.stdout.readline()
        if not line:
            assert self._program.stderr is not None
            raise AssertionError(f"the writer has ended: {self._program.stderr.read()}")
        return line.strip()


@contextmanager
def writing(url: str) -> Iterator[Writer]:
    writer = Writer(url)
    try:
        yield writer
    finally:
        writer.close()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'policies.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    parts.empty_tables(server.url)
    return server.url


def check(store: PolicyStore, acknowledged: dict[int, tuple[int, str]]) -> int:
    """Everything that was acknowledged is there, and history has no gap. The last revision."""
    changes = all_changes(store)
    assert [change.number for change in changes] == list(range(1, len(changes) + 1))
    assert store.last_change() == len(changes)
    made = {change.number: (change.record.revision, change.record.digest) for change in changes}
    assert {number: made.get(number) for number in acknowledged} == acknowledged
    revisions = [change.record.revision for change in changes[1:]]
    assert revisions == list(range(1, len(revisions) + 1))
    for change in changes[1:]:
        # Read back and not only its row: content that was cut off would not have this digest.
        assert change.record.policy.digest() == change.record.digest  # type: ignore[union-attr]
    assert isinstance(store, PolicyHistory)
    assert store.policy(SUPPORT).revision == revisions[-1]
    return revisions[-1]


def all_changes(store: PolicyStore) -> list[Change]:
    changes: list[Change] = []
    while part := store.changes_after(len(changes), 500):
        changes += part
    return changes


def test_killed_writer_leaves_what_it_acknowledged_and_nothing_by_half(url: str) -> None:
    chance = random.Random(20261126)
    started = time.monotonic()
    store = parts.seeded(open_store(url), policy())
    acknowledged: dict[int, tuple[int, str]] = {}
    with writing(url) as writer:
        for kill in range(KILLS):
            pid = writer.begin()
            acks = writer.acks()
            # Some are killed before their first write is done, some in the middle of a later one.
            for _ in range(chance.choice((0, 1, 1, 2, 4))):
                number, revision, digest = next(acks)
                acknowledged[number] = (revision, digest)
            time.sleep(chance.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            for number, revision, digest in acks:
                acknowledged[number] = (revision, digest)
            if not PROVE or kill % 50 == 49:
                check(store, acknowledged)
    last = check(store, acknowledged)
    store.close()

    if PROVE:
        print(  # noqa: T201
            f"\n{url.partition(':')[0]}: {KILLS} writers killed in "
            f"{time.monotonic() - started:.0f} s, {len(acknowledged)} writes acknowledged and all "
            f"there, {last} revisions without a gap"
        )
    assert len(acknowledged) >= KILLS // 2
    # At most one write of each child was made without its acknowledgement getting through.
    assert last - 1 <= len(acknowledged) + KILLS


def test_killed_postgres_leaves_what_it_acknowledged(postgres: PostgresServer) -> None:
    server = postgres
    chance = random.Random(7)
    parts.empty_tables(server.url)
    store = parts.seeded(open_store(server.url), policy())
    acknowledged: dict[int, tuple[int, str]] = {}
    started = time.monotonic()
    with writing(server.url) as writer:
        for _ in range(CRASHES):
            pid = writer.begin()
            acks = writer.acks()
            for _ in range(3):
                number, revision, digest = next(acks)
                acknowledged[number] = (revision, digest)
            time.sleep(chance.uniform(0, 0.02))
            server.kill()
            with contextlib.suppress(ProcessLookupError):  # it ends by itself without a server
                os.kill(pid, signal.SIGKILL)
            for number, revision, digest in acks:
                acknowledged[number] = (revision, digest)
            server.restart()
            check(store, acknowledged)
    store.close()
    if PROVE:
        print(  # noqa: T201
            f"\nPostgreSQL killed {CRASHES} times in {time.monotonic() - started:.0f} s: all of "
            f"{len(acknowledged)} acknowledged writes there"
        )
