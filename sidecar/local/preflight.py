"""What this machine must have to run Triton, and what to do about what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sidecar.local.cache import cache_dir
from sidecar.local.errors import LocalError

_OLDEST_GLIBC = (2, 35)
_STUB_PYTHONS = ((3, 11), (3, 12), (3, 13))
# The Triton wheel brings its own libpython for its Python 3.13 stub.
_BUNDLED_LIBPYTHON = (3, 13)
# Measured: the unpacked tools, the stub's environment and the default engine take 1.2 GiB.
_DISK_BYTES_FIRST = 2 * 1024**3
# The engine is built before Triton is fetched, and asked about in between.
_DISK_BYTES_WITH_ENGINE = 3 * 2**29
_DISK_BYTES_LATER = 200 * 1024**2
_MEMORY_BYTES = 1024**3


@dataclass(frozen=True, slots=True)
class Machine:
    """What the checks look at; a plain value, so that every failure can be tested.

    Args:
        libpython: shared library of the running interpreter, if there is one.
        libpython_name: its file name, e.g. `libpython3.11.so.1.0`.
        free_disk: bytes free where the cache is.
        needed_disk: bytes that should be; less once the cache is filled.
        free_memory: bytes available without swapping.
        runs_programs: whether those in the cache can be run.
    """

    system: str
    architecture: str
    glibc: tuple[int, ...]
    python: tuple[int, int]
    libpython: Path | None
    libpython_name: str
    free_disk: int
    needed_disk: int
    free_memory: int
    cache: Path
    runs_programs: bool


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check. `problem` says what is wrong and what to do; empty if all is well."""

    name: str
    found: str
    problem: str = ""


def platform_tag() -> str:
    """This machine as tools.lock names platforms, e.g. `linux-x86_64`."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def this_machine() -> Machine:
    """Looks at the machine that runs this process."""
    cache = cache_dir()
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        glibc=_glibc(),
        python=sys.version_info[:2],
        libpython=find_libpython(),
        libpython_name=_libpython_name(),
        free_disk=shutil.disk_usage(cache).free,
        needed_disk=_needed_disk(cache),
        free_memory=_free_memory(),
        cache=cache,
        runs_programs=not os.statvfs(cache).f_flag & os.ST_NOEXEC,
    )


def _needed_disk(cache: Path) -> int:
    if (cache / "environments").exists():
        return _DISK_BYTES_LATER
    return _DISK_BYTES_WITH_ENGINE if (cache / "engines").exists() else _DISK_BYTES_FIRST


def check(machine: Machine) -> list[Check]:
    """All checks, in the order in which a person would solve them."""
    return [one(machine) for one in _CHECKS]


def require(machine: Machine | None = None) -> Machine:
    """Raises LocalError with every problem of `machine` (default: this one)."""
    machine = machine or this_machine()
    problems = [result.problem for result in check(machine) if result.problem]
    if problems:
        raise LocalError("this machine cannot run Triton: " + " ".join(problems))
    return machine


def find_libpython() -> Path | None:
    """The shared library of the running interpreter, where its build says it is or next to it."""
    name = _libpython_name()
    folders = [sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL")]
    folders += [os.path.join(sys.base_prefix, "lib"), "/usr/lib"]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    for folder in folders:
        if not folder:
            continue
        for candidate in (Path(folder) / name, Path(folder) / str(multiarch) / name):
            if candidate.exists():
                return candidate.resolve()
    return None


def _libpython_name() -> str:
    # INSTSONAME names the static library where the interpreter was built without --enable-shared.
    return f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


def _glibc() -> tuple[int, ...]:
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        return ()  # musl, macOS, …
    return tuple(int(part) for part in text.removeprefix("glibc ").split("."))


def _free_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return sys.maxsize
    values = dict(line.split(":", 1) for line in lines)
    return int(values["MemAvailable"].split()[0]) * 1024


def _check_platform(machine: Machine) -> Check:
    found = f"{machine.system} {machine.architecture}"
    if (machine.system, machine.architecture) == ("Linux", "x86_64"):
        return Check("platform", found)
    return Check(
        "platform",
        found,
        f"It is {found}, and Triton's wheel is for Linux x86_64 only: use such a machine or "
        "container, or point the sidecar at a Triton that runs elsewhere.",
    )


def _check_glibc(machine: Machine) -> Check:
    wanted = ".".join(map(str, _OLDEST_GLIBC))
    found = "glibc " + (".".join(map(str, machine.glibc)) or "not found")
    if machine.glibc >= _OLDEST_GLIBC:
        return Check("C library", found)
    return Check(
        "C library",
        found,
        f"It has {found}, and Triton needs {wanted} or newer: use Debian 12, Ubuntu 22.04, "
        "RHEL 10 or newer.",
    )


def _check_python(machine: Machine) -> Check:
    found = "Python " + ".".join(map(str, machine.python))
    if machine.python in _STUB_PYTHONS:
        return Check("Python", found)
    return Check(
        "Python",
        found,
        f"This is {found}, and Triton's wheel has what it needs for 3.11, 3.12 and 3.13 only: "
        "run `make clean setup PYTHON=python3.12`.",
    )


def check_libpython(machine: Machine) -> Check:
    """The library that Triton's stub, which embeds Python, loads."""
    if machine.python == _BUNDLED_LIBPYTHON:
        return Check("libpython", "comes with Triton")
    if machine.libpython is not None:
        return Check("libpython", str(machine.libpython))
    version = ".".join(map(str, machine.python))
    return Check(
        "libpython",
        f"no {machine.libpython_name}",
        f"The shared library {machine.libpython_name} of this Python is missing: on Debian or "
        f"Ubuntu run `apt-get install libpython{version}`; a Python that you build needs "
        f"`--enable-shared` (with pyenv: `PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install "
        f"{version}`).",
    )


def _check_disk(machine: Machine) -> Check:
    found = f"{machine.free_disk / 1024**3:.1f} GiB free in {machine.cache}"
    if machine.free_disk >= machine.needed_disk:
        return Check("disk", found)
    return Check(
        "disk",
        found,
        f"There is {found}, and {machine.needed_disk / 1024**3:.1f} GiB are needed: make room, "
        "or set LLM_ROUTING_SIDECAR_CACHE to a folder on another disk.",
    )


def _check_noexec(machine: Machine) -> Check:
    if machine.runs_programs:
        return Check("programs", f"run in {machine.cache}")
    return Check(
        "programs",
        f"do not run in {machine.cache}",
        f"No program can be run from {machine.cache}, whose file system is mounted `noexec`: set "
        "LLM_ROUTING_SIDECAR_CACHE to a folder on another one.",
    )


def _check_memory(machine: Machine) -> Check:
    found = f"{machine.free_memory / 1024**3:.1f} GiB available"
    if machine.free_memory >= _MEMORY_BYTES:
        return Check("memory", found)
    return Check(
        "memory",
        found,
        f"There is {found} of memory, and {_MEMORY_BYTES / 1024**3:.1f} GiB are needed: close "
        "other programs or use a larger machine.",
    )


_CHECKS: tuple[Callable[[Machine], Check], ...] = (
    _check_platform,
    _check_glibc,
    _check_python,
    check_libpython,
    _check_disk,
    _check_noexec,
    _check_memory,
)
