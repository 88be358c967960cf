"""What processes took, of this one."""

from __future__ import annotations

import os
import resource
import threading

from sidecar.bench.processes import cpu_s, own_bytes, resident_bytes, threads_cpu_s


def compute() -> None:
    sum(number * number for number in range(1_000_000))


def test_processor_time_grows_with_what_is_computed_in_any_thread() -> None:
    before, living = cpu_s(os.getpid()), threads_cpu_s(os.getpid())
    for _ in range(3):
        compute()
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()

    used = resource.getrusage(resource.RUSAGE_SELF)
    assert before < cpu_s(os.getpid()) <= used.ru_utime + used.ru_stime + 0.05
    assert threads_cpu_s(os.getpid()) > living


def test_memory_that_is_written_to_is_resident() -> None:
    before, own = resident_bytes(os.getpid()), own_bytes(os.getpid())
    held = bytearray(os.urandom(1 << 20) * 32)

    assert resident_bytes(os.getpid()) >= before + len(held) // 2
    assert own_bytes(os.getpid()) >= own + len(held) // 2
