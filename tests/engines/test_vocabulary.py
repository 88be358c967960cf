import json
from pathlib import Path

import pytest
from cpu_engine.errors import RefusedError
from cpu_engine.vocabulary import Vocabulary

from tests.engines.tiny_models import SPECIAL, tiny_tokenizer

TOKENIZER = tiny_tokenizer(320)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tokenizer.json"
    file.write_text(TOKENIZER.to_str())
    return file


@pytest.mark.parametrize("text", ["code review", "größe", "日本 😀", "\n\t\x00\x7f", '{"route": "'])
def test_tokens_are_found_by_their_bytes(path: Path, text: str) -> None:
    ids = Vocabulary.from_file(path).fewest_tokens(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_every_token_of_a_text_is_a_prefix_of_the_rest(path: Path) -> None:
    vocabulary = Vocabulary.from_file(path)
    text = "code review of the billing code"
    rest = text.encode()
    for token in TOKENIZER.encode(text).ids:
        pieces = {index: piece for piece, index in vocabulary.prefixes(rest)}
        rest = rest[len(pieces[token]) :]
    assert rest == b""


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_are_not_text(path: Path, token: str) -> None:
    ids = Vocabulary.from_file(path).fewest_tokens(token.encode())
    assert TOKENIZER.token_to_id(token) not in ids
    assert len(ids) > 1


@pytest.mark.parametrize(
    "change",
    [{"decoder": {"type": "Metaspace"}}, {"decoder": None}, {"model": {"type": "WordPiece"}}],
)
def test_other_tokenizers_are_refused(path: Path, change: dict[str, object]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RefusedError, match="byte-level BPE"):
        Vocabulary.from_file(path)
