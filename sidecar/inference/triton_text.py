"""A routing model that takes and gives text: Triton's `llmapi` model of TensorRT-LLM.

For the time after TensorRT-LLM's engines, which 1.3 no longer builds. The tensors are those of
triton_backend/all_models/llmapi/tensorrt_llm/config.pbtxt of NVIDIA/TensorRT-LLM, served without
batches and not decoupled (`triton_config: {max_batch_size: 0, decoupled: false}`); TensorRT-LLM
batches by itself.

What is lost against token ids: nothing keeps the answer to the route names, so that it is read as
free text; there are no logits, so that models which answer by labels cannot be asked; there is one
probability for the whole answer, of all that the model could have said; routes are not retained,
only kept as long as there is room; and the spelling of a special token in a message has to be
changed, since the model server would take it for that token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
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
        result = await self._ask(ids, answer_form.max_tokens, timeout_s)
        return self._read(result)

    async def warm(
        self, prefix_ids: Sequence[int], timeout_s: float, routes: RouteTexts = ()
    ) -> None:
        """Have the server compute `prefix_ids`; it keeps them while it has room."""
        await self._ask(prefix_ids, 1, timeout_s)

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

    async def _ask(self, ids: Sequence[int], max_tokens: int, timeout_s: float) -> InferResult:
        inputs = [
            _tensor("text_input", "BYTES", np.array([self.text_of(ids).encode()], dtype=object)),
            _tensor("sampling_param_max_tokens", "INT32", np.array([max_tokens], np.int32)),
            _tensor("sampling_param_top_k", "INT32", np.array([1], np.int32)),
            _tensor("sampling_param_exclude_input_from_output", "BOOL", np.array([True])),
            _tensor("return_cumulative_logprob", "BOOL", np.array([True])),
        ]
        outputs = [InferRequestedOutput(name) for name in ("text_output", "cumulative_logprob")]
        return await self._call(inputs, outputs, timeout_s)

    def _read(self, result: InferResult) -> TextOutput:
        """The text as ids, since that is what answers are; its probability with the first."""
        texts, total = result.as_numpy("text_output"), result.as_numpy("cumulative_logprob")
        if texts is None or texts.size != 1:
            raise InferenceError(InferenceFailure.ERROR, "the model server sent no text_output")
        text = texts.reshape(-1)[0]
        if not isinstance(text, bytes):
            raise InferenceError(InferenceFailure.ERROR, "text_output is not a text")
        answer, _, _ = text.decode("utf-8", "replace").partition(_TURN_TOKENS[1])
        ids = tuple(self._tokenizer.encode(answer.strip()))
        if total is None or total.size != 1 or not ids:
            return TextOutput(ids)
        return TextOutput(ids, (float(total.reshape(-1)[0]), *([0.0] * (len(ids) - 1))))


def _tensor(name: str, datatype: str, values: object) -> InferInput:
    array = np.asarray(values)
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor
