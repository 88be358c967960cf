"""Measures an engine on this CPU, without a model server; see README.md."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

_MODEL = Path(__file__).resolve().parents[2] / "triton_models/cpu/tensorrt_llm/1"
sys.path.insert(0, str(_MODEL))

from cpu_engine.decisions import Decider, Undecided  # noqa: E402  (found only now)
from cpu_engine.engine_files import open_engine  # noqa: E402
from cpu_engine.forward import Forward  # noqa: E402
from cpu_engine.prefix_cache import PrefixCache  # noqa: E402
from cpu_engine.requests import Asked  # noqa: E402

from sidecar.engines import CpuRepositoryOptions  # noqa: E402
from sidecar.engines.engine_directory import compiled_folder  # noqa: E402


@click.command()
@click.argument("engine", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prefix", default=300, show_default=True, help="Tokens of the routes.")
@click.option("--suffix", default=60, show_default=True, help="Tokens of a conversation.")
@click.option("--runs", default=15, show_default=True)
@click.option("--threads", default=0, show_default="all cores")
@click.option("--precision", type=click.Choice(["f32", "bf16"]), help="Default: the CPU's choice.")
def measure(
    engine: Path, prefix: int, suffix: int, runs: int, threads: int, precision: str | None
) -> None:
    """Print the milliseconds of label decisions with ENGINE, and the memory of this process."""
    facts, served = open_engine(engine), CpuRepositoryOptions()
    forward = Forward(
        facts,
        threads=threads,
        precision=precision or "",
        compiled_folder=compiled_folder(engine.absolute()),
    )
    forward.warm_up()
    rng = np.random.default_rng(0)

    def ids(tokens: int) -> list[int]:
        return [int(token) for token in rng.integers(20, facts.vocab_size - 1000, tokens)]

    routes, others = ids(prefix), [ids(prefix) for _ in range(runs)]
    decider = Decider(forward, PrefixCache(served.prefix_cache_bytes), None, served.max_pass_tokens)
    cases: dict[str, Callable[[int], list[Asked]]] = {
        f"prefix of {prefix}": lambda run: [_ask(others[run], 1, ids)],
        f"{suffix} on a prefix of {prefix}": lambda run: [_ask(routes, suffix, ids)],
        f"4 x {suffix} together": lambda run: [_ask(routes, suffix, ids) for _ in range(4)],
        f"1 on a prefix of {prefix}": lambda run: [_ask(routes, 1, ids)],
    }
    _time(decider, [_ask(routes, suffix, ids)])
    for name, requests in cases.items():
        times = sorted(_time(decider, requests(run)) for run in range(runs))
        click.echo(f"{name:30} p50 {statistics.median(times):6.1f} ms  best {times[0]:6.1f} ms")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(("VmRSS", "RssAnon", "RssFile")):
            key, kilobytes, _ = line.split()
            click.echo(f"{key:30} {int(kilobytes) // 1024:5} MiB")


def _time(decider: Decider, requests: list[Asked]) -> float:
    start = time.perf_counter()
    list(decider.decide([Undecided(asked) for asked in requests]))
    return (time.perf_counter() - start) * 1e3


def _ask(prefix: list[int], suffix: int, ids: Callable[[int], list[int]]) -> Asked:
    return Asked(
        ids=np.array([*prefix, *ids(suffix)], np.int32),
        prefix_length=len(prefix),
        max_tokens=1,
        end_id=-1,
        logits=True,
        label_ids=np.arange(20, 41, dtype=np.int32),
    )


if __name__ == "__main__":
    measure()
