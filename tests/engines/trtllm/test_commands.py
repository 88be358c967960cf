"""Every command line that the builder emits is one that NVIDIA's programs accept."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from sidecar.engines.trtllm import EngineLimits, Precision, Toolchain
from sidecar.engines.trtllm.commands import (
    Command,
    build_command,
    checkpoint_command,
    xgrammar_command,
)
from tests.engines.trtllm.contract import ContractError, parse

TOOLS = Toolchain()
LIMITS = EngineLimits(max_input_len=2048)


def commands(family: str, precision: Precision, logits: bool) -> list[Command]:
    model, work = Path("/models/m"), Path("/engines")
    return [
        checkpoint_command(
            TOOLS, family, model, precision, LIMITS, work / "calibration", work / "checkpoint"
        ),
        build_command(
            TOOLS,
            work / "checkpoint",
            precision,
            LIMITS,
            work / "engine",
            generation_logits=logits,
        ),
        xgrammar_command(TOOLS, model, work / "tokenizer"),
    ]


@pytest.mark.parametrize(
    ("family", "precision", "logits"),
    list(itertools.product(["llama", "qwen2"], Precision, [False, True])),
)
def test_every_command_line_is_accepted(family: str, precision: Precision, logits: bool) -> None:
    checkpoint, engine, tokenizer = (
        parse(command.argv) for command in commands(family, precision, logits)
    )
    assert checkpoint.dtype == precision.facts.dtype
    assert checkpoint.output_dir == engine.checkpoint_dir
    assert engine.gpt_attention_plugin == precision.facts.dtype
    assert engine.gather_generation_logits is logits
    assert tokenizer.model_dir == checkpoint.model_dir


@pytest.mark.parametrize(
    ("family", "script"),
    [("llama", "core/llama/convert_checkpoint.py"), ("qwen2", "core/qwen/convert_checkpoint.py")],
)
def test_weights_in_16_bits_are_converted_by_their_familys_script(family: str, script: str) -> None:
    for precision in (Precision.BF16, Precision.FP16):
        assert commands(family, precision, True)[0].argv[1].endswith(script)


@pytest.mark.parametrize(
    ("precision", "cases"), [(Precision.FP8, 512), (Precision.INT4_AWQ, 32)], ids=str
)
def test_fewer_bits_are_calibrated_on_routing_prompts(precision: Precision, cases: int) -> None:
    given = parse(commands("qwen2", precision, False)[0].argv)
    assert given.qformat == precision.value
    assert (given.calib_dataset, given.calib_size) == ("/engines/calibration", cases)
    assert given.kv_cache_dtype is None


GOOD = commands("qwen2", Precision.BF16, True)[1].argv
QUANTIZE = commands("qwen2", Precision.FP8, True)[0].argv


def changed(argv: tuple[str, ...], option: str, value: str) -> list[str]:
    words = list(argv)
    words[words.index(option) + 1] = value
    return words


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ([*GOOD, "--no_such_option", "1"], "no_such_option"),
        ([*GOOD, "--max_batch"], "max_batch"),
        (changed(GOOD, "--gemm_plugin", "bf16"), "gemm_plugin"),
        (changed(GOOD, "--max_input_len", "many"), "max_input_len"),
        ([*GOOD, "--opt_num_tokens", "64"], "excludes --opt_num_tokens"),
        (changed(GOOD, "--use_paged_context_fmha", "disable"), "paged context"),
        (changed(GOOD, "--use_fp8_context_fmha", "enable"), "use_fp8_context_fmha"),
        (changed(GOOD, "--logits_dtype", "float16"), "logits_dtype"),
        ([*GOOD, "--gather_context_logits"], "half a gigabyte"),
        ([*QUANTIZE, "--kv_cache_dtype", "fp8"], "KV cache breaks"),
        (changed(QUANTIZE, "--qformat", "int4_awq"), "cuts it to 32"),
        (changed(QUANTIZE, "--qformat", "fp9"), "qformat"),
        (["trtllm-refit"], "not one of NVIDIA's programs"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_the_contract_refuses(argv: list[str], names: str) -> None:
    with pytest.raises(ContractError, match=names):
        parse(argv)
