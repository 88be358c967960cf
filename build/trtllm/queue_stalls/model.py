"""In the place of TensorRT-LLM's backend: takes requests at once and answers them later, from
another thread, as that one does."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_ANSWER_S = 0.005


class TritonPythonModel:
    """One instance; `execute` only hands over."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start what answers."""
        self._taken: SimpleQueue[tuple[float, Any]] = SimpleQueue()
        threading.Thread(target=self._answer, daemon=True).start()

    def execute(self, requests: list[Any]) -> None:
        """Every request is answered a few milliseconds from now."""
        due = time.monotonic() + _ANSWER_S
        for request in requests:
            self._taken.put((due, request.get_response_sender()))

    def _answer(self) -> None:
        ids = np.zeros((1, 1, 1), np.int32)
        while True:
            due, sender = self._taken.get()
            time.sleep(max(0.0, due - time.monotonic()))
            tensors = [
                pb_utils.Tensor("output_ids", ids),
                pb_utils.Tensor("sequence_length", np.ones((1, 1), np.int32)),
            ]
            sender.send(
                pb_utils.InferenceResponse(output_tensors=tensors),
                flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
            )
