"""From a Hugging Face folder to an engine that Triton serves, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sidecar import __version__
from sidecar.engines.engine_directory import (
    MANIFEST,
    ROUTER,
    SCHEMA_VERSION,
    EngineInfo,
    RouterFacts,
    read_engine,
    sha256_of,
)
from sidecar.engines.errors import EngineError
from sidecar.engines.second_opinion import (
    WEIGHTS_FILE,
    SecondOpinionSource,
    write_second_opinion,
)
from sidecar.engines.sources import open_source, source_files
from sidecar.engines.staging import refuse_foreign, staged
from sidecar.engines.trtllm.artifacts import (
    ENGINE_FILE,
    TOKENIZER_FILE,
    Target,
    assemble,
    check_engine,
    publish,
    settle_checkpoint,
)
from sidecar.engines.trtllm.commands import (
    Command,
    build_command,
    checkpoint_command,
    xgrammar_command,
)
from sidecar.engines.trtllm.ensemble import render_ensemble
from sidecar.engines.trtllm.precision import Precision
from sidecar.engines.trtllm.preflight import (
    Machine,
    check_machine,
    check_tools,
    inspect_machine,
    licence_notice,
)
from sidecar.engines.trtllm.repository import render_gpu_repository
from sidecar.engines.trtllm.second_opinion import render_second_opinion
from sidecar.engines.trtllm.sizing import EngineLimits, Sizes, sizes_of
from sidecar.engines.trtllm.stages import Report, Stage, run_command, run_stages
from sidecar.engines.trtllm.toolchain import Toolchain
from sidecar.engines.trtllm.verification import Verdict
from sidecar.engines.weights import ModelSource

RUNTIME = "tensorrt_llm"
"""What computes the engines; the name under which an adapter's calibration for them is found."""

_GRAPH_VERSION = 1


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build.

    Args:
        source: Hugging Face folder.
        out: the engine directory.
        repository: Triton's model repository for it.
        served_at: absolute path of the engine where Triton will run; None: `out`.
        labels: the prompt format's answers are labels, read from their logits.
        calibration: prompts as text, special tokens spelled out; for FP8 and AWQ.
        ensemble: add the model `ensemble`, which takes text, to the repository.
        second_opinion: a sentence encoder that decides together with the engine; it goes into the
            engine directory, and the repository gets the model `second_opinion`.
        questions: digest of what verification asks: an engine that was asked other ones is asked
            again.
    """

    source: Path
    out: Path
    repository: Path
    model_id: str
    prompt_format: str
    limits: EngineLimits
    precision: Precision = Precision.BF16
    labels: bool = True
    calibration: tuple[str, ...] = ()
    served_at: Path | None = None
    trained: bool = True
    temperature: float = 1.0
    ensemble: bool = False
    second_opinion: SecondOpinionSource | None = None
    questions: str = ""

    @property
    def work(self) -> Path:
        """Where the stages leave what they made; may be removed when the build is done."""
        return self.out.with_name(f".{self.out.name}-build")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build will run and how large the outcome will be.

    Args:
        commands: by name of the stage, in order.
    """

    commands: Mapping[str, Command]
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class Verification:
    """Outcome of asking the engine questions.

    Args:
        temperature: calibration of this engine's label probabilities; None: not determined.
    """

    verdict: Verdict
    temperature: float | None = None


Verify = Callable[[Path, Path, Path, Report], Verification]
"""(engine directory, repository that serves it, folder for its files, report) -> outcome."""


def plan_build(request: BuildRequest, tools: Toolchain, source: ModelSource | None = None) -> Plan:
    """The commands, without running anything.

    Args:
        source: what the request's folder would hold; None where it is there.

    Raises:
        EngineError: the source is not a model that can be built, or too short for the limits.
    """
    return _plan(request, tools, _open(request) if source is None else source)


def build_trtllm_engine(
    request: BuildRequest,
    tools: Toolchain,
    *,
    verify: Verify | None = None,
    force: bool = False,
    progress: Report = lambda line: None,
) -> EngineInfo:
    """Build, verify and publish an engine, and write the repository that serves it.

    Args:
        verify: asks the engine; None: it is published unverified.
        force: publish what verification speaks against, or what another 1.2 release built.

    Raises:
        EngineError: with what to do. What was done before stays done.
    """
    refuse_foreign(request.out, ROUTER, "an engine directory")
    source = _open(request)
    plan = _plan(request, tools, source)
    progress("preflight")
    machine = inspect_machine(tools)
    scripts = [command.argv[1] for command in plan.commands.values() if command.argv[1:2]]
    check_tools(tools, tuple(Path(each) for each in scripts if each.endswith(".py")))
    notes = check_machine(machine, request.precision, plan.sizes, request.work, force=force)
    for line in filter(None, (*notes, licence_notice(request.source))):
        progress(line)
    build = _Build(request, plan, machine, source, progress)
    run_stages(build.stages(verify), request.work / "done.json", progress)
    return build.publish(verified=verify is not None, force=force)


@dataclass(frozen=True, slots=True)
class _Build:
    request: BuildRequest
    plan: Plan
    machine: Machine
    source: ModelSource
    progress: Report

    def stages(self, verify: Verify | None) -> Sequence[Stage]:
        request = self.request
        self.progress(f"checksum of {request.source.name}")
        weights = sha256_of(*source_files(request.source))
        stages = [
            self._calibration(),
            self._program("checkpoint", weights, self._settle),
            self._program("engine", self.machine.compute_capability, self._check_engine),
            self._program("tokenizer", weights, lambda: None),
            self._second_opinion(),
            self._assembly(weights),
            self._repository(),
        ]
        if verify is not None:
            stages.append(self._verification(verify))
        return [stage for stage in stages if stage is not None]

    def publish(self, *, verified: bool, force: bool) -> EngineInfo:
        request, work = self.request, self.request.work
        # Unverified, what lies there is of an earlier build, and perhaps of other weights.
        found = work / "verify" / "verdict.json"
        verdict = json.loads(found.read_text(encoding="utf-8")) if verified else None
        if verdict is not None and verdict["problems"] and not force:
            problems = "\n".join(verdict["problems"])
            raise EngineError(f"the engine is not published: {problems}\n--force publishes it")
        facts = _facts(request, self.source, self.machine, _weights_of(work / "assembled"))
        temperature = verdict["temperature"] if verdict else None
        with staged(request.out) as staging:
            publish(work / "assembled", staging, facts, self._target(), verdict, temperature)
        render_gpu_repository(request.out, request.repository, served_at=request.served_at)
        if request.ensemble:
            render_ensemble(request.out, request.repository, served_at=request.served_at)
        if request.second_opinion:
            render_second_opinion(request.out, request.repository, served_at=request.served_at)
        return read_engine(request.out)

    def _calibration(self) -> Stage | None:
        request, folder = self.request, self.request.work / "calibration"
        if not request.precision.facts.qformat:
            return None
        if not request.calibration:
            raise EngineError(
                f"{request.precision} needs cases to calibrate with; name some with --cases"
            )
        text = "".join(json.dumps({"text": each}) + "\n" for each in request.calibration)

        def run(report: Report) -> None:
            # quantize.py reads a folder's train split, column `text`.
            (folder / "train.jsonl").write_text(text, encoding="utf-8")

        return Stage("calibration", text, folder, (folder / "train.jsonl",), run)

    def _program(self, name: str, made_from: str, check: Callable[[], None]) -> Stage:
        command, work = self.plan.commands[name], self.request.work

        def run(report: Report) -> None:
            run_command(command, work / "logs" / f"{name}.log", report)
            check()

        return Stage(name, f"{made_from} {command}", work / name, command.produces, run)

    def _settle(self) -> None:
        settle_checkpoint(self.request.work / "checkpoint", self.request.precision)

    def _check_engine(self) -> None:
        check_engine(
            self.request.work / "engine",
            self.machine.trtllm_version,
            self.request.limits,
            generation_logits=self.request.labels,
        )

    def _second_opinion(self) -> Stage | None:
        second, folder = self.request.second_opinion, self.request.work / "second_opinion"
        if second is None:
            return None
        facts = second.facts
        names = (facts.graph_file, WEIGHTS_FILE, facts.tokenizer_file)

        def run(report: Report) -> None:
            write_second_opinion(second, folder, report)

        produces = tuple(folder / name for name in names)
        return Stage("second opinion", f"{facts} {__version__}", folder, produces, run)

    def _assembly(self, weights: str) -> Stage:
        work, folder = self.request.work, self.request.work / "assembled"
        facts = _facts(self.request, self.source, self.machine, weights)
        target = self._target()
        second = work / "second_opinion" if self.request.second_opinion else None

        def run(report: Report) -> None:
            engine, tokenizer = work / "engine", work / "tokenizer"
            assemble(folder, engine, tokenizer, self.source, facts, target, second)

        made_from = f"{facts.to_json()} {target}"
        return Stage("assembled", made_from, folder, (folder / MANIFEST, folder / ROUTER), run)

    def _repository(self) -> Stage:
        work, folder = self.request.work, self.request.work / "repository"

        def run(report: Report) -> None:
            render_gpu_repository(work / "assembled", folder)

        config = folder / "tensorrt_llm" / "config.pbtxt"
        return Stage("repository", str(folder), folder, (config,), run)

    def _verification(self, verify: Verify) -> Stage:
        work, folder = self.request.work, self.request.work / "verify"

        def run(report: Report) -> None:
            found = verify(work / "assembled", work / "repository", folder, report)
            verdict = {
                **found.verdict.to_json(),
                "problems": found.verdict.problems,
                "temperature": found.temperature,
            }
            (folder / "verdict.json").write_text(json.dumps(verdict, indent=2), encoding="utf-8")

        return Stage("verify", self.request.questions, folder, (folder / "verdict.json",), run)

    def _target(self) -> Target:
        request, commands = self.request, list(self.plan.commands.values())
        return Target.of(self.machine, request.precision, request.prompt_format, commands)


def _open(request: BuildRequest) -> ModelSource:
    if not request.source.is_dir():
        raise EngineError(
            f"{request.source}: TensorRT-LLM reads Hugging Face folders; write one with "
            "`sidecar model build --target huggingface`"
        )
    return open_source(request.source)


def _plan(request: BuildRequest, tools: Toolchain, source: ModelSource) -> Plan:
    request.limits.check(source.architecture)
    work, limits = request.work, request.limits
    checkpoint = checkpoint_command(
        tools,
        source.architecture,
        request.source,
        request.precision,
        limits,
        work / "calibration",
        work / "checkpoint",
    )
    engine = build_command(
        tools,
        work / "checkpoint",
        request.precision,
        limits,
        work / "engine",
        generation_logits=request.labels,
    )
    tokenizer = xgrammar_command(tools, request.source, work / "tokenizer")
    commands = {"checkpoint": checkpoint, "engine": engine, "tokenizer": tokenizer}
    return Plan(commands, sizes_of(source.architecture, request.precision))


def _weights_of(assembled: Path) -> str:
    return read_engine(assembled).router.weights_sha256


def _facts(
    request: BuildRequest, source: ModelSource, machine: Machine, weights: str
) -> RouterFacts:
    return RouterFacts(
        schema_version=SCHEMA_VERSION,
        model_id=request.model_id,
        prompt_format=request.prompt_format,
        runtime=RUNTIME,
        graph_version=_GRAPH_VERSION,
        weight_storage=request.precision.facts.storage,
        graph_file=ENGINE_FILE,
        tokenizer_file=TOKENIZER_FILE,
        end_id=source.end_id,
        pad_id=source.pad_id,
        context_length=request.limits.max_seq_len,
        vocab_size=source.architecture.vocab_size,
        temperature=request.temperature,
        weights_sha256=weights,
        sidecar_version=__version__,
        runtime_version=machine.trtllm_version,
        architecture=source.architecture,
        trained=request.trained,
        second_opinion=request.second_opinion.facts if request.second_opinion else None,
    )
