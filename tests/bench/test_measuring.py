"""Loops, samples, rows: with calls whose times the test sets."""

from __future__ import annotations

import asyncio
import json
import math
import time

import pytest

from sidecar._generated.llmrouter.v1 import decision_pb2
from sidecar.bench import traffic
from sidecar.bench.example_requests import OF_NO_ROUTE, REQUESTS
from sidecar.bench.example_traffic import ExampleTraffic
from sidecar.bench.measuring import (
    Measured,
    Sample,
    closed_loop,
    open_loop,
    sample_of,
    without_model,
)
from sidecar.bench.others import conversation
from sidecar.bench.rows import percentile, row, rows_by_part, table
from sidecar.cli.up import EXAMPLES
from sidecar.policies.documents import policy_from
from sidecar.policies.yaml_source import MAX_BYTES


class Server:
    """Counts who is being served."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: list[int] = []
        self.running = 0
        self.most = 0

    async def __call__(self, number: int) -> Sample:
        self.calls.append(number)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        return Sample(self.seconds, "model", by_model=True)


async def test_a_closed_loop_keeps_its_concurrency_and_makes_its_calls() -> None:
    server = Server(0.001)
    measured = await closed_loop(server, 3, 10)

    assert (server.most, len(measured.samples)) == (3, 10)
    assert len(set(server.calls)) == 10


async def test_a_closed_loop_by_time_ends() -> None:
    measured = await closed_loop(Server(0.001), 2, seconds=0.02)

    assert measured.samples
    assert measured.seconds >= 0.02


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    server = Server(0.3)
    measured = await open_loop(server, rate=200, seconds=0.2)

    assert server.most > 10
    assert len(measured.samples) == len(server.calls)


async def test_an_open_loop_counts_from_when_a_call_was_due() -> None:
    async def busy(number: int) -> Sample:
        # Holds the loop, so that the calls behind it begin late.
        time.sleep(0.02)  # noqa: ASYNC251
        return Sample(0.0, "model")

    measured = await open_loop(busy, rate=200, seconds=0.1)

    assert max(each.seconds for each in measured.samples) > 0.02


async def test_an_open_loop_loses_no_call_that_raises() -> None:
    async def broken(number: int) -> Sample:
        raise ValueError(number)

    with pytest.raises(ExceptionGroup) as raised:
        await open_loop(broken, rate=1000, seconds=0.1)

    assert raised.group_contains(ValueError)


@pytest.mark.parametrize(
    ("source", "reason", "step", "label", "by_model", "by_encoder"),
    [
        ("MODEL", "MATCHED", "model", "model", True, False),
        ("MODEL", "MATCHED", "encoder", "model", True, True),
        ("CACHE", "MATCHED", "model", "cache", False, False),
        ("FALLBACK", "NO_MATCH", "model", "fallback:no_match", True, False),
        ("FALLBACK", "NO_MATCH", "encoder", "fallback:no_match", True, True),
        ("FALLBACK", "OVERLOADED", "model", "fallback:overloaded", False, False),
        ("FALLBACK", "DEADLINE_EXCEEDED", "model", "fallback:deadline_exceeded", False, False),
    ],
)
def test_a_sample_says_which_part_of_the_model_answered(
    source: str, reason: str, step: str, label: str, by_model: bool, by_encoder: bool
) -> None:
    decision = decision_pb2.Decision(
        source=decision_pb2.DecisionSource.Value(f"DECISION_SOURCE_{source}"),
        reason=decision_pb2.DecisionReason.Value(f"DECISION_REASON_{reason}"),
    )
    decision.steps.add(step="prompt").duration.FromNanoseconds(7_000_000)
    decision.steps.add(step=step).duration.FromNanoseconds(1_500_000)

    assert sample_of(decision, 0.5) == Sample(0.5, label, by_model, 0.0015, by_encoder)


@pytest.mark.parametrize(
    ("percent", "value"), [(50, 50.0), (95, 95.0), (99, 99.0), (100, 100.0), (0, 1.0)]
)
def test_percentiles_are_values_that_were_measured(percent: float, value: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], percent) == value


def test_a_row_has_size_load_and_share_of_every_source() -> None:
    samples = [Sample(n / 1000, "model", by_model=True) for n in range(1, 4)]
    samples.append(Sample(0.01, "fallback:overloaded"))
    made = row("g", "n", Measured(samples, 2.0), message_bytes=120, offered=2.0)

    assert (made.p50_ms, made.max_ms, made.by_model) == (2.0, 10.0, 0.75)
    assert (made.per_second, made.model_per_second) == (2.0, 1.5)
    assert made.sources == {"model": 0.75, "fallback:overloaded": 0.25}
    assert json.loads(json.dumps(made.as_json()))["message_bytes"] == 120
    assert table("g", [made]).row_count == 1


def test_parts_of_the_model_have_rows_of_their_own() -> None:
    samples = [Sample(0.2, "model", True), Sample(0.03, "model", True, by_encoder=True)]
    samples += [Sample(0.01, "cache"), Sample(0.04, "fallback:no_match", True, by_encoder=True)]
    every, encoder, both = rows_by_part("g", "n", Measured(samples, 2.0), message_bytes=120)

    assert (every.calls, every.by_model, every.by_encoder, every.p99_ms) == (4, 0.75, 0.5, 200)
    assert (encoder.name, encoder.calls, encoder.p50_ms, encoder.p99_ms) == (
        "n: the encoder alone",
        2,
        30,
        40,
    )
    assert (both.name, both.calls, both.p50_ms) == ("n: the language model", 1, 200)
    assert (encoder.note, both.note) == ("50% of the calls", "25% of the calls")
    assert math.isnan(encoder.per_second)


def test_a_part_that_answered_nothing_has_no_row() -> None:
    samples = [Sample(0.2, "model", True), Sample(0.01, "cache")]
    names = [each.name for each in rows_by_part("g", "n", Measured(samples), message_bytes=1)]

    assert names == ["n", "n: the language model"]


def test_what_failed_counts_as_a_call_and_not_as_answered() -> None:
    samples = [Sample(0.1, "model", by_model=True), Sample(0.0, "failed:UNAVAILABLE")]
    made = row("g", "n", Measured(samples, 2.0), message_bytes=120)

    assert (made.calls, made.per_second, made.by_model) == (2, 0.5, 0.5)


def test_a_row_without_calls_has_no_numbers() -> None:
    made = row("g", "n", Measured(), message_bytes=0)

    assert math.isnan(made.p50_ms)
    assert not {"p50_ms", "per_second", "model_per_second", "by_model"} & set(made.as_json())


def test_what_the_model_server_took_is_left_out_with_the_calls_that_it_did_not_decide() -> None:
    samples = [Sample(0.5, "model", True, 0.375), Sample(9.0, "fallback:warming")]

    assert without_model(samples) == [Sample(0.125, "model", True)]


@pytest.mark.parametrize("words", [15, 40, 200])
def test_conversations_have_their_words_and_are_never_the_same(words: int) -> None:
    requests = [traffic.request(number, words, "p") for number in range(50)]
    texts = ["\n".join(m.parts[0].text for m in each.messages) for each in requests]

    assert len(set(texts)) == 50
    assert {len(text.split()) for text in texts} == {words + 1}
    assert [m.text for m in conversation(7, words).messages] == texts[7].split("\n")


def test_fitting_conversations_ask_last_what_a_route_describes() -> None:
    described = [str(each["description"]) for each in traffic.routes(20, 20)]
    requests = [traffic.fitting_request(number, 40, 20) for number in range(40)]
    asked = [each.messages[-1].parts[0].text for each in requests]

    assert {each.policy for each in requests} == {"routes-20"}
    assert len(set(asked)) == 40
    assert all(any(text.startswith(each) for text in asked) for each in described)


def test_requests_like_the_examples_never_repeat_and_are_of_some_forty_words() -> None:
    made = ExampleTraffic(EXAMPLES / "policies", 20)
    requests = [made.request(number) for number in range(5000)]
    texts = {"\n".join(m.parts[0].text for m in each.messages) for each in requests}
    words = [len(text.split()) for text in texts]

    assert len(made.routes) == 20
    assert len(texts) == len(requests)
    assert 30 < sum(words) / len(words) < 50


def test_as_many_requests_are_like_the_examples_of_one_route_as_of_another() -> None:
    made = ExampleTraffic(EXAMPLES / "policies", 6)
    asked = {text for each in made.routes for text in (*each.examples, *REQUESTS[each.name])}
    newest = [made.request(n).messages[-1].parts[0].text for n in range(len(asked) + 4)]

    assert set(newest) == asked | set(OF_NO_ROUTE)
    policy = policy_from(made.policy_document())
    assert [(route.name, route.description) for route in policy.routes] == [
        (route.name, route.description) for route in made.routes
    ]


def test_policy_files_can_be_read_however_many_there_are() -> None:
    files = traffic.policy_files((6, 20, 40), 2000)

    assert max(map(len, files)) < MAX_BYTES
    assert sum(content.count('"Policy"') for content in files) == 2004


def test_zipf_asks_for_the_first_most_and_for_many_at_least_once() -> None:
    drawn = traffic.zipf(100, 5000)
    counts = [drawn.count(number) for number in range(100)]

    assert counts[0] == max(counts)
    assert counts[0] > 3 * counts[9] > 0
    assert sum(count > 0 for count in counts) > 80
