"""Sidecars and model servers that the measurements of policies start."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sidecar.bench import processes, traffic
from sidecar.config import ENV_PREFIX, Settings, load_settings
from sidecar.core.policy import Attribution
from sidecar.engines import EngineInfo, render_cpu_repository
from sidecar.local import ChildProcess, TritonServer, free_ports
from sidecar.policies.documents import catalog_from, policy_from
from sidecar.policies.stores import PolicyWriting, now, open_store

INSTANT_MODEL = Path(__file__).with_name("instant_model") / "model.py"

ROUTES = 34
"""Of a large policy."""

_START_S = 300.0
_LOOK_S = 0.01
_STOP_S = 10.0


class StartError(Exception):
    """The sidecar did not start; the text has its last words."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running sidecar.

    Args:
        start_s: seconds from its process's beginning until its addresses were open.
        start_cpu_s: of which it computed.
    """

    address: str
    pid: int
    start_s: float
    start_cpu_s: float

    def cpu_s(self) -> float:
        return processes.cpu_s(self.pid)

    def resident_bytes(self) -> int:
        return processes.resident_bytes(self.pid)


@contextmanager
def serving(
    engine: EngineInfo, triton_address: str, folder: Path, **sections: dict[str, object]
) -> Iterator[Served]:
    """A sidecar in a process of its own, with no more to log than errors. Raises StartError.

    Args:
        folder: gets its settings and its log; made anew.
        sections: settings beside those that say where it and the model are.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    settings = _settings(engine, triton_address, address, sections)
    config, started = folder / "settings.yaml", folder / "started"
    config.write_text(settings.model_dump_json(indent=2))
    command = [sys.executable, "-m", "sidecar.cli", "serve"]
    command += ["--config", str(config), "--started-file", str(started)]
    # Without the second it would compile itself at each start; what is installed has been.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(ENV_PREFIX) and name != "PYTHONDONTWRITEBYTECODE"
    }
    begun = time.perf_counter()
    process = ChildProcess(command, environment, folder / "log")
    try:
        while not started.exists():
            if process.exit_code() is not None or time.perf_counter() - begun > _START_S:
                raise StartError(f"the sidecar did not start:\n{process.last_lines(10)}")
            time.sleep(_LOOK_S)
        took = time.perf_counter() - begun
        yield Served(address, process.pid, took, processes.cpu_s(process.pid))
    finally:
        process.terminate(_STOP_S)


def _settings(
    engine: EngineInfo, triton_address: str, address: str, sections: dict[str, dict[str, object]]
) -> Settings:
    flags: dict[str, dict[str, object]] = {
        "server": {"grpc_address": address, "http_address": ""},
        "logging": {"level": "error"},
        "triton": {"address": triton_address},
        "routing_model": {"directory": engine.path},
    }
    for name, values in sections.items():
        flags[name] = {**flags.get(name, {}), **values}
    return load_settings(flags=flags, environ={})


@contextmanager
def model_server(engine: EngineInfo, folder: Path, *, instant: bool) -> Iterator[TritonServer]:
    """A real Triton with the routing model, or with one that answers at once and computes
    nothing."""
    repository = render_cpu_repository(engine.path, folder)
    if instant:
        model = repository / "tensorrt_llm"
        shutil.copyfile(INSTANT_MODEL, model / "1" / "model.py")
        with (model / "config.pbtxt").open("a") as config:
            config.write(
                'parameters { key: "vocab_size" '
                f'value {{ string_value: "{engine.router.vocab_size}" }} }}\n'
            )
    with TritonServer(repository, exit_timeout_s=5) as triton:
        yield triton


def filled_store(path: Path, documents: Sequence[dict[str, object]]) -> str:
    """The address of a SQLite file with the policies of `documents`."""
    url = f"sqlite:{path}"
    with closing(open_store(url)) as store:
        assert isinstance(store, PolicyWriting)
        catalog = {model.id: model for model in catalog_from(traffic.catalog_document())}
        policies = [policy_from(each) for each in documents]
        store.seed(catalog, policies, Attribution("bench", "", now()))
    return url


def kv_bytes_per_token(engine: EngineInfo) -> int:
    """Of a prefix that the model server keeps: keys and values in float32."""
    shape = engine.router.architecture
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * 4
