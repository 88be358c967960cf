"""What the machine has, and whether that is enough, before anything takes its time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.engines.errors import EngineError
from sidecar.engines.trtllm.precision import Precision
from sidecar.engines.trtllm.sizing import Sizes
from sidecar.engines.trtllm.toolchain import (
    IMAGE,
    TENSORRT_VERSION,
    TRTLLM_LINE,
    TRTLLM_VERSION,
    Toolchain,
)

_MIB = 1 << 20
_ASK_VERSIONS = (
    "from importlib.metadata import version; print(version('tensorrt_llm'), version('tensorrt'))"
)
"""Of the installed packages: importing them takes ten seconds and needs the GPU."""
_ASK_GPU = (
    "--query-gpu=name,compute_cap,driver_version,memory.total,memory.free",
    "--format=csv,noheader,nounits",
)
_TIMEOUT_S = 60
_TESTED_DRIVER = 590

_NOTICES = {
    "arch-router": "Arch-Router's weights are under the katanemo-research licence. Read it before "
    "you serve or pass on an engine made from them: an engine holds the weights.",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """The versions and the GPU that an engine is tied to.

    Args:
        compute_capability: e.g. `8.9`; an engine runs on this generation alone.
        memory_total, memory_free: of the GPU, in MiB.
    """

    trtllm_version: str
    tensorrt_version: str
    gpu: str
    compute_capability: str
    driver: str
    memory_total: int
    memory_free: int


def inspect_machine(tools: Toolchain) -> Machine:
    """Raises EngineError if this is not NVIDIA's container, or it has no GPU."""
    answer = _ask(
        (tools.python, "-c", _ASK_VERSIONS),
        f"TensorRT-LLM is not installed for {tools.python}; run this inside {IMAGE} "
        "(build/trtllm/README.md)",
    )
    trtllm, _, tensorrt = answer.partition(" ")
    gpus = _ask(
        (tools.nvidia_smi, *_ASK_GPU),
        "no GPU was found; give the container one, e.g. docker run --gpus all",
    ).splitlines()
    if not tensorrt or not gpus:
        raise EngineError(f"the versions of TensorRT-LLM are not readable: {answer!r}")
    # The first one that is visible is the one that NVIDIA's programs take.
    fields = [field.strip() for field in gpus[0].split(",")]
    try:
        gpu, capability, driver, total, free = fields
        return Machine(trtllm, tensorrt, gpu, capability, driver, int(total), int(free))
    except ValueError:
        raise EngineError(f"nvidia-smi answered {gpus[0]!r}, which is not understood") from None


def check_machine(
    machine: Machine, precision: Precision, sizes: Sizes, work: Path, *, force: bool = False
) -> list[str]:
    """Warnings.

    Args:
        work: the folder that will be filled; it or its parent exists.
        force: other versions of TensorRT-LLM 1.2 are a warning.

    Raises:
        EngineError: with every problem.
    """
    problems = [*_version_problems(machine, force), *_gpu_problems(machine, precision, sizes)]
    folder = next(each for each in (work, *work.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if free < sizes.disk:
        problems.append(f"{folder}: {free // _MIB} MiB are free, {sizes.disk // _MIB} are needed")
    if problems:
        raise EngineError("\n".join(problems))
    return list(_warnings(machine, precision))


def check_tools(tools: Toolchain, scripts: tuple[Path, ...]) -> None:
    """Raises EngineError if one of NVIDIA's programs is not there."""
    missing = [str(script) for script in scripts if not script.is_file()]
    if shutil.which(tools.trtllm_build) is None:
        missing.append(tools.trtllm_build)
    if missing:
        raise EngineError(
            f"{', '.join(missing)}: missing; {IMAGE} has them (scripts below --examples)"
        )


def licence_notice(source: Path) -> str:
    """What to know about the licence of the weights; empty where nothing is known."""
    name = source.resolve().name.lower()
    return next((notice for part, notice in _NOTICES.items() if part in name), "")


def _version_problems(machine: Machine, force: bool) -> Iterator[str]:
    found = machine.trtllm_version
    line = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if line != TRTLLM_LINE or (found != TRTLLM_VERSION and not force):
        yield (
            f"TensorRT-LLM is {found}; engines are built with {TRTLLM_VERSION}, the last release "
            f"that can: use {IMAGE}"
        )
    if not machine.tensorrt_version.startswith(TENSORRT_VERSION) and not force:
        yield f"TensorRT is {machine.tensorrt_version}; TensorRT-LLM {found} is made for " + (
            f"{TENSORRT_VERSION}: use {IMAGE}"
        )


def _gpu_problems(machine: Machine, precision: Precision, sizes: Sizes) -> Iterator[str]:
    needed = precision.facts.min_compute_capability
    if float(machine.compute_capability) < needed:
        yield (
            f"{machine.gpu} has compute capability {machine.compute_capability}; {precision} needs "
            f"{needed} or newer"
        )
    if machine.memory_free * _MIB < sizes.gpu_memory_to_build:
        yield (
            f"{machine.gpu}: {machine.memory_free} MiB of its memory are free, "
            f"{sizes.gpu_memory_to_build // _MIB} are needed to build; stop what else uses it"
        )


def _warnings(machine: Machine, precision: Precision) -> Iterator[str]:
    if precision.facts.experimental:
        yield f"{precision} is experimental: compare its decisions before you serve it"
    major = machine.driver.split(".")[0]
    if major.isdigit() and int(major) < _TESTED_DRIVER:
        yield (
            f"the driver is {machine.driver}; {IMAGE} was made for {_TESTED_DRIVER}, older ones "
            "work on data-centre GPUs by CUDA's forward compatibility"
        )


def _ask(argv: tuple[str, ...], otherwise: str) -> str:
    try:
        finished = subprocess.run(  # noqa: S603 - NVIDIA's programs, no shell
            argv,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
            env=program_environment(),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"{otherwise} ({argv[0]}: {_first_line(error)})") from None
    return finished.stdout.strip()


def program_environment() -> dict[str, str]:
    """The environment without what leads another Python to this one's packages."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def _first_line(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError) and error.stderr.strip():
        return str(error.stderr.strip().splitlines()[-1])
    return str(error).splitlines()[0]
