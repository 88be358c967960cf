"""What processes took, each of one of its own: in this one threads and memory of other tests come
and go."""

from __future__ import annotations

import multiprocessing
import os
import resource
import threading
from collections.abc import Callable

import pytest

from sidecar.bench.processes import cpu_s, own_bytes, resident_bytes, threads_cpu_s


def compute() -> None:
    sum(number * number for number in range(1_000_000))


def processor_time_grows_with_what_is_computed_in_any_thread() -> None:
    before, living = cpu_s(os.getpid()), threads_cpu_s(os.getpid())
    for _ in range(3):
        compute()
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()

    used = resource.getrusage(resource.RUSAGE_SELF)
    assert before < cpu_s(os.getpid()) <= used.ru_utime + used.ru_stime + 0.05
    assert threads_cpu_s(os.getpid()) > living


def memory_that_is_written_to_is_resident() -> None:
    before, own = resident_bytes(os.getpid()), own_bytes(os.getpid())
    held = bytearray(os.urandom(1 << 20) * 32)

    assert resident_bytes(os.getpid()) >= before + len(held) // 2
    assert own_bytes(os.getpid()) >= own + len(held) // 2


@pytest.mark.parametrize(
    "holds",
    [
        processor_time_grows_with_what_is_computed_in_any_thread,
        memory_that_is_written_to_is_resident,
    ],
)
def test_of_a_process(holds: Callable[[], None]) -> None:
    process = multiprocessing.get_context("spawn").Process(target=holds)
    process.start()
    process.join()

    assert process.exitcode == 0
