"""What all answers of a policy begin with, put into the prompt: it need not be generated, and of
the rest no more than tells the names apart.

Each token of an answer reads all weights again, and an answer such as `{'route': 'billing'}` has
about eight, of which one or two decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.core.model import Tokenizer

_HALF_CHARACTER = "\ufffd"
"""What a token that ends inside a character is decoded to."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The beginning that a policy's answers share.

    Args:
        text, ids: of the beginning.
        rests: what follows it in each answer -> the name that the answer states.
        max_tokens: tokens of the rests, as the tokenizer splits them, after which each is another
            than all others. A model that spells a name in other tokens may stop before that.
    """

    text: str
    ids: tuple[int, ...]
    rests: Mapping[str, str]
    max_tokens: int

    def name_of(self, rest: str) -> str | None:
        """The name that a rest states, which may be cut; None if it states none, or several."""
        cut = rest.rstrip(_HALF_CHARACTER)
        if cut in self.rests:
            return self.rests[cut]
        begun = [name for each, name in self.rests.items() if cut and each.startswith(cut)]
        return begun[0] if len(begun) == 1 else None


def find_skeleton(
    opening: str, answers: Mapping[str, str], tokenizer: Tokenizer
) -> Skeleton | None:
    """The beginning that all `answers` share.

    None if an answer, or the tokens that it is split into, begin otherwise: a prompt that ends
    inside what would have been one token asks for something that the model has never seen.

    Args:
        opening: the text that answers should begin with.
        answers: complete answers -> the name each states.
    """
    ids = tuple(tokenizer.encode(opening))
    rests: dict[str, str] = {}
    tokens: dict[str, list[int]] = {}
    for answer, name in answers.items():
        split = tokenizer.encode(answer)
        if not answer.startswith(opening) or tuple(split[: len(ids)]) != ids:
            return None
        rest = answer.removeprefix(opening)
        rests[rest], tokens[rest] = name, split[len(ids) :]
    longest = max(_telling(rest, split, rests, tokenizer) for rest, split in tokens.items())
    return Skeleton(opening, ids, rests, longest)


def _telling(rest: str, split: list[int], rests: Mapping[str, str], tokenizer: Tokenizer) -> int:
    """Tokens of `rest` after which it can be no other."""
    for count in range(1, len(split) + 1):
        text = tokenizer.decode(split[:count])
        if rest.startswith(text) and not any(
            each.startswith(text) for each in rests if each != rest
        ):
            return count
    # Another answer begins like all of this one: only the end tells.
    return len(split) + 1
