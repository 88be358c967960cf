import pytest
from cpu_engine.errors import RefusedError
from cpu_engine.grammar import read_literals

from sidecar.policies.rules import MAX_ROUTE_NAME, MAX_ROUTES
from sidecar.prompts.answers import literal_guide
from sidecar.prompts.arch_router import AnswerStyle


@pytest.mark.parametrize(
    ("guide", "literals"),
    [
        ('root ::= "code"', ["code"]),
        ('root ::= "code" | "other"', ["code", "other"]),
        ('  root::="a"|"b"\n|\t"c" \n', ["a", "b", "c"]),
        (r'root ::= "{\"route\": \"code\"}"', ['{"route": "code"}']),
        (r'root ::= "a\\b"', ["a\\b"]),
        (r'root ::= "\n\t\r"', ["\n\t\r"]),
        (r'root ::= "caf\u00e9"', ["café"]),
        (r'root ::= "\ud83d\ude00"', ["😀"]),
        ('root ::= "größe 日本"', ["größe 日本"]),
        ('root ::= "a | b" | "c"', ["a | b", "c"]),
        ('root ::= "twice" | "twice"', ["twice"]),
        ('root ::= "a" | "ab"', ["a", "ab"]),
    ],
)
def test_reads_an_alternation_of_literals(guide: str, literals: list[str]) -> None:
    assert read_literals(guide) == tuple(literal.encode() for literal in literals)


@pytest.mark.parametrize(
    "guide",
    [
        "",
        '"code"',
        'start ::= "code"',
        "root ::= ",
        "root ::= code",
        'root ::= ""',
        'root ::= "a" | ',
        'root ::= | "a"',
        'root ::= "a" "b"',
        'root ::= ("a" | "b")',
        'root ::= "a"+',
        'root ::= "a"?',
        "root ::= [a-z]+",
        'root ::= "a" | [0-9]',
        'root ::= "a" | name\nname ::= "b"',
        'root ::= "a"\nname ::= "b"',
        'root ::= "a" # comment',
        'root ::= "unfinished',
        'root ::= "line\nbreak"',
        r'root ::= "\x41"',
        r'root ::= "\u12"',
        r'root ::= "\/"',
        r'root ::= "\ud83d"',
        r'root ::= "ends\"',
    ],
)
def test_refuses_everything_else(guide: str) -> None:
    with pytest.raises(RefusedError, match="guided_decoding_guide"):
        read_literals(guide)


def test_refusals_do_not_repeat_the_guide() -> None:
    with pytest.raises(RefusedError) as refused:
        read_literals('root ::= "secret" secret')
    assert "secret" not in str(refused.value)
    assert "character 17" in str(refused.value)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ('root ::= "' + "a" * 1025 + '"', "at character 9 has 1025 bytes; must have 1024 at most"),
        ('root ::= "a" | "' + "\u00e4" * 513 + '"', "at character 15 has 1026 bytes"),
        ('root ::= "a"' + ' | "a"' * 50_000, "has 300012 characters; must have 262144 at most"),
    ],
    ids=["literal", "bytes", "guide"],
)
def test_refuses_what_takes_long_to_spell(guide: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        read_literals(guide)


def test_reads_the_names_of_the_largest_policy() -> None:
    # Nothing grows more, as JSON and then as a literal, than a backslash.
    names = [f"{number:04}".ljust(MAX_ROUTE_NAME, "\\") for number in range(MAX_ROUTES)]
    guide = literal_guide([AnswerStyle.JSON.write(name) for name in names])
    assert len(read_literals(guide)) == MAX_ROUTES
