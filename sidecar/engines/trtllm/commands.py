"""The command lines of NVIDIA's programs, exactly as they are run.

Options: TensorRT-LLM 1.2.1, `trtllm-build` (docs/source/commands/trtllm-build), and the scripts of
its examples folder. A test parses every line against a table of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sidecar.engines.trtllm.precision import Precision, awq_block
from sidecar.engines.trtllm.sizing import TOKENS_PER_BLOCK, EngineLimits
from sidecar.engines.trtllm.toolchain import Toolchain
from sidecar.engines.weights import Architecture

CALIBRATION_CASES = 512
_AWQ_CALIBRATION_CASES = 32
"""More are ignored: quantize.py cuts to this for AWQ."""
_CALIBRATION_TOKENS = 2048
_CALIBRATION_BATCH = 8


@dataclass(frozen=True, slots=True)
class Command:
    """One program to run.

    Args:
        produces: files that must be there afterwards.
    """

    argv: tuple[str, ...]
    produces: tuple[Path, ...]

    def __str__(self) -> str:
        return shlex.join(self.argv)


def checkpoint_command(
    tools: Toolchain,
    architecture: Architecture,
    source: Path,
    precision: Precision,
    limits: EngineLimits,
    calibration: Path,
    out: Path,
) -> Command:
    """Weights -> TensorRT-LLM checkpoint, converted or quantised.

    Args:
        calibration: folder with train.jsonl; read where weights are quantised.

    Raises:
        EngineError: the architecture cannot be quantised so.
    """
    produces = (out / "config.json", out / "rank0.safetensors")
    if not precision.facts.qformat:
        script = tools.convert_script(architecture.family)
        options = {"--model_dir": source, "--output_dir": out, "--dtype": precision.facts.dtype}
        return Command((tools.python, str(script), *_spelled(options)), produces)
    argv = _quantize(tools, architecture, source, precision, limits, calibration, out)
    return Command(argv, produces)


def _quantize(
    tools: Toolchain,
    architecture: Architecture,
    source: Path,
    precision: Precision,
    limits: EngineLimits,
    calibration: Path,
    out: Path,
) -> tuple[str, ...]:
    """No --kv_cache_dtype: in FP8 the keys of Qwen2.5 overflow (NVIDIA/TensorRT-LLM#4218, and with
    reuse #2699), and at 28 kB a token there is nothing to save."""
    awq = precision is Precision.INT4_AWQ
    cases = _AWQ_CALIBRATION_CASES if awq else CALIBRATION_CASES
    options = {
        "--model_dir": source,
        "--dtype": precision.facts.dtype,
        "--qformat": precision.facts.qformat,
        "--calib_dataset": calibration,
        "--calib_size": cases,
        "--calib_max_seq_length": min(_CALIBRATION_TOKENS, limits.max_input_len),
        "--tokenizer_max_seq_length": limits.max_input_len,
        "--batch_size": _CALIBRATION_BATCH,
        "--output_dir": out,
        **({"--awq_block_size": awq_block(architecture)} if awq else {}),
    }
    return (tools.python, str(tools.quantize_script), *_spelled(options))


def build_command(
    tools: Toolchain,
    checkpoint: Path,
    precision: Precision,
    limits: EngineLimits,
    out: Path,
    *,
    generation_logits: bool,
) -> Command:
    """Checkpoint -> engine for one short answer to a prompt that begins like others.

    Args:
        generation_logits: the answer is read from the logits of labels. `trtllm-build` calls the
            flag deprecated in favour of a setting of the executor, which Triton's backend never
            sets (model_instance_state.cc, getExecutorConfigFromParams): without the flag every
            such request fails with "gather_generation_logits must be enabled".
    """
    options = {
        "--checkpoint_dir": checkpoint,
        "--output_dir": out,
        "--max_batch_size": limits.max_batch_size,
        "--max_input_len": limits.max_input_len,
        "--max_seq_len": limits.max_seq_len,
        "--max_num_tokens": limits.max_num_tokens,
        "--max_beam_width": 1,
        "--kv_cache_type": "paged",
        "--tokens_per_block": TOKENS_PER_BLOCK,
        "--remove_input_padding": "enable",
        "--context_fmha": "enable",
        # Reuse of a prefix needs it.
        "--use_paged_context_fmha": "enable",
        # Would compute in FP8 over keys and values that are kept in 16 bits.
        "--use_fp8_context_fmha": "disable",
        "--gpt_attention_plugin": precision.facts.dtype,
        "--gemm_plugin": precision.facts.gemm_plugin,
        # One profile for short steps, one for long ones; excludes --opt_num_tokens.
        "--multiple_profiles": "enable",
        # Must be the type of generation_logits in config.pbtxt.
        "--logits_dtype": "float32",
        "--workers": 1,
        "--log_level": "info",
    }
    argv = (tools.trtllm_build, *_spelled(options))
    if generation_logits:
        argv += ("--gather_generation_logits",)
    return Command(argv, (out / "config.json", out / "rank0.engine"))


XGRAMMAR_FILE = "xgrammar_tokenizer_info.json"


def xgrammar_command(tools: Toolchain, source: Path, out: Path) -> Command:
    """Tokenizer -> what constrained answers need to know of it."""
    options = {"--model_dir": source, "--output_dir": out}
    argv = (tools.python, str(tools.xgrammar_script), *_spelled(options))
    return Command(argv, (out / XGRAMMAR_FILE,))


def _spelled(options: Mapping[str, object]) -> list[str]:
    return [word for name, value in options.items() for word in (name, str(value))]
