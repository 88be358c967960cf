"""Gives back what it gets; of texts the lengths."""

# The module exists in Triton's stub only.
# mypy: ignore-errors

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse(list(_outputs(request))) for request in requests]


def _outputs(request):
    for name in ("numbers", "flags", "table"):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            yield pb_utils.Tensor(f"{name}_back", tensor.as_numpy())
    texts = pb_utils.get_input_tensor_by_name(request, "texts")
    if texts is not None:
        lengths = [len(text) for text in texts.as_numpy()]
        yield pb_utils.Tensor("lengths", np.array(lengths, dtype=np.int32))
