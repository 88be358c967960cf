"""Routing models that take and give text: Triton's `llmapi` model of TensorRT-LLM, and its vLLM
models.

For the time after TensorRT-LLM's engines, which 1.3 no longer builds.

* `llmapi`: the tensors are those of triton_backend/all_models/llmapi/tensorrt_llm/config.pbtxt of
  NVIDIA/TensorRT-LLM, served without batches and not decoupled (`triton_config: {max_batch_size: 0,
  decoupled: false}`); TensorRT-LLM batches by itself.
* vLLM: those that src/model.py of triton-inference-server/vllm_backend adds to its models
  (releases from 25.11 on). They are decoupled, which Triton serves by ModelStreamInfer alone.

What is lost against token ids: there are no logits, so that models which answer by labels cannot be
asked; there is one probability for the whole answer, of all that the model could have said; routes
are not retained, only kept as long as there is room; the spelling of a special token in a message
has to be changed, since the model server would take it for that token; and with `llmapi` nothing
keeps the answer to the route names, so that it is read as free text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult

from sidecar.core.model import (
    AnswerForm,
    InferenceError,
    InferenceFailure,
    ModelOutput,
    Prompt,
    RouteTexts,
    TextAnswer,
    TextOutput,
    Tokenizer,
)
from sidecar.inference.triton import TritonModel, TritonTarget

_TURN_TOKENS = ("<|im_start|>", "<|im_end|>")
_SPELLED = re.compile(r"<\|([^|<>]*)\|>")


class TritonTextModel(TritonModel):
    """Implements `RoutingModel` over text.

    Raises:
        KeyError: the tokenizer lacks ChatML's tokens.
    """

    def __init__(self, target: TritonTarget, tokenizer: Tokenizer) -> None:
        super().__init__(target)
        self._tokenizer = tokenizer
        self._turns = {tokenizer.special(token): token for token in _TURN_TOKENS}

    async def infer(self, prompt: Prompt, answer_form: AnswerForm, timeout_s: float) -> ModelOutput:
        """See `RoutingModel.infer`."""
        if not isinstance(answer_form, TextAnswer):
            raise InferenceError(
                InferenceFailure.ERROR, "a model that takes text gives no logits of labels"
            )
        ids = (*prompt.prefix_ids, *prompt.suffix_ids)
        text, log_prob = await self._ask(ids, answer_form, timeout_s)
        return self._read(text, log_prob)

    async def warm(
        self, prefix_ids: Sequence[int], timeout_s: float, routes: RouteTexts = ()
    ) -> None:
        """Have the server compute `prefix_ids`; it keeps them while it has room."""
        await self._ask(prefix_ids, _ANY_TOKEN, timeout_s)

    def text_of(self, ids: Sequence[int]) -> str:
        """The prompt as the model server gets it: of special tokens, those that begin and end
        turns, and no others."""
        parts: list[str] = []
        piece: list[int] = []
        for token in (*ids, None):
            if token is not None and token not in self._turns:
                piece.append(token)
                continue
            parts.append(_SPELLED.sub(r"< |\1| >", self._tokenizer.decode(piece)))
            piece = []
            if token is not None:
                parts.append(self._turns[token])
        return "".join(parts)

    async def _ask(
        self, ids: Sequence[int], form: TextAnswer, timeout_s: float
    ) -> tuple[str, float | None]:
        """The answer and the natural logarithm of its probability. Raises InferenceError."""
        inputs = [
            self._text_input(ids),
            _tensor("sampling_param_max_tokens", "INT32", np.array([form.max_tokens], np.int32)),
            _tensor("sampling_param_top_k", "INT32", np.array([1], np.int32)),
            _tensor("sampling_param_exclude_input_from_output", "BOOL", np.array([True])),
            _tensor("return_cumulative_logprob", "BOOL", np.array([True])),
        ]
        result = await self._call(inputs, _text_outputs(), timeout_s)
        return _text_of(result), _log_prob_of(result)

    def _text_input(self, ids: Sequence[int]) -> InferInput:
        return _tensor("text_input", "BYTES", np.array([self.text_of(ids).encode()], dtype=object))

    def _read(self, text: str, log_prob: float | None) -> TextOutput:
        """The text as ids, since that is what answers are; its probability with the first."""
        answer, _, _ = text.partition(_TURN_TOKENS[1])
        ids = tuple(self._tokenizer.encode(answer.strip()))
        if log_prob is None or not ids:
            return TextOutput(ids)
        return TextOutput(ids, (log_prob, *([0.0] * (len(ids) - 1))))


class TritonVllmModel(TritonTextModel):
    """Triton's vLLM models. Their answers are kept to the grammar, as an engine's are."""

    async def _ask(
        self, ids: Sequence[int], form: TextAnswer, timeout_s: float
    ) -> tuple[str, float | None]:
        inputs = [
            self._text_input(ids),
            _tensor("stream", "BOOL", np.array([False])),
            _tensor("exclude_input_in_output", "BOOL", np.array([True])),
            _tensor("return_cumulative_logprob", "BOOL", np.array([True])),
            _tensor(
                "sampling_parameters",
                "BYTES",
                np.array([json.dumps(_sampling(form)).encode()], dtype=object),
            ),
        ]
        # One response in the usual case; the protocol allows more, each with a piece of the text.
        results = await self._call_stream(inputs, _text_outputs(), timeout_s)
        text = "".join(map(_text_of, results))
        return text, _log_prob_of(results[-1])


_ANY_TOKEN = TextAnswer(guide="", max_tokens=1)


def _sampling(form: TextAnswer) -> dict[str, object]:
    """vLLM's SamplingParams; the grammar is a JSON text of its own, as the backend wants it."""
    sampling: dict[str, object] = {
        "max_tokens": form.max_tokens,
        "temperature": 0.0,
        # A model's own generation_config.json may say otherwise, and punish route names, all of
        # which stand in the prompt.
        "repetition_penalty": 1.0,
        # Without it vLLM adds up no probabilities.
        "logprobs": 0,
    }
    if form.guide:
        sampling["structured_outputs"] = json.dumps({"grammar": form.guide})
    return sampling


def _text_outputs() -> list[InferRequestedOutput]:
    return [InferRequestedOutput(name) for name in ("text_output", "cumulative_logprob")]


def _text_of(result: InferResult) -> str:
    texts = _read(result, "text_output")
    if texts is None or texts.size != 1:
        raise InferenceError(InferenceFailure.ERROR, "the model server sent no text_output")
    text = texts.reshape(-1)[0]
    if not isinstance(text, bytes):
        raise InferenceError(InferenceFailure.ERROR, "text_output is not a text")
    return text.decode("utf-8", "replace")


def _log_prob_of(result: InferResult) -> float | None:
    total = _read(result, "cumulative_logprob")
    if total is None or total.size != 1 or total.dtype.kind != "f":
        return None
    return float(total.reshape(-1)[0])


def _read(result: InferResult, name: str) -> npt.NDArray[np.generic] | None:
    try:
        values: npt.NDArray[np.generic] | None = result.as_numpy(name)
    except Exception as error:
        # Whatever its parts raise: ValueError of numpy, struct.error for texts, …
        raise InferenceError(InferenceFailure.ERROR, f"{name} cannot be read: {error}") from None
    return values


def _tensor(name: str, datatype: str, values: object) -> InferInput:
    array = np.asarray(values)
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor
