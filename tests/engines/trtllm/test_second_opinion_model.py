"""The model `second_opinion` of Triton, with the encoder and Triton's own module as stubs."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cpu_engine.requests import Opinion, OpinionLimits
from cpu_engine.route_reader import RouteReader
from cpu_engine.second_opinion import Encoded, Policy, Routes

MODEL = Path(__file__).parents[3] / "triton_models/gpu/second_opinion/1/model.py"


class Encoder:
    """Gives each request the number of its tokens."""

    def __init__(self, held: bool, fault: str = "") -> None:
        self.held = held
        self.fault = fault

    def holds(self, routes: Routes) -> bool:
        return self.held

    def read(self, routes: Routes, found: dict[bytes, Encoded]) -> Policy:
        if self.fault == "read":
            raise RuntimeError
        nothing = np.zeros(0, np.float32)
        return Policy(nothing, nothing, np.zeros(0, np.int32), nothing)

    def opinions(self, wanted: Sequence[Opinion], policy: Policy | None = None) -> Iterator[Any]:
        if self.fault == "opinions":
            raise RuntimeError
        return (np.array([len(each.request_ids)], np.float32) for each in wanted)


class Sender:
    """As Triton's: what was answered once is not answered again, and memory can be short."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.answered = threading.Event()
        self.short = False

    def send(self, response: SimpleNamespace, flags: int) -> None:
        assert self.answer is None, "answered twice"
        if self.short and not response.error:
            raise MemoryError
        self.answer = response.error or response.output_tensors[0].values.tolist()
        self.answered.set()


def request(tokens: int) -> SimpleNamespace:
    """Of so many tokens; 0: the routes are only to be kept."""
    tensors = {"route_ids": [5, 6], "route_lengths": [2]}
    if tokens:
        tensors |= {"request_ids": [1] * tokens, "request_types": [0] * tokens}
    inputs = [
        SimpleNamespace(
            name=lambda name=name: f"second_opinion_{name}",
            as_numpy=lambda values=values: np.array([values], np.int32),
        )
        for name, values in tensors.items()
    ]
    sender = Sender()
    return SimpleNamespace(
        sender=sender,
        inputs=lambda: inputs,
        is_cancelled=lambda: False,
        get_response_sender=lambda: sender,
    )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    utils: Any = ModuleType("triton_python_backend_utils")
    utils.Tensor = lambda name, values: SimpleNamespace(values=values[0])
    utils.InferenceResponse = lambda output_tensors=(), error="": SimpleNamespace(
        output_tensors=output_tensors, error=error
    )
    utils.TritonError = lambda text, code: f"{code}: {text}"
    for code in ("INTERNAL", "CANCELLED", "UNAVAILABLE"):
        setattr(utils.TritonError, code, code)
    utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    utils.Logger = SimpleNamespace(log_error=lambda text: None)
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("second_opinion_model", MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.TritonPythonModel()
    made._limits = OpinionLimits(vocab_size=10, max_tokens=8)
    return made


FAILED = ["INTERNAL: the routing model failed: RuntimeError"] * 4


@pytest.mark.parametrize(
    ("held", "fault", "answers"),
    [
        (True, "", [[], [3.0], [], [2.0]]),
        (False, "", [[], [3.0], [], [2.0]]),
        (True, "opinions", FAILED),
        (False, "opinions", FAILED),
        (False, "read", FAILED),
    ],
)
def test_every_request_is_answered_once_whatever_fails(
    model: Any, held: bool, fault: str, answers: list[object]
) -> None:
    encoder: Any = Encoder(held, fault)
    model._second, model._reader = encoder, RouteReader(encoder, lambda error: None)
    requests = [request(tokens) for tokens in (0, 3, 0, 2)]
    model.execute(requests)
    assert all(each.sender.answered.wait(30) for each in requests)
    model.finalize()
    assert [each.sender.answer for each in requests] == answers


def test_a_request_that_cannot_be_read_fails_none_that_came_with_it(model: Any) -> None:
    def fail() -> None:
        raise RuntimeError

    encoder: Any = Encoder(held=True)
    model._second, model._reader = encoder, RouteReader(encoder, lambda error: None)
    broken, sound = request(3), request(2)
    broken.inputs = fail
    model.execute([broken, sound])
    model.finalize()

    assert [each.sender.answer for each in (broken, sound)] == [FAILED[0], [2.0]]


@pytest.mark.parametrize("held", [True, False])
def test_an_answer_that_cannot_be_sent_fails_none_that_came_with_it(model: Any, held: bool) -> None:
    encoder: Any = Encoder(held)
    model._second, model._reader = encoder, RouteReader(encoder, lambda error: None)
    large, sound = request(3), request(2)
    large.sender.short = True
    model.execute([large, sound])
    assert all(each.sender.answered.wait(30) for each in (large, sound))
    model.finalize()

    failed = "INTERNAL: the routing model failed: MemoryError"
    assert [each.sender.answer for each in (large, sound)] == [failed, [2.0]]


def test_a_caller_who_has_gone_and_a_model_that_goes_have_codes_of_their_own(model: Any) -> None:
    encoder: Any = Encoder(held=False)
    model._second, model._reader = encoder, RouteReader(encoder, lambda error: None)
    gone, late = request(3), request(2)
    gone.is_cancelled = lambda: True
    model.finalize()
    model.execute([gone, late])
    model.finalize()

    assert [each.sender.answer for each in (gone, late)] == [
        "CANCELLED: cancelled",
        "UNAVAILABLE: the model is being unloaded",
    ]
