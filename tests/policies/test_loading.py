from __future__ import annotations

import os
import threading
from datetime import date
from pathlib import Path

import pytest

from sidecar.core.decision import PolicyName
from sidecar.core.policy import (
    ApiDialect,
    Capability,
    Model,
    ModelList,
    PinMode,
    Policy,
    Preference,
    Route,
    WeightedModel,
)
from sidecar.policies import load_policies, parse_policy_yaml
from sidecar.policies.stores import FileStore, InvalidFilesError
from sidecar.policies.yaml_source import MAX_BYTES

FIXTURES = Path(__file__).parent / "fixtures"
CATALOG = FIXTURES / "catalog.yaml"

POLICY = """\
apiVersion: llmrouter.v1
kind: Policy
name: {name}
default: {{models: [openai/small, anthropic/medium]}}
routes:
  - {{name: billing, description: Bills., models: [openai/small, anthropic/medium]}}
"""


def policy_file(folder: Path, name: str = "example") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(POLICY.format(name=name))
    return path


def test_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    path = policy_file(tmp_path)
    (tmp_path / "catalog.yaml").write_bytes(CATALOG.read_bytes())
    (tmp_path / "link.yaml").symlink_to(path)

    found = load_policies([tmp_path, path, tmp_path / ".." / tmp_path.name / path.name])

    assert not found.findings
    assert found.files == (str(tmp_path / "catalog.yaml"), str(path))
    assert list(found.records) == ["namespaces/default/policies/example"]


def lines(path: Path) -> list[str]:
    return [str(finding) for finding in load_policies([CATALOG, path]).findings]


def test_every_field_of_a_policy_reaches_the_core_type() -> None:
    found = load_policies([CATALOG, FIXTURES / "good_all_fields.yaml"])
    both = (WeightedModel("openai/small"), WeightedModel("anthropic/medium"))
    assert found.policies == (
        Policy(
            name="example",
            namespace="eu-west",
            description="Every key, and what YAML 1.2 makes of no, off, dates and anchors.",
            pin=PinMode.OFF,
            switch_confidence=0.7,
            default=ModelList(both, Preference.FASTEST),
            routes=(
                Route(
                    name="no",
                    description="Refusals — “really?”",
                    models=ModelList(both),
                    min_confidence=0.1,
                    examples=("2026-01-02", "no thanks"),
                ),
                Route(
                    name="refusals to pay",
                    description="Customers who will not pay.",
                    domain="no",
                    models=ModelList(
                        (WeightedModel("openai/small", 9.0), WeightedModel("anthropic/medium")),
                        Preference.WEIGHTED,
                    ),
                ),
            ),
        ),
    )


def made_pipe(path: Path) -> Path:
    os.mkfifo(path)
    # Who waits for the other end after all gets this, and the test fails rather than hangs.
    other_end = os.open(path, os.O_RDWR)
    os.write(other_end, b"kind: [")
    threading.Timer(2, os.close, [other_end]).start()
    return path


def test_pipe_in_a_folder_is_named_and_not_waited_for(tmp_path: Path) -> None:
    policy_file(tmp_path)
    pipe = made_pipe(tmp_path / "pipe.yaml")

    found = load_policies([CATALOG, tmp_path])

    assert [str(each) for each in found.findings] == [
        f"{pipe}: error: is no regular file; take it out of the folder"
    ]
    assert len(found.policies) == 1


def test_store_of_files_does_not_wait_for_a_pipe_that_it_is_given(tmp_path: Path) -> None:
    pipe = made_pipe(tmp_path / "pipe.yaml")

    with pytest.raises(InvalidFilesError) as caught:
        FileStore([CATALOG, pipe])

    assert str(caught.value) == f"{pipe}: error: is no regular file; name a file or a folder"


def test_pipe_that_is_named_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, POLICY.format(name="piped").encode())
    os.close(writing)

    found = load_policies([CATALOG, f"/dev/fd/{reading}"])
    os.close(reading)

    assert [each.name for each in found.policies] == ["piped"]


def test_every_field_of_a_model_reaches_the_core_type(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(
        """\
apiVersion: llmrouter.v1
kind: ModelCatalog
models:
  - id: anthropic/large
    upstream_model: claude-large
    cluster: anthropic
    host: api.anthropic.com:443
    dialects: [anthropic-messages]
    capabilities: [images, tools]
    prices: {input: 3, output: 15.5, as_of: 2026-08-21}
    latency_ms: 800
    context_window: 200000
  - id: minimal
    upstream_model: minimal-1
"""
    )
    catalog = load_policies([path]).catalog
    assert catalog == {
        "anthropic/large": Model(
            id="anthropic/large",
            upstream_model="claude-large",
            cluster="anthropic",
            host="api.anthropic.com:443",
            dialects=frozenset({ApiDialect.ANTHROPIC_MESSAGES}),
            capabilities=frozenset({Capability.IMAGES, Capability.TOOLS}),
            input_price=3.0,
            output_price=15.5,
            latency_ms=800.0,
            context_window=200000,
            prices_as_of=date(2026, 8, 21),
        ),
        "minimal": Model(id="minimal", upstream_model="minimal-1"),
    }


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("name: e", "n\u0430me: e", '(with U+0430); did you mean "name"?'),
        ("[openai/small, ", "[openai/sm\u0430ll, ", '(with U+0430); did you mean "openai/small"?'),
        ("example", "ex\u0430mple", "(with U+0430) may have only lower-case letters"),
        ("kind: Policy", "kind: P\u043elicy", '(with U+043E); did you mean "Policy"?'),
        ("routes:", "pin: t\u0430sk\nroutes:", "(with U+0430) is none of"),
    ],
    ids=["key", "model", "name", "kind", "value"],
)
def test_letter_that_looks_like_another_is_told(
    tmp_path: Path, written: str, instead: str, said: str
) -> None:
    path = policy_file(tmp_path)
    path.write_text(path.read_text().replace(written, instead, 1))

    assert any(said in line for line in lines(path))


def test_declared_order_of_routes_and_models_is_kept(tmp_path: Path) -> None:
    names = ["zebra", "apple", "Mango", "banana"]
    path = tmp_path / "order.yaml"
    routes = "".join(
        f"  - {{name: {name}, description: About {name}., "
        "models: [openai/large, anthropic/medium, openai/small]}\n"
        for name in names
    )
    path.write_text(POLICY.format(name="order").partition("routes:")[0] + "routes:\n" + routes)
    (policy,) = load_policies([CATALOG, path]).policies
    assert [route.name for route in policy.routes] == names
    assert [entry.id for entry in policy.routes[0].models.models] == [
        "openai/large",
        "anthropic/medium",
        "openai/small",
    ]


def test_one_file_holds_catalog_and_several_policies(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text("---\n".join([CATALOG.read_text(), POLICY.format(name="a"), "\n# empty\n"]))
    with path.open("a") as file:
        file.write("---\n" + POLICY.format(name="b"))
    found = load_policies([path])
    assert found.findings == ()
    assert list(found.records) == ["namespaces/default/policies/a", "namespaces/default/policies/b"]
    assert found.record(PolicyName("b")) == found.records["namespaces/default/policies/b"]
    assert found.record(PolicyName("b", "elsewhere")) is None


def test_policy_named_in_a_file_before_its_catalog_is_checked_against_it(tmp_path: Path) -> None:
    assert load_policies([policy_file(tmp_path), CATALOG]).findings == ()


def test_bad_policy_does_not_take_the_good_ones_with_it(tmp_path: Path) -> None:
    policy_file(tmp_path, "good")
    bad = policy_file(tmp_path, "bad")
    bad.write_text(bad.read_text().replace("openai/small", "openai/tiny"))
    found = load_policies([CATALOG, tmp_path])
    assert not found.valid
    assert [policy.name for policy in found.policies] == ["good"]


def test_etag_and_digest_change_with_content_and_not_with_form(tmp_path: Path) -> None:
    path = policy_file(tmp_path)
    (first,) = load_policies([CATALOG, path]).records.values()
    assert (first.revision, first.digest) == (1, first.policy.digest())

    path.write_text("# reformatted\n" + path.read_text().replace("Bills.", '"Bills."'))
    (reformatted,) = load_policies([CATALOG, path]).records.values()
    assert reformatted == first

    path.write_text(path.read_text().replace("Bills.", "Invoices."))
    (changed,) = load_policies([CATALOG, path]).records.values()
    assert changed.revision == 1
    assert changed.etag != first.etag
    assert changed.digest != first.digest


def test_models_of_two_catalog_files_may_not_share_an_id(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(CATALOG.read_text())
    found = load_policies([CATALOG, other])
    assert [str(finding) for finding in found.findings] == [
        f'{other}:{line}: error: models[{index}].id: "{model}" is already the id of a model in '
        f"{CATALOG}:{line}; rename one of them"
        for index, (model, line) in enumerate(
            [("openai/small", 4), ("openai/large", 9), ("anthropic/medium", 12)]
        )
    ]


def test_too_large_a_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    assert lines(path) == [f"{path}: error: has more than the 524288 bytes that are read; split it"]


def test_missing_file_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert lines(path) == [f"{path}: error: cannot be read: No such file or directory"]


def test_path_that_cannot_be_looked_at_is_reported(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    assert lines(path) == [f"{path}: error: cannot be read: File name too long"]


def test_folder_without_policies_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("# no policy")
    assert lines(tmp_path) == [
        f"{tmp_path}: error: has no *.yaml or *.yml file; add a policy, or name a file"
    ]


def test_files_of_a_folder_are_read_by_name_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", ".hidden.yaml", "c.txt"):
        (tmp_path / name).write_text(POLICY.format(name=name[0].replace(".", "h")))
    (tmp_path / "folder.yaml").mkdir()
    found = load_policies([CATALOG, tmp_path])
    assert [policy.name for policy in found.policies] == ["a", "b"]


def test_folder_mounted_by_kubernetes_is_read_once(tmp_path: Path) -> None:
    """The layout of a ConfigMap volume: files link into `..data`, which links to a dated folder."""
    dated = tmp_path / "..2026_01_01_00_00_00.1"
    dated.mkdir()
    policy_file(dated)
    os.symlink(dated.name, tmp_path / "..data")
    os.symlink("..data/example.yaml", tmp_path / "example.yaml")
    found = load_policies([CATALOG, tmp_path])
    assert found.findings == ()
    assert found.files == (str(CATALOG), str(tmp_path / "example.yaml"))


def test_more_findings_than_anyone_reads_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    routes = "".join(
        f"  - {{name: r{n}, description: D{n}., models: [none/{n}]}}\n" for n in range(80)
    )
    path.write_text(POLICY.format(name="many").partition("routes:")[0] + "routes:\n" + routes)
    found = lines(path)
    assert len(found) == 51
    # Last: the first one is what the log of a sidecar and its /status say.
    last = f"{path}:55: error: more than 50 findings; correct these first, the rest is not shown"
    assert found[-1] == last
    assert f'{path}:6: error: routes[0].models[0]: unknown model "none/0"' in found[0]


CATALOG_MODELS = load_policies([CATALOG]).catalog


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "error: holds 0 documents; give exactly one policy"),
        (
            POLICY.format(name="a") + "---\n" + POLICY.format(name="b"),
            "error: holds 2 documents; give exactly one policy",
        ),
        (
            CATALOG.read_text(),
            'line 2: error: kind: "ModelCatalog" is not a policy; give a document of kind Policy',
        ),
        ("a: [", "line 1: error: not YAML, column 5: expected the node content, but found "),
        (
            POLICY.format(name="a").replace("Bills.", '""'),
            "line 6: error: routes[0].description: is empty; ",
        ),
    ],
    ids=["nothing", "two", "catalog", "syntax", "rule"],
)
def test_text_must_hold_one_valid_policy(text: str, expected: str) -> None:
    parsed = parse_policy_yaml(text, CATALOG_MODELS)
    assert not parsed.valid
    assert str(parsed.findings[0]).startswith(expected)


def test_text_of_a_valid_policy_gives_the_policy_without_findings() -> None:
    parsed = parse_policy_yaml(POLICY.format(name="a"), CATALOG_MODELS)
    assert parsed.valid
    assert parsed.policy is not None
    assert (parsed.policy.name, parsed.findings) == ("a", ())
