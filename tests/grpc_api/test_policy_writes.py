"""The writes of PolicyService, over a real socket into a real SQLite file."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.core.decision import Reason, RoutingRequest, Source
from sidecar.core.policy import Policy
from sidecar.policies.stores import (
    CatalogWrite,
    Change,
    ChangeKind,
    PolicyStore,
    PolicyWrite,
    PolicyWriting,
)
from tests.grpc_api.policy_calls import NAME, NEW, NOTE, create, get, policy, update
from tests.grpc_api.refusals import refused
from tests.grpc_api.standins import StandInRouter, decision
from tests.grpc_api.stored import Stored, stored
from tests.policies.stores import parts
from tests.waiting import until


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Stored]:
    async with stored(parts.sqlite(tmp_path, parts.policy())) as running:
        yield running


async def test_created_policy_is_read_listed_and_in_force(api: Stored) -> None:
    made = await api.policies.CreatePolicy(create())

    assert (made.name, made.revision) == (NEW, 1)
    assert made.etag
    assert made.update_time.seconds
    assert (made.revision_info.author, made.revision_info.message) == ("ada", "a better wording")
    assert not made.revision_info.author_verified
    assert await get(api, NEW) == made
    listed = await api.policies.ListPolicies(
        policy_pb2.ListPoliciesRequest(parent="namespaces/default")
    )
    assert [each.name for each in listed.policies] == [NEW, NAME]
    assert listed.change_number == made.revision_info.change_number
    await api.live.beyond(listed.change_number - 1)
    await api.live.settled()
    compiled = api.registry.find(NEW)
    assert compiled is not None
    assert compiled.ref.digest == made.digest


async def test_update_with_the_etag_makes_the_next_revision(api: Stored) -> None:
    before = await get(api)

    after = await api.policies.UpdatePolicy(update(etag=before.etag))

    assert (after.revision, after.description) == (2, "second")
    assert await get(api, revision=1) == before
    assert await get(api) == after


async def test_conflict_says_what_the_etag_is_now(api: Stored) -> None:
    old = await get(api)
    new = await api.policies.UpdatePolicy(update(etag=old.etag))

    error = await refused(api.policies.UpdatePolicy(update("third", etag=old.etag)))

    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "POLICY_CONFLICT")
    assert error.metadata == {"current_etag": new.etag}
    assert (await get(api)).description == "second"


async def test_etag_of_any_length_is_shown_shortened(api: Stored) -> None:
    error = await refused(api.policies.UpdatePolicy(update(etag="x" * 100_000)))

    assert error.reason == "POLICY_CONFLICT"
    assert len(error.text) < 400


async def test_mask_leaves_the_other_fields_as_they_are(api: Stored) -> None:
    before = await get(api)

    after = await api.policies.UpdatePolicy(
        update("only this", update_mask=FieldMask(paths=["description"]))
    )

    assert after.description == "only this"
    assert list(after.routes) == list(before.routes)
    assert after.default_models == before.default_models


async def test_mask_can_empty_a_field(api: Stored) -> None:
    request = policy_pb2.UpdatePolicyRequest(
        policy=policy_pb2.Policy(name=NAME), update_mask=FieldMask(paths=["routes"])
    )

    after = await api.policies.UpdatePolicy(request)

    assert not after.routes
    assert after.default_models.models


async def test_writers_without_an_etag_both_succeed(api: Stored) -> None:
    masks = [FieldMask(paths=[path]) for path in ("description", "routes")]

    await asyncio.gather(
        *(api.policies.UpdatePolicy(update("both", update_mask=mask)) for mask in masks * 5)
    )

    after = await get(api)
    assert (after.revision, after.description) == (11, "both")
    assert [route.name for route in after.routes] == ["billing"]


async def test_delete_without_an_etag_takes_what_another_has_written_meanwhile(
    api: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.policies.CreatePolicy(create())
    assert isinstance(api.store, PolicyWriting)
    write = api.store.write

    def after_another(asked: PolicyWrite | CatalogWrite) -> Change:
        monkeypatch.undo()
        assert isinstance(asked, PolicyWrite)
        parts.write(api.store, ChangeKind.UPDATE, parts.policy(asked.name.split("/")[-1], "second"))
        return write(asked)

    monkeypatch.setattr(api.store, "write", after_another)

    gone = await api.policies.DeletePolicy(policy_pb2.DeletePolicyRequest(name=NEW))

    assert (gone.revision, gone.description) == (3, "second")


async def test_missing_policy_is_created_where_that_is_allowed(api: Stored) -> None:
    made = await api.policies.UpdatePolicy(update(name=NEW, allow_missing=True))

    assert (made.name, made.revision) == (NEW, 1)


async def test_delete_hides_and_undelete_brings_back(api: Stored) -> None:
    await api.policies.CreatePolicy(create())
    gone = await api.policies.DeletePolicy(policy_pb2.DeletePolicyRequest(name=NEW, note=NOTE))

    assert (gone.revision, gone.HasField("delete_time")) == (2, True)
    assert await get(api, NEW) == gone
    listing = policy_pb2.ListPoliciesRequest(parent="namespaces/-")
    assert [each.name for each in (await api.policies.ListPolicies(listing)).policies] == [NAME]
    listing.show_deleted = True
    shown = (await api.policies.ListPolicies(listing)).policies
    assert [each.name for each in shown] == [NEW, NAME]
    await until_in_force(api, NEW, None)

    back = await api.policies.UndeletePolicy(policy_pb2.UndeletePolicyRequest(name=NEW))

    assert (back.revision, back.HasField("delete_time")) == (3, False)
    assert back.routes == gone.routes
    await until_in_force(api, NEW, 3)


async def until_in_force(api: Stored, name: str, revision: int | None) -> None:
    def in_force() -> int | None:
        compiled = api.registry.find(name)
        return compiled.ref.revision if compiled is not None else None

    await until(lambda: in_force() == revision)


async def test_rollback_is_a_new_revision_with_the_earlier_content(api: Stored) -> None:
    first = await get(api)
    await api.policies.UpdatePolicy(update())

    back = await api.policies.RollbackPolicy(
        policy_pb2.RollbackPolicyRequest(name=NAME, revision=1, note=NOTE)
    )

    assert (back.revision, back.digest) == (3, first.digest)
    await until_in_force(api, NAME, 3)


async def test_revisions_are_listed_in_pages_and_compared(api: Stored) -> None:
    for number in range(4):
        await api.policies.UpdatePolicy(update(f"text {number}"))
    seen: list[list[int]] = []
    token = ""
    while token or not seen:
        page = await api.policies.ListPolicyRevisions(
            policy_pb2.ListPolicyRevisionsRequest(name=NAME, page_size=2, page_token=token)
        )
        seen.append([each.revision for each in page.revisions])
        token = page.next_page_token

    difference = await api.policies.DiffPolicyRevisions(
        policy_pb2.DiffPolicyRevisionsRequest(name=NAME)
    )

    assert seen == [[5, 4], [3, 2], [1]]
    assert (difference.from_revision, difference.to_revision) == (4, 5)
    assert [(each.path, each.before, each.after) for each in difference.differences] == [
        ("description", "text 2", "text 3")
    ]
    assert "-description: text 2\n+description: text 3\n" in difference.unified_diff


async def test_difference_names_routes(api: Stored) -> None:
    await api.policies.UpdatePolicy(update())

    difference = await api.policies.DiffPolicyRevisions(
        policy_pb2.DiffPolicyRevisionsRequest(name=NAME, from_revision=1, to_revision=2)
    )

    assert [each.path for each in difference.differences] == [
        "description",
        "pin",
        "switch_confidence",
        "default.preference",
        "routes[money]",
        "routes[refund]",
        "routes[billing]",
    ]


async def test_validate_only_changes_nothing(api: Stored) -> None:
    would = await api.policies.UpdatePolicy(update(validate_only=True))
    created = await api.policies.CreatePolicy(create(validate_only=True))

    assert (would.revision, would.description) == (2, "second")
    assert would.etag
    assert created.revision == 1
    assert (await get(api)).revision == 1
    assert api.store.last_change() == 2


async def test_every_write_can_be_tried_out(api: Stored) -> None:
    await api.policies.CreatePolicy(create())
    await api.policies.UpdatePolicy(update(name=NEW))
    catalog = await api.policies.GetModelCatalog(policy_pb2.GetModelCatalogRequest())
    catalog.models.add(id="acme/new", upstream_model="new-1")

    async def tried(method: str, request: Any) -> Any:
        number = api.store.last_change()
        request.validate_only = True
        answer = await getattr(api.policies, method)(request)
        assert api.store.last_change() == number
        return answer

    back = await tried("RollbackPolicy", policy_pb2.RollbackPolicyRequest(name=NEW, revision=1))
    gone = await tried("DeletePolicy", policy_pb2.DeletePolicyRequest(name=NEW))
    more = await tried(
        "UpdateModelCatalog", policy_pb2.UpdateModelCatalogRequest(model_catalog=catalog)
    )
    await api.policies.DeletePolicy(policy_pb2.DeletePolicyRequest(name=NEW))
    again = await tried("UndeletePolicy", policy_pb2.UndeletePolicyRequest(name=NEW))

    assert (back.revision, back.description) == (3, "")
    assert (gone.revision, gone.HasField("delete_time")) == (3, True)
    assert (more.revision, len(more.models)) == (2, 3)
    assert (again.revision, again.HasField("delete_time")) == (4, False)


async def test_request_sent_twice_is_made_once(api: Stored) -> None:
    request = update(request_id="7d6d1c9e")

    first = await api.policies.UpdatePolicy(request)
    await api.policies.UpdatePolicy(update("third"))
    second = await api.policies.UpdatePolicy(request)

    assert second == first
    assert (await get(api)).revision == 3
    error = await refused(api.policies.UpdatePolicy(update("other", request_id="7d6d1c9e")))
    assert (error.reason, error.fields) == ("INVALID_REQUEST", ("request_id",))


def edited(edit: Callable[[policy_pb2.Policy], object]) -> policy_pb2.UpdatePolicyRequest:
    request = update()
    edit(request.policy)
    return request


def token(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode()


REFUSED: dict[str, tuple[str, Any, str, tuple[str, ...]]] = {
    # method, request -> error, wrong fields
    "exists": ("CreatePolicy", create("support"), "POLICY_EXISTS", ()),
    "id": ("CreatePolicy", create("No Good"), "INVALID_REQUEST", ("policy_id",)),
    "all namespaces": (
        "CreatePolicy",
        policy_pb2.CreatePolicyRequest(parent="namespaces/-", policy_id="x", policy=policy()),
        "INVALID_REQUEST",
        ("policy_id",),
    ),
    "other name": (
        "CreatePolicy",
        create(policy=policy("namespaces/default/policies/other")),
        "INVALID_REQUEST",
        ("policy.name",),
    ),
    "unknown model": (
        "UpdatePolicy",
        edited(lambda p: setattr(p.routes[0].models.models[0], "model", "gone")),
        "INVALID_POLICY",
        ("policy.routes[0].models.models[0].model",),
    ),
    "unreadable": (
        "UpdatePolicy",
        edited(lambda p: setattr(p.routes[0].models, "preference", 17)),
        "INVALID_POLICY",
        ("policy.routes[0].models.preference",),
    ),
    "too many routes": (
        "UpdatePolicy",
        edited(lambda p: p.routes.extend([p.routes[0]] * 600)),
        "INVALID_POLICY",
        ("policy.routes",),
    ),
    "not found": ("UpdatePolicy", update(name=NEW), "POLICY_NOT_FOUND", ()),
    "mask": (
        "UpdatePolicy",
        update(update_mask=FieldMask(paths=["description", "revision", "routes.name"])),
        "INVALID_REQUEST",
        ("update_mask.paths[1]", "update_mask.paths[2]"),
    ),
    "author": (
        "UpdatePolicy",
        policy_pb2.UpdatePolicyRequest(
            policy=policy(NAME), note=policy_pb2.ChangeNote(author="two\nlines", message="\0")
        ),
        "INVALID_REQUEST",
        ("note.author", "note.message"),
    ),
    "request id": (
        "UpdatePolicy",
        update(request_id="with space"),
        "INVALID_REQUEST",
        ("request_id",),
    ),
    "default policy": (
        "DeletePolicy",
        policy_pb2.DeletePolicyRequest(name=NAME),
        "POLICY_IN_USE",
        (),
    ),
    "not deleted": (
        "UndeletePolicy",
        policy_pb2.UndeletePolicyRequest(name=NAME),
        "POLICY_EXISTS",
        (),
    ),
    "no such revision": (
        "RollbackPolicy",
        policy_pb2.RollbackPolicyRequest(name=NAME, revision=9),
        "REVISION_NOT_FOUND",
        (),
    ),
    "revision 0": (
        "RollbackPolicy",
        policy_pb2.RollbackPolicyRequest(name=NAME),
        "INVALID_REQUEST",
        ("revision",),
    ),
    "negative revision": (
        "GetPolicy",
        policy_pb2.GetPolicyRequest(name=NAME, revision=-1),
        "INVALID_REQUEST",
        ("revision",),
    ),
    "negative revision of the catalog": (
        "GetModelCatalog",
        policy_pb2.GetModelCatalogRequest(revision=-1),
        "INVALID_REQUEST",
        ("revision",),
    ),
    "no such revision of the catalog": (
        "GetModelCatalog",
        policy_pb2.GetModelCatalogRequest(revision=9),
        "REVISION_NOT_FOUND",
        (),
    ),
    "filter": (
        "ListPolicies",
        policy_pb2.ListPoliciesRequest(parent="namespaces/-", filter="colour:red"),
        "INVALID_REQUEST",
        ("filter",),
    ),
    "filter with a quote left open": (
        "ListPolicies",
        policy_pb2.ListPoliciesRequest(parent="namespaces/-", filter='author:"ada'),
        "INVALID_REQUEST",
        ("filter",),
    ),
    "model in use": (
        "UpdateModelCatalog",
        policy_pb2.UpdateModelCatalogRequest(
            model_catalog=policy_pb2.ModelCatalog(
                models=[policy_pb2.CatalogModel(id="acme/fast", upstream_model="f")]
            )
        ),
        "POLICY_IN_USE",
        (NAME, NAME, NAME),
    ),
    "wrong catalog": (
        "UpdateModelCatalog",
        policy_pb2.UpdateModelCatalogRequest(
            model_catalog=policy_pb2.ModelCatalog(
                models=[
                    policy_pb2.CatalogModel(
                        id="acme/fast", dialects=["smoke-signals"], prices_as_of="in August"
                    )
                ]
            )
        ),
        "INVALID_REQUEST",
        ("model_catalog.models[0].dialects[0]", "model_catalog.models[0].prices_as_of"),
    ),
    **{
        f"list token {case}": (
            "ListPolicies",
            policy_pb2.ListPoliciesRequest(parent="namespaces/-", page_token=made),
            "INVALID_REQUEST",
            ("page_token",),
        )
        for case, made in {
            "of depth": token(b"[" * 100_000),
            "with half a character": token(b'["namespaces/- False ", "\\ud800"]'),
            "with a control character": token(b'["namespaces/- False ", "\\u0000"]'),
        }.items()
    },
    **{
        f"revision token of {case}": (
            "ListPolicyRevisions",
            policy_pb2.ListPolicyRevisionsRequest(
                name=NAME, page_token=token(json.dumps([NAME, last]).encode())
            ),
            "INVALID_REQUEST",
            ("page_token",),
        )
        for case, last in {
            "more than 64 bits": "9" * 30,
            "more digits than Python reads": "9" * 5000,
            "digits of another script": "\u0663",
        }.items()
    },
    "revisions of none": (
        "ListPolicyRevisions",
        policy_pb2.ListPolicyRevisionsRequest(name=NEW),
        "POLICY_NOT_FOUND",
        (),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused(api: Stored, case: str) -> None:
    method, request, reason, fields = REFUSED[case]

    error = await refused(getattr(api.policies, method)(request))

    assert (error.reason, error.fields) == (reason, fields)
    assert api.store.last_change() == 2


async def test_catalog_is_replaced_and_in_force(api: Stored) -> None:
    before = await api.policies.GetModelCatalog(policy_pb2.GetModelCatalogRequest())
    catalog = policy_pb2.ModelCatalog()
    catalog.CopyFrom(before)
    catalog.models.add(id="acme/new", upstream_model="new-1", context_window=1000)

    after = await api.policies.UpdateModelCatalog(
        policy_pb2.UpdateModelCatalogRequest(model_catalog=catalog, note=NOTE)
    )

    assert (before.revision, after.revision) == (1, 2)
    assert [each.id for each in after.models] == ["acme/fast", "acme/large", "acme/new"]
    assert await api.policies.GetModelCatalog(policy_pb2.GetModelCatalogRequest()) == after
    await until(lambda: "acme/new" in api.registry.catalog)
    error = await refused(
        api.policies.UpdateModelCatalog(policy_pb2.UpdateModelCatalogRequest(model_catalog=catalog))
    )
    assert error.reason == "POLICY_CONFLICT"


async def test_policy_from_before_a_rule_does_not_hold_up_the_catalog(api: Stored) -> None:
    parts.write(api.store, ChangeKind.CREATE, parts.policy("old", description="\u200b"))
    content = await with_model(api, "acme/new")

    assert content.routes[0].models.models[0].model == "acme/new"


async def with_model(api: Stored, model: str) -> policy_pb2.Policy:
    """A policy of a model that was added just now."""
    catalog = await api.policies.GetModelCatalog(policy_pb2.GetModelCatalogRequest())
    catalog.models.add(id=model, upstream_model="new-1")
    await api.policies.UpdateModelCatalog(
        policy_pb2.UpdateModelCatalogRequest(model_catalog=catalog)
    )
    content = policy(examples=["where is my invoice?"])
    content.routes[0].models.models[0].model = model
    return content


async def test_model_can_be_used_as_soon_as_it_is_added(
    api: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it never comes into force, which otherwise takes a moment, and longer elsewhere."""
    monkeypatch.setattr(api.registry, "put_catalog", lambda *_, **__: None)

    made = await api.policies.CreatePolicy(create(policy=await with_model(api, "acme/new")))

    assert made.revision == 1


async def test_examples_are_routed_when_their_models_are_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = StandInRouter()
    async with stored(parts.sqlite(tmp_path, parts.policy()), router) as api:
        follow = api.store.changes_after
        known: list[bool] = []

        def late(number: int, limit: int) -> object:
            time.sleep(0.3)
            return follow(number, limit)

        async def look(_: RoutingRequest) -> None:
            known.append("acme/new" in api.registry.catalog)

        monkeypatch.setattr(api.store, "changes_after", late)
        router.behavior = look
        content = await with_model(api, "acme/new")
        await api.policies.CreatePolicy(create(policy=content, require_examples_pass=True))

    assert known == [True]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["new", "support"]),
        ("route:refund", ["support"]),
        ("model:acme/fast", ["new", "support"]),
        ("model:acme/none", []),
        ("author:ada", ["new"]),
        ("FIRST support", ["support"]),
        ("route:refund author:ada", []),
        ('author:"grace hopper"', ["spaced"]),
        ('route:"code review" author:"grace hopper"', ["spaced"]),
        ('"two words"', ["spaced"]),
        ('"words two"', []),
        ('author:"grace hopper" cafe\u0301', ["spaced"]),
    ],
)
async def test_filter(api: Stored, text: str, names: list[str]) -> None:
    await api.policies.CreatePolicy(create())
    if '"' in text:
        spaced = parts.policy("spaced", "has two words, caf\u00e9")
        routes = (replace(spaced.routes[0], name="code review"),)
        note = parts.note("grace hopper")
        parts.write(api.store, ChangeKind.CREATE, replace(spaced, routes=routes), note)

    listed = await api.policies.ListPolicies(
        policy_pb2.ListPoliciesRequest(parent="namespaces/-", filter=text)
    )

    assert [each.name.rpartition("/")[2] for each in listed.policies] == names


@pytest.mark.parametrize("route", ["billing", "refunds"])
async def test_examples_gate_a_write_if_they_are_to(tmp_path: Path, route: str) -> None:
    """The stand-in takes every request for `billing`."""
    content = policy(examples=["where is my invoice?"])
    content.routes[0].name = route
    asked: list[RoutingRequest] = []
    router = StandInRouter()
    router.behavior = lambda request: _note(asked, request)
    async with stored(parts.sqlite(tmp_path, parts.policy()), router) as api:
        call = api.policies.CreatePolicy(create(policy=content, require_examples_pass=True))
        if route == "billing":
            assert (await call).revision == 1
        else:
            error = await refused(call)
            assert (error.code, error.reason) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "EXAMPLES_FAILED",
            )
            assert error.fields == ("policy.routes[0].examples[0]",)
            assert "invoice" not in error.text
            assert api.store.last_change() == 2
    assert [request.conversation.messages[0].text for request in asked] == ["where is my invoice?"]


async def test_examples_are_tried_again_whatever_the_policy_pins(tmp_path: Path) -> None:
    """What was tried first, as by validate_only, keeps no route."""
    content = policy(examples=["where is my invoice?"])
    content.pin = policy_pb2.PIN_MODE_CONVERSATION
    asked: list[RoutingRequest] = []
    router = StandInRouter()
    router.behavior = lambda request: _note(asked, request)
    async with stored(parts.sqlite(tmp_path, parts.policy()), router) as api:
        made = await api.policies.CreatePolicy(create(policy=content, require_examples_pass=True))

    assert [each.trial for each in asked] == [True]
    assert made.pin == policy_pb2.PIN_MODE_CONVERSATION


@pytest.mark.parametrize("created", [False, True])
async def test_only_what_the_examples_were_tested_of_is_written(
    tmp_path: Path, created: bool
) -> None:
    """Somebody else creates the missing policy while the examples are routed; of theirs the fields
    without the mask would be kept."""
    theirs = policy(description="theirs", examples=["what do you think of me?"])
    router = StandInRouter()
    async with stored(parts.sqlite(tmp_path, parts.policy()), router) as api:

        async def meanwhile(_: RoutingRequest) -> None:
            if created:
                await api.policies.CreatePolicy(create(policy=theirs))

        router.behavior = meanwhile
        ours = policy(NEW, examples=["where is my invoice?"])
        call = api.policies.UpdatePolicy(
            policy_pb2.UpdatePolicyRequest(
                policy=ours,
                update_mask=FieldMask(paths=["description"]),
                allow_missing=True,
                require_examples_pass=True,
            )
        )
        if created:
            error = await refused(call)
        else:
            await call
        made = await get(api, NEW)

    assert made.revision == 1
    assert (made.description == "theirs") is created
    if created:
        assert error.reason == "POLICY_CONFLICT"
        assert error.metadata == {"current_etag": made.etag}


async def test_examples_that_no_routing_model_decides_do_not_blame_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.grpc_api.policy_writes._AGAIN_S", 0.0)
    away = Reason.MODEL_UNAVAILABLE
    fallen = replace(decision(), route="", source=Source.FALLBACK, reason=away, confidence=None)
    monkeypatch.setattr("tests.grpc_api.standins.decision", lambda request: fallen)
    content = policy(examples=["where is my invoice?"])
    async with stored(parts.sqlite(tmp_path, parts.policy())) as api:
        call = api.policies.CreatePolicy(create(policy=content, require_examples_pass=True))
        error = await refused(call)

    assert error.reason == "EXAMPLES_FAILED"
    assert "the routing model does not answer (model_unavailable)" in error.text
    assert "descriptions" not in error.text


async def _note(asked: list[RoutingRequest], request: RoutingRequest) -> None:
    assert isinstance(request.policy, Policy)
    asked.append(request)


async def test_policies_of_files_are_not_written_and_say_where_they_are(tmp_path: Path) -> None:
    async with stored(parts.files(tmp_path, parts.policy())) as api:
        error = await refused(api.policies.UpdatePolicy(update()))
        listed = await api.policies.ListPolicyRevisions(
            policy_pb2.ListPolicyRevisionsRequest(name=NAME)
        )
        old = await refused(get(api, revision=2))

    assert error.reason == "POLICY_READ_ONLY"
    assert str(tmp_path / "policies" / "default-support.yaml") in error.text
    assert [each.revision for each in listed.revisions] == [1]
    assert old.reason == "REVISION_NOT_FOUND"


async def test_writes_are_refused_where_anyone_could_make_them(tmp_path: Path) -> None:
    store: PolicyStore = parts.sqlite(tmp_path, parts.policy())
    async with stored(store, writes_refused="the address is open") as api:
        error = await refused(api.policies.UpdatePolicy(update()))
        assert (await get(api)).revision == 1

    assert (error.code, error.text) == (grpc.StatusCode.PERMISSION_DENIED, "the address is open")


async def test_what_cannot_be_read_is_named_and_leaves_the_rest_of_a_list(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    store = parts.sqlite(tmp_path, *(parts.policy(name) for name in names))
    for text in ("second", "third"):
        parts.write(store, ChangeKind.UPDATE, parts.policy("a", text))
    parts.write(store, ChangeKind.DELETE, "c")
    with closing(sqlite3.connect(tmp_path / "policies.db", isolation_level=None)) as database:
        database.execute("UPDATE changes SET content = '17' WHERE name LIKE '%/b'")
        database.execute("UPDATE changes SET content = '17' WHERE name LIKE '%/a' AND revision = 2")
    async with stored(store) as api:
        listed = [
            await of_pages(api.policies.ListPolicies, "policies", size, **more)
            for size in (1, 10)
            for more in (
                {"parent": "namespaces/default"},
                {"parent": "namespaces/default", "show_deleted": True},
            )
        ]
        history = [
            await of_pages(
                api.policies.ListPolicyRevisions, "revisions", size, name=parts.name_of("a")
            )
            for size in (1, 10)
        ]
        await api.live.close()
        api.store.close()
        (tmp_path / "policies.db").rename(tmp_path / "elsewhere.db")
        away = await of_pages(api.policies.ListPolicies, "policies", 1, parent="namespaces/default")

    def full(kept: str) -> list[str]:
        return [parts.name_of(name) for name in kept]

    assert listed == [(full("ad"), full("b")), (full("acd"), full("b"))] * 2
    assert history == [(full("aa"), [f"{parts.name_of('a')}@2"])] * 2
    assert away == (full("ad"), full("b"))


async def of_pages(call: Any, field: str, size: int, **more: Any) -> tuple[list[str], list[str]]:
    """Names of what all pages list, and what they say cannot be read."""
    request = (
        policy_pb2.ListPoliciesRequest
        if field == "policies"
        else policy_pb2.ListPolicyRevisionsRequest
    )
    names: list[str] = []
    unreachable: list[str] = []
    token = ""
    while True:
        page = await call(request(page_size=size, page_token=token, **more))
        names += [each.name for each in getattr(page, field)]
        unreachable += page.unreachable
        token = page.next_page_token
        if not token:
            return names, unreachable
