"""The model `second_opinion` of Triton, with the encoder and Triton's own module as stubs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cpu_engine.requests import Opinion, OpinionLimits

MODEL = Path(__file__).parents[3] / "triton_models/gpu/second_opinion/1/model.py"


class Encoder:
    """Gives each request the number of its tokens."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def holds(self, opinion: Opinion) -> bool:
        return True

    def keep(self, opinion: Opinion) -> None:
        if self.fault == "keep":
            raise RuntimeError

    def opinions(self, wanted: Sequence[Opinion]) -> list[Any]:
        if self.fault == "opinions":
            raise RuntimeError
        return [np.array([len(each.request_ids)], np.float32) for each in wanted]


class Sender:
    """As Triton's: what was answered once is not answered again."""

    def __init__(self) -> None:
        self.answer: Any = None

    def send(self, response: SimpleNamespace, flags: int) -> None:
        assert self.answer is None, "answered twice"
        self.answer = response.error or response.output_tensors[0].values.tolist()


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
    utils.TritonError = lambda text, code: text
    utils.TritonError.INTERNAL = utils.TritonError.CANCELLED = 0
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


@pytest.mark.parametrize(
    ("fault", "answers"),
    [
        ("", [[], [3.0], [], [2.0]]),
        ("opinions", ["the encoder failed: RuntimeError"] * 4),
        ("keep", ["the encoder failed: RuntimeError"] * 4),
    ],
)
def test_every_request_is_answered_once_whatever_fails(
    model: Any, fault: str, answers: list[object]
) -> None:
    model._second = Encoder(fault)
    requests = [request(tokens) for tokens in (0, 3, 0, 2)]
    model.execute(requests)
    assert [each.sender.answer for each in requests] == answers
