"""The model is replaced where it stands; nothing else of a body changes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.ext_proc.dialects.json_fields import (
    FieldReader,
    NotJsonError,
    span,
    splice,
    with_first,
    without_lone_surrogates,
)
from tests.ext_proc.dialects.requests import PROPERTY

read_fields = FieldReader(("model", "a", "b", "", "x")).read

SPLICED: dict[str, tuple[bytes, bytes]] = {
    "plain": (b'{"model":"auto","n":1}', b'{"model":"gpt-5","n":1}'),
    "blanks": (b' {\n "model"\t:  "auto" , "n":1}\r\n', b' {\n "model"\t:  "gpt-5" , "n":1}\r\n'),
    "last field": (b'{"n":1,"model":"auto"}', b'{"n":1,"model":"gpt-5"}'),
    "escapes in the key": (b'{"mod\\u0065l":"auto"}', b'{"mod\\u0065l":"gpt-5"}'),
    "escapes in the value": (b'{"model":"a\\u0075t\\"o"}', b'{"model":"gpt-5"}'),
    "of two keys the last": (
        b'{"model":"a","x":[],"model":"auto"}',
        b'{"model":"a","x":[],"model":"gpt-5"}',
    ),
    "of two spellings the last": (
        b'{"model":"a","mod\\u0065l":"auto"}',
        b'{"model":"a","mod\\u0065l":"gpt-5"}',
    ),
    "the key in a text": (
        b'{"a":"\\"model\\":\\"auto\\"","model":"auto"}',
        b'{"a":"\\"model\\":\\"auto\\"","model":"gpt-5"}',
    ),
    "the key below": (
        b'{"a":{"model":"auto"},"b":[{"model":"auto"}],"model":"auto"}',
        b'{"a":{"model":"auto"},"b":[{"model":"auto"}],"model":"gpt-5"}',
    ),
    "the key below, afterwards": (
        b'{"model":"auto","tools":[{"model":"x"}]}',
        b'{"model":"gpt-5","tools":[{"model":"x"}]}',
    ),
    "another case": (b'{"Model":"x","model":"auto"}', b'{"Model":"x","model":"gpt-5"}'),
    "big integer": (
        b'{"seed":123456789012345678901234567890,"model":"auto"}',
        b'{"seed":123456789012345678901234567890,"model":"gpt-5"}',
    ),
    "numbers as written": (
        b'{"a":1.00,"b":1e3,"c":-0,"model":"auto"}',
        b'{"a":1.00,"b":1e3,"c":-0,"model":"gpt-5"}',
    ),
    "byte order mark": (b'\xef\xbb\xbf{"model":"auto"}', b'\xef\xbb\xbf{"model":"gpt-5"}'),
    "characters of several bytes": (
        '{"a":"é日😀","model":"autö"}'.encode(),
        '{"a":"é日😀","model":"gpt-5"}'.encode(),
    ),
    "large": (
        b'{"a":"' + b"x" * 20_000 + b'","model":"auto","b":"auto"}',
        b'{"a":"' + b"x" * 20_000 + b'","model":"gpt-5","b":"auto"}',
    ),
    "large with a byte order mark": (
        b'\xef\xbb\xbf{"a":"' + b"x" * 20_000 + b'","b":"auto","model":"auto"}',
        b'\xef\xbb\xbf{"a":"' + b"x" * 20_000 + b'","b":"auto","model":"gpt-5"}',
    ),
    "an empty value": (b'{"a":"","model":""}', b'{"a":"","model":"gpt-5"}'),
    "null": (b'{"a":null,"model":null}', b'{"a":null,"model":"gpt-5"}'),
    "null as the only one": (b'{"a":1,"model": null }', b'{"a":1,"model": "gpt-5" }'),
    "null in a large one": (
        b'{"a":"' + b"x" * 20_000 + b'","b":null,"model":null}',
        b'{"a":"' + b"x" * 20_000 + b'","b":null,"model":"gpt-5"}',
    ),
    "not UTF-8 elsewhere": (b'{"a":"\xff","model":"auto"}', b'{"a":"\xff","model":"gpt-5"}'),
}


@pytest.mark.parametrize(("body", "expected"), SPLICED.values(), ids=SPLICED.keys())
def test_model_is_spliced(body: bytes, expected: bytes) -> None:
    assert splice(body, span(body, read_fields(body)["model"]), "gpt-5") == expected


PUT_IN: dict[str, tuple[bytes, bytes]] = {
    "plain": (b'{"n":1}', b'{"model": "gpt-5","n":1}'),
    "blanks": (b' {\n "n":1}\r\n', b' {"model": "gpt-5",\n "n":1}\r\n'),
    "byte order mark": (b'\xef\xbb\xbf{"n":1}', b'\xef\xbb\xbf{"model": "gpt-5","n":1}'),
    "the key below": (b'{"a":{"model":"x"}}', b'{"model": "gpt-5","a":{"model":"x"}}'),
}


@pytest.mark.parametrize(("body", "expected"), PUT_IN.values(), ids=PUT_IN.keys())
def test_model_is_put_in_where_there_is_none(body: bytes, expected: bytes) -> None:
    assert with_first(body, "model", "gpt-5") == expected


def test_what_is_put_in_is_escaped() -> None:
    said = json.loads(with_first(b'{"n":1}', 'the "key"', "l\\lama"))

    assert said == {'the "key"': "l\\lama", "n": 1}


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["model", '"model": "auto"', "\\", '{"model":"x"}']),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["model", "a", "é"]) | st.text(max_size=3), inner)
    ),
    max_leaves=12,
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@PROPERTY
@given(
    before=st.dictionaries(st.text(max_size=4), values, max_size=4),
    after=st.dictionaries(st.text(max_size=4), values, max_size=4),
    old=names,
    new=names,
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
    mark=st.sampled_from(["", "\ufeff"]),
)
@example({}, {"model": 1}, "auto", "x", True, None, "")
def test_a_spliced_body_says_the_same_but_for_its_model(
    before: dict[str, Any],
    after: dict[str, Any],
    old: str,
    new: str,
    ascii_only: bool,
    indent: int | None,
    mark: str,
) -> None:
    said = {**before, **after, "model": old}
    text = json.dumps(said, ensure_ascii=ascii_only, indent=indent)
    try:
        body = (mark + text).encode()
    except UnicodeEncodeError:
        return

    start, end = span(body, read_fields(body)["model"])
    spliced = splice(body, (start, end), new)

    assert json.loads(spliced.decode("utf-8-sig")) == {**said, "model": new}
    assert json.loads(body[start:end]) == old
    assert spliced[:start] == body[:start]
    assert spliced[len(spliced) - (len(body) - end) :] == body[end:]


@PROPERTY
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        fields = read_fields(body)
    except NotJsonError:
        return
    for value in fields.values():
        start, end = span(body, value)
        assert body[start:end] == bytes(value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model":"auto"',
        b'{"model":"auto"} {}',
        b'{"model":"auto",}',
        b"{'model':'auto'}",
        b'{"model":NaN}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        '{"model":"auto"}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(NotJsonError):
        read_fields(body)


@pytest.mark.parametrize("body", [b"[]", b'"model"', b"null", b"1"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        read_fields(body)


def test_a_value_is_a_view_of_the_body() -> None:
    """What `span` relies on; a release of msgspec that copies fails here."""
    body = b'{"a":"' + b"x" * 100_000 + b'","model":"auto"}'
    start, end = span(body, read_fields(body)["model"])

    assert body[start:end] == b'"auto"'


LONE: dict[str, tuple[bytes, bytes | None]] = {
    "none": (rb'"a\n\u00e9"', None),
    "a pair": (rb'"\ud83d\ude00"', None),
    "the first half": (rb'"a\ud83d"', rb'"a\ufffd"'),
    "the second half": (rb'"\uDE00a"', rb'"\ufffda"'),
    "the first half before a pair": (rb'"\ud83d\uD83D\uDE00"', rb'"\ufffd\uD83D\uDE00"'),
    "the second half behind a pair": (rb'"\ud83d\ude00\ude00"', rb'"\ud83d\ude00\ufffd"'),
    "halves apart": (rb'"\ud83d \ude00"', rb'"\ufffd \ufffd"'),
    "an escaped backslash": (rb'"\\ud83d"', None),
    "behind an escaped backslash": (rb'"\\\ud83d"', rb'"\\\ufffd"'),
    "a half behind an escaped one": (rb'"\\ud83d\ude00"', rb'"\\ud83d\ufffd"'),
}


@pytest.mark.parametrize(("text", "mended"), LONE.values(), ids=LONE.keys())
def test_halves_of_characters_are_replaced_where_they_stand(
    text: bytes, mended: bytes | None
) -> None:
    assert without_lone_surrogates(text) == mended


def test_no_more_halves_than_are_looked_at_in_time() -> None:
    assert without_lone_surrogates(rb"\ud83d" * 200_000) is None


@PROPERTY
@given(st.lists(st.sampled_from(["\ud83d", "\ude00", "\\", "ud83d", '"', "a"]), max_size=12))
def test_text_with_halves_of_characters_is_the_same_otherwise(parts: list[str]) -> None:
    text = "".join(parts)
    body = json.dumps(text).encode()

    mended = without_lone_surrogates(body) or body

    expected = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert msgspec.json.decode(mended) == expected
    assert len(mended) == len(body)
