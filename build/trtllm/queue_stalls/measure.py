"""How often Triton's batcher overlooks a request for up to half a second, with and without a bound
of its queue: the GPU repository in a real Triton, its backend replaced by `model.py`.

With a bound the batcher does not look ahead (PriorityQueue, `support_prefetching_`, in
scheduler_utils.cc of triton-inference-server/core); what arrives while a batch is handed over then
waits for the next request, or for 500 ms. Requests come at random times, so many a second.

    python build/trtllm/queue_stalls/measure.py --seconds 20 --rates 2 20 100
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sidecar.engines.trtllm import GpuRepositoryOptions
from sidecar.engines.trtllm.repository import render_config
from sidecar.inference.triton import TritonModel, TritonTarget
from sidecar.local import TritonServer

_HERE = Path(__file__).resolve().parent
_STALLED_MS = 100.0
_TIMEOUT_S = 10.0
_QUEUES = (0, 256)


@dataclass(frozen=True, slots=True)
class Row:
    """Latencies in ms of one run."""

    queue: int
    rate: float
    latencies: tuple[float, ...]

    def __str__(self) -> str:
        p50, longest = statistics.median(self.latencies), max(self.latencies)
        stalled = sum(each > _STALLED_MS for each in self.latencies)
        bound = self.queue or "none"
        return (
            f"| {bound} | {self.rate:g} | {len(self.latencies)} | "
            f"{p50:.1f} | {longest:.1f} | {stalled} |"
        )


class _Asked(TritonModel):
    """Asks as a sidecar does, without looking for logits, which the stand-in has none of."""

    async def ask(self) -> float:
        started = time.perf_counter()
        await self.warm((1, 2, 3), _TIMEOUT_S)
        return (time.perf_counter() - started) * 1000


async def _run(address: str, queue: int, rate: float, seconds: float) -> Row:
    model = _Asked(TritonTarget(address, "tensorrt_llm", 2, 0, 100))
    moments = random.Random(7)  # noqa: S311 - no secret
    asked: list[asyncio.Task[float]] = []
    try:
        await model.ask()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(moments.expovariate(rate))
            asked.append(asyncio.create_task(model.ask()))
        return Row(queue, rate, tuple(await asyncio.gather(*asked)))
    finally:
        await model.close()


def _repository(folder: Path, queue: int) -> Path:
    model = folder / "tensorrt_llm"
    (model / "1").mkdir(parents=True)
    shutil.copy(_HERE / "model.py", model / "1" / "model.py")
    options = GpuRepositoryOptions(backend="python", max_queue_size=queue)
    (model / "config.pbtxt").write_text(render_config(Path("/models/router"), options))
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rates", type=float, nargs="+", default=[2, 20, 100])
    given = parser.parse_args(arguments)
    print("| bound | requests/s | requests | p50 ms | longest ms | over 100 ms |")  # noqa: T201
    print("|---|---|---|---|---|---|")  # noqa: T201
    for queue in _QUEUES:
        with (
            tempfile.TemporaryDirectory() as folder,
            TritonServer(_repository(Path(folder), queue), exit_timeout_s=0) as triton,
        ):
            for rate in given.rates:
                row = asyncio.run(_run(triton.grpc_address, queue, rate, given.seconds))
                print(row, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
