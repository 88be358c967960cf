"""One-token word labels for the routes of a policy.

With such a label the answer is a single token, so one forward pass gives the probability of every
route at once. The first tokens of route names would not do: they collide between routes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import Tokenizer
from sidecar.core.policy import OTHER, Policy, Route
from sidecar.prompts.words import GENERIC, SPARE

Words = tuple[str, ...]

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*|\d+")
_POSSESSIVE = re.compile(r"['\u2019]s$", re.IGNORECASE)
# A camelCase word ends before the next capital; a run of capitals (`HTTPServer`) before its last.
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_MIN_LETTERS = 2


def label_token(word: str, tokenizer: Tokenizer) -> int | None:
    """The id of the single token `" word"`; None if the word takes more than one."""
    # The protocol says nothing of hashing, which any object but one with values to compare has.
    return _label_token(word, tokenizer)  # type: ignore[arg-type]


@lru_cache(maxsize=32_768)
def _label_token(word: str, tokenizer: Tokenizer) -> int | None:
    """Policies have most of their words in common, and asking the tokenizer about each is half of
    what compiling one takes."""
    ids = tokenizer.encode(f" {word}")
    return ids[0] if len(ids) == 1 else None


@dataclass(frozen=True, slots=True)
class _Offer:
    """A word that a route could have as its label, and what it is worth."""

    route: str
    word: str
    token: int
    from_description: bool
    sharers: int
    """Other routes of the policy that use the word."""

    def rank(self, choices: Mapping[str, int]) -> tuple[object, ...]:
        """Ascending: the most telling first, and the route with the fewest words of its own before
        those that can take another. The end only makes the order total."""
        return (
            self.from_description,
            self.sharers,
            choices[self.route],
            -self.token,
            self.route,
        )


def assign_labels(policy: Policy, tokenizer: Tokenizer) -> dict[str, str]:
    """Route name -> label, in declared order.

    A label is a lower-case word, `" word"` is a single token, no two routes share one and none is
    `other`. The assignment does not depend on the order of the routes: words of the name come
    before words of the description, then those that fewer other routes use, then the rarer
    (byte-pair merges number tokens by frequency). A route without a usable word gets a neutral one.

    Raises:
        SidecarError: UNSUPPORTED if the vocabulary has not enough words of one token.
    """

    def token_of(word: str) -> int | None:
        return label_token(word, tokenizer)

    offers = _offers(policy, token_of)
    choices = Counter(offer.route for offer in offers if not offer.from_description)
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for offer in sorted(offers, key=lambda offer: offer.rank(choices)):
        if offer.route not in labels and offer.word not in taken:
            labels[offer.route] = offer.word
            taken.add(offer.word)
    unnamed = sorted(route.name for route in policy.routes if route.name not in labels)
    if unnamed:
        used = {word for route in policy.routes for word in (*_name(route), *_description(route))}
        labels |= _spare_labels(unnamed, taken | used, token_of, tokenizer)
    return {route.name: labels[route.name] for route in policy.routes}


def _offers(policy: Policy, token_of: Callable[[str], int | None]) -> list[_Offer]:
    name_words = {route.name: _name(route) for route in policy.routes}
    descriptions = {route.name: _description(route) for route in policy.routes}
    all_words = {name: frozenset(words + descriptions[name]) for name, words in name_words.items()}
    users = Counter(word for words in all_words.values() for word in words)
    names = Counter(word for words in name_words.values() for word in set(words))
    offers: dict[tuple[str, str], _Offer] = {}
    for route in policy.routes:
        own = name_words[route.name]
        # `plan_a` beside `plan_b`: the letter tells them apart, `plan` does not.
        opaque = any(len(word) < _MIN_LETTERS or word.isdigit() for word in own)
        telling = tuple(word for word in own if not (opaque and names[word] > 1))
        for word, from_description in (
            *((word, False) for word in telling),
            *((word, True) for word in descriptions[route.name]),
        ):
            token = token_of(word) if _usable(word) else None
            if token is not None and (route.name, word) not in offers:
                offers[route.name, word] = _Offer(
                    route.name, word, token, from_description, users[word] - 1
                )
    return list(offers.values())


def _spare_labels(
    routes: Sequence[str],
    excluded: set[str],
    token_of: Callable[[str], int | None],
    tokenizer: Tokenizer,
) -> dict[str, str]:
    labels: dict[str, str] = {}
    spare = _spare_words(excluded, token_of, tokenizer)
    for route in routes:
        word = next(spare, None)
        if word is None:
            raise SidecarError(
                ErrorCode.UNSUPPORTED,
                f"the routing model's vocabulary has no one-token word left to label route "
                f"{route!r}: give routes telling names or descriptions, or fewer routes",
            )
        labels[route] = word
    return labels


def _spare_words(
    excluded: set[str], token_of: Callable[[str], int | None], tokenizer: Tokenizer
) -> Iterator[str]:
    given = set(excluded)
    for word in SPARE:
        if word not in given and token_of(word) is not None:
            given.add(word)
            yield word
    for token in range(tokenizer.vocab_size):  # hundreds of opaque routes: any word will do
        word = tokenizer.decode([token]).removeprefix(" ")
        if (
            len(word) > _MIN_LETTERS
            and word.isascii()
            and _usable(word)
            and word not in given
            and token_of(word) is not None
        ):
            given.add(word)
            yield word


def _usable(word: str) -> bool:
    return (
        len(word) >= _MIN_LETTERS
        and word.isalpha()
        and word == word.lower()
        and word != OTHER
        and word not in GENERIC
    )


def _name(route: Route) -> Words:
    return _words(route.name)


def _description(route: Route) -> Words:
    return _words(route.description)


def _words(text: str) -> Words:
    """Lower-case words; contractions such as `don't` stay whole, and so are no labels."""
    return tuple(
        part.lower()
        for word in _WORD.findall(text)
        for part in _CAMEL.split(_POSSESSIVE.sub("", word))
    )
