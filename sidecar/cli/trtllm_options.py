"""The options of `sidecar model build` that are for `--target trtllm` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sidecar.engines.second_opinion import SecondOpinionSource
from sidecar.engines.trtllm.precision import Precision
from sidecar.engines.trtllm.toolchain import Toolchain
from sidecar.engines.weights import ModelSource

_CASES = 1000
_PATH = click.Path(path_type=Path)
_EXISTING = click.Path(exists=True, path_type=Path)

_OPTIONS: Sequence[Callable[..., Any]] = (
    click.option(
        "--precision",
        type=click.Choice([precision.value for precision in Precision]),
        help="For trtllm. By default bf16, or fp16 for weights that the sidecar wrote, which are "
        "in float16; int4_awq is experimental.",
    ),
    click.option(
        "--policies",
        type=_EXISTING,
        multiple=True,
        help="For trtllm: policies to size the engine for. Without them prompts of 4096 tokens.",
    ),
    click.option(
        "--cases",
        type=_EXISTING,
        multiple=True,
        help="For trtllm: cases as in docs/evaluation.md, to calibrate fp8 and int4_awq with, "
        "to verify the engine and to calibrate its probabilities.",
    ),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=_CASES,
        show_default=True,
        help="For trtllm: how many of the cases are asked.",
    ),
    click.option(
        "--max-prompt-tokens",
        type=click.IntRange(min=64),
        help="For trtllm: longest prompt, instead of what the policies need.",
    ),
    click.option(
        "--max-batch-size",
        type=click.IntRange(min=1),
        default=64,
        show_default=True,
        help="For trtllm.",
    ),
    click.option(
        "--repository", type=_PATH, help="For trtllm: Triton's model repository to write."
    ),
    click.option(
        "--served-at", type=_PATH, help="For trtllm: where the engine will lie; default: --out."
    ),
    click.option(
        "--examples",
        type=_PATH,
        default=Toolchain().examples,
        show_default=True,
        help="For trtllm: folder of TensorRT-LLM's scripts.",
    ),
    click.option(
        "--ensemble",
        is_flag=True,
        help="For trtllm: add to the repository a model that takes text (docs/gpu.md).",
    ),
    click.option("--dry-run", is_flag=True, help="For trtllm: print the commands and sizes only."),
    click.option("--no-verify", is_flag=True, help="For trtllm: do not compare with the weights."),
    click.option("--force", is_flag=True, help="For trtllm: publish what verification refuses."),
)


def trtllm_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that belong to this target alone."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class TrtllmOptions:
    """Their values."""

    precision: str | None
    policies: tuple[Path, ...]
    cases: tuple[Path, ...]
    limit: int
    max_prompt_tokens: int | None
    max_batch_size: int
    repository: Path | None
    served_at: Path | None
    examples: Path
    ensemble: bool
    dry_run: bool
    no_verify: bool
    force: bool

    def refuse(self, target: str) -> None:
        """Raises UsageError if one was given that `target` has no use for."""
        context = click.get_current_context()
        named = [
            f"--{each.name.replace('_', '-')}"
            for each in fields(self)
            if context.get_parameter_source(each.name) is ParameterSource.COMMANDLINE
        ]
        if named:
            raise click.UsageError(f"{', '.join(named)}: for --target trtllm, not for {target}")


@dataclass(frozen=True, slots=True)
class Weights:
    """A Hugging Face folder, and what is known of it.

    Args:
        written: by the sidecar, in float16.
        second_opinion: the sentence encoder that decides with it; None without one.
        opened: what the folder would hold; None where it is there.
    """

    folder: Path
    model_id: str
    prompt_format: str
    trained: bool
    written: bool
    second_opinion: SecondOpinionSource | None = None
    opened: ModelSource | None = None
