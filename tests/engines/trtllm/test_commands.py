"""Every command line that the builder emits is one that NVIDIA's programs accept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.engines import EngineError
from sidecar.engines.trtllm import EngineLimits, Precision, Toolchain
from sidecar.engines.trtllm.commands import (
    Command,
    build_command,
    checkpoint_command,
    xgrammar_command,
)
from sidecar.engines.trtllm.precision import awq_block
from sidecar.engines.weights import Architecture
from tests.engines.trtllm.contract import ContractError, choices, command_of, parse

TOOLS = Toolchain()
LIMITS = EngineLimits(max_input_len=2048)
ARCHITECTURES = {
    # SmolLM2-135M and Arch-Router-1.5B.
    "llama": Architecture("llama", 49_152, 576, 1536, 30, 9, 3, 64, 8192, 1e5, 1e-5, False, True),
    "qwen2": Architecture(
        "qwen2", 151_936, 1536, 8960, 28, 12, 2, 128, 32_768, 1e6, 1e-6, True, True
    ),
}


def commands(family: str, precision: Precision, logits: bool) -> list[Command]:
    model, work = Path("/models/m"), Path("/engines")
    return [
        checkpoint_command(
            TOOLS,
            ARCHITECTURES[family],
            model,
            precision,
            LIMITS,
            work / "calibration",
            work / "checkpoint",
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


def changed(argv: Sequence[str], option: str, value: str) -> list[str]:
    words = list(argv)
    words[words.index(option) + 1] = value
    return words


BUILDS = list(itertools.product(["llama", "qwen2"], Precision))
EVERY = [
    pytest.param(command.argv, id=f"{family}-{precision}-{Path(command.produces[0]).parent.name}")
    for family, precision in BUILDS
    for command in commands(family, precision, True)
]


@pytest.mark.parametrize("argv", EVERY)
def test_an_option_that_the_program_does_not_have_is_noticed(argv: Sequence[str]) -> None:
    with pytest.raises(ContractError, match="no_such_option"):
        parse([*argv, "--no_such_option", "1"])
    for word in argv:
        if word.startswith("--"):
            with pytest.raises(ContractError, match="arguments"):
                parse([f"{each}s" if each == word else each for each in argv])


@pytest.mark.parametrize("argv", [each for each in EVERY if "tokenizer" not in str(each.id)])
def test_a_word_that_an_option_does_not_take_is_noticed(argv: Sequence[str]) -> None:
    given = choices(command_of(argv)[0]).keys() & set(argv)
    assert given
    for option in given:
        with pytest.raises(ContractError, match=f"argument {option}.*invalid choice: 'fp9'"):
            parse(changed(argv, option, "fp9"))


@pytest.mark.parametrize(("family", "precision"), BUILDS)
def test_what_must_not_be_combined_is_noticed(family: str, precision: Precision) -> None:
    checkpoint, engine, _ = (list(each.argv) for each in commands(family, precision, True))
    quantised = bool(precision.facts.qformat)
    eight_bits = ["--kv_cache_dtype", "int8"] if quantised else ["--int8_kv_cache"]
    awq = (
        changed(changed(checkpoint, "--qformat", "int4_awq"), "--calib_size", "32")
        if quantised
        else []
    )
    forbidden = {
        "excludes --opt_num_tokens": [*engine, "--opt_num_tokens", "64"],
        "needs a paged KV cache": changed(engine, "--kv_cache_type", "continuous"),
        "paged context attention": changed(engine, "--use_paged_context_fmha", "disable"),
        "kept in 16 bits": changed(engine, "--use_fp8_context_fmha", "enable"),
        "that of generation_logits": changed(engine, "--logits_dtype", "float16"),
        "half a gigabyte": [*engine, "--gather_context_logits"],
        "knows no beams": changed(engine, "--max_beam_width", "4"),
        "must hold a prompt": changed(engine, "--max_num_tokens", "64"),
        "of an older version": [*engine, "--paged_kv_cache", "enable"],
        "8-bit KV cache": [*checkpoint, *eight_bits],
        **({"cuts it to 32": changed(awq, "--calib_size", "512")} if awq else {}),
        **({"64 and 128": [*awq, "--awq_block_size", "32"]} if awq else {}),
    }
    for reason, argv in forbidden.items():
        with pytest.raises(ContractError, match=reason):
            parse(argv)


GOOD = commands("qwen2", Precision.BF16, True)[1].argv


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (changed(GOOD, "--max_input_len", "many"), "max_input_len"),
        # Shortened: argparse would take it, and it could mean something else in another version.
        ([*GOOD, "--max_batch", "1"], "max_batch"),
        (["trtllm-refit"], "not one of NVIDIA's programs"),
    ],
    ids=["no number", "shortened", "another program"],
)
def test_the_contract_refuses(argv: list[str], names: str) -> None:
    with pytest.raises(ContractError, match=names):
        parse(argv)


@pytest.mark.parametrize(("family", "block"), [("qwen2", 128), ("llama", 64)])
def test_blocks_of_awq_divide_every_layers_inputs(family: str, block: int) -> None:
    given = parse(commands(family, Precision.INT4_AWQ, False)[0].argv)
    assert given.awq_block_size == block


def test_a_model_that_no_block_of_awq_fits_is_refused() -> None:
    odd = replace(ARCHITECTURES["llama"], intermediate_size=1000)
    with pytest.raises(EngineError, match="intermediate_size is 1000, no multiple of it"):
        awq_block(odd)
