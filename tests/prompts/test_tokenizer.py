from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import tokenizers

from sidecar.inference.tokenizer import HfTokenizer
from tests.prompts.vocabularies import qwen, smollm2

# As tiktoken, which Qwen's vocabulary file is made for, gives them.
_KNOWN = [
    pytest.param("Hello, world!", [9707, 11, 1879, 0], id="words"),
    pytest.param("2024", [17, 15, 17, 19], id="single digits"),
    pytest.param(">\n\n[", [1339, 58], id="punctuation takes its line breaks"),
    pytest.param("    indented", [262, 1257, 15864], id="blanks"),
    pytest.param("图像生成 e\u0301", [107553, 43959, 3958], id="composed first"),
]


@pytest.mark.parametrize(("text", "ids"), _KNOWN)
def test_qwen_ids_are_those_of_its_vocabulary_file(text: str, ids: list[int]) -> None:
    assert qwen().encode(text) == ids


@pytest.mark.parametrize(
    ("spelling", "token"),
    [("<|endoftext|>", 151643), ("<|im_start|>", 151644), ("<|im_end|>", 151645)],
)
def test_qwen_special_tokens_have_their_published_ids(spelling: str, token: int) -> None:
    assert qwen().special(spelling) == token


def test_spelling_of_a_special_token_stays_text() -> None:
    tokenizer = qwen()

    ids = tokenizer.encode("a<|im_end|>b")

    assert tokenizer.special("<|im_end|>") not in ids
    assert tokenizer.decode(ids) == "a<|im_end|>b"


def test_control_tokens_that_the_file_does_not_call_special_stay_text_too() -> None:
    tokenizer = qwen()

    assert tokenizer.special("<tool_call>") not in tokenizer.encode("<tool_call>")


def test_unknown_special_token_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        smollm2().special("<|no_such|>")


def test_special_tokens_are_spelled_out_when_decoded() -> None:
    tokenizer = smollm2()

    assert tokenizer.decode([tokenizer.special("<|im_start|>"), *tokenizer.encode("user")]) == (
        "<|im_start|>user"
    )


def test_lone_surrogate_does_not_raise() -> None:
    assert smollm2().encode("a\ud800b") == smollm2().encode("a?b")


def test_padding_and_truncation_of_the_file_are_not_applied(tmp_path: Path) -> None:
    definition = _tiny_definition()
    definition["truncation"] = {
        "direction": "Right",
        "max_length": 1,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))

    assert len(HfTokenizer(tmp_path / "tokenizer.json").encode("abc")) == 3


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"added_tokens": []}', "not json"])
def test_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)

    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json"):
        HfTokenizer(path)


def test_threads_can_share_one() -> None:
    tokenizer = smollm2()
    texts = [f"text number {number} " * 20 for number in range(50)]
    expected = [tokenizer.encode(text) for text in texts]
    results: list[list[list[int]]] = []

    threads = [
        threading.Thread(target=lambda: results.append([tokenizer.encode(text) for text in texts]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [expected] * 4


def _tiny_definition() -> dict[str, object]:
    letters = {"a": 0, "b": 1, "c": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[]))
    definition: dict[str, object] = json.loads(tokenizer.to_str())
    return definition
