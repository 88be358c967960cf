"""Triton entry point: text and policy in, a route out. Tokenises and asks the model `tensorrt_llm`
beside it, as a sidecar does over the network."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# Triton imports this file by path and adds only the folder above it. The sidecar's own modules for
# prompts lie beside this file.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from text_routing import TextRouter, WrongInputError, confidence, read_conversation

from sidecar.core.model import LabelAnswer, LabelLogits, ModelOutput, Prompt, TextAnswer, TextOutput

_MODEL = "tensorrt_llm"
_RETENTION_PRIORITY = 90
"""Of 0..100, as the sidecar's."""


class TritonPythonModel:
    """One instance; what Triton hands over together is asked together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the engine folder named by the parameter `engine`."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {name: value["string_value"] for name, value in parameters.items()}
        self._router = TextRouter(Path(settings["engine"]), int(settings["max_policies"]))

    async def execute(self, requests: list[Any]) -> list[Any]:
        return await asyncio.gather(*map(self._answer, requests))

    async def _answer(self, request: Any) -> Any:
        try:
            if request.is_cancelled():
                return _error("cancelled", pb_utils.TritonError.CANCELLED)
            return await self._route(request)
        except WrongInputError as error:
            return _error(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # it must not fail those that came with it
            kind = type(error).__name__
            pb_utils.Logger.log_error(f"ensemble: {kind}: {error}")
            return _error(f"the ensemble failed: {kind}", pb_utils.TritonError.INTERNAL)

    async def _route(self, request: Any) -> Any:
        tensors = {each.name(): _text(each) for each in request.inputs()}
        conversation = read_conversation(tensors.get("text_input"), tensors.get("messages"))
        compiled = self._router.compiled(tensors["policy"])
        form = compiled.answer_form
        response = await self._request(compiled.render(conversation), form).async_exec()
        if response.has_error():
            return pb_utils.InferenceResponse(error=response.error())
        answer = compiled.read(self._output(response, form))
        return pb_utils.InferenceResponse(
            output_tensors=[
                _strings("route", answer.name),
                _strings("text_output", answer.text),
                pb_utils.Tensor("confidence", np.array([[confidence(answer)]], np.float32)),
            ]
        )

    def _request(self, prompt: Prompt, form: LabelAnswer | TextAnswer) -> Any:
        ids = (*prompt.prefix_ids, *prompt.suffix_ids)
        inputs = [
            _ints("input_ids", *ids),
            _ints("input_lengths", len(ids)),
            _ints("end_id", self._router.end_id),
            _ints("pad_id", self._router.pad_id),
            _ints("runtime_top_k", 1),
            _ints("retention_token_range_starts", 0),
            _ints("retention_token_range_ends", len(prompt.prefix_ids)),
            _ints("retention_token_range_priorities", _RETENTION_PRIORITY),
            _ints("retention_token_range_durations_ms", -1),
        ]
        # The C++ backend refuses a request that does not ask for the first two.
        outputs = ["output_ids", "sequence_length"]
        if isinstance(form, LabelAnswer):
            inputs += [_ints("request_output_len", 1), _true("return_generation_logits")]
            outputs.append("generation_logits")
        else:
            inputs += [
                _ints("request_output_len", form.max_tokens),
                _true("return_log_probs"),
                _true("exclude_input_in_output"),
                _strings("guided_decoding_guide_type", "ebnf_grammar"),
                _strings("guided_decoding_guide", form.guide),
            ]
            outputs.append("output_log_probs")
        return pb_utils.InferenceRequest(
            model_name=_MODEL, requested_output_names=outputs, inputs=inputs
        )

    def _output(self, response: Any, form: LabelAnswer | TextAnswer) -> ModelOutput:
        if isinstance(form, LabelAnswer):
            logits = _output(response, "generation_logits")[0, 0, 0]
            return LabelLogits(tuple(logits[list(form.token_ids)].astype(np.float64).tolist()))
        length = int(_output(response, "sequence_length").flat[0])
        ids = _output(response, "output_ids")[0, 0].tolist()[:length]
        if self._router.end_id in ids:
            ids = ids[: ids.index(self._router.end_id)]
        log_probs = _output(response, "output_log_probs")[0, 0].tolist()[: len(ids)]
        return TextOutput(tuple(ids), tuple(log_probs))


def _text(tensor: Any) -> str:
    values = tensor.as_numpy().reshape(-1)
    if values.size != 1:
        raise WrongInputError(f"{tensor.name()}: must be one text in each request")
    return bytes(values[0]).decode("utf-8", "replace")


def _output(response: Any, name: str) -> Any:
    return pb_utils.get_output_tensor_by_name(response, name).as_numpy()


def _ints(name: str, *values: int) -> Any:
    return pb_utils.Tensor(name, np.array([values], np.int32))


def _true(name: str) -> Any:
    return pb_utils.Tensor(name, np.array([[True]]))


def _strings(name: str, value: str) -> Any:
    return pb_utils.Tensor(name, np.array([[value.encode()]], dtype=object))


def _error(text: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
