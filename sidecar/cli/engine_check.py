"""Asks a freshly built engine, served by Triton, what the weights themselves are asked."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sidecar.cli.engine_questions import Asked
from sidecar.core.decision import Candidate
from sidecar.core.model import InferenceError, LabelLogits, ModelOutput
from sidecar.engines import EngineError, read_engine
from sidecar.engines.triton_models import triton_models
from sidecar.engines.trtllm import Reading, Toolchain, compare
from sidecar.engines.trtllm.build import Verification
from sidecar.engines.trtllm.commands import Command
from sidecar.engines.trtllm.stages import Report, run_command
from sidecar.engines.trtllm.verification import read_readings, write_questions
from sidecar.evaluation.calibration import NothingToFitError, fit_temperature
from sidecar.evaluation.outcomes import Outcome
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.inference.triton import TritonModel, TritonTarget
from sidecar.local import ChildProcess
from sidecar.local.ports import free_ports

_READY_TIMEOUT_S = 300
_QUESTION_TIMEOUT_S = 30
_STOP_S = 35
_LAST_LINES = 15
_REPORT_EVERY = 100


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """Implements `sidecar.engines.trtllm.build.Verify`.

    Args:
        model: the Hugging Face folder that the engine was made from.
    """

    asked: Sequence[Asked]
    model: Path
    tools: Toolchain

    def __call__(self, engine: Path, repository: Path, work: Path, report: Report) -> Verification:
        """Raises EngineError if the reference or Triton fails, or a question is not answered."""
        questions = [each.question for each in self.asked]
        write_questions(work / "questions.jsonl", questions)
        reference = self._reference(work, report)
        readings, outputs = self._ask(engine, repository, work, report)
        verdict = compare(questions, read_readings(reference, questions), readings)
        temperature = _temperature(self.asked, outputs)
        report(
            f"{verdict.accuracy:.1%} right, reference {verdict.reference_accuracy:.1%}; "
            f"{verdict.same} of {verdict.questions} decided alike"
        )
        if verdict.latency_p50_ms is not None and verdict.latency_p99_ms is not None:
            report(
                f"one at a time: p50 {verdict.latency_p50_ms:.1f} ms, "
                f"p99 {verdict.latency_p99_ms:.1f} ms"
            )
        return Verification(verdict, temperature)

    def _reference(self, work: Path, report: Report) -> Path:
        out = work / "reference.jsonl"
        script = triton_models() / "gpu" / "reference.py"
        argv = [self.tools.python, str(script), "--model-dir", str(self.model.resolve())]
        argv += ["--questions", str(work / "questions.jsonl"), "--out", str(out)]
        run_command(Command(tuple(argv), (out,)), work / "reference.log", report)
        return out

    def _ask(
        self, engine: Path, repository: Path, work: Path, report: Report
    ) -> tuple[list[Reading], list[ModelOutput]]:
        ports = free_ports(3)
        # By its path: the launcher does not search PATH.
        script = triton_models() / "gpu" / "serve.py"
        argv = [shutil.which(self.tools.python) or self.tools.python, str(script)]
        argv += ["--engine", str(engine), "--repository", str(repository)]
        # What is compared with the weights is the language model.
        argv += ["--language-model-alone"]
        argv += ["--", f"--grpc-port={ports[0]}", f"--http-port={ports[1]}"]
        argv += [f"--metrics-port={ports[2]}"]
        report("starting Triton with the engine")
        process = ChildProcess(argv, dict(os.environ), work / "triton.log")
        try:
            return asyncio.run(self._conversation(f"127.0.0.1:{ports[0]}", engine, process, report))
        finally:
            process.terminate(_STOP_S)

    async def _conversation(
        self, address: str, engine: Path, process: ChildProcess, report: Report
    ) -> tuple[list[Reading], list[ModelOutput]]:
        info = read_engine(engine)
        facts = info.router
        tokenizer = HfTokenizer(info.tokenizer_path)
        target = TritonTarget(address, "tensorrt_llm", facts.end_id, facts.pad_id, facts.vocab_size)
        model = TritonModel(target)
        try:
            await _ready(model, process)
            readings, outputs = [], []
            for number, each in enumerate(self.asked, 1):
                started = time.perf_counter()
                output = await model.infer(each.prompt, each.answer_form, _QUESTION_TIMEOUT_S)
                took = (time.perf_counter() - started) * 1000
                readings.append(_reading(each, output, tokenizer, took))
                outputs.append(output)
                if number % _REPORT_EVERY == 0:
                    report(f"{number} of {len(self.asked)} cases asked")
            return readings, outputs
        except InferenceError as error:
            raise EngineError(f"the engine did not answer: {error}") from None
        finally:
            await model.close()


async def _ready(model: TritonModel, process: ChildProcess) -> None:
    end = time.monotonic() + _READY_TIMEOUT_S
    while True:
        try:
            await model.check_ready(1)
            return
        except InferenceError as error:
            if (code := process.exit_code()) is not None:
                tail = process.last_lines(_LAST_LINES)
                raise EngineError(f"Triton ended with {code}:\n{tail}") from None
            if time.monotonic() > end:
                raise EngineError(
                    f"Triton was not ready within {_READY_TIMEOUT_S} s: {error}"
                ) from None
            await asyncio.sleep(0.2)


def _reading(
    asked: Asked, output: ModelOutput, tokenizer: HfTokenizer, latency_ms: float
) -> Reading:
    question = asked.question
    if isinstance(output, LabelLogits):
        best = max(range(len(output.logits)), key=output.logits.__getitem__)
        return Reading(question.id, question.names[best], output.logits, latency_ms)
    text = tokenizer.decode(output.token_ids).strip()
    written = dict(zip(question.literals, question.names, strict=True))
    return Reading(question.id, written.get(text, ""), latency_ms=latency_ms)


def _temperature(asked: Sequence[Asked], outputs: Sequence[ModelOutput]) -> float | None:
    """Calibration of the engine's probabilities; None where answers are text."""
    outcomes = [
        Outcome(each.case, "", candidates=_candidates(each.question.names, output.logits))
        for each, output in zip(asked, outputs, strict=True)
        if isinstance(output, LabelLogits)
    ]
    try:
        return fit_temperature(outcomes)
    except NothingToFitError:
        return None


def _candidates(names: Sequence[str], logits: Sequence[float]) -> tuple[Candidate, ...]:
    top = max(logits)
    total = math.fsum(math.exp(logit - top) for logit in logits)
    return tuple(
        Candidate(name, math.exp(logit - top) / total)
        for name, logit in zip(names, logits, strict=True)
    )
