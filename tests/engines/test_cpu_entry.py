"""The CPU model's entry point, with Triton's own module as a stub: everybody gets one answer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cpu_engine.answers import FreeAnswer
from cpu_engine.decisions import Outcome, Undecided
from cpu_engine.first_look import FirstLook
from cpu_engine.requests import Limits

MODEL = Path(__file__).parents[2] / "triton_models/cpu/tensorrt_llm/1/model.py"


class Sender:
    """As Triton's: what was answered once is not answered again, and memory is short."""

    def __init__(self, room: int) -> None:
        self.answer: Any = None
        self._room = room

    def send(self, response: SimpleNamespace, flags: int) -> None:
        assert self.answer is None, "answered twice"
        if len(response.output_tensors) > self._room:
            raise MemoryError
        self.answer = response.error or len(response.output_tensors)


def request(room: int = 9, unreadable: bool = False) -> SimpleNamespace:
    def values(value: int) -> Any:
        if unreadable:
            raise ValueError("what it was about")
        return np.array([[value]], np.int32)

    inputs = [
        SimpleNamespace(name=lambda name=name: name, as_numpy=lambda value=value: values(value))
        for name, value in (("input_ids", 5), ("input_lengths", 1), ("request_output_len", 1))
    ]
    sender = Sender(room)
    return SimpleNamespace(
        sender=sender,
        inputs=lambda: inputs,
        is_cancelled=lambda: False,
        get_response_sender=lambda: sender,
        requested_output_names=lambda: ["output_ids", "sequence_length"],
    )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    utils: Any = ModuleType("triton_python_backend_utils")
    utils.Tensor = lambda name, values: name
    utils.InferenceResponse = lambda output_tensors=(), error="": SimpleNamespace(
        output_tensors=output_tensors, error=error
    )
    utils.TritonError = lambda text, code: text
    utils.TritonError.INTERNAL = 0
    utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    utils.Logger = SimpleNamespace(log_error=lambda text: None)
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("cpu_model", MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.TritonPythonModel()
    made._limits = Limits(context_length=10, vocab_size=10, max_output_tokens=1)
    made._first_look = FirstLook(None, made._go_on, module._log_failure)
    made._senders = {}
    return made


def at_once(model: Any, tokens: list[Any]) -> SimpleNamespace:
    """The language model's thread, which takes no time: the n-th answer has the n-th token."""

    def put(undecided: Undecided) -> None:
        answer = FreeAnswer(-1, 1)
        answer.tokens = [tokens.pop(0)]
        model._answer((undecided.asked, Outcome(answer, 0)))

    return SimpleNamespace(put=put)


FAILED = "the routing model failed: "


@pytest.mark.parametrize(
    ("first", "token", "answer"),
    [
        (request(), 3, 2),
        (request(), "none that is an integer", f"{FAILED}ValueError"),
        (request(room=1), 3, f"{FAILED}MemoryError"),
        (request(unreadable=True), None, f"{FAILED}ValueError"),
    ],
    ids=["answered", "no tensor", "not sent", "not read"],
)
def test_what_fails_one_request_is_its_answer_and_no_other_s(
    model: Any, first: SimpleNamespace, token: Any, answer: object
) -> None:
    second = request()
    model._turns = at_once(model, [4] if token is None else [token, 4])
    model.execute([first, second])

    assert [each.sender.answer for each in (first, second)] == [answer, 2]
    assert model._senders == {}


def test_a_request_that_cannot_be_handed_over_is_answered(model: Any) -> None:
    first, second = request(), request()
    language_model = at_once(model, [4])

    def put(undecided: Undecided) -> None:
        if model._senders[id(undecided.asked)] is first.sender:
            raise MemoryError
        language_model.put(undecided)

    model._turns = SimpleNamespace(put=put)
    model.execute([first, second])

    assert [each.sender.answer for each in (first, second)] == [f"{FAILED}MemoryError", 2]
    assert model._senders == {}
