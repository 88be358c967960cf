from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from sidecar.core.policy import ModelList, Policy, Preference, Route, WeightedModel
from sidecar.policies import check_policy, load_policies, parse_policy_yaml
from sidecar.policies.quick_yaml import compose_quickly
from sidecar.policies.yaml_source import (
    MAX_ITEMS,
    MAX_VALUES,
    Document,
    _carefully_read,
    _quickly_read,
    decode,
    read_documents,
)

CATALOG = load_policies([Path(__file__).parent / "fixtures" / "catalog.yaml"]).catalog


def test_lines_are_those_of_keys_and_list_entries() -> None:
    text = """\
# comment
name: x
routes:
  - name: a
    models: [b,
      c]
  -
    name: d
"""
    (document,), _ = read_documents(text)
    paths = [
        "name",
        "routes",
        "routes[0].name",
        "routes[0].models[1]",
        "routes[1]",
        "routes[1].name",
    ]
    assert [document.line_of(path) for path in paths] == [2, 3, 4, 6, 8, 8]


def test_line_of_a_value_that_is_not_there_is_that_of_what_should_hold_it() -> None:
    (document,), _ = read_documents("---\n\na:\n  - b: 1\n")
    assert document.line_of("a[0].missing.deeper") == 4
    assert document.line_of("missing") == 3


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("0o17", 15),
        ("017", 17),
        ("1e3", 1000.0),
        ("2026-01-02", "2026-01-02"),
        ("12:30", "12:30"),
        ("'1'", "1"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written: str, value: object) -> None:
    (document,), _ = read_documents(f"a: {written}")
    assert document.value == {"a": value}


FILES = sorted(
    file
    for folder in (Path(__file__).parent / "fixtures", Path(__file__).parents[2] / "examples")
    for file in folder.rglob("*.yaml")
)
PIECES = (
    "a", "b c", "key", "1", "-1", "0x1F", "0o7", "017", ".5", "1e3", "1_000", "yes", "no", "true",
    "~", "12:30", "<<", ": ", ":", "- ", "-", "? ", "[", "]", "{", "}", ", ", ",",
    '"', "'", "''", '\\"', "\\u00e9", " #c", "#", "\n", "\n  ", "\n- ", "\r\n", " ", "|", "|-\n",
    ">", ">+\n  ", "&a ", "*a", "!!str ", "---\n", "...\n", "%", "@", "x:y", "a#b", "é",
    "2026-01-02", "日本", "😀",
)  # fmt: skip
"""What YAML is made of, and what YAML 1.1 and 1.2 take for different things."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_read_quickly_is_what_is_read_carefully(file: Path) -> None:
    text, problem = decode(file.read_bytes())
    quick = _quickly_read(text)

    if quick is not None and problem is None:
        assert_read_the_same(quick, text)


def assert_read_the_same(documents: list[Document], text: str) -> None:
    carefully, findings = _carefully_read(text)

    assert not findings
    assert list(map(described, documents)) == list(map(described, carefully))


def described(document: Document) -> object:
    # By its spelling: `.nan` is not itself.
    return repr(document.value), document.line, document.lines, document.findings


LINES = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "  ", "    ", "      "]),
    st.sampled_from(["", "", "- ", "-   "]),
    st.sampled_from(["", "a: ", "b: ", "c:", "key-2:   "]),
    st.sampled_from([
        "", "", "text", "more of it", "two: one", "x:y", "x:", "a #c", "a#c", "# c", "#", "'it''s'",
        "'a' #c", '"q: #"', '"\\n"', '"', "1", "01", "2.50", "1_0", "-1", "3D", "0x", "true", "no",
        "null", "2026-01-02", "2026-1-2", "[]", "[a, b-2]", "[a,true]", "[a b]", "[[a]]", "{}",
        "{model: a/b, weight: 2}", "{a: [b, c]}", "{a: b, a: c}", "{a:b}", "[a", "? a", "&x", "*x",
        "!!str a", "---", "...", ">-", ">", "|-", "|", ">2", "| #c", "-", "- a", "日本", "é ",
        "\xa0",
        "@a", "%a", "<<", "=", "~", ".5", "(a)", "a, b]",
    ]),
)  # fmt: skip
DOCUMENTS = st.lists(
    st.one_of(LINES, LINES, LINES, st.sampled_from(["", "---", "# c", "  ", "  # c"])),
    min_size=1,
    max_size=7,
)


@given(
    st.one_of(
        st.lists(st.sampled_from(PIECES), min_size=1, max_size=14).map("".join),
        st.tuples(DOCUMENTS, st.sampled_from(["", "\n", "\n\n"])).map(
            lambda made: "\n".join(made[0]) + made[1]
        ),
    )
)
# Seen once.
@example("| #c\n---")
@example(">-\n\n---")
@example(">-\n# c")
@example("---\n...\n...\n")
@example("a: &b:c text\n")
@example("a: &b text\nd: [*b:c]\n")
@example("a\n---\n!\n")
# The same texts in every run: hundreds of thousands were tried before.
@settings(max_examples=400, derandomize=True)
def test_no_text_is_read_quickly_as_something_else(text: str) -> None:
    documents = _quickly_read(text)
    if documents is not None:
        assert_read_the_same(documents, text)


def test_policies_as_people_write_them_are_read_quickly() -> None:
    files = list((Path(__file__).parents[2] / "examples" / "policies").glob("*.yaml"))

    assert files
    assert [file.name for file in files if _quickly_read(file.read_text()) is None] == []


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "0o" + "7" * 6000, "1" + "0" * 400])
@pytest.mark.parametrize("sign", ["", "-"])
def test_number_that_no_float_holds_is_infinite(number: str, sign: str) -> None:
    """Python does not print whole numbers of more than 4300 digits, as errors would."""
    (document,), findings = read_documents(f"a: {sign}{number}\n")

    assert not findings
    assert document.value == {"a": float(f"{sign}inf")}


def test_tag_of_a_number_before_nothing_is_no_number() -> None:
    (document,), findings = read_documents("a: !!int ")

    assert (document.value, findings) == ({"a": ""}, [])


def test_documents_before_a_syntax_error_are_read() -> None:
    documents, findings = read_documents("a: 1\n---\nb: [\n")
    assert [document.value for document in documents] == [{"a": 1}]
    assert [finding.line for finding in findings] == [4]


ROW = f"- [{'1,' * (MAX_ITEMS - 1)}]\n"
"""A list of a thousand values, itself included."""
MOST = f"{ROW * (MAX_VALUES // 1000 - 1)}- [{'1,' * (MAX_ITEMS - 2)}]\n"
"""A list of as many values as are read, itself included."""
BOMB = f"a: &a [{'1,' * 100}]\nb: &b [{'*a,' * 100}]\n"


@pytest.mark.parametrize("comment", ["", "#\t\n"], ids=["quickly", "carefully"])
def test_as_many_values_as_are_allowed_are_read(comment: str) -> None:
    (document,), findings = read_documents(MOST + comment)

    assert not findings
    assert not document.findings


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{MOST}- 1\n", 51),
        (f"{MOST}---\n1\n", 52),
        (f"{ROW * 60}\t", 50),
        ("{" + "a," * MAX_VALUES, 1),
        ("--- a\n" * (MAX_VALUES + 1), MAX_VALUES + 1),
        (f"{BOMB}---\n" * 9, 13),
        (f"{BOMB}---\n" * 9 + "\t", 13),
    ],
    ids=["list", "documents", "lists", "mapping", "scalars", "aliases", "aliases carefully"],
)
def test_reading_ends_at_the_most_values(text: str, line: int) -> None:
    """What stands behind them is not looked at, or hostile texts would take minutes."""
    _, findings = read_documents(text)

    (finding,) = findings
    assert finding.message.startswith(f"more than {MAX_VALUES} values")
    assert finding.line == line


@given(st.text())
def test_any_text_is_read_or_refused_with_a_reason(text: str) -> None:
    documents, findings = read_documents(text)

    assert all(document.value is not None or document.findings for document in documents)
    assert all(finding.message for finding in findings)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["other", ""])
)
WORDS = """apiVersion kind name description default routes models preference model weight domain
min_confidence examples id upstream_model dialects prices"""
keys = st.sampled_from(WORDS.split())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(keys, st.text()), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(kind=st.sampled_from(["Policy", "ModelCatalog"]), rest=st.dictionaries(keys, values))
@settings(max_examples=60)
def test_no_document_raises_and_what_is_refused_has_a_reason(
    kind: str, rest: dict[str, object]
) -> None:
    text = dumped({**rest, "apiVersion": "llmrouter.v1", "kind": kind})
    parsed = parse_policy_yaml(text, CATALOG)
    assert parsed.valid or parsed.findings
    assert all(finding.message for finding in parsed.findings)


model_lists = st.builds(
    ModelList,
    st.lists(
        st.builds(
            WeightedModel,
            st.sampled_from(sorted(CATALOG)),
            st.floats(min_value=0.001, max_value=1000),
        ),
        min_size=1,
        unique_by=lambda entry: entry.id,
    ).map(tuple),
    st.sampled_from(Preference),
)
plain_language = st.text(
    st.characters(blacklist_categories=["Cc", "Cs"]), min_size=1, max_size=30
).filter(lambda text: not all(each.isspace() or category(each) == "Cf" for each in text))
header_names = st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True).filter(
    lambda name: name.lower() != "other"
)
policies = st.builds(
    Policy,
    name=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True),
    routes=st.lists(
        st.builds(
            Route,
            name=header_names,
            description=plain_language,
            models=model_lists,
            min_confidence=st.floats(min_value=0, max_value=1),
            examples=st.lists(plain_language, max_size=2).map(tuple),
        ),
        max_size=4,
        unique_by=lambda route: route.name,
    ).map(tuple),
    default=model_lists,
    description=st.one_of(st.just(""), plain_language),
)


@given(policies)
@settings(max_examples=60)
def test_valid_policy_written_as_yaml_reads_as_itself(policy: Policy) -> None:
    parsed = parse_policy_yaml(dumped(as_document(policy)), CATALOG)
    assert parsed.policy == policy
    assert parsed.valid
    # The texts are those of the API's twin; only the lines are added.
    assert {(f.path, f.message) for f in parsed.findings} == {
        (f.path, f.message) for f in check_policy(policy, CATALOG)
    }


def as_document(policy: Policy) -> dict[str, object]:
    def models(of: ModelList) -> dict[str, object]:
        entries = [{"model": entry.id, "weight": entry.weight} for entry in of.models]
        return {"models": entries, "preference": str(of.preference)}

    return {
        "apiVersion": "llmrouter.v1",
        "kind": "Policy",
        "name": policy.name,
        "description": policy.description,
        "default": models(policy.default),
        "routes": [
            {
                "name": route.name,
                "description": route.description,
                "min_confidence": route.min_confidence,
                "examples": list(route.examples),
                **models(route.models),
            }
            for route in policy.routes
        ],
    }


def dumped(document: dict[str, object]) -> str:
    yaml = YAML(typ="safe", pure=True)
    # ruamel.yaml writes `[?x]` for a text that it then reads as a mapping.
    yaml.default_flow_style = False
    stream = StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def test_lines_of_many_documents_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading is one of the whole text: hundreds of documents would take minutes."""
    texts: list[str] = []

    def counted(text: str) -> Sequence[Any] | None:
        texts.append(text)
        return compose_quickly(text)

    monkeypatch.setattr("sidecar.policies.yaml_source.compose_quickly", counted)
    documents, _ = read_documents("".join(f"---\na: 1\nb{n}: 2\n" for n in range(20)))

    lines = [each.line_of(f"b{n}") for n, each in enumerate(documents)]

    assert lines == list(range(3, 63, 3))
    assert len(texts) == 2
