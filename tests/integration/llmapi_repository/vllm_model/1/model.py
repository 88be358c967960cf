"""In the place of a vLLM model: of the answers that the grammar admits, the first whose route
stands in the conversation.

`pieces` in the conversation: the answer in two responses. `endless`: none until the request is
cancelled; how many began, and how many were cancelled, is the probability's logarithm of `how many
began` and of `how many ended`. `broken`: an error."""

import json
import re
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        self._began = self._cancelled = 0

    def execute(self, requests):
        for request in requests:
            # A thread each, as vLLM's own loop: others are answered meanwhile.
            sender = request.get_response_sender()
            tensors = {each.name(): each.as_numpy()[0] for each in request.inputs()}
            threading.Thread(target=self._answer, args=(sender, tensors)).start()

    def _answer(self, sender, tensors):
        text = tensors["text_input"].decode()
        sampling = json.loads(tensors["sampling_parameters"])
        assert not tensors["stream"]
        assert tensors["exclude_input_in_output"]
        conversation = text.partition("<conversation>\n")[2].partition("\n</conversation>")[0]
        if "endless" in conversation:
            self._began += 1
            while not sender.is_cancelled():
                time.sleep(0.01)
            self._cancelled += 1
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("cancelled")), FINAL)
            return
        if "broken" in conversation:
            error = pb_utils.TritonError("engine is gone", pb_utils.TritonError.UNAVAILABLE)
            sender.send(pb_utils.InferenceResponse(error=error), FINAL)
            return
        answer = self._choose(sampling, conversation)
        counts = {"how many began": self._began, "how many ended": self._cancelled}
        log_prob = float(counts.get(conversation, -0.25))
        if "pieces" in conversation:
            sender.send(self._response(answer[:6], -0.1))
            answer = answer[6:]
        sender.send(self._response(answer, log_prob), FINAL)

    def _choose(self, sampling, conversation):
        assert (sampling["temperature"], sampling["repetition_penalty"]) == (0.0, 1.0)
        if "structured_outputs" not in sampling:
            assert sampling["max_tokens"] == 1
            return "{"
        grammar = json.loads(sampling["structured_outputs"])["grammar"]
        answers = re.findall(r'"((?:[^"\\]|\\.)*)"', grammar)
        names = {each: each.partition("'route': '")[2].removesuffix("'}") for each in answers}
        chosen = [each for each, name in names.items() if name in conversation]
        return [*chosen, "{'route': 'other'}"][0]

    def _response(self, text, log_prob):
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("text_output", np.array([text.encode()], dtype=object)),
                pb_utils.Tensor("cumulative_logprob", np.array([log_prob], dtype=np.float32)),
            ]
        )
