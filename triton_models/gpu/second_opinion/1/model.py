"""Triton entry point: the sentence encoder of an engine, beside its language model on a GPU.

It computes on the CPU, with the modules of the CPU model, which are copied beside this file. The
sidecar asks both at once and adds what they say.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
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

from cpu_engine.engine_files import open_second_opinion, path_of
from cpu_engine.errors import CancelledError, RefusedError, code_of, failure_of
from cpu_engine.requests import Opinion, OpinionLimits, read_opinion
from cpu_engine.route_reader import Reader, RouteReader
from cpu_engine.second_opinion import Encoder, SecondOpinion

_OUTPUT = "second_opinion_logits"


class TritonPythonModel:
    """One instance; Triton calls `execute` with what waits in its queue."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the encoder of the engine named by the parameter `engine`."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {name: value["string_value"] for name, value in parameters.items()}
        facts = open_second_opinion(path_of(settings["engine"]))
        encoder = Encoder(
            facts.graph_path, threads=int(settings["threads"]), precision=settings["precision"]
        )
        self._limits = OpinionLimits(facts.vocab_size, facts.max_tokens)
        self._second = SecondOpinion(encoder, facts.scales, int(settings["route_cache_bytes"]))
        self._second.warm_up()
        self._reader = RouteReader(self._second, _log_failure)

    def finalize(self) -> None:
        """Refuse what waits for routes."""
        self._reader.close()

    def execute(self, requests: list[Any]) -> None:
        """Answer those whose routes are held; the others are answered by the thread that reads
        them."""
        held: list[tuple[Any, Opinion]] = []
        for request in requests:
            sender = request.get_response_sender()
            try:
                opinion = self._read(request)
            except (RefusedError, CancelledError) as error:
                _give(sender, error)
                continue
            except Exception as error:  # it must not fail those that came with it
                _log_failure(error)
                _give(sender, failure_of(error))
                continue
            if self._second.holds(opinion.routes):
                held.append((sender, opinion))
            else:
                self._reader.put(Reader(opinion, request.is_cancelled, partial(_give, sender)))
        self._answer(held)

    def _answer(self, held: list[tuple[Any, Opinion]]) -> None:
        left = dict(held)
        try:
            given = self._second.opinions([each for each in left.values() if each.has_request])
            for sender, opinion in held:
                logits = next(given) if opinion.has_request else None
                del left[sender]
                _give(sender, logits)
        except Exception as error:  # one answer for every request, whatever happens
            _log_failure(error)
            for sender in left:
                _give(sender, failure_of(error))

    def _read(self, request: Any) -> Opinion:
        if request.is_cancelled():
            raise CancelledError
        # Copied: the memory is Triton's again once `execute` has returned.
        tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
        opinion = read_opinion(tensors, self._limits)
        if opinion is None:
            raise RefusedError("second_opinion_route_ids is not present in the request")
        return opinion


def _log_failure(error: Exception) -> None:
    pb_utils.Logger.log_error(f"second opinion: {type(error).__name__}: {error}")


def _give(sender: Any, given: Any) -> None:
    """`given`: logits, None where nothing was asked, or why there are none."""
    try:
        _send(sender, _error(given) if isinstance(given, Exception) else _response(given))
    except Exception as error:  # as of one too large for what memory Triton shares
        _log_failure(error)
        _send(sender, _error(failure_of(error)))


def _response(given: Any) -> Any:
    logits = np.zeros(0, np.float32) if given is None else given
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(_OUTPUT, logits[None])])


def _error(error: Exception) -> Any:
    code = getattr(pb_utils.TritonError, code_of(error))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))


def _send(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
