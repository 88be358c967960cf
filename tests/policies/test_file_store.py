from __future__ import annotations

from pathlib import Path

from sidecar.core.decision import PolicyName
from sidecar.policies.file_store import FileStore

CATALOG = Path(__file__).parent / "fixtures" / "catalog.yaml"
POLICY = """\
apiVersion: llmrouter.v1
kind: Policy
name: {name}
namespace: {namespace}
default: {{models: [openai/small, anthropic/medium]}}
routes: [{{name: a, description: About a., models: [openai/small, anthropic/medium]}}]
"""


def store_with(folder: Path, *names: str, namespace: str = "default") -> FileStore:
    for name in names:
        text = POLICY.format(name=name, namespace=namespace)
        (folder / f"{namespace}-{name}.yaml").write_text(text)
    return FileStore([CATALOG, folder])


def test_nothing_is_there_before_the_first_read(tmp_path: Path) -> None:
    store = store_with(tmp_path, "a")
    assert store.get(PolicyName("a")) is None
    assert store.list() == ()
    assert store.catalog == {}


def test_policies_are_found_by_name_and_listed_by_namespace(tmp_path: Path) -> None:
    store_with(tmp_path, "z", namespace="eu")
    store = store_with(tmp_path, "b", "a")
    assert store.read().findings == ()
    record = store.get(PolicyName("z", "eu"))
    assert record is not None
    assert record.policy.resource_name == "namespaces/eu/policies/z"
    assert [r.policy.name for r in store.list("default")] == ["a", "b"]
    assert [r.policy.name for r in store.list()] == ["a", "b", "z"]
    assert "openai/small" in store.catalog


def test_changed_file_is_not_seen_until_it_is_read(tmp_path: Path) -> None:
    store = store_with(tmp_path, "a")
    store.read()
    before = store.get(PolicyName("a"))
    path = tmp_path / "default-a.yaml"
    path.write_text(path.read_text().replace("About a.", "About b."))
    assert store.get(PolicyName("a")) == before
    store.read()
    after = store.get(PolicyName("a"))
    assert before is not None
    assert after is not None
    assert after.etag != before.etag


def test_set_with_an_error_does_not_take_the_place_of_a_good_one(tmp_path: Path) -> None:
    store = store_with(tmp_path, "a", "b")
    store.read()
    (tmp_path / "default-b.yaml").write_text("kind: Policy\n")
    assert not store.read().valid
    assert [record.policy.name for record in store.list()] == ["a", "b"]
