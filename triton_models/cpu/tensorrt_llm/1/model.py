"""Triton entry point: a routing model on a CPU under the name and tensors of TensorRT-LLM's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

# Triton imports this file by path and adds only the folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from cpu_engine.decisions import Decider, Outcome, Result, Undecided
from cpu_engine.engine_files import SecondOpinionFacts, open_engine, path_of
from cpu_engine.errors import RefusedError, UnavailableError, code_of, failure_of
from cpu_engine.first_look import FirstLook, Seen
from cpu_engine.forward import Forward
from cpu_engine.prefix_cache import PrefixCache
from cpu_engine.requests import Asked, Limits, OpinionLimits, read_request
from cpu_engine.responses import to_tensors
from cpu_engine.second_opinion import Encoder, SecondOpinion
from cpu_engine.turns import TurnLimits, Turns
from cpu_engine.vocabulary import Vocabulary


class TritonPythonModel:
    """One instance; Triton calls `execute` with what waits in its queue."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine named by the parameter `gpt_model_path`."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {name: value["string_value"] for name, value in parameters.items()}
        engine = open_engine(path_of(settings["gpt_model_path"]))
        forward = Forward(
            engine,
            threads=int(settings["threads"]),
            precision=settings["precision"],
            compiled_folder=path_of(kept) if (kept := settings["compiled_folder"]) else None,
        )
        forward.warm_up(int(settings["max_pass_tokens"]))
        second = engine.second_opinion
        self._limits = Limits(
            engine.context_length,
            engine.vocab_size,
            int(settings["max_output_tokens"]),
            OpinionLimits(second.vocab_size, second.max_tokens) if second else None,
        )
        max_pass_tokens = int(settings["max_pass_tokens"])
        decider = Decider(
            forward,
            PrefixCache(int(settings["prefix_cache_bytes"])),
            _vocabulary(engine.tokenizer_path),
            max_pass_tokens,
        )
        encoder = _second_opinion(second, settings) if second else None
        self._senders: dict[int, Any] = {}
        self._turns = Turns(
            decider,
            TurnLimits(int(settings["max_queue_size"]), max_pass_tokens),
            self._answer,
            _log_failure,
            _WaitingGauge(args["model_name"], args["model_version"]).set,
        )
        self._first_look = FirstLook(encoder, self._go_on, _log_failure)

    def finalize(self) -> None:
        """Refuse what still waits."""
        self._first_look.close()
        self._turns.close()

    def execute(self, requests: list[Any]) -> None:
        """Answer what the encoder decides by routes that it has read; the rest is answered by other
        threads, each as soon as it is decided."""
        new: list[Asked] = []
        for request in requests:
            sender = request.get_response_sender()
            try:
                asked = self._read(request)
            except RefusedError as refused:
                _send(sender, _error(refused))
                continue
            except Exception as error:  # it must not fail those that came with it
                _log_failure(error)
                _send(sender, _error(failure_of(error)))
                continue
            self._senders[id(asked)] = sender
            new.append(asked)
        self._look(new)

    def _look(self, requests: list[Asked]) -> None:
        left = {id(asked): asked for asked in requests}
        try:
            for asked, seen in self._first_look.look(requests):
                del left[id(asked)]
                self._go_on(asked, seen)
        except Exception as error:  # one answer for every request, whatever happens
            _log_failure(error)
            for asked in left.values():
                self._answer((asked, failure_of(error)))

    def _go_on(self, asked: Asked, seen: Seen | Exception) -> None:
        if isinstance(seen, Outcome | Exception):
            self._answer((asked, seen))
            return
        try:
            self._turns.put(Undecided(asked, seen))
        except UnavailableError as unavailable:
            self._answer((asked, unavailable))
        except Exception as error:  # nobody else has it to answer
            _log_failure(error)
            self._answer((asked, failure_of(error)))

    def _answer(self, result: Result) -> None:
        asked, outcome = result
        sender = self._senders.pop(id(asked))
        try:
            _send(sender, _response(asked, outcome))
        except Exception as error:  # as of one too large for what memory Triton shares
            _log_failure(error)
            _send(sender, _error(failure_of(error)))

    def _read(self, request: Any) -> Asked:
        # Copied: the memory is Triton's again once `execute` has returned.
        tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
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


class _WaitingGauge:
    """The metric by which TensorRT-LLM tells how many requests wait in it, of which Triton's own
    queue says nothing (docs/user_guide/metrics.md of triton-inference-server/server). Here those
    for the language model: who waits for routes to be read would not be helped by another server,
    which has to read them, too."""

    def __init__(self, model: str, version: str) -> None:
        try:
            # Kept: Triton stops answering when a family goes while one of its metrics is there.
            self._family = pb_utils.MetricFamily(
                name="nv_trt_llm_request_metrics",
                description="TRT LLM request metrics",
                kind=pb_utils.MetricFamily.GAUGE,
            )
            labels = {"model": model, "version": version, "request_type": "waiting"}
            self._gauge = self._family.Metric(labels=labels)
        except pb_utils.TritonModelException:
            # Triton was started without metrics.
            self._gauge = None

    def set(self, count: int) -> None:
        if self._gauge is not None:
            self._gauge.set(count)


def _log_failure(error: Exception) -> None:
    pb_utils.Logger.log_error(f"routing model: {type(error).__name__}: {error}")


def _response(asked: Asked, result: Outcome | Exception) -> Any:
    if not isinstance(result, Outcome):
        return _error(result)
    tensors = [pb_utils.Tensor(name, values) for name, values in to_tensors(asked, result).items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _error(error: Exception) -> Any:
    code = getattr(pb_utils.TritonError, code_of(error))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))


def _send(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
