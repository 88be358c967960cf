"""NVIDIA's command lines, parsed as the programs themselves would parse them.

The options come from `tests/fixtures/tensorrt_llm/cli_options.json`, a table of those of
TensorRT-LLM 1.2.1 (`provenance` in it says at which commit each was read); the forbidden
combinations from the programs' own checks and reported defects.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[2] / "fixtures" / "tensorrt_llm"
_TABLE: Mapping[str, Any] = json.loads((FIXTURES / "cli_options.json").read_text())
COMMANDS = {entry["command"] for entry in _TABLE["options"]}
_TYPES = {"int": int, "float": float}
_KV_CACHE = "an 8-bit KV cache breaks Qwen2.5 and paged context attention"


def choices(command: str) -> Mapping[str, Sequence[str]]:
    """Of the command's options those that take one of a few words."""
    return {
        entry["option"]: entry["choices"]
        for entry in _TABLE["options"]
        if entry["command"] == command and entry["choices"]
    }


class ContractError(Exception):
    """The program would refuse this command line, or misbehave with it."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ContractError(message)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line. Raises ContractError."""
    command, arguments = command_of(argv)
    given = _parser(command).parse_args(arguments)
    for problem in _forbidden(command, given, set(arguments)):
        raise ContractError(problem)
    return given


def command_of(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Which of COMMANDS it is, and what it is given. Raises ContractError."""
    for place, word in enumerate(argv[:2]):
        for command in COMMANDS:
            if word.endswith(command):
                return command, argv[place + 1 :]
    raise ContractError(f"{argv[0]}: not one of NVIDIA's programs")


def _parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=command, allow_abbrev=False, add_help=False)
    for entry in _TABLE["options"]:
        if entry["command"] != command:
            continue
        names = [entry["option"], *entry["aliases"]]
        if entry["action"] == "positional":
            parser.add_argument(entry["option"])
        elif entry["action"] == "store_true":
            parser.add_argument(*names, action="store_true")
        else:
            parser.add_argument(
                *names,
                type=_TYPES.get(entry["type"], str),
                default=entry["default"],
                choices=entry["choices"],
                required=bool(entry["required"]),
            )
    return parser


def _forbidden(command: str, given: argparse.Namespace, words: set[str]) -> Iterator[str]:
    if command == "trtllm-build":
        yield from _forbidden_builds(given, words)
    elif command.endswith("quantize.py"):
        yield from _forbidden_quantisations(given)
    elif command.endswith("convert_checkpoint.py") and (
        given.int8_kv_cache or getattr(given, "fp8_kv_cache", False)
    ):
        yield _KV_CACHE


def _forbidden_quantisations(given: argparse.Namespace) -> Iterator[str]:
    if given.kv_cache_dtype is not None:
        yield _KV_CACHE
    if given.qformat == "int4_awq" and given.calib_size > 32:
        yield "--calib_size: AWQ cuts it to 32"
    if given.qformat == "int4_awq" and given.awq_block_size not in (64, 128):
        yield "--awq_block_size: TensorRT-LLM computes with blocks of 64 and 128"
    if "cnn_dailymail" in given.calib_dataset:
        yield "--calib_dataset: is not routing prompts"


def _forbidden_builds(given: argparse.Namespace, words: set[str]) -> Iterator[str]:
    if given.multiple_profiles == "enable" and given.opt_num_tokens is not None:
        yield "--multiple_profiles excludes --opt_num_tokens"
    if given.use_paged_context_fmha != "enable" or given.kv_cache_type != "paged":
        yield "reuse of a prefix needs a paged KV cache and paged context attention"
    if given.use_fp8_context_fmha != "disable":
        yield "--use_fp8_context_fmha: keys and values are kept in 16 bits"
    if given.gather_context_logits or given.gather_all_token_logits:
        yield "logits of the whole prompt are half a gigabyte"
    if given.logits_dtype != "float32":
        yield "--logits_dtype must be that of generation_logits in config.pbtxt, FP32"
    if given.max_beam_width != 1:
        yield "--max_beam_width: guided decoding knows no beams"
    if not given.max_num_tokens >= given.max_input_len < given.max_seq_len:
        yield "--max_num_tokens must hold a prompt, --max_seq_len a prompt and its answer"
    for removed in ("--paged_kv_cache", "--auto_parallel"):
        if removed in words:
            yield f"{removed}: of an older version"
