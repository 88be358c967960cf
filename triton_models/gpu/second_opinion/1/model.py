"""Triton entry point: the sentence encoder of an engine, beside its language model on a GPU.

It computes on the CPU, with the modules of the CPU model, which are copied beside this file. The
sidecar asks both at once and adds what they say.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# ruff: noqa: E402
# Triton imports this file by path and adds only the folder above it, and its stub leaves PYTHONPATH
# out of account, where docker/triton has OpenVINO.
sys.path[:0] = [
    str(Path(__file__).resolve().parent),
    *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
]

from cpu_engine.engine_files import open_second_opinion
from cpu_engine.errors import RefusedError
from cpu_engine.requests import Opinion, OpinionLimits, read_opinion
from cpu_engine.second_opinion import Encoder, SecondOpinion

_OUTPUT = "second_opinion_logits"


class TritonPythonModel:
    """One instance; Triton calls `execute` with what waits in its queue."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the encoder of the engine named by the parameter `engine`."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {name: value["string_value"] for name, value in parameters.items()}
        facts = open_second_opinion(Path(settings["engine"]))
        encoder = Encoder(
            facts.graph_path, threads=int(settings["threads"]), precision=settings["precision"]
        )
        self._limits = OpinionLimits(facts.vocab_size, facts.max_tokens)
        self._second = SecondOpinion(encoder, facts.scales, int(settings["route_cache_bytes"]))
        self._second.warm_up()

    def execute(self, requests: list[Any]) -> None:
        """Answer first those whose routes are held: to read routes takes longer than many
        requests do."""
        wanted: list[tuple[Any, Opinion]] = []
        for request in requests:
            sender = request.get_response_sender()
            try:
                wanted.append((sender, self._read(request)))
            except (RefusedError, _CancelledError) as error:
                _fail(sender, error)
        held = [each for each in wanted if self._second.holds(each[1])]
        new = [each for each in wanted if each not in held]
        self._answer(held)
        self._answer(new)

    def _answer(self, wanted: list[tuple[Any, Opinion]]) -> None:
        try:
            asked = [opinion for _, opinion in wanted if opinion.has_request]
            given = iter(self._second.opinions(asked))
            for _, opinion in wanted:
                if not opinion.has_request:
                    self._second.keep(opinion)
        except Exception as error:  # one answer for every request, whatever happens
            pb_utils.Logger.log_error(f"second opinion: {type(error).__name__}: {error}")
            for sender, _ in wanted:
                _fail(sender, RefusedError(f"the encoder failed: {type(error).__name__}"))
            return
        for sender, opinion in wanted:
            _send(sender, next(given) if opinion.has_request else np.zeros(0, np.float32))

    def _read(self, request: Any) -> Opinion:
        if request.is_cancelled():
            raise _CancelledError
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        opinion = read_opinion(tensors, self._limits)
        if opinion is None:
            raise RefusedError("second_opinion_route_ids is not present in the request")
        return opinion


class _CancelledError(Exception):
    """The caller has gone."""


def _send(sender: Any, logits: Any) -> None:
    tensor = pb_utils.Tensor(_OUTPUT, logits[None])
    sender.send(
        pb_utils.InferenceResponse(output_tensors=[tensor]),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )


def _fail(sender: Any, error: Exception) -> None:
    cancelled = isinstance(error, _CancelledError)
    code = pb_utils.TritonError.CANCELLED if cancelled else pb_utils.TritonError.INTERNAL
    sender.send(
        pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error) or "cancelled", code)),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )
