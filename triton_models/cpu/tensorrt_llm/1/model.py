"""Triton entry point: a routing model on a CPU under the name and tensors of TensorRT-LLM's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

# Triton imports this file by path and adds only the folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from cpu_engine.decisions import CancelledError, Decider, Outcome
from cpu_engine.engine_files import SecondOpinionFacts, open_engine
from cpu_engine.errors import RefusedError
from cpu_engine.forward import Forward
from cpu_engine.prefix_cache import PrefixCache
from cpu_engine.requests import Asked, Limits, OpinionLimits, read_request
from cpu_engine.responses import to_tensors
from cpu_engine.second_opinion import Encoder, SecondOpinion
from cpu_engine.vocabulary import Vocabulary


class TritonPythonModel:
    """One instance; Triton calls `execute` with what waits in its queue."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine named by the parameter `gpt_model_path`."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {name: value["string_value"] for name, value in parameters.items()}
        engine = open_engine(Path(settings["gpt_model_path"]))
        forward = Forward(
            engine,
            threads=int(settings["threads"]),
            precision=settings["precision"],
            compiled_folder=Path(compiled) if (compiled := settings["compiled_folder"]) else None,
        )
        forward.warm_up(int(settings["max_pass_tokens"]))
        second = engine.second_opinion
        self._limits = Limits(
            engine.context_length,
            engine.vocab_size,
            int(settings["max_output_tokens"]),
            OpinionLimits(second.vocab_size, second.max_tokens) if second else None,
        )
        self._decider = Decider(
            forward,
            PrefixCache(int(settings["prefix_cache_bytes"])),
            _vocabulary(engine.tokenizer_path),
            int(settings["max_pass_tokens"]),
            _second_opinion(second, settings) if second else None,
        )

    def execute(self, requests: list[Any]) -> None:
        """Answer each request as soon as it is decided, not when the whole batch is."""
        senders: dict[int, Any] = {}
        asked_by_id: list[Asked] = []
        for request in requests:
            sender = request.get_response_sender()
            try:
                asked = self._read(request)
            except RefusedError as refused:
                _send(sender, _error(str(refused)))
                continue
            senders[id(asked)] = sender
            asked_by_id.append(asked)
        self._answer(asked_by_id, senders)

    def _answer(self, requests: list[Asked], senders: dict[int, Any]) -> None:
        try:
            for asked, result in self._decider.decide(requests):
                _send(senders.pop(id(asked)), _response(asked, result))
        except Exception as error:  # one answer for every request, whatever happens
            pb_utils.Logger.log_error(f"routing model: {type(error).__name__}: {error}")
            for sender in senders.values():
                _send(sender, _error(f"the routing model failed: {type(error).__name__}"))

    def _read(self, request: Any) -> Asked:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        return read_request(
            tensors, request.requested_output_names(), self._limits, request.is_cancelled
        )


def _second_opinion(facts: SecondOpinionFacts, settings: dict[str, str]) -> SecondOpinion:
    encoder = Encoder(
        facts.graph_path, threads=int(settings["threads"]), precision=settings["precision"]
    )
    second = SecondOpinion(encoder, facts.scales, int(settings["route_cache_bytes"]))
    second.warm_up()
    return second


def _vocabulary(path: Path) -> Vocabulary | None:
    try:
        return Vocabulary.from_file(path)
    except RefusedError as refused:
        pb_utils.Logger.log_warn(f"{path}: {refused}")
        return None


def _response(asked: Asked, result: Outcome | RefusedError | CancelledError) -> Any:
    if isinstance(result, CancelledError):
        return pb_utils.InferenceResponse(
            error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED)
        )
    if isinstance(result, RefusedError):
        return _error(str(result))
    tensors = [pb_utils.Tensor(name, values) for name, values in to_tensors(asked, result).items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _error(text: str) -> Any:
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(text, pb_utils.TritonError.INTERNAL)
    )


def _send(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
