"""Fitting the temperature."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.core.policy import OTHER
from sidecar.engines import EngineInfo, load_engine
from sidecar.evaluation.calibration import (
    NothingToFitError,
    at_temperature,
    fit_temperature,
    negative_log_likelihood,
)
from sidecar.evaluation.engine_temperature import write_temperature
from sidecar.evaluation.metrics import expected_calibration_error
from sidecar.evaluation.outcomes import Outcome
from tests.evaluation.making import case, outcome, with_candidates

NAMES = ("billing", "code", "weather", OTHER)


def softmax(logits: list[float], temperature: float) -> list[float]:
    weights = [math.exp(logit / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def drawn(true: float, decided_at: float, count: int = 1500) -> list[Outcome]:
    """Cases whose labels are drawn at one temperature and decided at another."""
    rng = random.Random(7)
    outcomes = []
    for number in range(count):
        logits = [rng.gauss(0, 2) for _ in NAMES]
        (label,) = rng.choices(NAMES, softmax(logits, true))
        shown = dict(zip(NAMES, softmax(logits, decided_at), strict=True))
        outcomes.append(with_candidates(case(label, id=str(number)), shown))
    return outcomes


@pytest.mark.parametrize(("true", "decided_at"), [(1.0, 1.0), (2.0, 1.0), (0.5, 1.0), (1.5, 3.0)])
def test_the_temperature_that_labels_were_drawn_at_is_found(true: float, decided_at: float) -> None:
    outcomes = drawn(true, decided_at)
    assert fit_temperature(outcomes) * decided_at == pytest.approx(true, rel=0.12)


def test_the_fit_lowers_loss_and_calibration_error() -> None:
    outcomes = drawn(2.0, 1.0)
    factor = fit_temperature(outcomes)
    scaled = [at_temperature(each, factor) for each in outcomes]
    before, after = negative_log_likelihood(outcomes), negative_log_likelihood(scaled)
    assert before is not None
    assert after is not None
    assert after < before
    assert (expected_calibration_error(scaled) or 1) < 0.03
    assert (expected_calibration_error(outcomes) or 0) > 0.1
    assert [o.answer for o in scaled] == [o.answer for o in outcomes]


def test_probabilities_that_were_rounded_to_zero_can_be_fitted() -> None:
    outcomes = [
        with_candidates(case("code", id="1"), {"code": 0.0, "billing": 1.0}),
        with_candidates(case("code", id="2"), {"code": 1.0, "billing": 0.0}),
    ]
    assert 1.0 < fit_temperature(outcomes) <= 20.0


def test_what_one_model_decided_alone_is_neither_fitted_nor_changed() -> None:
    outcomes = drawn(2.0, 1.0)
    # Always wrong and sure of it: fitted along, they would flatten everything.
    alone = [
        replace(with_candidates(case("code"), {"billing": 0.99, "code": 0.01}), alone=True)
        for _ in range(500)
    ]
    factor = fit_temperature(outcomes)
    assert fit_temperature([*alone, *outcomes]) == factor
    assert [at_temperature(each, factor) for each in alone] == alone
    with pytest.raises(NothingToFitError, match="no decision at the engine's temperature"):
        fit_temperature(alone)


def test_decisions_that_are_all_right_tell_no_temperature() -> None:
    right = [
        with_candidates(case("code", id=str(number)), {"code": 0.6, "billing": 0.4})
        for number in range(30)
    ]
    with pytest.raises(NothingToFitError, match=r"none of the 30 decisions .* is wrong"):
        fit_temperature(right)
    wrong = with_candidates(case("code", id="wrong"), {"billing": 0.6, "code": 0.4})
    assert 0.1 < fit_temperature([*right, wrong]) < 1.0


def test_also_ok_answers_share_their_probability() -> None:
    both = with_candidates(case("code", also_ok=["billing"]), {"code": 0.5, "billing": 0.5})
    assert negative_log_likelihood([both]) == pytest.approx(0.0)


def test_answers_without_all_probabilities_cannot_be_fitted() -> None:
    outcomes = [outcome(True), with_candidates(case(), {"code": 0.9})]
    with pytest.raises(NothingToFitError, match="gave the probability of every route"):
        fit_temperature(outcomes)
    assert negative_log_likelihood(outcomes) is None


def test_a_written_temperature_leaves_the_engine_whole(
    cpu_engine: EngineInfo, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    for file in cpu_engine.path.iterdir():
        if file.suffix == ".json":
            (engine / file.name).write_bytes(file.read_bytes())
        else:
            (engine / file.name).symlink_to(file)
    write_temperature(engine, 1.25)
    info = load_engine(engine)
    assert info.router.decision_temperature == 1.25
    assert info.router.weights_sha256 == cpu_engine.router.weights_sha256
