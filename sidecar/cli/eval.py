"""`sidecar eval`: how good the decisions are, over cases whose right route is known."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import click

from sidecar import __version__
from sidecar.cli.common_options import model_option
from sidecar.cli.eval_progress import Progress
from sidecar.cli.eval_targets import Target, local_router, local_triton, running_sidecar
from sidecar.cli.eval_view import print_results
from sidecar.cli.failures import Failure
from sidecar.cli.output_file import OutputFile
from sidecar.cli.stack import interrupted_by_signals
from sidecar.cli.steps import Steps
from sidecar.cli.tls_options import Tls, given_tls, tls_options
from sidecar.cli.up import chosen_engine
from sidecar.config import load_settings
from sidecar.core.decision import Decision, RoutingRequest
from sidecar.engines import EngineError, EngineInfo
from sidecar.evaluation.asking import ask
from sidecar.evaluation.baselines import Baseline, majority, word_overlap
from sidecar.evaluation.calibration import NothingToFitError
from sidecar.evaluation.cases import Case, CaseError, case_files, read_cases, sample
from sidecar.evaluation.engine_temperature import write_temperature
from sidecar.evaluation.minilm import minilm
from sidecar.evaluation.outcomes import Outcome
from sidecar.evaluation.policies import Presentation, opaque, plain, shuffled
from sidecar.evaluation.report import render_report
from sidecar.evaluation.results import Document, Run, RunFacts, document
from sidecar.local import TritonServer, data_file
from sidecar.observability.logging import LogOptions, configure_logging


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command was asked for."""

    cases: Sequence[Case]
    model: Path | None
    target: str | None
    tls: Tls | None
    concurrency: int
    shuffle_seed: int | None
    opaque_names: bool
    baseline: bool
    fit: bool

    def rounds(self) -> list[tuple[str, Presentation]]:
        """Names and presentations of the runs over all cases."""
        found: list[tuple[str, Presentation]] = [("plain", plain)]
        if self.shuffle_seed is not None:
            found.append(("shuffled", shuffled(self.shuffle_seed)))
        if self.opaque_names:
            found.append(("opaque", opaque))
        return found


@dataclass(slots=True)
class Done:
    """What has been decided so far, by round; filled while it runs."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    routing_model: str = ""
    prompt_format: str = ""
    engine: EngineInfo | None = None
    seconds: float = 0.0
    failure: Failure | None = None
    """What ended it early, or is missing from its results; told after them, so that an hour of
    asking is not lost."""


@click.command("eval")
@click.option(
    "--cases",
    "paths",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    required=True,
    help="Cases (.jsonl, .jsonl.gz) or a folder of them; may be given more than once.",
)
@model_option
@click.option("--target", metavar="ADDRESS", help="Ask the sidecar that runs there instead.")
@tls_options
@click.option(
    "--json",
    "json_path",
    type=OutputFile(),
    help="Write the results there.",
)
@click.option(
    "--report",
    "report_path",
    type=OutputFile(),
    help="Write an HTML page there, to be looked at; it quotes the worst misses.",
)
@click.option(
    "--baseline",
    is_flag=True,
    help="Also measure MiniLM, word overlap and the most frequent label.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most N cases, drawn evenly over all; dialogues stay whole, and if each has more "
    "than N cases, one of them is asked.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=2,
    show_default=True,
    metavar="N",
    help="Decisions in flight at once.",
)
@click.option(
    "--shuffle-routes",
    "shuffle_seed",
    type=int,
    metavar="SEED",
    help="Ask again with the routes in a random order: how often is the decision the same?",
)
@click.option(
    "--opaque-names",
    is_flag=True,
    help="Ask again with routes named route_1, route_2, …: what does it cost?",
)
@click.option(
    "--fit-temperature",
    "fit",
    is_flag=True,
    help="Find the temperature at which confidences are probabilities.",
)
@click.option(
    "--write-temperature",
    "write",
    is_flag=True,
    help="Also write it into the engine; needs --model.",
)
def evaluate(
    paths: tuple[Path, ...],
    model: Path | None,
    target: str | None,
    json_path: Path | None,
    report_path: Path | None,
    baseline: bool,
    limit: int | None,
    concurrency: int,
    shuffle_seed: int | None,
    opaque_names: bool,
    fit: bool,
    write: bool,
) -> None:
    """Measure a routing model over cases whose right route is known.

    Without --target a Triton is started on this machine, and stopped at the end. Ctrl-C ends early
    and shows what was measured until then (exit status 130).
    """
    if model is not None and target is not None:
        raise click.UsageError("give --model or --target, not both")
    if write and model is None:
        raise click.UsageError("--write-temperature needs --model, the engine to write to")
    _check_outputs(paths, json_path, report_path)
    wanted = Wanted(
        cases=_cases(paths, limit),
        model=model,
        target=target,
        tls=given_tls(),
        concurrency=concurrency,
        shuffle_seed=shuffle_seed,
        opaque_names=opaque_names,
        baseline=baseline,
        fit=fit or write,
    )
    done = Done()
    with interrupted_by_signals():
        complete = _run(wanted, done)
        if not done.outcomes.get("plain"):
            raise SystemExit(130)
        run = _finished(wanted, done, complete)
    results = _document(run, done)
    # First what cannot fail: asking may have taken an hour.
    print_results(results)
    _write(json_path, lambda: json.dumps(results, ensure_ascii=False, indent=1) + "\n", done)
    _write(report_path, lambda: render_report(results, run.outcomes), done)
    if done.failure is not None:
        raise done.failure
    if not run.facts.complete:
        sys.exit(130)
    if write:
        _write_temperature(model, results)


eval = evaluate
"""The name by which the command line finds its commands."""


def _check_outputs(paths: Sequence[Path], json_path: Path | None, report_path: Path | None) -> None:
    """Raises UsageError where results would be written over the cases, or over each other."""
    try:
        taken = {file.resolve(): "the cases" for file in case_files(paths)}
    except CaseError as error:
        raise Failure(str(error)) from None
    for option, path in (("--json", json_path), ("--report", report_path)):
        if path is None or (path.exists() and not path.is_file()):
            continue  # /dev/null takes both.
        if (what := taken.setdefault(path.resolve(), option)) != option:
            raise click.UsageError(f"{option} {path} would be written over {what}; name another")


def _cases(paths: Sequence[Path], limit: int | None) -> list[Case]:
    try:
        return sample(read_cases(paths), limit)
    except CaseError as error:
        raise Failure(str(error)) from None


def _run(wanted: Wanted, done: Done) -> bool:
    """Asks everything. False if it was interrupted."""
    if wanted.baseline:
        # Now, and not after an hour of asking.
        _minilm_weights()
    configure_logging(LogOptions(level="error"))
    started = 0.0
    try:
        with ExitStack() as stack:
            if wanted.target is not None:
                target = running_sidecar(wanted.target, wanted.tls)
            else:
                steps = Steps()
                done.engine = chosen_engine(wanted.model, load_settings(environ={}), steps)
                triton = stack.enter_context(local_triton(done.engine, steps))
                target = local_router(done.engine, triton.grpc_address, _alive(triton))
            started = time.perf_counter()
            asyncio.run(_ask_all(wanted, target, done))
    except KeyboardInterrupt:
        return False
    except Failure as failure:
        if not done.outcomes.get("plain"):
            raise
        done.failure = failure
        return False
    finally:
        done.seconds = time.perf_counter() - started if started else 0.0
    return True


def _alive(triton: TritonServer) -> Callable[[], None]:
    def check() -> None:
        if triton.exit_code() is not None:
            raise Failure(f"Triton has died:\n{triton.last_log_lines()}")

    return check


async def _ask_all(
    wanted: Wanted, entering: AbstractAsyncContextManager[Target], done: Done
) -> None:
    rounds = wanted.rounds()
    async with entering as target:
        with Progress(len(wanted.cases) * len(rounds)) as progress:
            for name, presentation in rounds:
                outcomes = done.outcomes.setdefault(name, [])

                async def decide(request: RoutingRequest) -> Decision:
                    decision = await target.decide(request)
                    target.check()
                    done.routing_model = decision.routing_model
                    done.prompt_format = decision.prompt_format
                    return decision

                def took(outcome: Outcome, outcomes: list[Outcome] = outcomes) -> None:
                    outcomes.append(outcome)
                    progress.took(outcome)

                await ask(
                    wanted.cases,
                    decide,
                    took,
                    concurrency=wanted.concurrency,
                    presentation=presentation,
                    model_id=target.model_id,
                    explain=wanted.fit,
                )


def _finished(wanted: Wanted, done: Done, complete: bool) -> Run:
    outcomes = _in_order(wanted.cases, done.outcomes["plain"])
    baselines: dict[str, Baseline] = {}
    if wanted.baseline and complete:
        try:
            baselines = _baselines([outcome.case for outcome in outcomes])
        except KeyboardInterrupt:
            complete = False
    facts = RunFacts(
        asked=wanted.target or (done.engine.path.name if done.engine else ""),
        routing_model=done.routing_model,
        prompt_format=done.prompt_format,
        sidecar_version=__version__,
        temperature=done.engine.router.decision_temperature if done.engine else None,
        cases=len(wanted.cases),
        complete=complete,
        seconds=round(done.seconds, 1),
        concurrency=wanted.concurrency,
    )
    return Run(
        facts,
        outcomes,
        shuffled=done.outcomes.get("shuffled", ()),
        opaque=done.outcomes.get("opaque", ()),
        baselines=baselines,
        fit=wanted.fit,
    )


def _in_order(cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """In the order of the cases, so that results of two runs can be compared line by line."""
    places = {(case.file, case.id): place for place, case in enumerate(cases)}
    return sorted(outcomes, key=lambda o: places[o.case.file, o.case.id])


def _minilm_weights() -> Path:
    """Those that the shipped model's second opinion was trained from. Raises LocalError."""
    return data_file("minilm", lambda line: click.echo(f"  {line}", err=True))


def _baselines(cases: Sequence[Case]) -> dict[str, Baseline]:
    weights = _minilm_weights()
    with Steps().step("Measuring the baselines") as report:
        found = {
            "minilm": minilm(
                cases, weights, lambda n, total: report(f"{n} of {total} texts embedded")
            ),
            "word_overlap": word_overlap(cases),
            "majority": majority(cases),
        }
    return found


def _document(run: Run, done: Done) -> Document:
    try:
        return document(run)
    except NothingToFitError as error:
        done.failure = done.failure or Failure(f"--fit-temperature: {error}")
        return document(replace(run, fit=False))


def _write(path: Path | None, content: Callable[[], str], done: Done) -> None:
    if path is None:
        return
    try:
        # Half an emoji, which JSON can hold and a conversation may, has no UTF-8.
        path.write_text(content(), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        done.failure = done.failure or Failure(f"{path}: cannot be written: {error.strerror}")


def _write_temperature(model: Path | None, results: Document) -> None:
    assert model is not None, "checked with the options"
    temperature = results["calibration"]["temperature"]
    try:
        write_temperature(model, temperature)
    except (EngineError, OSError) as error:
        raise Failure(f"--write-temperature: {error}") from None
    click.echo(f"Wrote temperature {temperature:.4g} into {model}.")
