"""A request that is sent twice is made once, also where both are under way at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.core.policy import Policy, PolicyRecord, catalog_digest, etag_of
from sidecar.policies.editing import PolicyEditing
from sidecar.policies.stores import Change, PolicyWriting, WriteNote
from tests.grpc_api.policy_calls import NEW, create, update
from tests.grpc_api.stored import Stored, stored
from tests.policies.stores import parts
from tests.policies.stores.parts import CATALOG, name_of

ETAG = etag_of(1, parts.policy().digest())


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Stored]:
    async with stored(parts.sqlite(tmp_path, parts.policy(), parts.policy("other"))) as running:
        yield running


REQUESTS: dict[str, Any] = {
    "CreatePolicy": create(request_id="id-1"),
    "UpdatePolicy": update(etag=ETAG, request_id="id-1"),
    "DeletePolicy": policy_pb2.DeletePolicyRequest(name=name_of("other"), request_id="id-1"),
    "UpdateModelCatalog": policy_pb2.UpdateModelCatalogRequest(
        model_catalog=policy_pb2.ModelCatalog(
            models=[
                policy_pb2.CatalogModel(id=each, upstream_model="new") for each in sorted(CATALOG)
            ],
            etag=etag_of(1, catalog_digest(CATALOG)),
        ),
        request_id="id-1",
    ),
}


@pytest.mark.parametrize("method", REQUESTS)
async def test_request_sent_twice_at_once_gets_one_answer(
    api: Stored, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The first one to look whether it was made before is held there, until the other is done."""
    store = api.store
    assert isinstance(store, PolicyWriting)
    looked, go_on, look = threading.Event(), threading.Event(), store.made_by

    def slowly(request_id: str, request_digest: str) -> Change | None:
        found = look(request_id, request_digest)
        looked.set()
        go_on.wait(30)
        return found

    call, request = getattr(api.policies, method), REQUESTS[method]
    before = store.last_change()
    monkeypatch.setattr(store, "made_by", slowly)
    slow = asyncio.ensure_future(call(request))
    await asyncio.to_thread(looked.wait, 30)
    monkeypatch.setattr(store, "made_by", look)

    first = await call(request)
    go_on.set()

    assert await slow == first
    assert store.last_change() == before + 1


async def test_missing_policy_that_somebody_else_creates_meanwhile_is_updated(
    api: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_ = PolicyEditing.create

    def after_another(
        editing: PolicyEditing, content: Policy, note: WriteNote, only: bool = False
    ) -> PolicyRecord:
        create_(editing, replace(content, description="the other's"), note)
        return create_(editing, content, note, only)

    monkeypatch.setattr(PolicyEditing, "create", after_another)

    made = await api.policies.UpdatePolicy(update("mine", name=NEW, allow_missing=True))

    assert (made.revision, made.description) == (2, "mine")
