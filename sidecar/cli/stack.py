"""Triton and a sidecar, started on this machine as two processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from sidecar.cli.client import SidecarClient
from sidecar.cli.failures import Failure
from sidecar.cli.gateway import GatewayWish, LocalGateway
from sidecar.cli.steps import Steps
from sidecar.config import ENV_PREFIX, Settings, variable
from sidecar.engines import EngineInfo, render_cpu_repository
from sidecar.grpc_api.listening import ListenError, check_tcp, check_unix
from sidecar.local import ChildProcess, TritonServer, new_run_folder, remove_run_folder

_LOAD_TIMEOUT_S = 120
_SLOW_DISK = 20e6
"""Bytes a second."""

_READY_TIMEOUT_S = 120
_POLL_S = 0.1
_LAST_LINES = 15


class LocalStack:
    """What `sidecar up` and `sidecar demo` run.

    Args:
        engine: the routing model to serve.
        settings: of the sidecar; Triton's address and the model's folder are replaced.
        quiet: keep the sidecar's log in a file instead of writing it to standard error.
        gateway: run Envoy in front of the sidecar, too.
        between: gets Triton's address when that runs and gives the one that the sidecar asks.
        environment: of the sidecar, beside this process's own.
    """

    def __init__(
        self,
        engine: EngineInfo,
        settings: Settings,
        *,
        quiet: bool = False,
        steps: Steps | None = None,
        gateway: GatewayWish | None = None,
        between: Callable[[str], str] = lambda address: address,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = environment or {}
        self._between = between
        self._engine = engine
        self._settings = settings
        self._quiet = quiet
        self._steps = steps or Steps()
        self._folder = new_run_folder("stack")
        if gateway is not None and settings.ext_proc.uds_path is None:
            section = settings.ext_proc.model_copy(update={"uds_path": self._folder / "envoy.sock"})
            self._settings = settings.model_copy(update={"ext_proc": section})
        if settings.server.tls_certificate is not None and settings.server.uds_path is None:
            server = settings.server.model_copy(update={"uds_path": self._folder / "sidecar.sock"})
            self._settings = self._settings.model_copy(update={"server": server})
        self._wish = gateway
        self._gateway: LocalGateway | None = None
        self._triton: TritonServer | None = None
        self._sidecar: ChildProcess | None = None
        self._interrupts: list[int] = []

    @property
    def address(self) -> str:
        """gRPC address of the sidecar."""
        return self._settings.server.grpc_address or f"unix:{self._settings.server.uds_path}"

    @property
    def plaintext_address(self) -> str:
        """Where it is asked without TLS, whose files here are the server's and not a client's."""
        server = self._settings.server
        return f"unix:{server.uds_path}" if server.tls_certificate else self.address

    @property
    def gateway(self) -> LocalGateway:
        assert self._gateway is not None, "wanted and started"
        return self._gateway

    @property
    def triton(self) -> TritonServer:
        assert self._triton is not None, "started"
        return self._triton

    @property
    def sidecar_pid(self) -> int:
        assert self._sidecar is not None, "started"
        return self._sidecar.pid

    def start(self) -> None:
        """Start both and wait until the sidecar decides by the model.

        Raises:
            LocalError: Triton cannot run here or did not start.
            Failure: the sidecar did not start.
        """
        with self._steps.step("Preparing Triton") as report:
            repository = render_cpu_repository(self._engine.path, self._folder / "repository")
            # An idle computer unloads the model in two seconds, a busy one needs longer; when the
            # time is over Triton gives up. It ends as soon as it can.
            self._triton = TritonServer(
                repository,
                ready_timeout_s=load_timeout_s(self._engine),
                exit_timeout_s=5,
                report=report,
            )
            self._triton.prepare()
        with self._steps.step("Starting Triton with the routing model"):
            self._triton.start()
        with self._steps.step("Starting the sidecar and warming the policies"):
            self._start_sidecar()
        if self._wish is not None:
            with self._steps.step("Starting Envoy"):
                self._gateway = self._start_gateway(self._wish)

    def watch(self) -> None:
        """Return only by raising: Failure when a part has died, or KeyboardInterrupt for a signal,
        since the block of `noted_interrupts` began that this is called in."""
        while not self._interrupts:
            self.check()
            time.sleep(_POLL_S)
        raise KeyboardInterrupt

    @contextmanager
    def noted_interrupts(self) -> Iterator[None]:
        """Signals that raise KeyboardInterrupt are noted in the block: where one comes while Python
        finalizes an object, it drops the exception
        (https://docs.python.org/3/library/signal.html#handlers-and-exceptions)."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._interrupts.append(number)
            raise KeyboardInterrupt

        interrupting = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        noted = [n for n in interrupting if signal.getsignal(n) is signal.default_int_handler]
        for number in noted:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            for number in noted:
                signal.signal(number, signal.default_int_handler)

    def check(self) -> None:
        """Raises Failure if a part has died; says which, with its last log lines."""
        if self.triton.exit_code() is not None:
            code = self.triton.exit_code()
            raise Failure(f"Triton has died ({_how(code)}):\n{self.triton.last_log_lines()}")
        if not self.triton.models_alive():
            raise Failure(
                "the routing model's process in Triton (triton_python_backend_stub) has died; "
                "it is the one that the kernel ends first when memory runs out (see dmesg). "
                "Start again, with more memory or a smaller model"
            )
        assert self._sidecar is not None, "started"
        if (code := self._sidecar.exit_code()) is not None:
            tail = self._sidecar.last_lines(_LAST_LINES) or "its log is above"
            raise Failure(f"the sidecar has died ({_how(code)}):\n{tail}")
        if self._gateway is not None:
            self._gateway.check()

    def stop(self) -> None:
        """Stop what runs, what calls before what is called, and remove what it left. A
        KeyboardInterrupt while waiting makes it kill what is left."""
        try:
            if self._gateway is not None:
                self._gateway.stop()
            if self._sidecar is not None:
                self._sidecar.terminate(self._settings.server.drain_seconds + 2)
            if self._triton is not None:
                self._triton.stop()
        except KeyboardInterrupt:
            self._kill()
        finally:
            remove_run_folder(self._folder)

    def _kill(self) -> None:
        if self._gateway is not None:
            self._gateway.abandon()
        if self._sidecar is not None:
            self._sidecar.kill()
        if self._triton is not None:
            self._triton.abandon()

    def _start_sidecar(self) -> None:
        config = self._folder / "settings.yaml"
        config.write_text(self._served().model_dump_json(indent=2), encoding="utf-8")
        started = self._folder / "started"
        command = [sys.executable, "-m", "sidecar.cli", "serve"]
        command += ["--config", str(config), "--started-file", str(started)]
        # The settings hold the environment's already; where they do not, it was not wanted.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
        log = self._folder / "sidecar.log" if self._quiet else None
        self._sidecar = ChildProcess(command, {**environment, **self._environment}, log)
        end = time.monotonic() + _READY_TIMEOUT_S
        with SidecarClient(self.plaintext_address, timeout_s=1) as client:
            # An answer alone may be that of another sidecar which has the address.
            while not (started.exists() and client.decides_by_model()):
                self.check()
                if time.monotonic() > end:
                    raise Failure(f"the sidecar was not ready within {_READY_TIMEOUT_S} s")
                time.sleep(_POLL_S)
        self.check()

    def _start_gateway(self, wish: GatewayWish) -> LocalGateway:
        socket = self._settings.ext_proc.uds_path
        assert socket is not None, "given when a gateway was wanted"
        gateway = LocalGateway(wish, socket, self._settings)
        gateway.start()
        return gateway

    def _served(self) -> Settings:
        """The settings, with the Triton and the routing model that were started."""
        triton = self._settings.triton.model_copy(
            update={"address": self._between(self.triton.grpc_address), "addresses": ()}
        )
        model = self._settings.routing_model.model_copy(update={"directory": self._engine.path})
        return self._settings.model_copy(update={"triton": triton, "routing_model": model})


def load_timeout_s(engine: EngineInfo) -> float:
    """What Triton may take to load it: two minutes, and what a slow disk takes for its files."""
    files = (file for file in engine.path.iterdir() if file.is_file())
    return _LOAD_TIMEOUT_S + sum(file.stat().st_size for file in files) / _SLOW_DISK


def check_addresses(settings: Settings) -> None:
    """Raises Failure if the sidecar could not listen where it should, before anything starts."""
    server = settings.server
    for key, address in {
        "grpc_address": server.grpc_address,
        "http_address": server.http_address,
    }.items():
        with _naming("server", key):
            if address.endswith(":0"):
                raise ListenError(f"{address}: port 0 is not known to callers; choose one")
            if address:
                check_tcp(address)
    envoy = settings.ext_proc.uds_path
    for section, path in {"server": server.uds_path, "ext_proc": envoy}.items():
        with _naming(section, "uds_path"):
            if path is not None:
                check_unix(path)


@contextmanager
def _naming(section: str, key: str) -> Iterator[None]:
    try:
        yield
    except ListenError as error:
        name = variable(section, key)
        raise Failure(f"{error} (setting {section}.{key}, or {name} in the environment)") from None


@contextmanager
def running(stack: LocalStack) -> Iterator[LocalStack]:
    """Starts `stack` and stops it at the end of the block, which is `interrupted_by_signals`."""
    with interrupted_by_signals():
        try:
            stack.start()
            yield stack
        finally:
            stack.stop()


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt in the block, as Ctrl-C does, but for one that the
    process was told to ignore, as by `nohup`."""
    before = {
        number: handler
        for number in (signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _how(code: int | None) -> str:
    assert code is not None
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
