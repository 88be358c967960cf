"""Real parts for the tests that need them: the routing model that comes along, served by Triton.

The engine is built once in the user's cache, as `sidecar up` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from sidecar.cli.model import default_model
from sidecar.engines import EngineInfo, render_cpu_repository
from sidecar.local import LocalError, PostgresServer, TritonServer
from sidecar.observability.logging import limit_libraries

# The same examples in every run, so that a change is what makes a test fail; `make prove` draws new
# ones.
hypothesis.settings.register_profile("same", derandomize=not os.environ.get("SIDECAR_PROVE"))
hypothesis.settings.load_profile("same")

# pytest keeps what is logged during a test, also in tests that set no logging up themselves.
limit_libraries()


@pytest.fixture(scope="session")
def cpu_engine() -> EngineInfo:
    """The default routing model."""
    return default_model(lambda line: None)


@pytest.fixture(scope="session")
def cpu_repository(cpu_engine: EngineInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Triton model repository that serves it."""
    return render_cpu_repository(cpu_engine.path, tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def triton(cpu_repository: Path) -> Iterator[TritonServer]:
    """One Triton for all tests that leave it as it is; those that break it start their own."""
    with TritonServer(cpu_repository, exit_timeout_s=1) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for all tests that leave it running; each empties the tables first."""
    server = PostgresServer()
    try:
        server.start()
    except LocalError as error:
        pytest.skip(str(error))
    yield server
    server.stop()
