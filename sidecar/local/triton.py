"""Runs a real Triton Inference Server from its wheel, with the Python backend, on this machine."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self

from sidecar.local import preflight
from sidecar.local.errors import LocalError
from sidecar.local.ports import free_ports
from sidecar.local.process import ChildProcess, children, is_alive
from sidecar.local.run_folders import (
    new_run_folder,
    remove_left_run_folders,
    remove_run_folder,
)
from sidecar.local.stub_environment import stub_environment
from sidecar.local.tools import Report, unpacked

_HOST = "127.0.0.1"
_SHM = Path("/dev/shm")  # noqa: S108
_SHM_PREFIX = "llm_routing_sidecar"
_PORT_TRIES = 3
_UTILS_FOR_NUMPY2 = Path(__file__).with_name("backend_utils_numpy2.py")
_OWNER = re.compile(r"_(\d+)_")
# Notes, tables wider than a screen, and complaints about the absent GPU.
_CHATTER = re.compile(r"I\d{4} |[|+]|.*(pinned_memory_manager|CudaDriverHelper)")
_numbers = itertools.count(1)


class TritonServer:
    """One tritonserver process with the models of one repository.

    Use as a context manager, plain or `async`; the ports stay the same over restarts.

    Args:
        model_repository: folder in Triton's layout.
        environment: added to the server's environment variables.
        arguments: further options of tritonserver.
        ready_timeout_s: seconds for loading all models.
        exit_timeout_s: whole seconds that running requests get when it stops.
    """

    def __init__(
        self,
        model_repository: Path,
        *,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        ready_timeout_s: float = 120,
        exit_timeout_s: int = 5,
        report: Report | None = None,
    ) -> None:
        self._repository = Path(model_repository).resolve()
        self._extra_environment = dict(environment or {})
        self._arguments = tuple(arguments)
        self._ready_timeout_s = ready_timeout_s
        self._exit_timeout_s = exit_timeout_s
        self._report = report or (lambda line: None)
        self._ports = free_ports(3)
        self._process: ChildProcess | None = None
        self._folder: Path | None = None
        self._stubs: set[int] = set()
        self._shm_prefix = f"{_SHM_PREFIX}_{os.getpid()}_{next(_numbers)}_"
        self._abandoned = threading.Event()

    @property
    def grpc_address(self) -> str:
        """`host:port` of the gRPC inference API."""
        return f"{_HOST}:{self._ports[0]}"

    @property
    def http_address(self) -> str:
        """`host:port` of the HTTP inference API."""
        return f"{_HOST}:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        return f"http://{_HOST}:{self._ports[2]}/metrics"

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def log(self) -> Path:
        """The server's output; removed by `stop`."""
        log = self._running().log
        assert log is not None, "given when it was started"
        return log

    def last_log_lines(self, count: int = 15) -> str:
        """The end of what went wrong, as far as the log tells."""
        return self._running().last_lines(count, tells=_tells)

    def exit_code(self) -> int | None:
        """None while it runs; negative: killed by that signal."""
        return self._running().exit_code()

    def start(self) -> None:
        """Start the server and wait until all its models are ready. Call from the main thread.

        Raises:
            LocalError: the machine lacks something, or the server died or was too slow; with its
                last log lines.
        """
        for attempt in range(_PORT_TRIES):
            self.spawn()
            try:
                self.wait_ready()
            except LocalError:
                taken = "already in use" in self.log.read_text(errors="replace")
                self.stop()
                if not taken or attempt == _PORT_TRIES - 1:
                    raise
                self._ports = free_ports(3)  # somebody was faster
            except BaseException:
                self.stop()
                raise
            else:
                return

    async def start_async(self) -> None:
        """As `start`, without blocking the event loop while waiting."""
        await asyncio.to_thread(self.prepare)
        # Not in a thread: the server is asked to end when the thread that started it ends.
        self.spawn()
        try:
            await asyncio.to_thread(self.wait_ready)
        except BaseException:
            self._abandoned.set()
            self.stop()
            raise

    def prepare(self) -> None:
        """Check the machine and fetch what is not in the cache yet; may take a minute.

        Raises:
            LocalError: the machine lacks something, or it cannot be fetched.
        """
        preflight.require()
        unpacked("nvidia-pytriton", self._report)
        stub_environment(self._report)

    def spawn(self) -> None:
        """Start the server and return at once; prepares first what is not prepared yet."""
        self.prepare()
        wheel, environment = unpacked("nvidia-pytriton"), stub_environment()
        remove_leftovers()
        if self._folder is None:
            self._folder = new_run_folder("triton")
            _link_backend(wheel, self._folder)
        self._abandoned.clear()
        self._process = ChildProcess(
            self._command(wheel), self._environment(environment), self._folder / "triton.log"
        )

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the server and all its models are ready. Raises LocalError as `start`."""
        timeout_s = timeout_s or self._ready_timeout_s
        process = self._running()
        end = time.monotonic() + timeout_s
        while not self.is_ready():
            code = process.exit_code()
            if code is not None:
                raise LocalError(f"Triton ended with code {code}:\n{self.last_log_lines()}")
            if self._abandoned.is_set():
                raise LocalError("Triton was stopped while it started")
            if time.monotonic() > end:
                raise LocalError(
                    f"Triton was not ready within {timeout_s:g} s:\n{self.last_log_lines()}"
                )
            time.sleep(0.05)
        # Those that looked for a model's settings have ended; each that is left runs a model.
        self._stubs = children(process.pid)

    def models_alive(self) -> bool:
        """True if the processes ("stubs") of all models that `wait_ready` saw ready still run.

        Triton neither starts a dead one again nor tells: it stays ready, and every inference is
        an error ("Stub process … is not healthy").
        """
        return bool(self._stubs) and all(is_alive(stub, self.pid) for stub in self._stubs)

    def is_ready(self, timeout_s: float = 1.0) -> bool:
        """True if the server answers that it and all its models are ready; see `models_alive`
        for those whose process has died since."""
        # Not urllib, which would ask the proxy that http_proxy names.
        connection = HTTPConnection(self.http_address, timeout=timeout_s)
        with closing(connection):
            try:
                connection.request("GET", "/v2/health/ready")
                return connection.getresponse().status == 200
            except (OSError, HTTPException):
                return False

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        self._running().signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it and its models at once, as a crash would. `restart` brings it back."""
        self._running().kill()
        _remove_shm(self._shm_prefix)

    def restart(self) -> None:
        """Start again on the same ports, after `kill` or while it runs, and wait until ready."""
        self._running().terminate(self._exit_timeout_s + 3)
        _remove_shm(self._shm_prefix)
        self.spawn()
        self.wait_ready()

    def stop(self) -> None:
        """Stop it and remove all that it left; does nothing if it is stopped."""
        self._abandoned.set()
        if self._process is not None:
            self._process.terminate(self._exit_timeout_s + 3)
            self._process = None
        _remove_shm(self._shm_prefix)
        if self._folder is not None:
            remove_run_folder(self._folder)
            self._folder = None

    def abandon(self) -> None:
        """As `stop`, at once: for those who cannot wait."""
        if self._process is not None:
            self._process.kill()
        self.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await self.start_async()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _running(self) -> ChildProcess:
        if self._process is None:
            raise LocalError("Triton has not been started")
        return self._process

    def _command(self, wheel: Path) -> list[str]:
        assert self._folder is not None
        grpc_port, http_port, metrics_port = map(str, self._ports)
        return [
            str(wheel / "pytriton/tritonserver/bin/tritonserver"),
            f"--model-repository={self._repository}",
            f"--backend-directory={self._folder / 'backends'}",
            f"--grpc-address={_HOST}",
            f"--grpc-port={grpc_port}",
            f"--http-address={_HOST}",
            f"--http-port={http_port}",
            f"--metrics-address={_HOST}",
            f"--metrics-port={metrics_port}",
            "--allow-gpu-metrics=false",
            "--pinned-memory-pool-byte-size=0",
            f"--exit-timeout-secs={self._exit_timeout_s}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            *self._arguments,
        ]

    def _environment(self, stub: Path) -> dict[str, str]:
        assert self._folder is not None
        environment = {
            name: value
            for name, value in os.environ.items()
            # Those that would lead the stub to other packages than its environment's.
            if not name.startswith("PYTHON") and name != "VIRTUAL_ENV"
        }
        environment["PATH"] = f"{stub / 'bin'}{os.pathsep}{environment.get('PATH', '')}"
        environment["LD_LIBRARY_PATH"] = str(self._folder / "lib")
        environment["PYTHONNOUSERSITE"] = "1"
        return environment | self._extra_environment


def _tells(line: str) -> bool:
    """False for what Triton writes however it ends."""
    return bool(line.strip()) and not _CHATTER.match(line)


def remove_leftovers() -> None:
    """Remove run folders and shared memory of processes that were killed."""
    remove_left_run_folders()
    for path in _SHM.glob(f"{_SHM_PREFIX}_*"):
        owner = _OWNER.search(path.name)
        if owner is not None and not Path("/proc", owner[1]).exists():
            path.unlink(missing_ok=True)


def _remove_shm(prefix: str) -> None:
    for path in _SHM.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def _link_backend(wheel: Path, folder: Path) -> None:
    """Lay out what tritonserver expects: the stub beside the backend, libpython findable."""
    triton = wheel / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    stub = triton / f"python_backend_stubs/{version}/triton_python_backend_stub"
    utils = triton / "backends/python/triton_python_backend_utils.py"
    links = {
        "libtriton_python.so": triton / "backends/python/libtriton_python.so",
        "triton_python_backend_stub": stub,
        "triton_python_backend_utils.py": utils,
    }
    if sys.version_info >= (3, 13):
        links["triton_python_backend_utils.py"] = _UTILS_FOR_NUMPY2
        links["triton_python_backend_utils_original.py"] = utils
    for name, target in links.items():
        (backend / name).symlink_to(target)
    libraries = folder / "lib"
    libraries.mkdir()
    libpython = preflight.find_libpython()
    if libpython is not None:
        # A folder with this one library: the interpreter's own may hold others that Triton would
        # load instead of its own.
        (libraries / f"libpython{version}.so.1.0").symlink_to(libpython)
