"""Whether an engine decides on this CPU as the Hugging Face checkpoint of the same weights does, as
transformers computes it in float32; see README.md."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np

_ROOT = Path(__file__).resolve().parents[2]
_REFERENCE = _ROOT / "triton_models/gpu/reference.py"
sys.path.insert(0, str(_ROOT / "triton_models/cpu/tensorrt_llm/1"))

from cpu_engine.decisions import Decider, Outcome, Undecided  # noqa: E402  (found only now)
from cpu_engine.engine_files import open_engine  # noqa: E402
from cpu_engine.forward import Forward  # noqa: E402
from cpu_engine.prefix_cache import PrefixCache  # noqa: E402
from cpu_engine.requests import Asked as Request  # noqa: E402

from sidecar.cli.engine_questions import prepare  # noqa: E402
from sidecar.core.errors import SidecarError  # noqa: E402
from sidecar.engines import CpuRepositoryOptions, EngineError, EngineInfo, read_engine  # noqa: E402
from sidecar.engines.checkpoint import RECORD  # noqa: E402
from sidecar.engines.engine_directory import compiled_folder  # noqa: E402
from sidecar.engines.timing import CPU_CONVERSATION_TOKENS  # noqa: E402
from sidecar.engines.trtllm import Question, Reading, compare  # noqa: E402
from sidecar.engines.trtllm.verification import read_readings, write_questions  # noqa: E402
from sidecar.evaluation.cases import Case, CaseError, read_cases, sample  # noqa: E402
from sidecar.evaluation.parity import MAX_MARGIN, MIN_SAME, parity  # noqa: E402
from sidecar.inference.tokenizer import HfTokenizer  # noqa: E402
from sidecar.prompts import get_format  # noqa: E402

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("engine", type=_FOLDER)
@click.argument("checkpoint", type=_FOLDER)
@click.option("--cases", "paths", type=click.Path(exists=True, path_type=Path), multiple=True,
              required=True, help="As for `sidecar eval`.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), default=500, show_default=True,
              help="At most so many cases, drawn evenly over all.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(min=1), help="Leave out longer prompts.")
@click.option("--python", default=sys.executable, show_default="the one that runs this",
              help="A Python that has requirements/reference.txt.")  # fmt: skip
@click.option("--precision", type=click.Choice(["f32", "bf16"]), help="Default: the CPU's choice.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path),
              help="Write what was compared there.")  # fmt: skip
def compare_with_checkpoint(
    engine: Path,
    checkpoint: Path,
    paths: tuple[Path, ...],
    limit: int,
    max_tokens: int | None,
    python: str,
    precision: str | None,
    json_path: Path | None,
) -> None:
    """Ask ENGINE and CHECKPOINT the same cases and print how often they decide alike.

    Of an engine with a second opinion the language model is asked, alone. Exit status 1 if fewer
    than 99.5 % are decided alike, or one otherwise by a margin of 0.02 or more.
    """
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise click.UsageError(f"{json_path}: the folder {json_path.parent} does not exist")
    try:
        info = read_engine(engine)
        _check_same_weights(info, checkpoint)
        questions = _questions(info, checkpoint, read_cases(paths), limit, max_tokens)
        references = reference_readings(python, checkpoint, questions)
        readings = engine_readings(info, questions, precision or "")
        verdict = compare(questions, references, readings)
    except (CaseError, EngineError, SidecarError) as error:
        raise click.ClickException(str(error)) from error
    found = parity(readings, references, info.router.temperature)
    lengths = [len(question.input_ids) for question in questions]
    click.echo(
        f"{found.cases} cases of {min(lengths)} to {max(lengths)} tokens, {verdict.same} decided "
        f"alike ({found.same:.2%})\n"
        f"right: engine {verdict.accuracy:.1%}, checkpoint {verdict.reference_accuracy:.1%}\n"
        f"largest difference of a probability: {found.largest_gap:.4f}"
    )
    for each in found.differences:
        click.echo(
            f"{each.id}: engine {each.answer}, checkpoint {each.reference}, "
            f"margin {each.margin:.4f}"
        )
    if json_path is not None:
        _write(json_path, json.dumps(asdict(found), indent=1) + "\n")
    if not found.alike:
        wanted = f"{MIN_SAME:.1%} decided alike, and margins below {MAX_MARGIN} where not"
        raise click.ClickException(f"they do not decide alike; wanted: {wanted}")


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{path}: cannot be written: {error.strerror}") from None


def _check_same_weights(engine: EngineInfo, checkpoint: Path) -> None:
    """Raises EngineError if the two were not made from the same source and adapter."""
    try:
        record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
        theirs = (record["adapter_sha256"], record["source_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{checkpoint / RECORD}: cannot be read ({error!r}); write the checkpoint with "
            "`sidecar model build --target huggingface`"
        ) from None
    facts = engine.router
    # An adapter fits one base alone.
    ours = (facts.adapter_sha256, theirs[1] if facts.adapter_sha256 else facts.weights_sha256)
    if ours != theirs:
        raise EngineError(
            f"{checkpoint} was made from adapter {theirs[0] or 'none'} and source {theirs[1]}, "
            f"{engine.path} from {ours[0] or 'none'} and {ours[1]}; build both from the same"
        )


def _questions(
    engine: EngineInfo,
    checkpoint: Path,
    cases: Sequence[Case],
    limit: int,
    max_tokens: int | None,
) -> list[Question]:
    """Raises EngineError if there is nothing to ask; SidecarError if routes do not fit."""
    facts = engine.router
    drawn = sample(cases, limit) if max_tokens is None else cases
    prompt_format = get_format(facts.prompt_format)
    both = [
        prepare(drawn, prompt_format, HfTokenizer(path), facts.context_length - 1,
                max_conversation_tokens=CPU_CONVERSATION_TOKENS)
        for path in (engine.tokenizer_path, checkpoint / "tokenizer.json")
    ]  # fmt: skip
    asked = both[0]
    if any(ours.question != theirs.question for ours, theirs in zip(*both, strict=True)):
        raise EngineError(f"{checkpoint}: its tokenizer is not the engine's")
    if any(not each.question.label_ids for each in asked):
        raise EngineError(f"{facts.prompt_format}: answers are texts; only labels can be compared")
    if max_tokens is not None:
        asked = [each for each in asked if len(each.question.input_ids) <= max_tokens]
        if not asked:
            raise EngineError(f"no case has a prompt of {max_tokens} tokens or fewer")
        kept = {(c.file, c.id) for c in sample([each.case for each in asked], limit)}
        asked = [each for each in asked if (each.case.file, each.case.id) in kept]
    return [each.question for each in asked]


def reference_readings(
    python: str, checkpoint: Path, questions: Sequence[Question]
) -> list[Reading]:
    """What transformers computes, each prompt as a whole. Raises EngineError."""
    with tempfile.TemporaryDirectory() as folder:
        asked, out = Path(folder) / "questions.jsonl", Path(folder) / "reference.jsonl"
        write_questions(asked, questions)
        command = [python, str(_REFERENCE), "--model-dir", str(checkpoint.resolve())]
        command += ["--questions", str(asked), "--out", str(out)]
        command += ["--device", "cpu", "--dtype", "float32"]
        try:
            code = subprocess.run(command, check=False).returncode  # noqa: S603 - no shell
        except OSError as error:
            raise EngineError(f"{python}: cannot be started: {error.strerror}") from None
        if code:
            raise EngineError(
                f"{python} {_REFERENCE.name} ended with {code}; if it lacks "
                "requirements/reference.txt, name a Python that has it with --python"
            )
        return read_readings(out, questions)


def engine_readings(
    engine: EngineInfo, questions: Sequence[Question], precision: str = ""
) -> list[Reading]:
    """What the engine computes, as Triton's CPU model does: prefixes are kept, and prompts cut into
    passes. Raises EngineError."""
    forward = Forward(
        open_engine(engine.path),
        precision=precision,
        compiled_folder=compiled_folder(engine.path.absolute()),
    )
    served = CpuRepositoryOptions()
    cache = PrefixCache(served.prefix_cache_bytes)
    decider = Decider(forward, cache, None, served.max_pass_tokens)
    with click.progressbar(questions, label="asking the engine") as shown:
        return [_reading(decider, question) for question in shown]


def _reading(decider: Decider, question: Question) -> Reading:
    request = Request(
        ids=np.array(question.input_ids, np.int32),
        prefix_length=question.prefix_length,
        max_tokens=1,
        end_id=-1,
        logits=True,
        label_ids=np.array(question.label_ids, np.int32),
    )
    ((_, outcome),) = decider.decide([Undecided(request)])
    if not isinstance(outcome, Outcome):
        raise EngineError(f"{question.id}: not answered: {outcome}")
    logits = tuple(float(logit) for logit in outcome.logits[0])
    return Reading(question.id, question.names[logits.index(max(logits))], logits)


if __name__ == "__main__":
    compare_with_checkpoint()
