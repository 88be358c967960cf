"""Whether a model decides alike when the prompt begins its answer (`+skeleton`) and when it writes
the beginning itself: each case is asked both ways, of the same model server.

Needs weights of Arch-Router, served by Triton, as an engine for GPUs or for CPUs
(`sidecar model build`):

    python build/trtllm/skeleton_parity.py --triton 127.0.0.1:8001 --model engines/arch-router \
        --cases cases.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sidecar.core.model import CompiledPrompt, Tokenizer
from sidecar.engines import EngineInfo, read_routing_facts
from sidecar.evaluation.cases import Case, read_cases, sample
from sidecar.evaluation.policies import policy_of
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.inference.triton import TritonModel, TritonTarget
from sidecar.prompts import get_format

_ANSWER_TOKENS = 96
_TIMEOUT_S = 60
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Said:
    """One answer.

    Args:
        name: of the route; empty if it could not be read.
        confidence: None where the server gives none.
    """

    name: str
    confidence: float | None
    ms: float


@dataclass(frozen=True, slots=True)
class Pair:
    """The same case both ways."""

    case: Case
    free: Said
    begun: Said

    @property
    def same(self) -> bool:
        return self.free.name == self.begun.name


async def ask(model: TritonModel, compiled: CompiledPrompt, case: Case) -> Said:
    prompt = compiled.render(case.conversation)
    started = time.perf_counter()
    answer = compiled.read(await model.infer(prompt, compiled.answer_form, _TIMEOUT_S))
    took = (time.perf_counter() - started) * 1000
    likely = answer.candidates[0].probability if answer.candidates else None
    return Said(answer.name, likely, took)


async def compare(
    address: str, engine: EngineInfo, prompt_format: str, cases: Iterable[Case]
) -> list[Pair]:
    """Every case, asked freely and with the answer begun. Raises InferenceError, SidecarError."""
    facts = engine.router
    tokenizer: Tokenizer = HfTokenizer(engine.tokenizer_path)
    target = TritonTarget(address, "tensorrt_llm", facts.end_id, facts.pad_id, facts.vocab_size)
    formats = [get_format(prompt_format), get_format(f"{prompt_format}+skeleton")]
    room = facts.context_length - _ANSWER_TOKENS
    model = TritonModel(target)
    pairs = []
    try:
        for case in cases:
            policy = policy_of(case.routes)
            free, begun = [each.compile(policy, tokenizer, room) for each in formats]
            pairs.append(Pair(case, await ask(model, free, case), await ask(model, begun, case)))
    finally:
        await model.close()
    return pairs


def report(pairs: Sequence[Pair]) -> list[str]:
    """Lines for a person."""
    other = [pair for pair in pairs if not pair.same]
    right = [
        sum(pair.case.accepts(said(pair).name) for pair in pairs)
        for said in (lambda pair: pair.free, lambda pair: pair.begun)
    ]
    lines = [
        f"{len(pairs)} cases, {len(pairs) - len(other)} decided alike",
        f"right: {right[0]} freely, {right[1]} with the answer begun",
        f"p50: {statistics.median(pair.free.ms for pair in pairs):.1f} ms freely, "
        f"{statistics.median(pair.begun.ms for pair in pairs):.1f} ms with the answer begun",
    ]
    for pair in other[:_SHOWN]:
        lines.append(
            f"{pair.case.id}: {pair.free.name or 'unreadable'} ({pair.free.confidence}), begun "
            f"{pair.begun.name or 'unreadable'} ({pair.begun.confidence})"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a case was decided otherwise."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--triton", default="127.0.0.1:8001", help="gRPC address.")
    parser.add_argument("--model", type=Path, required=True, help="The engine's folder.")
    parser.add_argument("--cases", type=Path, nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--prompt-format", default="arch-router/archgw-v1")
    given = parser.parse_args(arguments)
    cases = sample(read_cases(given.cases), given.limit)
    engine = read_routing_facts(given.model)
    pairs = asyncio.run(compare(given.triton, engine, given.prompt_format, cases))
    print("\n".join(report(pairs)))  # noqa: T201
    return int(not all(pair.same for pair in pairs))


if __name__ == "__main__":
    raise SystemExit(main())
