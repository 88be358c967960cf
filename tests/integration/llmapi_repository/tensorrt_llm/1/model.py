"""In the place of TensorRT-LLM's `llmapi` model: answers the first route whose name stands in the
conversation, as a model would that nothing holds to a grammar."""

import re

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        tensors = {each.name(): each.as_numpy() for each in request.inputs()}
        assert tensors["sampling_param_exclude_input_from_output"][0]
        text = tensors["text_input"][0].decode()
        conversation = text.partition("<conversation>\n")[2].partition("\n</conversation>")[0]
        names = re.findall(r'"name":"([^"]+)"', text.partition("<conversation>")[0])
        chosen = next((name for name in names if name in conversation), "other")
        answer = f"Sure! {{'route': '{chosen}'}}<|im_end|>\n<|im_start|>user\n"
        count = text.count("<|im_start|>")
        if tensors["sampling_param_max_tokens"][0] > 1 and count != 3:
            answer = f"{count} turns"
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("text_output", np.array([answer.encode()], dtype=object)),
                pb_utils.Tensor("cumulative_logprob", np.array([-0.25], dtype=np.float32)),
            ]
        )
