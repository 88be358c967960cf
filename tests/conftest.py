"""Real parts for the tests that need them: the routing model that comes along, served by Triton.

The engine is built once in the user's cache, as `sidecar up` does.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog
from xdist.scheduler import LoadScopeScheduling

from sidecar.cli.model import default_model
from sidecar.engines import EngineInfo, render_cpu_repository
from sidecar.local import LocalError, PostgresServer, TritonServer
from sidecar.observability.logging import LogOptions, configure_logging, limit_libraries
from tests.own_ports import draw_own_ports

# The same examples in every run, so that a change is what makes a test fail; `make prove` draws new
# ones. How long one may take, or all of them to be drawn, depends on what else the machine does.
hypothesis.settings.register_profile(
    "same",
    derandomize=not os.environ.get("SIDECAR_PROVE"),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")

# pytest keeps what is logged during a test, also in tests that set no logging up themselves.
limit_libraries()


SHARING = (
    "tests/bench/",
    "tests/integration/",
    "tests/evaluation/test_command.py",
    "tests/test_app.py",
)
"""What runs the default model: on one worker, so that one Triton serves all, and what breaks or
loads a machine happens once at a time."""

LONGEST = (
    *SHARING,
    "tests/cli/test_up.py",
    "tests/deployment/",
    "tests/local/",
    "tests/policies/",
    "tests/ext_proc/",
)
"""What begins first, so that no worker is left with a long rest when the other is done."""


draw_own_ports()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    found = (at for at, path in enumerate(LONGEST) if item.nodeid.startswith(path))
    return next(found, len(LONGEST))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """With several workers each takes whole files, in order: what a file starts for all its tests
    is started once. (xdist's own groups, `--dist loadgroup`, are lost with pytest 9: it reads a
    test's name anew, where xdist 3.8 has appended the group.)"""
    config.option.loadscopereorder = False
    return _WholeFiles(config, log)


class _WholeFiles(LoadScopeScheduling):  # type: ignore[misc] # pytest-xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return "model" if nodeid.startswith(SHARING) else nodeid.partition("::")[0]


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


@pytest.fixture
def logging_undone() -> Iterator[None]:
    """Sets back afterwards what a test sets up of logging."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def log(logging_undone: None) -> io.StringIO:
    """What is logged, as JSON."""
    stream = io.StringIO()
    configure_logging(LogOptions("debug", "json"), stream)
    return stream
