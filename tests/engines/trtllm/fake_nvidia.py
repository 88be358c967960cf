"""Stand-ins for NVIDIA's programs, which need a GPU and NVIDIA's container.

Each checks its arguments against the contract, reads what it would read, and writes files of the
form that the real one writes (fields as TensorRT-LLM 1.2.1 names them), with a few bytes in the
place of weights. What is in an engine cannot be told from them.

`FAKE_NVIDIA_FAIL` and `FAKE_NVIDIA_KILL` name a program that fails, or that takes the builder with
it half way; `FAKE_NVIDIA_LOG` a file that gets a line for each run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.engines.trtllm.contract import parse

# Nothing of the sidecar is imported above: each run of a program is a process of its own, and a
# build has several.

REPO = Path(__file__).parents[3]
GPU = "NVIDIA L40S, 8.9, 590.44.01, 46068, 45000"
VERSIONS = {"tensorrt_llm": "1.2.1", "tensorrt": "10.14.1.48"}
_ALGOS = {"fp8": "FP8", "int4_awq": "W4A16_AWQ"}
_ARCHITECTURES = {"LlamaForCausalLM": "LlamaForCausalLM", "Qwen2ForCausalLM": "QWenForCausalLM"}


def convert(given: Any) -> None:
    _checkpoint(given, None, None)


def quantize(given: Any) -> None:
    lines = (Path(given.calib_dataset) / "train.jsonl").read_text().splitlines()
    assert lines, "no calibration data"
    assert all(json.loads(line)["text"] for line in lines)
    # The real one leaves this in AWQ checkpoints, see artifacts.settle_checkpoint.
    kv_cache = "FP8" if given.qformat == "int4_awq" else None
    _checkpoint(given, _ALGOS[given.qformat], kv_cache)


def _checkpoint(given: Any, algo: str | None, kv_cache: str | None) -> None:
    source = json.loads((Path(given.model_dir) / "config.json").read_text())
    config = {
        "architecture": _ARCHITECTURES[source["architectures"][0]],
        "dtype": given.dtype,
        "logits_dtype": "float32",
        "vocab_size": source["vocab_size"],
        "num_hidden_layers": source["num_hidden_layers"],
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {"quant_algo": algo, "kv_cache_quant_algo": kv_cache},
    }
    _write(given.output_dir, config, "rank0.safetensors")


def build(given: Any) -> None:
    checkpoint = json.loads((Path(given.checkpoint_dir) / "config.json").read_text())
    if checkpoint["quantization"]["kv_cache_quant_algo"] == "FP8":
        sys.exit("FP8 Paged Context FMHA only works with fp8 quantization workflow currently.")
    config = {
        "version": VERSIONS["tensorrt_llm"],
        "pretrained_config": checkpoint,
        "build_config": {
            "max_input_len": given.max_input_len,
            "max_seq_len": given.max_seq_len,
            "max_batch_size": given.max_batch_size,
            "max_num_tokens": given.max_num_tokens,
            "gather_generation_logits": given.gather_generation_logits,
            "plugin_config": {
                "use_paged_context_fmha": given.use_paged_context_fmha == "enable",
                "gemm_plugin": given.gemm_plugin,
            },
            "lora_config": {},
        },
    }
    _write(given.output_dir, config, "rank0.engine")


def xgrammar(given: Any) -> None:
    folder = Path(given.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    end_id = json.loads((Path(given.model_dir) / "config.json").read_text())["eos_token_id"]
    content = {"encoded_vocab": ["a"], "tokenizer_str": "{}", "stop_token_ids": [end_id]}
    (folder / "xgrammar_tokenizer_info.json").write_text(json.dumps(content))


def _write(folder: str, config: Mapping[str, Any], data: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / data).write_bytes(b"not real weights")
    (Path(folder) / "config.json").write_text(json.dumps(config))


PROGRAMS: Mapping[str, Callable[[Any], None]] = {
    "examples/models/core/llama/convert_checkpoint.py": convert,
    "examples/models/core/qwen/convert_checkpoint.py": convert,
    "examples/quantization/quantize.py": quantize,
    "examples/generate_xgrammar_tokenizer_info.py": xgrammar,
    "trtllm-build": build,
}


def main(program: str, arguments: list[str]) -> None:
    given = parse([program, *arguments])
    with Path(os.environ["FAKE_NVIDIA_LOG"]).open("a") as log:
        log.write(f"{Path(program).name}\n")
    sys.stdout.write("working\n")
    sys.stdout.flush()
    if os.environ.get("FAKE_NVIDIA_FAIL") == Path(program).name:
        sys.exit("CUDA error: out of memory")
    if os.environ.get("FAKE_NVIDIA_KILL") == Path(program).name:
        Path(given.output_dir).mkdir(parents=True, exist_ok=True)
        (Path(given.output_dir) / "config.json").write_text("{half")
        os.kill(os.getppid(), signal.SIGKILL)
        sys.exit(1)
    PROGRAMS[program](given)


def reference(arguments: list[str]) -> None:
    """In the place of `triton_models/gpu/reference.py`, which needs torch: likes labels the more,
    or with `FAKE_REFERENCE=contrary` the less, the higher their ids are."""
    if os.environ.get("FAKE_NVIDIA_FAIL") == "reference.py":
        sys.exit("CUDA error: out of memory")
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert (Path(given["--model-dir"]) / "config.json").is_file()
    sign = -1 if os.environ.get("FAKE_REFERENCE") == "contrary" else 1
    with Path(given["--out"]).open("w") as out:
        for line in Path(given["--questions"]).read_text().splitlines():
            question = json.loads(line)
            logits = [sign * token / 1000 for token in question["label_ids"]]
            out.write(json.dumps({"id": question["id"], "logits": logits}) + "\n")
