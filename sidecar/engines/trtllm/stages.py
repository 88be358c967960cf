"""Stages that are done once: a build that was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sidecar.engines.errors import EngineError
from sidecar.engines.trtllm.commands import Command
from sidecar.engines.trtllm.preflight import program_environment

Report = Callable[[str], None]

_LAST_LINES = 15
_SHOWN_CHARS = 160
_REPORT_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a build.

    Args:
        made_from: what the outcome is a function of, beside the stages before it.
        folder: what it fills; emptied before it runs.
        produces: files that it must have written.
        run: does the work; raises EngineError.
    """

    name: str
    made_from: str
    folder: Path
    produces: tuple[Path, ...]
    run: Callable[[Report], None]


def run_stages(stages: Sequence[Stage], record: Path, report: Report) -> None:
    """Run those that are not done yet, in order.

    A stage is done if `record` says so for the same inputs and its files still have their sizes.
    One that was interrupted is not in the record, and its folder is filled anew.

    Raises:
        EngineError: a stage failed; those before it stay done.
    """
    done: dict[str, Mapping[str, object]] = _read(record)
    chain = ""
    for stage in stages:
        chain = hashlib.sha256(f"{chain}\n{stage.name}\n{stage.made_from}".encode()).hexdigest()
        if done.get(stage.name) == _entry(chain, stage.produces):
            report(f"{stage.name}: done before")
            continue
        report(stage.name)
        shutil.rmtree(stage.folder, ignore_errors=True)
        stage.folder.mkdir(parents=True)
        stage.run(partial(_report_as, stage.name, report))
        missing = [str(file) for file in stage.produces if not file.is_file()]
        if missing:
            raise EngineError(f"{stage.name} ended well and did not write {', '.join(missing)}")
        done[stage.name] = _entry(chain, stage.produces)
        _write(record, done)


def _report_as(name: str, report: Report, line: str) -> None:
    report(f"{name}: {line}")


def run_command(command: Command, log: Path, report: Report) -> None:
    """Run one of NVIDIA's programs; its output goes to `log`, its last line to `report`.

    Raises:
        EngineError: it could not be started or failed; with its last lines.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        file.write(f"{command}\n")
        file.flush()
        try:
            process = subprocess.Popen(  # noqa: S603 - NVIDIA's programs, no shell
                command.argv,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=program_environment(),
                cwd=log.parent,
            )
        except OSError as error:
            raise EngineError(f"{command.argv[0]}: cannot be started: {error}") from None
        with process:
            code = _follow(process, file.write, report)
    if code != 0:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[1:][-_LAST_LINES:])
        raise EngineError(f"{command}\nended with {_how(code)}; all of its output: {log}\n{tail}")


def _follow(process: subprocess.Popen[str], keep: Callable[[str], object], report: Report) -> int:
    reported = 0.0
    try:
        assert process.stdout is not None
        for line in process.stdout:
            keep(line)
            if line.strip() and time.monotonic() - reported > _REPORT_EVERY_S:
                report(line.strip()[:_SHOWN_CHARS])
                reported = time.monotonic()
        return process.wait()
    except BaseException:
        # Ctrl-C: a builder that goes on alone would fill the disk and hold the GPU.
        process.kill()
        raise


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _entry(chain: str, files: Sequence[Path]) -> Mapping[str, object]:
    sizes = {file.name: file.stat().st_size if file.is_file() else -1 for file in files}
    return {"made_from": chain, "files": sizes}


def _read(record: Path) -> dict[str, Mapping[str, object]]:
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write(record: Path, done: Mapping[str, object]) -> None:
    beside = record.with_name(f".{record.name}.new")
    beside.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, record)
