"""What a mistake in a program's input ends with. Skipped where torch is not installed."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed; only training needs it")
pytest.importorskip("safetensors", reason="safetensors is not installed; only training needs it")

import numpy as np
import torch
from router_training import memory, options, record
from router_training.cases import read_cases
from router_training.checkpoint import load_weights, read_checkpoint
from router_training.delta import write_delta
from router_training.errors import InputError
from router_training.fusion import Opinions
from router_training.leave_out import Group, LeftOut, group_to_json
from router_training.program import run
from router_training.scoring import Scored

from sidecar.engines.adapter import BaseFacts, open_adapter, shipped_adapter
from sidecar.engines.errors import EngineError
from sidecar.evaluation.cases import CaseError

CASE = {
    "conversation": [{"role": "user", "content": "where is my parcel"}],
    "routes": [{"name": "orders", "description": "parcels"}],
    "label": "orders",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: None)
    (tmp_path / "own.jsonl").write_text(json.dumps(CASE) + "\n")
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "empty").mkdir()
    old = tmp_path / "old"
    old.mkdir()
    (old / "checkpoint.pt").write_text("of an older run")


def ended(monkeypatch: pytest.MonkeyPatch, command: str) -> str:
    """The status, or the text, with which it ends the interpreter."""
    program, *words = command.split()
    monkeypatch.setattr(sys, "argv", [f"build/finetune/{program}.py", *words])
    with pytest.raises(SystemExit) as end:
        run(import_module(program).main)
    return str(end.value.code)


def done(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    program, *words = command.split()
    monkeypatch.setattr(sys, "argv", [f"build/finetune/{program}.py", *words])
    run(import_module(program).main)


MISTAKES = {
    "train --base nosuch.gguf --cases own.jsonl --out run": "train.py: nosuch.gguf: not a readable",
    "train --base text.gguf --cases own.jsonl --out run": "train.py: text.gguf: not a readable",
    "train_encoder --encoder empty --cases own.jsonl --out run": "train_encoder.py: [Errno 2]",
    "train_encoder --encoder empty --cases nosuch --out run": "train_encoder.py: nosuch: does not",
    "evaluate --base text.gguf --cases own.jsonl --families bogus": (
        "evaluate.py: --families: there are no cases of bogus"
    ),
    "evaluate --base text.gguf --cases own.jsonl --held-out": "evaluate.py: there are no cases",
    "fit_fusion --base text.gguf --adapter a --encoder e --second-opinion s --cases own.jsonl "
    "--held-out --out f.json": "fit_fusion.py: there are no cases to fit to",
    "fit_fusion --base text.gguf --adapter a --encoder e --second-opinion s --cases own.jsonl "
    "--family-cases bogus=5 --out f.json": "fit_fusion.py: --family-cases: there are no cases of b",
    "fit_fusion --base text.gguf --adapter a --encoder e --second-opinion s --cases own.jsonl "
    "--share bogus=0.5 --out f.json": "fit_fusion.py: a share is given for families without a case",
    "export describe --id my-router --out empty": "export.py: empty/adapter.safetensors: not a",
}


@pytest.mark.parametrize(("command", "message"), MISTAKES.items(), ids=MISTAKES.keys())
def test_a_mistake_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    text = ended(monkeypatch, command)
    assert text.startswith(message)
    assert "\n" not in text


TRAIN = "train --base b.gguf --cases own.jsonl"
ENCODE = "train_encoder --encoder e --cases own.jsonl"
FIT = "fit_fusion --base b --encoder e --cases own.jsonl --adapter a --second-opinion s"
REFUSED = {
    f"{TRAIN} --out run --steps 0": "--steps: must be 1 or more",
    f"{TRAIN} --out run --packs-per-step 0": "--packs-per-step: must be 1 or more",
    f"{TRAIN} --out run --minutes 0": "--minutes: must be above 0",
    f"{TRAIN} --out run --minutes nan": "--minutes: must be a number, 0 or more",
    f"{TRAIN} --out run --weight own=-1": "--weight: must be a number, 0 or more",
    f"{TRAIN} --out run --decay 2": "--decay: must be from 0 to 1",
    f"{TRAIN} --out run --compile": "--compile works on batches alone: add --processes",
    f"{TRAIN} --out old": "--out: old/checkpoint.pt is that of another run",
    f"{TRAIN} --out old --resume run/checkpoint.pt": "--out: old/checkpoint.pt is that of another",
    f"{TRAIN} --out run --resume a --start b": "give one of the two",
    f"{TRAIN} --out run --averaging 1": "--averaging: must be below 1",
    f"{TRAIN} --out run --processes 2 --dropout 1": "--dropout: must be below 1",
    f"{ENCODE} --out run --average 1": "--average: must be below 1",
    f"{FIT} --out f.json --without own": "--without is of what a run held out: add --held-out",
    "evaluate --base b --cases c --without own": "--without is of what a run held out: add --held-",
    f"{FIT} --out f.json --family-cases own=0": "--family-cases: must be 1 or more",
    f"{ENCODE} --out run --draws-per-step 0": "--draws-per-step: must be 1 or more",
    f"{ENCODE} --out run --average 1.5": "--average: must be from 0 to 1",
    f"{ENCODE} --out old": "--out: old/checkpoint.pt is that of another run",
    f"{FIT} --out nodir/f.json": "--out: cannot be written: nodir is not a folder",
    f"{FIT} --out empty": "--out: cannot be written: is a folder",
    f"{FIT} --checkpoint c --out f.json": "not allowed with argument --adapter",
    "fit_fusion --base b --encoder e --cases c --second-opinion s --out f": (
        "--adapter --checkpoint"
    ),
    "fit_fusion --base b --encoder e --cases c --adapter s --out f": (
        "--second-opinion --encoder-checkpoint"
    ),
    "evaluate --base b --cases own.jsonl --json nodir/c.json": "--json: cannot be written: nodir",
    "export describe --id mine --out empty --prompt-format bogus": "--prompt-format: invalid",
    "export describe --id mine --out empty --temperature 0": "--temperature: must be above 0",
    "leave_out measure a.json --out nodir/c.json": "--out: cannot be written: nodir",
}


@pytest.mark.parametrize(("command", "message"), REFUSED.items(), ids=REFUSED.keys())
def test_an_option_that_cannot_be_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    message: str,
) -> None:
    assert ended(monkeypatch, command) == "2"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_may_not_be_written_is_said_before_anything_is_computed(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may write everywhere, perhaps."""
    asked: list[Path] = []
    path = tmp_path / ("own.jsonl" if there else "f.json")
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path))
    with pytest.raises(ArgumentTypeError, match="cannot be written: it is not allowed"):
        options.file_to_write(str(path))
    assert asked == [path if there else tmp_path]


def test_the_run_that_is_resumed_may_be_in_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    text = ended(monkeypatch, f"{TRAIN} --out old --resume empty/../old/checkpoint.pt")
    assert text.startswith("train.py: b.gguf: not a readable")


@pytest.mark.parametrize(
    "error", [InputError("file"), CaseError("file"), EngineError("file"), OSError("file")]
)
def test_what_is_wrong_with_the_input_is_said(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(sys, "argv", ["build/finetune/train.py"])
    with pytest.raises(SystemExit, match=r"^train\.py: file$"):
        run(raising(error))


def test_an_interruption_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["build/finetune/train.py"])
    with pytest.raises(SystemExit) as end:
        run(raising(KeyboardInterrupt("--resume run/checkpoint.pt goes on")))
    assert end.value.code == 130
    said = capsys.readouterr().err
    assert said == "train.py: interrupted; --resume run/checkpoint.pt goes on\n"


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError, ZeroDivisionError])
def test_a_defect_keeps_its_traceback(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="inside"):
        run(raising(kind("inside")))


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def test_a_checkpoint_that_is_none_is_named(tmp_path: Path) -> None:
    encoders = tmp_path / "encoder.pt"
    torch.save({"model": {}, "averaged": {}}, encoders)
    for path in (tmp_path / "own.jsonl", tmp_path / "old" / "checkpoint.pt"):
        with pytest.raises(InputError, match=r"checkpoint\.pt|own\.jsonl: not a checkpoint"):
            read_checkpoint(path)
    assert read_checkpoint(encoders, "averaged")["averaged"] == {}
    with pytest.raises(InputError, match=r"encoder\.pt: not a checkpoint\.pt .* no 'average'"):
        read_checkpoint(encoders, "average")
    with pytest.raises(OSError, match=r"nosuch\.pt"):
        read_checkpoint(tmp_path / "nosuch.pt")


@pytest.mark.parametrize("weights", [{}, {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}])
def test_weights_of_another_model_are_refused(weights: dict[str, Any], tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    load_weights(model, model.state_dict(), tmp_path / "own.pt")
    with pytest.raises(InputError, match=r"other\.pt: has the weights of another model"):
        load_weights(model, weights, tmp_path / "other.pt")


def test_family_weights_name_their_family() -> None:
    assert options.family_weight("written=0.45") == ("written", 0.45)
    with pytest.raises(ArgumentTypeError):
        options.family_weight("written=-1")


@pytest.mark.parametrize("name", ["--cases", "--written", "--other-policies"])
def test_files_of_an_option_given_twice_are_all_read(name: str) -> None:
    parser = ArgumentParser()
    options.add_data_options(parser)
    given = parser.parse_args([name, "a", "b", name, "c", "--out", "run"])
    assert vars(given)[name[2:].replace("-", "_")] == [Path("a"), Path("b"), Path("c")]


def test_a_record_is_written_where_git_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    written = record.begin_record(tmp_path, {"device": "cpu"})
    assert json.loads(written.read_text())["revision"] == ""


def test_an_interrupted_run_is_recorded_too_and_another_with_what_it_came_to(
    tmp_path: Path,
) -> None:
    path = record.begin_record(tmp_path, {"device": "cpu"})
    begun = json.loads(path.read_text())
    assert (begun["command"], begun["device"]) == (sys.argv, "cpu")
    assert "finished" not in begun
    (tmp_path / "progress.json").write_text('{"step": 7}')
    record.end_record(path, {"held_out": {"cases": 3}})
    ended = json.loads(path.read_text())
    assert ended.pop("finished") >= begun["began"]
    assert ended == {**begun, "progress": {"step": 7}, "held_out": {"cases": 3}}
    assert list(tmp_path.glob("run-*")) == [path]


def test_a_folder_that_takes_no_files_is_said_before_training() -> None:
    with pytest.raises(OSError, match="/proc/run-"):
        record.begin_record(Path("/proc"), {})


def a_delta(path: Path, base_sha256: str) -> None:
    """One vector's change."""
    old, new = {"norm": np.zeros(8, np.float32)}, {"norm": np.ones(8, np.float32)}
    write_delta(path, old, new, 2, base_sha256)


FUSION = {"language_model": 1.0, "encoder": 0.5, "other_bias": 0.0, "temperature": 1.0}


@pytest.mark.parametrize("same", [True, False])
def test_an_adapter_is_said_to_be_of_the_known_base_if_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    shipped = shipped_adapter()
    assert shipped is not None
    facts = open_adapter(shipped).facts
    assert facts.second_opinion is not None
    known = (facts.base, facts.second_opinion.base)
    files = ("adapter.safetensors", "second_opinion.safetensors")
    for name, base in zip(files, known, strict=True):
        a_delta(tmp_path / "empty" / name, base.sha256 if same else "0" * 64)
    (tmp_path / "fusion.json").write_text(json.dumps({"fusion": FUSION, "temperature": 1.5}))
    done(monkeypatch, "export describe --id my-router --fusion fusion.json --out empty")
    described = open_adapter(tmp_path / "empty").facts
    assert described.second_opinion is not None
    found = (described.base, described.second_opinion.base)
    assert found == (known if same else (BaseFacts("", "0" * 64), BaseFacts("", "0" * 64)))
    assert described.temperature == {"openvino": 1.5}


def test_a_base_has_the_name_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_delta(tmp_path / "empty" / "adapter.safetensors", "0" * 64)
    done(monkeypatch, "export describe --id mine --base-name ours --base-licence MIT --out empty")
    assert open_adapter(tmp_path / "empty").facts.base == BaseFacts("ours", "0" * 64, "MIT")


DESCRIBE = "export describe --out empty"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{DESCRIBE} --id My_Router", "My_Router"),
        (f"{DESCRIBE} --id mine --fusion own.jsonl", "own.jsonl: not what fit_fusion.py writes"),
        (f"{DESCRIBE} --id mine --fusion text.gguf", "text.gguf: not an object in JSON"),
    ],
)
def test_an_adapter_that_cannot_be_described_has_no_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    a_delta(tmp_path / "empty" / "adapter.safetensors", "0" * 64)
    assert message in ended(monkeypatch, command)
    assert not (tmp_path / "empty" / "adapter.json").exists()


def an_opinion(right: int) -> Opinions:
    row = np.log(np.where(np.arange(2) == right, 0.8, 0.2))
    return Opinions("own", row, row, np.arange(2) == right)


def test_a_fusion_is_shown_where_it_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fit_fusion = import_module("fit_fusion")
    (case,) = read_cases(tmp_path / "own.jsonl")
    scored = [Scored(case, "orders", np.array([0.8, 0.2]))]
    monkeypatch.setattr(fit_fusion, "_language_model", lambda *_: scored)
    monkeypatch.setattr(fit_fusion, "_opinions", lambda *_: {case.id: an_opinion(0)})
    assert ended(monkeypatch, f"{FIT} --out /dev/full").startswith("fit_fusion.py: [Errno 28]")
    assert json.loads(capsys.readouterr().out)["cases"] == 1


def test_what_was_left_out_is_shown_where_it_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        opinions = replace(an_opinion(0), family=name)
        group = Group((name,), (LeftOut("1", False, opinions),))
        (tmp_path / f"{name}.json").write_text(json.dumps(group_to_json(group)))
    text = ended(monkeypatch, "leave_out measure a.json b.json --out /dev/full")
    assert text.startswith("leave_out.py: [Errno 28]")
    assert "without a" in capsys.readouterr().out


def test_two_cases_with_one_id_are_not_fitted_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty" / "own.jsonl").write_text(json.dumps(CASE) + "\n")
    text = ended(monkeypatch, f"{FIT} --out f.json --also empty")
    assert text.startswith("fit_fusion.py: several cases have the id 'own.jsonl:1';")
