"""Policies and conversations to measure with: the same in every run, no two conversations equal."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import accumulate

from sidecar._generated.llmrouter.v1 import routing_pb2

MODEL = "bench/large"
DEFAULT = "bench/small"

_POLICIES_A_FILE = 100
"""Well below the largest file that is read."""

_TOPICS = (
    "billing", "shipping", "refunds", "travel", "coding", "testing", "security", "databases",
    "cooking", "fitness", "music", "movies", "history", "physics", "chemistry", "algebra",
    "statistics", "law", "taxes", "insurance", "banking", "gardening", "cars", "bicycles",
    "furniture", "fashion", "photography", "translation", "poetry", "email", "meetings",
    "hiring", "medicine", "pets", "weather", "geography", "games", "chess", "networks", "printing",
)  # fmt: skip
_TASKS = ("explaining", "planning", "comparing", "fixing", "summarising")
_WORDS = (
    "the", "a", "my", "our", "how", "why", "when", "could", "should", "please", "need", "order",
    "price", "change", "broken", "system", "report", "error", "table", "plan", "write", "check",
    "first", "second", "between", "about", "problem", "question", "result", "example", "today",
    "before", "after", "because", "work", "house", "train", "book", "number", "small", "large",
)  # fmt: skip


def routes(count: int, seed: int = 0) -> list[dict[str, object]]:
    """`count` routes of one sentence each, at most as many as there are topics."""
    drawn = random.Random(seed).sample(_TOPICS, count)  # noqa: S311 -- not a secret
    return [
        {
            "name": topic,
            "description": f"Questions about {topic}: {_TASKS[number % 5]} and "
            f"{_TASKS[(number + 2) % 5]}, for somebody who knows the basics.",
            "models": [MODEL],
        }
        for number, topic in enumerate(drawn)
    ]


def policy_document(name: str, count: int, seed: int) -> dict[str, object]:
    """A policy of `count` routes."""
    return {
        "apiVersion": "llmrouter.v1",
        "kind": "Policy",
        "name": name,
        "default": {"models": [DEFAULT]},
        "routes": routes(count, seed),
    }


def catalog_document() -> dict[str, object]:
    """The models of all policies."""
    models = [{"id": id_, "upstream_model": id_} for id_ in (MODEL, DEFAULT)]
    return {"apiVersion": "llmrouter.v1", "kind": "ModelCatalog", "models": models}


def policy_files(
    route_counts: Sequence[int], many: int, others: Sequence[dict[str, object]] = ()
) -> list[str]:
    """Contents of policy files: a catalog, one policy `routes-N` for each count (the first is the
    default as well), `others`, and `many` policies `many-I` of six routes."""
    named = [("default", route_counts[0], 0)]
    named += [(f"routes-{count}", count, count) for count in route_counts]
    named += [(f"many-{number}", 6, 1000 + number) for number in range(many)]
    documents = [catalog_document(), *(policy_document(*each) for each in named), *others]
    # JSON is YAML.
    texts = list(map(json.dumps, documents))
    return [
        "\n---\n".join(texts[start : start + _POLICIES_A_FILE])
        for start in range(0, len(texts), _POLICIES_A_FILE)
    ]


def request(number: int, words: int, policy: str) -> routing_pb2.RouteRequest:
    """Conversation `number` of `words` words and its number: one message, or from 30 words on
    three."""
    drawn = random.Random(number)  # noqa: S311
    text = [drawn.choice(_WORDS) for _ in range(words - 1)] + [f"case {number}"]
    turns = 1 if words < 30 else 3
    roles = (routing_pb2.ROLE_USER, routing_pb2.ROLE_ASSISTANT, routing_pb2.ROLE_USER)
    made = routing_pb2.RouteRequest(policy=policy)
    for turn in range(turns):
        part = " ".join(text[turn * words // turns : (turn + 1) * words // turns])
        message = made.messages.add(role=roles[turn])
        message.parts.add(text=part)
    return made


def fitting_request(number: int, words: int, count: int) -> routing_pb2.RouteRequest:
    """As `request` under the policy `routes-COUNT`, but asks last for what one of its routes
    describes: random words fit hardly any."""
    made = request(number, words, f"routes-{count}")
    route = routes(count, count)[number % count]
    made.messages[-1].parts[0].text = f"{route['description']} It is case {number}."
    return made


def large_request(size: int) -> routing_pb2.RouteRequest:
    """One message whose text has `size` bytes."""
    made = routing_pb2.RouteRequest(policy="default")
    sentence = " ".join(_WORDS) + ". "
    message = made.messages.add(role=routing_pb2.ROLE_USER)
    message.parts.add(text=(sentence * (size // len(sentence) + 1))[:size])
    return made


def zipf(count: int, draws: int, exponent: float = 1.1, seed: int = 0) -> list[int]:
    """`draws` numbers of 0..count-1; number k has a share proportional to (k+1)^-exponent."""
    weights = list(accumulate((rank + 1) ** -exponent for rank in range(count)))
    return random.Random(seed).choices(range(count), cum_weights=weights, k=draws)  # noqa: S311
