"""Gives back what it gets."""

# The module exists in Triton's stub only.
# mypy: ignore-errors

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [_echo(request) for request in requests]


def _echo(request):
    text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
    return pb_utils.InferenceResponse([pb_utils.Tensor("echoed", text)])
