"""A real tritonserver with a tiny model of its Python backend."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_client
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from sidecar.local import LocalError, TritonServer, cache_dir
from sidecar.local.process import children, group_is_alive

ECHO = Path(__file__).parent / "echo_repository"
SHM = Path("/dev/shm")

START_AND_DIE = """
import os, signal, sys
from pathlib import Path
from sidecar.local import TritonServer
from tests.own_ports import draw_own_ports
draw_own_ports(started=True)
server = TritonServer(Path(sys.argv[1]), exit_timeout_s=0)
server.start()
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def running() -> Iterator[TritonServer]:
    with TritonServer(ECHO, exit_timeout_s=0) as server:
        yield server


@pytest.fixture
def triton(running: TritonServer) -> Iterator[TritonServer]:
    """The running server; started anew if the test leaves it in another state."""
    yield running
    ended = running.exit_code() is not None
    if ended or not running.models_alive() or not running.is_ready():
        running.restart()


def ask(
    server: TritonServer, values: Mapping[str, npt.NDArray[Any]], timeout_s: float = 60
) -> triton_client.InferResult:
    tensors = []
    for name, value in values.items():
        tensor = triton_client.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        tensors.append(tensor)
    with triton_client.InferenceServerClient(server.grpc_address) as client:
        return client.infer("echo", tensors, client_timeout=timeout_s)


def echo(server: TritonServer, numbers: list[int], timeout_s: float = 60) -> list[int]:
    answer = ask(server, {"numbers": np.array(numbers, dtype=np.int32)}, timeout_s)
    back = answer.as_numpy("numbers_back")
    assert back is not None
    return [int(number) for number in back]


def leftovers(pid: int) -> list[str]:
    """Shared memory and run folders of the servers that process `pid` started."""
    shared = [path.name for path in SHM.glob(f"llm_routing_sidecar_{pid}_*")]
    return shared + [path.name for path in (cache_dir() / "run").glob(f"triton-{pid}-*")]


def test_a_started_server_answers(triton: TritonServer) -> None:
    assert echo(triton, [3, 1, 2]) == [3, 1, 2]


def test_a_proxy_for_the_internet_is_not_asked(
    triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert triton.is_ready()


def test_tensors_of_every_type_reach_the_model_and_come_back_whole(triton: TritonServer) -> None:
    values = {
        "numbers": np.array([7, -8, 9], dtype=np.int32),
        "flags": np.array([True, False, False, True]),
        "table": np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    texts = np.array([b"one", "zwölf".encode(), b""], dtype=object)
    answer = ask(triton, values | {"texts": texts})
    for name, value in values.items():
        np.testing.assert_array_equal(answer.as_numpy(f"{name}_back"), value)
    np.testing.assert_array_equal(answer.as_numpy("lengths"), [3, 6, 0])


def test_the_stub_does_not_see_the_environment_of_the_sidecar(tmp_path: Path) -> None:
    repository = _repository(tmp_path, "import grpc")
    with pytest.raises(LocalError, match="No module named 'grpc'"):
        TritonServer(repository, exit_timeout_s=0).start()


def test_a_model_that_cannot_load_is_an_error_with_the_log(tmp_path: Path) -> None:
    repository = _repository(tmp_path, 'raise ValueError("the weights are missing")')
    server = TritonServer(repository, exit_timeout_s=0)
    with pytest.raises(LocalError, match=r"ended with code 1:\n.*the weights are missing"):
        server.start()
    assert not server.is_ready()


def test_a_model_that_takes_too_long_is_an_error(tmp_path: Path) -> None:
    repository = _repository(tmp_path, "import time; time.sleep(600)")
    server = TritonServer(repository, exit_timeout_s=0, ready_timeout_s=1)
    with pytest.raises(LocalError, match="not ready within 1 s"):
        server.start()
    with pytest.raises(LocalError, match="has not been started"):
        server.exit_code()


def test_a_killed_server_comes_back_on_its_ports(triton: TritonServer) -> None:
    before = (triton.grpc_address, triton.http_address, triton.pid)
    triton.kill()
    assert triton.exit_code() == -signal.SIGKILL
    assert not triton.is_ready()
    triton.restart()
    assert (triton.grpc_address, triton.http_address) == before[:2]
    assert triton.pid != before[2]
    assert echo(triton, [4]) == [4]


def test_a_paused_server_answers_when_resumed(triton: TritonServer) -> None:
    triton.pause()
    with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        echo(triton, [5], timeout_s=0.3)
    triton.resume()
    assert echo(triton, [5]) == [5]


def test_a_killed_server_leaves_no_process_and_no_shared_memory() -> None:
    mine = f"llm_routing_sidecar_{os.getpid()}_*"
    of_others = set(SHM.glob(mine))
    with TritonServer(ECHO, exit_timeout_s=0) as server:
        group = server.pid
        shared = set(SHM.glob(mine)) - of_others
        assert shared
        server.kill()
        assert not group_is_alive(group)
        assert not any(path.exists() for path in shared)


def test_a_model_whose_process_was_killed_is_noticed_though_the_server_says_ready(
    triton: TritonServer,
) -> None:
    assert triton.models_alive()
    (stub,) = children(triton.pid)
    os.kill(stub, signal.SIGKILL)
    while triton.models_alive():  # bounded by the time limit of the test
        time.sleep(0.01)
    assert triton.is_ready(60)
    with pytest.raises(InferenceServerException, match="not healthy"):
        echo(triton, [7])
    triton.restart()
    assert triton.models_alive()
    assert echo(triton, [7]) == [7]


async def test_a_stopped_server_leaves_nothing() -> None:
    before = leftovers(os.getpid())
    async with TritonServer(ECHO, exit_timeout_s=0) as server:
        group = server.pid
        assert echo(server, [6]) == [6]
        assert leftovers(os.getpid()) != before
    assert not group_is_alive(group)
    assert leftovers(os.getpid()) == before


def test_a_frozen_server_is_stopped() -> None:
    server = TritonServer(ECHO, exit_timeout_s=0)
    server.start()
    group = server.pid
    server.pause()
    server.stop()
    assert not group_is_alive(group)


def test_a_server_ends_with_its_parent_and_the_next_start_clears_up(triton: TritonServer) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", START_AND_DIE, str(ECHO)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    output, _ = parent.communicate()
    assert parent.returncode == -signal.SIGKILL
    _await_end_of_group(int(output))
    triton.restart()
    assert leftovers(parent.pid) == []


def _repository(folder: Path, statement: str) -> Path:
    """A model whose `initialize` runs `statement`."""
    version = folder / "broken" / "1"
    version.mkdir(parents=True)
    config = (ECHO / "echo" / "config.pbtxt").read_text()
    (folder / "broken" / "config.pbtxt").write_text(config.replace('"echo"', '"broken"'))
    (version / "model.py").write_text(
        textwrap.dedent(f"""
            class TritonPythonModel:
                def initialize(self, arguments):
                    {statement}

                def execute(self, requests):
                    return []
        """)
    )
    return folder


def _await_end_of_group(group: int) -> None:
    while group_is_alive(group):  # bounded by the time limit of the test
        time.sleep(0.05)
