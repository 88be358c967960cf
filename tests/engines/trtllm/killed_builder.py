"""A builder that is killed at a step, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from sidecar.engines.trtllm import BuildRequest, Toolchain, Verdict, build, stages
from sidecar.engines.trtllm.artifacts import publish
from sidecar.engines.trtllm.build import Verification
from sidecar.engines.trtllm.stages import Report

PUBLICATION = "publication"
GOOD = Verdict(200, 0.9, 0.9, 200, (), 3.0, 5.0)


def verify(engine: Path, repository: Path, work: Path, report: Report) -> Verification:
    return Verification(GOOD)


def kill_at(step: str, program: str, request: BuildRequest, tools: Toolchain, told: Path) -> int:
    """Run a builder until it is killed: half way through `program`, where the step has one, else
    when the step has written everything and it is not in the record yet.

    Args:
        told: file that gets a line for each line of progress.

    Returns:
        how it ended, as `subprocess` has it.
    """
    # Forked from a process that has the imports and no threads: to start one anew would take longer
    # than the build.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    names = ("PATH", "FAKE_GPU", "FAKE_NVIDIA_LOG")
    environment = {name: os.environ[name] for name in names} | {"FAKE_NVIDIA_KILL": program}
    process = context.Process(target=_build, args=(step, request, tools, told, environment))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _build(
    step: str,
    request: BuildRequest,
    tools: Toolchain,
    told: Path,
    environment: Mapping[str, str],
) -> None:
    os.environ.update(environment)
    record = stages._write

    def die_unrecorded(file: Path, done: Mapping[str, object]) -> None:
        if [*done][-1] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        record(file, done)

    def die_unpublished(*arguments: object) -> None:
        publish(*arguments)  # type: ignore[arg-type]
        if step == PUBLICATION:
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(line: str) -> None:
        with told.open("a") as file:
            file.write(f"{line}\n")

    with (
        mock.patch.object(stages, "_write", die_unrecorded),
        mock.patch.object(build, "publish", die_unpublished),
    ):
        build.build_trtllm_engine(request, tools, verify=verify, progress=tell)
