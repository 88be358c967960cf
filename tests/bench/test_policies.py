"""What the measurements of policies are made of. The measurements themselves take minutes."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.bench import own, policies, served, traffic
from sidecar.bench.measuring import Measured, Sample
from sidecar.bench.reload import Case, Made, _asking, _rows
from sidecar.policies import load_policies
from sidecar.policies.stores import open_store

DOCUMENTS = [traffic.policy_document("default", 34, 0), traffic.policy_document("many-0", 34, 1)]


def test_files_and_store_hold_the_same_policies(tmp_path: Path) -> None:
    files = load_policies(policies._written(tmp_path / "files", DOCUMENTS))
    store = open_store(served.filled_store(tmp_path / "policies.db", DOCUMENTS))
    kept = store.snapshot()
    store.close()

    assert not files.findings
    assert {name: each.policy for name, each in files.records.items()} == {
        name: each.policy for name, each in kept.records.items()
    }
    assert files.catalog == kept.catalog.models


def test_every_draw_is_a_policy_that_there_is() -> None:
    names = {str(each["name"]) for each in DOCUMENTS}

    assert set(policies._drawn(len(DOCUMENTS), 100)) == names


def test_what_the_model_server_took_is_not_the_sidecars() -> None:
    taken = [
        [Sample(0.030, "model", True, 0.020)] * 10,
        [Sample(0.042, "model", True, 0.030), Sample(9.0, "fallback:warming")] * 5,
    ]

    assert policies._ratios(taken, [1.0, 1.5]).note.startswith(
        "1.20 times at p50, 1.20 at p99; processor time 1.50 times"
    )


def test_changes_are_held_against_the_same_time_without_them() -> None:
    quiet = Measured([Sample(0.1, "model", True)] * 100, 10)
    changing = Measured([Sample(0.1, "model", True)] * 98 + [Sample(0.12, "cache")] * 2, 10)
    changing.samples.append(Sample(0.1, "failed:UNAVAILABLE"))

    *measured, ratio = _rows(Case(6, 30), 20.0, 10.0, quiet, changing, Made(5, ["ABORTED"]))

    assert [each.offered for each in measured] == [10.0, 10.0]
    assert measured[1].note == "5 changes, 1 refused"
    assert measured[0].p99_ms == pytest.approx(100)
    assert ratio.note == (
        "p99 1.20 times (aim: 1.3; 1.00 to 1.20 in 95 % of draws from these 100 and 101 calls); "
        "1 requests failed (aim: 0)"
    )


class Recorded:
    """Stands in for the calls of a channel, to see what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def route(self, request: routing_pb2.RouteRequest) -> Sample:
        self.sent.append(request.SerializeToString(deterministic=True))
        return Sample(0.1, "model", True)


async def test_both_halves_of_a_turn_ask_the_same_and_no_two_turns_do() -> None:
    halves = []
    for turn in (0, 0, 1):
        recorded = Recorded()
        call = _asking(cast(own.Routes, recorded), turn)
        for number in (7, 8):
            await call(number)
        halves.append(recorded.sent)

    assert halves[0] == halves[1]
    assert len({*halves[0], *halves[2]}) == 4


@pytest.mark.parametrize("policy", ["default", "many-0"])
def test_fitting_request_asks_for_what_a_route_of_its_policy_describes(policy: str) -> None:
    [document] = [each for each in DOCUMENTS if each["name"] == policy]
    asked = policies._fitting(35, policy)

    described = cast(list[dict[str, str]], document["routes"])[1]["description"]
    assert asked.policy == policy
    assert asked.messages[-1].parts[0].text == f"{described} It is case 35."
