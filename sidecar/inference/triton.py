"""The routing model behind Triton's KServe v2 gRPC interface.

The tensors are those of the TensorRT-LLM backend's `tensorrt_llm` model
(triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt of NVIDIA/TensorRT-LLM
1.2.1); the CPU model serves the same ones, so only the address tells them apart.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

import grpc
import numpy as np
import numpy.typing as npt
import structlog
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from sidecar.core.model import (
    AnswerForm,
    Enough,
    InferenceError,
    InferenceFailure,
    LabelAnswer,
    LabelLogits,
    ModelOutput,
    Prompt,
    RouteTexts,
    SecondOpinionIds,
    TextAnswer,
    TextOutput,
)
from sidecar.inference.calls import traced

_log = structlog.get_logger(__name__)

_RECONNECT_MS = 100
"""Longest wait between connection attempts. gRPC's own default grows to two minutes, far beyond
the time in which a restarted model server must be used again."""

_RETENTION_PRIORITY = 90
"""Of 0..100; the backend's default for blocks without a range is 35."""

_FAILURES = {
    "StatusCode.DEADLINE_EXCEEDED": InferenceFailure.DEADLINE,
    "StatusCode.UNAVAILABLE": InferenceFailure.UNAVAILABLE,
    # Unknown, unloading or not yet loaded model.
    "StatusCode.NOT_FOUND": InferenceFailure.UNAVAILABLE,
    # The server's own cancellation: it is going down (ours raises CancelledError instead).
    "StatusCode.CANCELLED": InferenceFailure.UNAVAILABLE,
}

SECOND_OPINION = "second_opinion_logits"
"""Output of the CPU model alone, where its engine has a sentence encoder."""

_POLICIES = 64
"""Policies whose tensors are kept; to make them takes as long as to make those of a request."""

_QUEUE_FULL = ("Exceeds maximum queue size", "Maximum queue size of")
"""What is said of a full queue: by Triton of its own, as UNAVAILABLE, and by TensorRT-LLM of the
one into which it takes requests over, as INTERNAL (cpp/tensorrt_llm/executor/executorImpl.cpp)."""

_INFER, _STREAM_INFER = (
    f"inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer")
)

_STREAM_HEADERS = {"triton_grpc_error": "true"}
"""Errors of a stream as gRPC's status, by which they are told apart, instead of as a text
(docs/customization_guide/inference_protocols.md of triton-inference-server/server)."""

_LOOK_AGAIN_S = 30.0
"""After which the server is asked again which engine it serves: a model can be loaded anew without
a moment in which it is not ready."""

_NOT_SERVED = ("is not found", "has no available versions")
"""What streams say as a text even so: the model is unknown, unloaded or not loaded yet."""


@dataclass(frozen=True, slots=True)
class TritonTarget:
    """Where the routing model is served and which ids end and pad its text.

    Args:
        address: `host:port` or `unix:path` of Triton's gRPC endpoint.
        model: name of the Triton model.
        engine: build id of the engine that the sidecar has read; empty: whichever is served.
        label_ids: whether the model takes the tokens that the answer is one of, and gives the
            logits of those alone, as the CPU model does.
        keepalive_ms, keepalive_timeout_ms: time between HTTP/2 pings, and how long one may stay
            unanswered before the connection is given up: a host that vanished sends no reset.
    """

    address: str
    model: str
    end_id: int
    pad_id: int
    vocab_size: int
    keepalive_ms: int = 10_000
    keepalive_timeout_ms: int = 5_000
    label_ids: bool = False
    engine: str = ""


class TritonModel:
    """A served routing model; one long-lived channel, used from one event loop.

    A client per call leaks (triton-inference-server/client#731).
    """

    encoder_apart = False

    def __init__(self, target: TritonTarget) -> None:
        self._target = target
        self._client: InferenceServerClient | None = None
        self._other_engine: str | None = None
        self._look_from = 0.0
        self._label_inputs = [
            *self._common_inputs(output_len=1),
            _bool_input("return_generation_logits"),
        ]
        self._label_outputs = _outputs("generation_logits")
        self._second_opinion_outputs = _outputs("generation_logits", SECOND_OPINION)
        self._text_outputs = _outputs("output_log_probs")

    @property
    def address(self) -> str:
        return self._target.address

    @property
    def other_engine(self) -> str | None:
        """Build id of the engine that is served where that is another than the sidecar has read,
        whose labels, calibration and name its decisions then have; empty where it is the same,
        None where the server has not said."""
        return self._other_engine

    async def close(self) -> None:
        """Close the channel; calls in flight fail."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def infer(self, prompt: Prompt, answer_form: AnswerForm, timeout_s: float) -> ModelOutput:
        """See `RoutingModel.infer`."""
        if isinstance(answer_form, LabelAnswer):
            return await self._infer_labels(prompt, answer_form, timeout_s)
        inputs = [*_prompt_inputs(prompt), *self._text_inputs(answer_form)]
        result = await self._call(inputs, self._text_outputs, timeout_s)
        return _read_text(result, self._target.end_id)

    async def _infer_labels(
        self, prompt: Prompt, form: LabelAnswer, timeout_s: float
    ) -> LabelLogits:
        inputs = [*_prompt_inputs(prompt), *self._label_inputs]
        if self._target.label_ids:
            inputs.append(_label_ids_input(form.token_ids))
        second = prompt.second_opinion
        if second is None:
            result = await self._call(inputs, self._label_outputs, timeout_s)
            return _read_label_logits(result, form, self._target)
        inputs += second_opinion_inputs(second)
        result = await self._call(inputs, self._second_opinion_outputs, timeout_s)
        opinion = read_second_opinion(result, form)
        if second.enough is not None and opinion is not None and _is_empty(result):
            return LabelLogits((), opinion)
        return replace(_read_label_logits(result, form, self._target), second_opinion=opinion)

    async def warm(
        self, prefix_ids: Sequence[int], timeout_s: float, routes: RouteTexts = ()
    ) -> None:
        """Have the server compute `prefix_ids` and keep their KV, and what its encoder reads of
        `routes`.

        The last id is sent again after the prefix: a server needs at least one token beyond what
        it keeps to have something to compute.
        """
        prompt = Prompt(tuple(prefix_ids), (prefix_ids[-1],))
        inputs = [*_prompt_inputs(prompt), *self._common_inputs(output_len=1)]
        inputs += route_inputs(routes) if routes else ()
        await self._call(inputs, _outputs(), timeout_s)

    async def check_ready(self, timeout_s: float) -> None:
        """Raises InferenceError unless the server answers that the model is ready.

        Which engine it serves is looked at as well, and logged where it is another one.
        """
        look_from, self._look_from = self._look_from, 0.0
        try:
            ready = await self._connected().is_model_ready(
                self._target.model, client_timeout=timeout_s
            )
        except (InferenceServerException, grpc.aio.UsageError) as error:
            raise _inference_error(error) from None
        except AttributeError:
            # gRPC gives None for a message that it cannot decode, and the client looks into that.
            raise _undecodable() from None
        if not ready:
            raise InferenceError(
                InferenceFailure.UNAVAILABLE, f"model {self._target.model} is not ready"
            )
        if self._target.engine and time.monotonic() >= look_from:
            await self._look_at_engine(timeout_s)
            look_from = time.monotonic() + _LOOK_AGAIN_S
        self._look_from = look_from

    async def _look_at_engine(self, timeout_s: float) -> None:
        try:
            answer = await self._connected().get_model_config(
                self._target.model, client_timeout=timeout_s
            )
            served = answer.config.parameters["routing_model"].string_value
        except (InferenceServerException, grpc.aio.UsageError, AttributeError):
            # Decisions can be made all the same.
            return
        before, expected = self._other_engine, self._target.engine
        self._other_engine = None if not served else "" if served == expected else served
        if self._other_engine and self._other_engine != before:
            _log.warning(
                "the model server serves another engine than routing_model.directory holds: "
                "decisions are labelled and calibrated for the latter; let both have the same",
                target=self.address,
                served=served,
                routing_model=expected,
            )

    def _connected(self) -> InferenceServerClient:
        if self._client is None:
            self._client = InferenceServerClient(
                self._target.address,
                # These replace all of the client's own arguments, so the message sizes too.
                channel_args=[
                    # A proxy that is meant for the internet knows nothing of a model server.
                    ("grpc.enable_http_proxy", 0),
                    ("grpc.max_send_message_length", -1),
                    ("grpc.max_receive_message_length", -1),
                    ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
                    ("grpc.min_reconnect_backoff_ms", _RECONNECT_MS),
                    ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
                    ("grpc.enable_retries", 0),
                    ("grpc.keepalive_time_ms", self._target.keepalive_ms),
                    ("grpc.keepalive_timeout_ms", self._target.keepalive_timeout_ms),
                    # Without it a ping's answer is waited for a minute.
                    ("grpc.http2.ping_timeout_ms", self._target.keepalive_timeout_ms),
                ],
            )
        return self._client

    async def _call(
        self,
        inputs: Sequence[InferInput],
        outputs: list[InferRequestedOutput],
        timeout_s: float,
        model: str = "",
    ) -> InferResult:
        model = model or self._target.model
        try:
            with traced(self.address, _INFER, model) as headers:
                result = await self._connected().infer(
                    model,
                    inputs,
                    outputs=outputs,
                    # The backend keys cancellation by this id, across all its clients: reuse of one
                    # that is in flight cancels somebody else's request.
                    request_id=str(random.getrandbits(63)),
                    client_timeout=timeout_s,
                    headers=headers,
                )
        except (InferenceServerException, grpc.aio.UsageError) as error:
            raise _inference_error(error) from None
        if result.get_response() is None:
            # gRPC gives None for a message that it cannot decode.
            raise _undecodable()
        return result

    async def _call_stream(
        self, inputs: list[InferInput], outputs: list[InferRequestedOutput], timeout_s: float
    ) -> list[InferResult]:
        """As `_call`, of a model that Triton serves as a stream; at least one result."""
        request: dict[str, object] = {
            "model_name": self._target.model,
            "inputs": inputs,
            "outputs": outputs,
            "request_id": str(random.getrandbits(63)),
        }
        results: list[InferResult] = []
        try:
            with traced(self.address, _STREAM_INFER, self._target.model) as headers:
                stream = self._connected().stream_infer(
                    _only(request),
                    stream_timeout=timeout_s,
                    headers={**_STREAM_HEADERS, **(headers or {})},
                )
                try:
                    async for result, error in stream:
                        if error is not None:
                            raise _inference_error(error)
                        results.append(result)
                finally:
                    # Of a call that is over nothing; of one whose waiter has gone, the computation.
                    stream.cancel()
        except grpc.aio.AioRpcError as error:
            raise _failed(str(error.code()), error.details() or "") from None
        except grpc.aio.UsageError as error:
            raise _inference_error(error) from None
        except AttributeError:
            raise _undecodable() from None
        if not results:
            raise InferenceError(InferenceFailure.ERROR, "the model server's stream had no answer")
        return results

    def _common_inputs(self, output_len: int) -> list[InferInput]:
        return [
            _int_input("request_output_len", [[output_len]]),
            # Without end_id the backend never stops at the end of the text.
            _int_input("end_id", [[self._target.end_id]]),
            _int_input("pad_id", [[self._target.pad_id]]),
            _int_input("runtime_top_k", [[1]]),
        ]

    def _text_inputs(self, answer_form: TextAnswer) -> list[InferInput]:
        return [
            *self._common_inputs(answer_form.max_tokens),
            _bool_input("return_log_probs"),
            _bool_input("exclude_input_in_output"),
            _bytes_input("guided_decoding_guide_type", b"ebnf_grammar"),
            _bytes_input("guided_decoding_guide", answer_form.guide.encode()),
        ]


def _prompt_inputs(prompt: Prompt) -> list[InferInput]:
    # By way of `array`, which takes a third of the time that numpy takes for a tuple.
    tokens = array("i", prompt.prefix_ids)
    tokens.extend(prompt.suffix_ids)
    ids = np.frombuffer(tokens, np.int32).reshape(1, -1)
    inputs = [_input("input_ids", "INT32", ids), _int_input("input_lengths", [[ids.shape[1]]])]
    if prompt.prefix_ids:
        inputs += _retention_inputs(len(prompt.prefix_ids))
    return inputs


@lru_cache(_POLICIES)
def _retention_inputs(length: int) -> tuple[InferInput, ...]:
    return (
        _int_input("retention_token_range_starts", [[0]]),
        _int_input("retention_token_range_ends", [[length]]),
        _int_input("retention_token_range_priorities", [[_RETENTION_PRIORITY]]),
        _int_input("retention_token_range_durations_ms", [[-1]]),
    )


@lru_cache(_POLICIES)
def _label_ids_input(token_ids: tuple[int, ...]) -> InferInput:
    return _int_input("label_ids", [token_ids])


def second_opinion_inputs(second: SecondOpinionIds) -> list[InferInput]:
    """What the encoder is asked."""
    return [
        _int_input("second_opinion_request_ids", [second.request_ids]),
        _int_input("second_opinion_request_types", [second.request_types]),
        *route_inputs(second.routes),
        *([_enough_input(second.enough)] if second.enough is not None else []),
        *([_bool_input("second_opinion_alone")] if second.alone else []),
    ]


@lru_cache(_POLICIES)
def _enough_input(enough: Enough) -> InferInput:
    values = [[enough.factor, enough.other_bias, enough.probability]]
    return _input("second_opinion_enough", "FP32", np.array(values, np.float32))


@lru_cache(_POLICIES)
def route_inputs(routes: RouteTexts) -> tuple[InferInput, ...]:
    """What the encoder keeps of a policy."""
    return (
        _int_input("second_opinion_route_ids", [list(chain.from_iterable(routes))]),
        _int_input("second_opinion_route_lengths", [list(map(len, routes))]),
    )


def _input(name: str, datatype: str, values: npt.NDArray[np.generic]) -> InferInput:
    tensor = InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def _int_input(name: str, values: Sequence[Sequence[int]]) -> InferInput:
    return _input(name, "INT32", np.array(values, dtype=np.int32))


def _bool_input(name: str) -> InferInput:
    return _input(name, "BOOL", np.array([[True]]))


def _bytes_input(name: str, value: bytes) -> InferInput:
    return _input(name, "BYTES", np.array([[value]], dtype=object))


def _outputs(*names: str) -> list[InferRequestedOutput]:
    # The C++ backend refuses a request that does not ask for the first two.
    return [InferRequestedOutput(name) for name in ("output_ids", "sequence_length", *names)]


def _tensor(result: InferResult, name: str, kind: str) -> npt.NDArray[np.generic]:
    """The tensor `name`; `kind` is numpy's: `f` for floats, `i` for integers."""
    try:
        values = result.as_numpy(name)
    except Exception as error:
        # Whatever its parts raise: ValueError of numpy, struct.error for texts, …
        raise InferenceError(InferenceFailure.ERROR, f"{name} cannot be read: {error}") from None
    if values is None:
        raise InferenceError(InferenceFailure.ERROR, f"the model server sent no {name}")
    if values.dtype.kind != kind:
        raise InferenceError(InferenceFailure.ERROR, f"{name} is of type {values.dtype}")
    array: npt.NDArray[np.generic] = values
    return array


def _read_label_logits(result: InferResult, form: LabelAnswer, target: TritonTarget) -> LabelLogits:
    logits = _tensor(result, "generation_logits", "f")
    shape, labels = logits.shape, len(form.token_ids)
    if shape == (1, 1, 1, labels) and target.label_ids:
        chosen = logits[0, 0, 0].astype(np.float64)
    elif logits.ndim == 4 and shape[:3] == (1, 1, 1) and shape[3] >= target.vocab_size:
        chosen = logits[0, 0, 0][list(form.token_ids)].astype(np.float64)
    else:
        fewer = f"{labels}, or " if target.label_ids else ""
        raise InferenceError(
            InferenceFailure.ERROR,
            f"generation_logits has shape {shape}, not (1, 1, 1, {fewer}{target.vocab_size} or "
            "more)",
        )
    if not np.isfinite(chosen).all():
        raise InferenceError(InferenceFailure.ERROR, "generation_logits holds values not finite")
    return LabelLogits(tuple(chosen.tolist()))


def _is_empty(result: InferResult) -> bool:
    """True if no token was chosen: the encoder was enough."""
    return _tensor(result, "generation_logits", "f").shape[:3] == (1, 1, 0)


def read_second_opinion(result: InferResult, form: LabelAnswer) -> tuple[float, ...] | None:
    """The encoder's logits, one a label; None if there are none. Raises InferenceError."""
    if result.get_output(SECOND_OPINION) is None:
        return None  # its engine has no encoder
    logits = _tensor(result, SECOND_OPINION, "f")
    if logits.shape != (1, len(form.token_ids)):
        raise InferenceError(
            InferenceFailure.ERROR,
            f"{SECOND_OPINION} has shape {logits.shape}, not (1, {len(form.token_ids)})",
        )
    if not np.isfinite(logits).all():
        raise InferenceError(InferenceFailure.ERROR, f"{SECOND_OPINION} holds values not finite")
    return tuple(logits[0].astype(np.float64).tolist())


def _read_text(result: InferResult, end_id: int) -> TextOutput:
    ids = _tensor(result, "output_ids", "i")
    lengths = _tensor(result, "sequence_length", "i")
    log_probs = _tensor(result, "output_log_probs", "f")
    shapes = [(each.ndim, each.shape[:2]) for each in (ids, lengths, log_probs)]
    if shapes != [(3, (1, 1)), (2, (1, 1)), (3, (1, 1))]:
        raise InferenceError(
            InferenceFailure.ERROR,
            f"output_ids has shape {ids.shape}, sequence_length {lengths.shape}, "
            f"output_log_probs {log_probs.shape}",
        )
    tokens: list[int] = ids[0, 0].tolist()[: int(lengths[0, 0])]
    if end_id in tokens:
        tokens = tokens[: tokens.index(end_id)]
    return TextOutput(tuple(tokens), tuple(log_probs[0, 0].tolist()[: len(tokens)]))


def _undecodable() -> InferenceError:
    return InferenceError(
        InferenceFailure.ERROR, "the model server's answer is not a message of its protocol"
    )


def _inference_error(error: Exception) -> InferenceError:
    if not isinstance(error, InferenceServerException):
        return InferenceError(InferenceFailure.UNAVAILABLE, "the channel is closed")
    return _failed(error.status() or "", error.message() or "")


def _failed(status: str, message: str) -> InferenceError:
    if any(part in message for part in _QUEUE_FULL):
        return InferenceError(InferenceFailure.OVERLOADED, "the model server's queue is full")
    failure = _FAILURES.get(status, InferenceFailure.ERROR)
    if not status and any(part in message for part in _NOT_SERVED):
        failure = InferenceFailure.UNAVAILABLE
    return InferenceError(failure, f"{status or 'error'}: {message[:200]}")


async def _only(request: dict[str, object]) -> AsyncIterator[dict[str, object]]:
    yield request
