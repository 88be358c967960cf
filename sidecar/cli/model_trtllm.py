"""`sidecar model build --target trtllm`: what is asked for, as a request to the builder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from sidecar.cli.engine_check import EngineCheck
from sidecar.cli.engine_questions import Asked, prepare
from sidecar.cli.trtllm_options import TrtllmOptions, Weights
from sidecar.core.errors import SidecarError
from sidecar.core.model import LabelAnswer, PromptFormat
from sidecar.core.policy import Policy
from sidecar.engines import EngineError, EngineInfo
from sidecar.engines.engine_directory import ANSWER_TOKENS
from sidecar.engines.hf_source import open_hugging_face
from sidecar.engines.trtllm import (
    BuildRequest,
    EngineLimits,
    Plan,
    Precision,
    Toolchain,
    build_trtllm_engine,
    plan_build,
)
from sidecar.engines.trtllm.sizing import limits_for
from sidecar.evaluation.cases import read_cases, sample
from sidecar.evaluation.policies import CaseRoute, policy_of
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.policies import load_policies
from sidecar.prompts import get_format

Report = Callable[[str], None]

_DEFAULT_PROMPT_TOKENS = 4096
_CONVERSATION_TOKENS = 1024
_MIB = 1 << 20


def build_for_gpu(
    weights: Weights, out: Path, options: TrtllmOptions, report: Report
) -> EngineInfo | None:
    """The engine; None after a dry run, whose text is printed.

    Raises:
        EngineError: it cannot be built.
        CaseError: the cases cannot be read.
    """
    request, asked = _request(weights, out, options)
    tools = Toolchain(examples=options.examples)
    if options.dry_run:
        _print_plan(request, plan_build(request, tools, weights.opened))
        return None
    if options.no_verify:
        report("not verified: the engine's decisions are not compared with those of the weights")
        return build_trtllm_engine(request, tools, force=options.force, progress=report)
    if not asked:
        raise EngineError(
            "verification needs cases; name some with --cases, or give --no-verify to publish an "
            "engine whose decisions nobody has compared"
        )
    check = EngineCheck(asked, weights.folder, tools)
    return build_trtllm_engine(request, tools, verify=check, force=options.force, progress=report)


def _request(
    weights: Weights, out: Path, options: TrtllmOptions
) -> tuple[BuildRequest, Sequence[Asked]]:
    prompt_format = get_format(weights.prompt_format)
    source = weights.opened or open_hugging_face(weights.folder)
    context = source.architecture.context_length
    try:
        tokenizer = _tokenizer(weights)
    except ValueError as error:
        raise EngineError(str(error)) from None
    limits = _limits(options, prompt_format, tokenizer, context)
    cases = sample(read_cases(options.cases), options.limit) if options.cases else []
    try:
        asked = prepare(cases, prompt_format, tokenizer, limits.max_input_len)
    except SidecarError as error:
        raise EngineError(f"--cases: {error.message}") from None
    request = BuildRequest(
        source=weights.folder.resolve(),
        out=out.absolute(),
        repository=(options.repository or out.with_name(f"{out.name}-repository")).absolute(),
        model_id=weights.model_id,
        prompt_format=weights.prompt_format,
        limits=limits,
        precision=_precision(weights, options),
        labels=_has_labels(prompt_format, tokenizer),
        calibration=tuple(tokenizer.decode(each.question.input_ids) for each in asked),
        served_at=options.served_at,
        trained=weights.trained,
        ensemble=options.ensemble,
        second_opinion=weights.second_opinion,
        questions=hashlib.sha256(repr([each.question for each in asked]).encode()).hexdigest(),
    )
    return request, asked


def _tokenizer(weights: Weights) -> HfTokenizer:
    """Raises ValueError."""
    if weights.opened is None:
        return HfTokenizer(weights.folder / "tokenizer.json")
    with TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.json")
        file.write_text(json.dumps(weights.opened.tokenizer), encoding="utf-8")
        return HfTokenizer(file)


def _precision(weights: Weights, options: TrtllmOptions) -> Precision:
    if options.precision is not None:
        return Precision(options.precision)
    return Precision.FP16 if weights.written else Precision.BF16


def _limits(
    options: TrtllmOptions, prompt_format: PromptFormat, tokenizer: HfTokenizer, context: int
) -> EngineLimits:
    if options.max_prompt_tokens is not None:
        return EngineLimits(options.max_prompt_tokens, options.max_batch_size)
    longest = min(_DEFAULT_PROMPT_TOKENS, context - ANSWER_TOKENS)
    if not options.policies:
        return EngineLimits(longest, options.max_batch_size)
    found = load_policies(options.policies)
    if not found.valid:
        raise EngineError("\n".join(str(finding) for finding in found.findings))
    prefixes = [
        len(_compiled(record.policy, prompt_format, tokenizer, context - ANSWER_TOKENS).prefix_ids)
        for record in found.records.values()
        if record.policy.routes
    ]
    limits = limits_for(max(prefixes, default=0), _CONVERSATION_TOKENS, options.max_batch_size)
    return replace(limits, max_input_len=min(limits.max_input_len, context - ANSWER_TOKENS))


def _compiled(
    policy: Policy, prompt_format: PromptFormat, tokenizer: HfTokenizer, max_tokens: int
) -> Any:
    try:
        return prompt_format.compile(policy, tokenizer, max_tokens)
    except SidecarError as error:
        raise EngineError(error.message) from None


def _has_labels(prompt_format: PromptFormat, tokenizer: HfTokenizer) -> bool:
    policy = policy_of([CaseRoute("billing", "invoices and payments")])
    compiled = _compiled(policy, prompt_format, tokenizer, _DEFAULT_PROMPT_TOKENS)
    return isinstance(compiled.answer_form, LabelAnswer)


def _print_plan(request: BuildRequest, plan: Plan) -> None:
    limits = request.limits
    for name, command in plan.commands.items():
        click.echo(f"# {name}\n{command}\n")
    sizes = plan.sizes
    for name, value in {
        "longest prompt": f"{limits.max_input_len} tokens, and {ANSWER_TOKENS} for the answer",
        "checkpoint": f"{sizes.checkpoint / _MIB:.0f} MiB",
        "engine": f"{sizes.engine / _MIB:.0f} MiB",
        "free disk needed": f"{sizes.disk / _MIB:.0f} MiB",
        "GPU memory to build": f"{sizes.gpu_memory_to_build / _MIB:.0f} MiB",
        "KV cache": f"{sizes.kv_per_token} bytes a token",
        "generation logits": "yes, for labels" if request.labels else "no, answers are text",
        "second opinion": "a sentence encoder, on the CPU" if request.second_opinion else "none",
    }.items():
        click.echo(f"# {name:20}{value}")
    click.echo("# Sizes are computed from the shapes of the tensors; nothing was run.")
