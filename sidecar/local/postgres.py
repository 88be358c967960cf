"""Runs a real PostgreSQL from its wheel, on this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from sidecar.local.cache import exclusive, new_folder
from sidecar.local.errors import LocalError
from sidecar.local.ports import free_ports
from sidecar.local.process import ChildProcess
from sidecar.local.tools import tool

_HOST = "127.0.0.1"
_READY_S = 120.0
_STOP_S = 10.0
_USER = "nobody"
"""Whom it runs as where the tests run as root, which PostgreSQL refuses."""


class PostgresServer:
    """One PostgreSQL with an empty database `policies`; it keeps its data and port over restarts.

    Use as a context manager, from the main thread.

    Args:
        options: settings of the server, `name=value`.
    """

    def __init__(self, options: Sequence[str] = ()) -> None:
        self._options = tuple(options)
        self._port = free_ports(1)[0]
        self._folder: Path | None = None
        self._process: ChildProcess | None = None

    @property
    def url(self) -> str:
        """`postgresql://…` of the database."""
        return f"postgresql://policies@{_HOST}:{self._port}/policies"

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> None:
        """Make the database and start the server.

        Raises:
            LocalError: it cannot run here, or did not start; with its last log lines.
        """
        # Not in the user's cache, which another user could not read.
        self._folder = Path(tempfile.mkdtemp(prefix=f"postgres-{os.getpid()}-"))
        try:
            _own(self._folder)
            self._initialise()
            self.spawn()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise

    def spawn(self) -> None:
        """Start the server on its data and return at once."""
        command = [*_as_user(), str(_program("postgres")), "-D", str(self._data)]
        settings = (
            f"listen_addresses={_HOST}",
            f"port={self._port}",
            f"unix_socket_directories={self._folder}",
            "shared_buffers=16MB",
            # What a killed server wrote is still in the kernel's memory; only a power failure would
            # lose it, and nothing here is meant to outlive the machine.
            "fsync=off",
            "max_connections=80",
            *self._options,
        )
        for setting in settings:
            command += ["-c", setting]
        assert self._folder is not None
        self._process = ChildProcess(command, _environment(), self._folder / "postgres.log")

    def wait_ready(self) -> None:
        """Wait until it takes connections. Raises LocalError."""
        process = self._running()
        end = time.monotonic() + _READY_S
        while not self._answers():
            if (code := process.exit_code()) is not None:
                raise LocalError(f"PostgreSQL ended with code {code}:\n{process.last_lines(15)}")
            if time.monotonic() > end:
                raise LocalError(
                    f"PostgreSQL was not ready within {_READY_S:g} s:\n{process.last_lines(15)}"
                )
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it and all its processes at once, as a crash of the machine would."""
        self._running().kill()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers. `resume` ends it."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def restart(self) -> None:
        """Start again on the same data, after `kill` or while it runs."""
        self._running().signal(signal.SIGCONT)
        self._running().terminate(_STOP_S)
        self.spawn()
        self.wait_ready()

    def stop(self) -> None:
        """Stop it and remove all that it left."""
        if self._process is not None:
            self._signal_all(signal.SIGCONT)
            # SIGQUIT: at once, since its data goes with it.
            self._process.signal(signal.SIGQUIT)
            self._process.wait(_STOP_S)
            self._process.kill()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

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

    @property
    def _data(self) -> Path:
        assert self._folder is not None, "started"
        return self._folder / "data"

    def _running(self) -> ChildProcess:
        if self._process is None:
            raise LocalError("PostgreSQL has not been started")
        return self._process

    def _signal_all(self, number: int) -> None:
        # Each of its processes leads a session of its own, so a group would be the first alone.
        for pid in _family(self._running().pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _initialise(self) -> None:
        command = [*_as_user(), str(_program("initdb")), "-D", str(self._data)]
        command += ["-U", "policies", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run(command)
        command = [*_as_user(), str(_program("postgres")), "--single", "-D", str(self._data)]
        self._run([*command, "template1"], "CREATE DATABASE policies\n")

    def _run(self, command: list[str], given: str = "") -> None:
        ran = subprocess.run(  # noqa: S603
            command,
            input=given,
            env=_environment(),
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode != 0:
            raise LocalError(f"{command[-1]} failed:\n{ran.stderr[-1000:]}")

    def _answers(self) -> bool:
        # A connection is accepted before the server is ready; only then does it speak.
        try:
            with socket.create_connection((_HOST, self._port), timeout=1) as connection:
                user = b"user\0policies\0database\0policies\0\0"
                body = (196608).to_bytes(4, "big") + user
                connection.sendall((len(body) + 4).to_bytes(4, "big") + body)
                return connection.recv(1) == b"R"
        except OSError:
            return False


def _program(name: str) -> Path:
    """The program, where the user that runs it can read it."""
    program = tool(name)
    if os.geteuid() != 0:
        return program
    install = program.parents[1]
    version = install.parents[1].name
    copied = Path(tempfile.gettempdir()) / f"llm-routing-sidecar-{version}"
    with exclusive(copied.name):
        if not copied.exists():
            with new_folder(copied) as fresh:
                # The libraries lie beside the package in the wheel.
                package = install.parent
                libraries = package.parent / f"{package.name}.libs"
                shutil.copytree(package, fresh / package.name, symlinks=True)
                shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
    return copied / program.relative_to(install.parents[1])


def _as_user() -> list[str]:
    if os.geteuid() != 0:
        return []
    known = pwd.getpwnam(_USER)
    drop = (
        "import ctypes, os, sys; os.setgroups([]); "
        f"os.setgid({known.pw_gid}); os.setuid({known.pw_uid}); "
        # Another user forgets that it was to end with its parent (prctl(2), PR_SET_PDEATHSIG).
        f"ctypes.CDLL(None).prctl(1, {signal.SIGQUIT.value}); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-S", "-E", "-c", drop]


def _own(folder: Path) -> None:
    if os.geteuid() == 0:
        known = pwd.getpwnam(_USER)
        os.chown(folder, known.pw_uid, known.pw_gid)


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _family(pid: int) -> list[int]:
    """The process and its children."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [pid, *map(int, listed.read_text().split())]
    except OSError:
        return [pid]
