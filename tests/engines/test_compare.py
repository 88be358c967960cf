"""`build/openvino/compare.py`: with answers prepared in the place of transformers, and with
transformers itself where it is installed (`requirements/reference.txt`)."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.engines import EngineInfo, build_cpu_engine, write_checkpoint
from sidecar.engines.trtllm import Question, Reading
from tests.engines.tiny_models import LLAMA

SCRIPT = Path(__file__).parents[2] / "build" / "openvino" / "compare.py"
INSTALLED = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))

# Of a vocabulary in which every word of its corpus is a token, which labels have to be.
WORDS = replace(LLAMA, vocab=600)
ROUTES = [
    {"name": "billing", "description": "question about an invoice"},
    {"name": "travel", "description": "booking flights"},
]


@dataclass(frozen=True)
class Made:
    """The script, and an engine and a checkpoint of the same weights."""

    script: Mapping[str, Any]
    engine: EngineInfo
    checkpoint: Path
    cases: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("compare")
    source = WORDS.write(folder / "weights")
    model_id, prompt_format = "tiny", "compact-v1"
    lines = [
        {
            "id": str(number),
            "conversation": [{"role": "user", "content": f"{'invoice ' * number} question"}],
            "routes": ROUTES,
            "label": "billing",
        }
        for number in range(4)
    ]
    # Of which no model is asked.
    lines.append({**lines[0], "id": "empty", "conversation": [{"role": "user", "content": ""}]})
    cases = folder / "cases.jsonl"
    cases.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Made(
        runpy.run_path(str(SCRIPT)),
        build_cpu_engine(source, folder / "engine", model_id=model_id, prompt_format=prompt_format),
        write_checkpoint(
            source, folder / "checkpoint", model_id=model_id, prompt_format=prompt_format
        ),
        cases,
    )


def run(made: Made, *arguments: str | Path, checkpoint: Path | None = None) -> Result:
    command = [made.engine.path, checkpoint or made.checkpoint, "--cases", made.cases]
    command += ["--precision", "f32", *arguments]
    return CliRunner().invoke(made.script["compare_with_checkpoint"], [str(x) for x in command])


def questions(made: Made) -> list[Question]:
    cases = made.script["read_cases"]([made.cases])
    found: list[Question] = made.script["_questions"](
        made.engine, made.checkpoint, cases, 500, None
    )
    return found


def answers(made: Made) -> list[Reading]:
    """What the engine itself answers."""
    found: list[Reading] = made.script["engine_readings"](made.engine, questions(made), "f32")
    return found


def stand_in(folder: Path, readings: Sequence[Reading]) -> Path:
    """In the place of a Python with torch: writes `readings`, whatever it is to run."""
    lines = (json.dumps({"id": r.id, "logits": r.logits}) + "\n" for r in readings)
    (folder / "readings").write_text("".join(lines))
    program = folder / "python"
    program.write_text(
        '#!/bin/sh\nwhile [ "$1" != --out ]; do shift; done\n'
        f'exec cp "{folder / "readings"}" "$2"\n'
    )
    program.chmod(0o755)
    return program


def test_the_same_answers_are_alike(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    result = run(made, "--python", stand_in(tmp_path, answers(made)), "--json", out)
    assert result.exit_code == 0, result.output
    assert "4 decided alike (100.00%)" in result.output
    assert "largest difference of a probability: 0.0000" in result.output
    assert json.loads(out.read_text()) == {"cases": 4, "differences": [], "largest_gap": 0.0}


def test_another_answer_is_told_with_its_margin_and_fails(made: Made, tmp_path: Path) -> None:
    first, *rest = answers(made)
    turned = replace(first, logits=tuple(-logit for logit in first.logits))
    result = run(made, "--python", stand_in(tmp_path, [turned, *rest]))
    assert result.exit_code == 1
    assert "3 decided alike (75.00%)" in result.output
    assert f"{first.id}: engine {first.name}, checkpoint " in result.output
    assert "they do not decide alike" in result.output


def test_a_file_that_cannot_be_written_costs_no_verdict(made: Made, tmp_path: Path) -> None:
    result = run(made, "--python", stand_in(tmp_path, answers(made)), "--json", "/dev/full")
    assert result.exit_code == 1
    assert "4 decided alike (100.00%)" in result.output
    assert "/dev/full: cannot be written" in result.output


def test_a_folder_to_write_to_is_missed_before_anything_is_asked(made: Made) -> None:
    result = run(made, "--python", "/no/python", "--json", "/no/such/found.json")
    assert (result.exit_code, "the folder /no/such does not exist" in result.output) == (2, True)


def test_prompts_that_are_too_long_are_left_out(made: Made, tmp_path: Path) -> None:
    lengths = [len(question.input_ids) for question in questions(made)]
    python = stand_in(tmp_path, answers(made)[:2])
    result = run(made, "--python", python, "--max-tokens", str(lengths[1]))
    assert f"2 cases of {lengths[0]} to {lengths[1]} tokens, 2 decided alike" in result.output


def test_a_checkpoint_of_other_weights_is_refused(made: Made, tmp_path: Path) -> None:
    other = shutil.copytree(made.checkpoint, tmp_path / "checkpoint")
    record = json.loads((other / "sidecar.json").read_text())
    (other / "sidecar.json").write_text(json.dumps(record | {"adapter_sha256": "12ab"}))
    result = run(made, checkpoint=other)
    assert result.exit_code == 1
    assert "was made from adapter 12ab" in result.output


@pytest.mark.parametrize("record", ["[]", "{", "{}"])
def test_a_record_that_is_none_is_told(made: Made, tmp_path: Path, record: str) -> None:
    other = shutil.copytree(made.checkpoint, tmp_path / "checkpoint")
    (other / "sidecar.json").write_text(record)
    result = run(made, checkpoint=other)
    assert result.exit_code == 1
    assert f"{other / 'sidecar.json'}: cannot be read" in result.output


@pytest.mark.parametrize(
    ("python", "message"),
    [("/bin/false", "ended with 1; if it lacks"), ("/no/python", "cannot be started")],
)
def test_a_python_without_what_it_needs_is_told(made: Made, python: str, message: str) -> None:
    result = run(made, "--python", python)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.skipif(not INSTALLED, reason="torch and transformers are not installed")
def test_transformers_decides_as_the_engine(made: Made) -> None:
    result = run(made, "--python", sys.executable)
    assert result.exit_code == 0, result.output
    assert "4 decided alike (100.00%)" in result.output
