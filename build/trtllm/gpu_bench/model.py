"""Triton's Python backend around `Decider`. Tensors are passed by DLPack, since the stub of this
Triton cannot read arrays of NumPy 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# ruff: noqa: E402, I001
# The imports below need it, and the stub leaves PYTHONPATH out of account.
sys.path[:0] = [str(Path(__file__).parent), os.environ["GPU_BENCH_PACKAGES"]]

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack, to_dlpack

from decider import SHAPES, Decider, Decoder


class TritonPythonModel:
    def initialize(self, args):
        configured = json.loads(args["model_config"])["parameters"]
        settings = {name: value["string_value"] for name, value in configured.items()}
        prefixes, batches = json.loads(settings["prefixes"]), json.loads(settings["batches"])
        suffix = int(settings["suffix"])
        device = torch.device(settings["device"])
        if device.type == "cuda" and not torch.cuda.is_available():
            # Never quietly on the CPU, whose times would be taken for a GPU's.
            raise RuntimeError(f"PyTorch {torch.__version__} finds no GPU that it can use")
        with torch.inference_mode():
            decoder = Decoder(SHAPES[settings["shape"]], device, max(prefixes) + suffix)
            self._decider = Decider(decoder, prefixes, suffix, batches)
            differences = {prefix: self._decider.difference(prefix) for prefix in prefixes}
            steps = self._decider.step_ms()
        report = {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "python": f"{sys.version.split()[0]} in {sys.prefix}",
            "torch": torch.__version__,
            "difference_and_spread": differences,
            "steps": steps,
        }
        Path(settings["report"]).write_text(json.dumps(report))

    def execute(self, requests):
        """Answers what Triton hands over together, as one batch for each prefix."""
        groups = {}
        for number, request in enumerate(requests):
            ids, reuse = (
                from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack())
                for name in ("input_ids", "reuse")
            )
            reused = int(reuse[0, 0])
            key = (ids.shape[1], reused, ids[:, :reused].numpy().tobytes())
            groups.setdefault(key, []).append((number, ids))
        responses = [None] * len(requests)
        for (_, reused, _), members in groups.items():
            rows = torch.cat([ids for _, ids in members])
            with torch.inference_mode():
                logits = self._decider.decide(rows, reused)
            for (number, _), row in zip(members, logits.split(1), strict=True):
                tensor = pb_utils.Tensor.from_dlpack("logits", to_dlpack(row.clone()))
                responses[number] = pb_utils.InferenceResponse(output_tensors=[tensor])
        return responses
