"""What is kept is what was given: documents are read back as the same policy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, fields, is_dataclass

import pytest
import yaml  # type: ignore[import-untyped]

from sidecar.core.policy import (
    Model,
    ModelList,
    PinMode,
    Policy,
    Preference,
    Route,
    WeightedModel,
)
from sidecar.core.shown import is_shown
from sidecar.policies import parse_policy_yaml
from sidecar.policies.documents import (
    UnreadableDocumentError,
    catalog_document,
    catalog_from,
    json_text,
    policy_document,
    policy_from,
    yaml_text,
)
from sidecar.policies.yaml_source import read_documents
from tests.policies.stores.parts import CATALOG, FAST, LARGE, policy


def unlike_default(value: object) -> set[str]:
    """Names of the fields that do not have their default value."""
    assert is_dataclass(value)
    found = set()
    for field in fields(value):
        default = field.default
        if default is MISSING and field.default_factory is not MISSING:
            default = field.default_factory()
        if getattr(value, field.name) != default:
            found.add(field.name)
    return found


def test_sample_uses_every_field() -> None:
    """Else the tests below would not notice one that is forgotten."""
    sample = policy(namespace="team")
    used = unlike_default(sample.routes[1]) | unlike_default(sample.routes[0])

    assert {field.name for field in fields(Route)} <= used
    assert {field.name for field in fields(Model)} == unlike_default(LARGE)
    assert {field.name for field in fields(Policy)} == unlike_default(sample)


@pytest.mark.parametrize(
    "value",
    [1e-06, 7.5e-07, 1e22, 3.0, "on", "Yes", "n", "12:30", "010", "1e-06", "2026-08-21", "on\n"],
    ids=repr,
)
def test_yaml_says_the_same_to_readers_of_version_1_1(value: object) -> None:
    text = yaml_text({"value": value})

    assert yaml.safe_load(text) == {"value": value}
    assert read_documents(text)[0][0].value == {"value": value}


def test_policy_comes_back() -> None:
    sample = policy(namespace="team")

    assert policy_from(policy_document(sample)) == sample
    assert parse_policy_yaml(yaml_text(policy_document(sample)), CATALOG).policy == sample


@pytest.mark.parametrize(
    "rare",
    ["\t\ue000", "\u2029\xad\uffff", "\ufffe", "\ufeff", "\u200d", "\u202e\n \u3000\U000e0041"],
)
def test_long_text_with_what_yaml_escapes_comes_back_as_yaml(rare: str) -> None:
    words = "word " * 16
    sample = policy(description=f"{words}{rare}and {words}{rare}{rare} so on")

    text, as_json = yaml_text(policy_document(sample)), json_text(policy_document(sample), 2)

    assert parse_policy_yaml(text, CATALOG).policy == sample
    assert yaml.safe_load(text)["description"] == sample.description
    assert policy_from(json.loads(as_json)) == sample
    assert all(map(is_shown, f"{text}{as_json}".split("\n")))


@pytest.mark.parametrize("blanks", ["  ", "    ", "\n  "], ids=repr)
@pytest.mark.parametrize("letters", range(90, 104))
def test_blanks_at_which_a_line_is_broken_come_back(letters: int, blanks: str) -> None:
    text = f"{'x' * letters}{blanks}and so on"
    written = yaml_text({"value": text})

    assert yaml.safe_load(written) == {"value": text}
    assert read_documents(written)[0][0].value == {"value": text}


def test_catalog_comes_back() -> None:
    assert catalog_from(catalog_document([FAST, LARGE])) == (FAST, LARGE)


def test_defaults_are_left_out() -> None:
    document = catalog_document([FAST])

    assert document["models"] == [{"id": "acme/fast", "upstream_model": "fast-1"}]


@pytest.mark.parametrize(
    "changed", [{"colour": "red"}, {"name": 3}, {"kind": "ModelCatalog"}], ids=str
)
def test_document_of_a_newer_version_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(UnreadableDocumentError):
        policy_from({**policy_document(policy()), **changed})


def test_weights_of_one_are_written_where_they_count() -> None:
    sample = policy()
    models = policy_document(sample)["routes"][1]["models"]  # type: ignore[index]

    assert sample.routes[1].models.preference is Preference.WEIGHTED
    assert models == [{"model": "acme/fast", "weight": 9.0}, {"model": "acme/large", "weight": 1.0}]


def test_digest_is_of_the_canonical_json_of_all_that_a_policy_says() -> None:
    fast = WeightedModel("fast", 2.5)
    route = Route("a", "ä", ModelList((fast,), Preference.WEIGHTED), "b", 0.5, ("one", "two"))
    models = ModelList((WeightedModel("fast"), WeightedModel("large")))
    policy = Policy("p", (route, Route("b", "c", models)), models, "eu", "text", PinMode.TASK, 0.75)
    canonical = json.dumps(
        asdict(policy), ensure_ascii=False, sort_keys=True, separators=(",", ":")
    )

    assert policy.digest() == f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
