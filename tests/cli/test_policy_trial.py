"""`sidecar policy test` and `lint`: what a routing model makes of a policy."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from sidecar.cli.client import SidecarClient
from sidecar.cli.tls_options import Tls
from sidecar.core.decision import Reason, Source
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import CompiledPrompt
from sidecar.core.policy import Capability, Model, PinMode, Policy
from sidecar.policies.documents import catalog_document, yaml_text
from sidecar.policies.prices import today
from sidecar.policies.stores import ChangeKind
from sidecar.routing import PolicyRegistry
from tests.cli.policy_commands import BILLING, beside, edit, sidecar
from tests.doubles import StubPrompt
from tests.grpc_api.standins import decision
from tests.grpc_api.stored import stored
from tests.policies.stores import parts
from tests.policies.stores.parts import FAST, LARGE, name_of, policy


@pytest.mark.parametrize("command", ["test", "lint"])
def test_asking_the_model_takes_a_sidecar(at: str, folder: Path, command: str) -> None:
    more = ["--by-model"] if command == "lint" else []
    result = sidecar(command, folder, "--at", at, *more)

    assert result.exit_code == 1
    assert "is not the address of a running sidecar" in result.output


async def test_conversations_are_not_compared_with_a_deleted_policy(
    tmp_path: Path, folder: Path, conversations: Path
) -> None:
    store = parts.sqlite(tmp_path, policy("other"), policy())
    parts.write(store, ChangeKind.DELETE, "other")
    async with stored(store) as api:
        result = await beside(
            api, "test", folder, "--conversations", conversations, "--against", "other"
        )

    assert result.exit_code == 4, result.output
    assert "has been deleted" in result.stderr


async def test_examples_are_tests_of_their_routes(tmp_path: Path) -> None:
    """The stand-in takes every request for `billing`."""
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        failed = await beside(api, "test", file)
        details = await beside(api, "test", file, "--output", "json")
        file.write_text(BILLING[: BILLING.index("  - name: refunds")])
        passed = await beside(api, "test", file)

    assert (failed.exit_code, passed.exit_code) == (1, 0), passed.output
    assert "1 of 2 examples go to their route" in failed.output
    assert [(d["expected"], d["route"], d["passed"]) for d in json.loads(details.output)] == [
        ("billing", "billing", True),
        ("refunds", "billing", False),
    ]


@pytest.mark.parametrize("compared", [False, True])
async def test_sidecar_that_is_gone_meanwhile_is_no_example_that_failed(
    tmp_path: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch, compared: bool
) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING)
    more = ("--conversations", conversations, "--against", file) if compared else ()

    def gone(address: str, timeout_s: float, tls: Tls | None) -> SidecarClient:
        return SidecarClient("127.0.0.1:1", timeout_s, tls)

    monkeypatch.setattr("sidecar.cli.policy_trial.SidecarClient", gone)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        result = await beside(api, "test", file, *more)

    assert result.exit_code == 5
    assert "no sidecar answers at 127.0.0.1:1" in result.stderr
    assert ("conversation 1: " in result.stderr) is compared


def said(*texts: str, image: bool = False) -> str:
    """A line of a file of conversations."""
    messages: list[dict[str, object]] = [{"role": "user", "content": text} for text in texts]
    if image:
        url = {"type": "image_url", "image_url": {"url": "https://acme.example/a.png"}}
        messages[-1]["content"] = [{"type": "text", "text": texts[-1]}, url]
    return json.dumps({"messages": messages})


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    file = tmp_path / "conversations.jsonl"
    file.write_text("\n".join([said("Where is my invoice?"), said("What is this?", image=True)]))
    return file


async def test_conversations_that_another_policy_routes_otherwise_are_told(
    tmp_path: Path, conversations: Path
) -> None:
    """The stand-in takes every request for `billing`: fast before, large after. The image is for
    `large` in both, as `fast` reads none."""
    before, after = tmp_path / "before.yaml", tmp_path / "after.yaml"
    before.write_text(BILLING.replace("[acme/fast]", "[acme/fast, acme/large]"))
    after.write_text(BILLING.replace("[acme/fast]", "[acme/large, acme/fast]"))
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        arguments = ("test", after, "--conversations", conversations)
        result = await beside(api, *arguments, "--against", before, "--output", "json")
        shown = await beside(api, *arguments, "--against", before)
        same = await beside(api, *arguments, "--against", after)
        unknown = await beside(api, *arguments)
        await beside(api, "apply", before)
        applied = await beside(api, *arguments)

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["conversations"], told["different"]) == (2, 1)
    (row,) = told["differences"]
    assert (row["number"], row["request"]) == (1, "Where is my invoice?")
    assert [row[side]["model"] for side in ("before", "after")] == ["acme/fast", "acme/large"]
    assert [row[side]["route"] for side in ("before", "after")] == ["billing", "billing"]
    assert all(isinstance(row[side]["confidence"], float) for side in ("before", "after"))
    assert "billing: acme/fast" in shown.stdout
    assert f"1 of 2 conversations are routed otherwise by {after} than by {before}" in shown.stdout
    assert "0 of 2 conversations" in same.stdout
    assert unknown.exit_code == 4
    assert f"1 of 2 conversations are routed otherwise by {after} than by" in applied.stdout


async def test_conversations_of_any_kind_find_a_model_that_can_take_them(
    tmp_path: Path, conversations: Path
) -> None:
    """One model reads images, another has tools, none has both."""
    store = parts.sqlite(tmp_path, policy())
    seeing = replace(FAST, id="acme/seeing", capabilities=frozenset({Capability.IMAGES}))
    acting = replace(FAST, id="acme/acting", capabilities=frozenset({Capability.TOOLS}))
    parts.write_catalog(store, FAST, replace(LARGE, capabilities=frozenset()), acting, seeing)
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING)
    async with stored(store) as api:
        await beside(api, "test", file, "--conversations", conversations, "--against", file)
        asked = [request.policy for request in api.router.requests]

    assert asked
    for tried in asked:
        assert isinstance(tried, Policy)
        named = {entry.id for entry in tried.routes[0].models.models}
        assert {acting.id, seeing.id} <= named


async def test_conversations_of_any_length_find_a_model_that_can_take_them(
    tmp_path: Path, conversations: Path
) -> None:
    store = parts.sqlite(tmp_path, policy())
    short = [replace(FAST, id=f"acme/{n}", context_window=n) for n in (100, 900_000, 200)]
    parts.write_catalog(store, FAST, LARGE, *short, replace(LARGE, id="acme/l", context_window=9))
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING)
    async with stored(store) as api:
        await beside(api, "test", file, "--conversations", conversations, "--against", file)
        (tried, *_) = [request.policy for request in api.router.requests]

    assert isinstance(tried, Policy)
    assert {entry.id for entry in tried.default.models} == {FAST.id, LARGE.id}


@pytest.mark.parametrize(("pin", "read"), [("", 1), ("pin: task\n", 1), ("pin: off\n", 3)])
async def test_what_decides_in_service_decides_conversations_of_agents(
    tmp_path: Path, pin: str, read: int
) -> None:
    file, conversations = tmp_path / "trial.yaml", tmp_path / "agent.json"
    file.write_text(pin + BILLING)
    call = {"id": "1", "function": {"name": "read", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Why was I charged twice?"},
        {"role": "assistant", "content": "I look into the code.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "def main"},
    ]
    conversations.write_text(json.dumps(messages))
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        await beside(api, "test", file, "--conversations", conversations, "--against", file)
        asked = [len(request.conversation.messages) for request in api.router.requests]

    assert asked == [read, read]


async def test_only_one_policy_can_be_compared(tmp_path: Path, conversations: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(BILLING + "---\n" + BILLING.replace("name: trial", "name: another"))
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        result = await beside(api, "test", file, "--conversations", conversations)

    assert result.exit_code == 1
    assert f"{file}: 2 policies ({name_of('trial')}, {name_of('another')})" in result.output


async def test_what_to_compare_with_that_is_too_long_is_told(
    tmp_path: Path, conversations: Path
) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        arguments = ("test", file, "--conversations", conversations, "--against", "a" * 300)
        result = await beside(api, *arguments)

    assert result.exit_code == 1
    assert "Error: --against aaa" in result.stderr
    assert "File name too long; name another\n" in result.stderr


def test_what_to_compare_with_takes_conversations(folder: Path) -> None:
    assert sidecar("test", folder, "--against", "support").exit_code == 2


def test_what_to_compare_with_is_not_empty(folder: Path, conversations: Path) -> None:
    result = sidecar("test", folder, "--conversations", conversations, "--against", "")

    assert result.exit_code == 2
    assert "--against is empty; " in result.stderr


@pytest.mark.parametrize("reason", [Reason.NOTHING_TO_ROUTE, Reason.MODEL_UNAVAILABLE])
async def test_what_no_routing_model_decides_is_told_apart(
    tmp_path: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch, reason: Reason
) -> None:
    """A conversation without text is the default's; without an answer nothing can be said."""
    monkeypatch.setattr("sidecar.cli.policy_trial._AGAIN_S", 0.0)
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING)
    fallen = replace(decision(), route="", source=Source.FALLBACK, reason=reason, confidence=None)
    monkeypatch.setattr("tests.grpc_api.standins.decision", lambda request: fallen)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        arguments = ("test", file, "--conversations", conversations, "--against", file)
        result = await beside(api, *arguments)

    assert ("0 of 2 conversations" in result.output) is (reason is Reason.NOTHING_TO_ROUTE)
    assert (
        "conversation 1: the routing model of the sidecar does not answer" in result.output
    ) is (reason is Reason.MODEL_UNAVAILABLE)


async def test_what_was_asked_before_keeps_no_route(tmp_path: Path) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING.replace("default:", "pin: conversation\ndefault:"))
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        await beside(api, "test", file)
        asked = [request.policy for request in api.router.requests]

    assert {each.pin for each in asked if isinstance(each, Policy)} == {PinMode.OFF}


async def test_lint_names_what_is_doubtful(tmp_path: Path) -> None:
    file = tmp_path / "trial.yaml"
    models = [Model("acme/fast", "f", input_price=1.0, output_price=1.0)]
    file.write_text(yaml_text(catalog_document(models)) + "---\n" + BILLING)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        alone = sidecar("lint", file)
        asked = await beside(api, "lint", file, "--by-model", "--output", "json")
        strict = sidecar("lint", file, "--strict")

    assert alone.exit_code == 0
    assert "of its words in common with that of" in alone.output
    assert strict.exit_code == 1
    assert f"{file}:20: warning: routes[1].description: has" in alone.output
    findings = [(f["path"], f["message"]) for f in json.loads(asked.output)]
    paths = [path for path, _ in findings]
    assert paths == [
        "routes[1].description",
        "routes[1].description",
        "routes[1].examples[0]",
        "routes[1]",
    ]
    assert "the routing model takes it for" in findings[1][1]
    assert "no example reaches" in findings[3][1]


async def test_lint_names_what_leaves_no_room_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING.replace("trial", "huge") + "---\n" + BILLING)

    def bounded(registry: PolicyRegistry, content: Policy) -> CompiledPrompt:
        if content.name == "huge":
            raise SidecarError(ErrorCode.POLICY_TOO_LARGE, "the routes take 600 tokens of 512")
        return StubPrompt(content)

    monkeypatch.setattr(PolicyRegistry, "prompt_of", bounded)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        asked = await beside(api, "lint", file, "--by-model", "--output", "json")

    errors = [each for each in json.loads(asked.stdout) if each["severity"] == "error"]
    assert [each["message"] for each in errors] == ["the routes take 600 tokens of 512"]
    assert asked.exit_code == 1
    assert any("no example reaches" in each["message"] for each in json.loads(asked.stdout))


def test_lint_tells_programs_what_is_wrong(folder: Path) -> None:
    file = edit(folder)
    file.write_text(file.read_text().replace("acme/fast", "acme/fats"))

    result = sidecar("lint", folder, "--output", "json")

    assert result.exit_code == 1
    assert {each["severity"] for each in json.loads(result.stdout)} == {"error"}
    assert result.stderr == "Error: the files have errors; nothing was tried\n"


@pytest.mark.parametrize(("limit", "old"), [([], True), (["--max-price-age", "100000"], False)])
def test_lint_names_prices_that_are_old(tmp_path: Path, limit: list[str], old: bool) -> None:
    file = tmp_path / "dated.yaml"
    day = date(2020, 1, 1)
    models = [Model("acme/fast", "f", input_price=1.0, output_price=1.0, prices_as_of=day)]
    file.write_text(yaml_text(catalog_document(models)) + "---\n" + BILLING)

    result = sidecar("lint", file, *limit)

    assert ('"acme/fast": priced as of more than 180 days ago' in result.output) is old


@pytest.mark.parametrize(("days", "named"), [(1, False), (2, True), (3650, True)])
def test_lint_names_prices_of_days_that_are_yet_to_come(
    tmp_path: Path, days: int, named: bool
) -> None:
    file = tmp_path / "dated.yaml"
    day = today() + timedelta(days=days)
    models = [Model("acme/fast", "f", input_price=1.0, output_price=1.0, prices_as_of=day)]
    file.write_text(yaml_text(catalog_document(models)) + "---\n" + BILLING)

    result = sidecar("lint", file)

    assert ('"acme/fast": priced as of a day that is yet to come' in result.output) is named


@pytest.mark.parametrize(
    ("clusters", "named"),
    [(("", "acme"), True), (("acme", "acme"), False), (("acme", ""), False), (("", ""), False)],
    ids=["another has one", "both have one", "not one of the policy's", "none has one"],
)
def test_lint_names_models_that_have_no_cluster_where_others_have(
    tmp_path: Path, clusters: tuple[str, str], named: bool
) -> None:
    file = tmp_path / "trial.yaml"
    ids = ("acme/fast", "acme/large")
    models = [Model(id, id, cluster=each) for id, each in zip(ids, clusters, strict=True)]
    file.write_text(yaml_text(catalog_document(models)) + "---\n" + BILLING)

    result = sidecar("lint", file)

    said = '"acme/fast": no cluster in the catalog, while "acme/large" has "acme"'
    assert (said in result.output) is named
    assert ("no cluster" in result.output) is named
