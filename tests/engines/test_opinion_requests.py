"""What requests may ask of the sentence encoder, and what is wrong with them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cpu_engine.errors import RefusedError
from cpu_engine.requests import (
    MAX_ROUTE_TOKENS,
    Asked,
    Enough,
    Limits,
    OpinionLimits,
    read_request,
)

from sidecar.policies.rules import MAX_ROUTES
from sidecar.prompts.second_opinion import ROUTE_TOKENS
from tests.engines.tiny_encoder import CLS, REQUEST, ROUTES, TINY_ENCODER, TYPES
from tests.engines.tiny_models import LLAMA

LIMITS = Limits(64, LLAMA.vocab, 16, OpinionLimits(TINY_ENCODER.vocab, 8))


def read(limits: Limits = LIMITS, **changes: tuple[int, ...] | None) -> Asked:
    values: dict[str, tuple[int, ...] | None] = {
        "request_ids": REQUEST,
        "request_types": TYPES,
        "route_ids": tuple(token for route in ROUTES for token in route),
        "route_lengths": tuple(map(len, ROUTES)),
        **changes,
    }
    tensors = {"input_ids": [[5, 6]], "input_lengths": [[2]], "request_output_len": [[1]]}
    arrays = {name: np.array(value, np.int32) for name, value in tensors.items()}
    given = {n: np.array([v], np.int32) for n, v in values.items() if v is not None}
    arrays |= {f"second_opinion_{name}": array for name, array in given.items()}
    return read_request(arrays, ("output_ids", "sequence_length"), limits, lambda: False)


def reads_enough(*values: float, labels: bool = True, alone: bool = False) -> Asked:
    asked = {
        "input_ids": np.array([[5, 6]], np.int32),
        "input_lengths": np.array([[2]], np.int32),
        "request_output_len": np.array([[1]], np.int32),
        "return_generation_logits": np.array([[True]]),
        "second_opinion_request_ids": np.array([REQUEST], np.int32),
        "second_opinion_request_types": np.array([TYPES], np.int32),
        "second_opinion_route_ids": np.array([[7]], np.int32),
        "second_opinion_route_lengths": np.array([[1]], np.int32),
    }
    if values:
        asked["second_opinion_enough"] = np.array([values], np.float32)
    if alone:
        asked["second_opinion_alone"] = np.array([[True]])
    if labels:
        asked["label_ids"] = np.array([[1, 2]], np.int32)
    return read_request(asked, ("output_ids", "sequence_length"), LIMITS, lambda: False)


def test_requests_may_say_what_is_enough() -> None:
    asked = reads_enough(0.75, -0.5, 0.875).opinion
    assert asked is not None
    assert asked.enough == Enough(0.75, -0.5, 0.875)


@pytest.mark.parametrize("alone", [False, True])
def test_requests_may_be_for_the_encoder_alone(alone: bool) -> None:
    asked = reads_enough(0.75, -0.5, 0.875, alone=alone).opinion
    assert asked is not None
    assert asked.alone is alone


def test_requests_for_the_encoder_alone_say_what_is_enough() -> None:
    with pytest.raises(RefusedError, match="second_opinion_alone needs second_opinion_enough"):
        reads_enough(alone=True)


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ((0.75, -0.5), True, r"second_opinion_enough is \[0.75, -0.5\]; must be a factor"),
        ((0.75, -0.5, 0.25), True, "a probability from 0.5 to 1"),
        ((0.75, -0.5, 1.5), True, "a probability from 0.5 to 1"),
        ((math.nan, 0.0, 0.9), True, "second_opinion_enough is"),
        ((0.75, -0.5, 0.875), False, "second_opinion_enough needs label_ids"),
    ],
)
def test_requests_that_say_it_wrongly_are_refused(
    values: tuple[float, ...], labels: bool, message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        reads_enough(*values, labels=labels)


def test_requests_are_read() -> None:
    asked = read().opinion
    assert asked is not None
    assert tuple(asked.request_ids) == REQUEST
    assert tuple(asked.request_types) == TYPES
    assert [tuple(route) for route in asked.routes] == list(ROUTES)


def test_requests_may_bring_routes_alone() -> None:
    asked = read(request_ids=None, request_types=None).opinion
    assert asked is not None
    assert not asked.has_request
    assert len(asked.routes) == 3


def test_requests_are_not_read_by_an_engine_without_encoder() -> None:
    assert read(replace(LIMITS, second_opinion=None), route_ids=(1,)).opinion is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"route_ids": None}, "second_opinion_route_ids is not present"),
        ({"route_lengths": None}, "second_opinion_route_lengths is not present"),
        ({"request_types": None}, "second_opinion_request_types is not present"),
        ({"request_ids": None}, "second_opinion_request_ids is not present"),
        ({"route_lengths": (4, 6)}, "add up to 10; second_opinion_route_ids has 13"),
        ({"route_lengths": (4, 0, 9)}, "a text must have 1..8 tokens"),
        ({"route_lengths": ()}, "a text must have 1..8 tokens"),
        ({"request_ids": (CLS,) * 9, "request_types": (0,) * 9}, "must have 1..8 tokens"),
        ({"request_types": (0, 1)}, "has 2 elements; second_opinion_request_ids 8"),
        ({"request_types": (2,) * 8}, "request_types must be 0..1"),
        ({"request_ids": (120,) * 8}, "request_ids must be 0..119"),
        ({"route_ids": (-1,) * 13}, "route_ids must be 0..119"),
        (
            {"route_ids": (1,) * 131073, "route_lengths": (1,) * 131073},
            "second_opinion_route_ids has 131073 tokens; must have 131072 at most",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_requests_that_are_malformed_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(RefusedError, match=message.replace(".", r"\.")):
        read(**changes)


def test_the_largest_policy_is_no_more_than_is_read() -> None:
    begin_and_end = 2
    assert MAX_ROUTES * (ROUTE_TOKENS + begin_and_end) <= MAX_ROUTE_TOKENS
