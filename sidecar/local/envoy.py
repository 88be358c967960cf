"""Runs a real Envoy from its wheel on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self

from sidecar.local.errors import LocalError
from sidecar.local.ports import free_ports
from sidecar.local.process import ChildProcess
from sidecar.local.run_folders import new_run_folder, remove_run_folder
from sidecar.local.tools import Report, tool

_HOST = "127.0.0.1"


class EnvoyServer:
    """One Envoy process.

    Use as a context manager, plain or `async`; the admin port stays the same over restarts.

    Args:
        config: the whole configuration as YAML or JSON. Its `admin` section is replaced, so that
            nothing but this machine reaches it.
        concurrency: worker threads.
        log_level: as Envoy's `-l`; `ext_proc:debug` and the like as Envoy's component log level.
        exit_timeout_s: how long it may take to stop.
    """

    def __init__(
        self,
        config: str,
        *,
        concurrency: int = 1,
        log_level: str = "warning",
        ready_timeout_s: float = 60,
        exit_timeout_s: float = 5,
        report: Report | None = None,
    ) -> None:
        self._config = config
        self._concurrency = concurrency
        self._log_level = log_level
        self._ready_timeout_s = ready_timeout_s
        self._exit_timeout_s = exit_timeout_s
        self._report = report
        self._admin_port = free_ports(1)[0]
        self._process: ChildProcess | None = None
        self._folder: Path | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def log(self) -> Path:
        """Its output, access log included; removed by `stop`."""
        log = self._running().log
        assert log is not None, "given when it was started"
        return log

    def last_log_lines(self, count: int = 15) -> str:
        return self._running().last_lines(count)

    def exit_code(self) -> int | None:
        """None while it runs; negative: killed by that signal."""
        return self._running().exit_code()

    def start(self) -> None:
        """Start it and wait until it listens. Call from the main thread.

        Raises:
            LocalError: it cannot be fetched or refuses the configuration, with its last log lines,
                or was too slow.
        """
        self.spawn()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise

    async def start_async(self) -> None:
        """As `start`, without blocking the event loop: what Envoy's health checks ask may run in
        it, and Envoy opens its listeners only after the first of them."""
        await asyncio.to_thread(tool, "envoy", self._report)
        # Not in a thread: the program is asked to end when the thread that started it ends.
        self.spawn()
        try:
            await asyncio.to_thread(self.wait_ready)
        except BaseException:
            self.stop()
            raise

    def spawn(self) -> None:
        """Start it and return at once."""
        program = tool("envoy", self._report)
        if self._folder is None:
            self._folder = new_run_folder("envoy")
        config = self._folder / "envoy.yaml"
        config.write_text(self._config, encoding="utf-8")
        self._process = ChildProcess(
            self._command(program, config), os.environ, self._folder / "envoy.log"
        )

    def _command(self, program: Path, config: Path) -> list[str]:
        admin = f"{{address: {{socket_address: {{address: {_HOST}, port_value: "
        admin += f"{self._admin_port}}}}}}}"
        return [
            str(program),
            "--config-path",
            str(config),
            # Merged over the file.
            "--config-yaml",
            f"admin: {admin}",
            "--concurrency",
            str(self._concurrency),
            # Shares memory with every other Envoy of this machine otherwise.
            "--disable-hot-restart",
            # Of access logs; somebody is looking at them.
            "--file-flush-interval-msec",
            "250",
            *self._log_options(),
        ]

    def _log_options(self) -> list[str]:
        if ":" in self._log_level:
            return ["--log-level", "warning", "--component-log-level", self._log_level]
        return ["--log-level", self._log_level]

    def wait_ready(self) -> None:
        """Wait until all listeners are open. Raises LocalError."""
        end = time.monotonic() + self._ready_timeout_s
        while not self.is_ready():
            if (code := self.exit_code()) is not None:
                raise LocalError(f"Envoy ended with code {code}:\n{self.last_log_lines()}")
            if time.monotonic() > end:
                raise LocalError(
                    f"Envoy was not ready within {self._ready_timeout_s:g} s:\n"
                    f"{self.last_log_lines()}"
                )
            time.sleep(0.02)

    def is_ready(self, timeout_s: float = 1.0) -> bool:
        with closing(HTTPConnection(_HOST, self._admin_port, timeout=timeout_s)) as connection:
            try:
                connection.request("GET", "/ready")
                return connection.getresponse().status == 200
            except (OSError, HTTPException):
                return False

    def pause(self) -> None:
        """Freeze it."""
        self._running().signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Stop it and remove all that it left; does nothing if it is stopped."""
        if self._process is not None:
            self._process.terminate(self._exit_timeout_s)
            self._process = None
        if self._folder is not None:
            remove_run_folder(self._folder)
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
            raise LocalError("Envoy has not been started")
        return self._process
