"""Every kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.core.policy import Policy
from sidecar.local import PostgresServer
from sidecar.policies.stores import PolicyStore, open_store
from sidecar.policies.stores import postgres as postgres_store
from tests.policies.stores import parts
from tests.policies.stores.parts import MakeStore

WRITABLE = ("sqlite", "postgres")


@pytest.fixture
def make(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeStore]:
    """Makes a store of the kind that the test is parametrized with, holding the given policies."""
    # Many writers at once wait for each other, on a slow machine longer than in service.
    monkeypatch.setattr("sidecar.policies.stores.sqlite._BUSY_MS", 120_000)
    monkeypatch.setitem(postgres_store._CONNECT, "connect_timeout", 60)
    options = str(postgres_store._CONNECT["options"])
    patient = options.replace(f"={postgres_store._STATEMENT_MS}", "=120000")
    monkeypatch.setitem(postgres_store._CONNECT, "options", patient)
    opened: list[PolicyStore] = []
    kind: str = request.param
    if kind == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        parts.empty_tables(server.url)

    def made(*policies: Policy) -> PolicyStore:
        if kind == "postgres":
            store = parts.seeded(open_store(server.url), *policies)
        elif kind == "sqlite":
            store = parts.sqlite(tmp_path, *policies)
        else:
            store = parts.files(tmp_path, *policies)
        opened.append(store)
        return store

    yield made
    for store in opened:
        store.close()
