"""What routing costs a request through Envoy: `python -m sidecar.bench.envoy`.

One run, one Envoy with a listener for each processor, one worker thread, BUFFERED mode, a Unix
domain socket, and no upstream: Envoy answers by itself (`direct_response`) once it has the body, so
that only the way to the decision is measured. Rows: Envoy alone; a Python processor that parses
nothing; the sidecar with its decision log on, on a pin, on a cache hit and with the routing model.

The rows of one size and number of callers (but for those with the model) are measured in turns of
half a second, so that what else the machine does meets all of them alike. Every row says how its
requests were decided, and what processor time the processor took for one. The machine should be
idle otherwise.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from sidecar.bench.envoy_config import SOURCE, config
from sidecar.bench.processes import threads_cpu_s
from sidecar.bench.rows import percentile
from sidecar.cli.bench import wide_console
from sidecar.cli.model import default_model
from sidecar.cli.output_file import OutputFile
from sidecar.cli.stack import LocalStack, running
from sidecar.cli.up import EXAMPLES
from sidecar.config import load_settings
from sidecar.local import ChildProcess, EnvoyServer, free_ports

_PATH = "/v1/chat/completions"
_LARGE = (64 * 1024, 1024 * 1024)
_TURN_S = 0.5
_KNOWN_WITHIN_S = 60.0
_QUESTION = "Fix the bug in this Python function."
_UNPINNED = "unpinned"
"""The examples' default policy, whose decisions are not pinned: what is known comes from the
cache."""

ALONE, NOOP = "Envoy alone", "a processor that parses nothing"
PIN, CACHE, MODEL = "sidecar, on a pin", "sidecar, on a cache hit", "sidecar, with the model"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a decision.

    Args:
        body: makes the body of the n-th request.
        pid: of the processor; None for none.
        source: that all decisions should have; `-` for none.
    """

    name: str
    port: int
    body: Callable[[int], bytes]
    pid: int | None
    source: str
    headers: str = ""


@dataclass(slots=True)
class Result:
    """What was measured of a way.

    Args:
        times: of each request, in seconds.
        took_s: in which they were made.
        processor_s: of which the processor computed, with all its threads.
        sources: of the decisions, counted.
        failed: requests that were not answered 200.
    """

    way: Way
    bytes: int
    callers: int
    times: list[float] = field(default_factory=list)
    took_s: float = 0.0
    processor_s: float = 0.0
    sources: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    def ms(self, percent: float) -> float:
        """Percentile of the times."""
        return percentile(sorted(self.times), percent) * 1000

    @property
    def per_second(self) -> float:
        return len(self.times) / self.took_s

    @property
    def processor_us(self) -> float:
        """For one request."""
        return self.processor_s / len(self.times) * 1e6

    def as_json(self) -> dict[str, object]:
        return {
            "way": self.way.name,
            "bytes": self.bytes,
            "callers": self.callers,
            "requests": len(self.times),
            "p50_ms": self.ms(50),
            "p99_ms": self.ms(99),
            "per_second": self.per_second,
            "processor_us": self.processor_us,
            "sources": dict(self.sources),
            "failed": self.failed,
        }


@dataclass(frozen=True, slots=True)
class Target:
    """What should be reached, and whether it was."""

    name: str
    value: float
    unit: str
    reached: bool


def padded(text: str, size: int) -> bytes:
    """A request whose body has `size` bytes; the padding is a system message."""
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": text}]
    body: dict[str, Any] = {"model": "auto", "messages": messages}
    messages[0]["content"] = "x" * max(0, size - len(json.dumps(body)))
    return json.dumps(body).encode()


async def measure(result: Result, seconds: float, numbers: Iterator[int]) -> None:
    """Callers with a connection each, one request after the other; adds to `result`."""
    way = result.way
    end = time.perf_counter() + seconds

    async def call_on() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        with closing(writer):
            while time.perf_counter() < end:
                body = way.body(next(numbers))
                head = f"POST {_PATH} HTTP/1.1\r\nhost: b\r\ncontent-type: application/json\r\n"
                head += f"{way.headers}content-length: {len(body)}\r\n\r\n"
                started = time.perf_counter()
                writer.write(head.encode() + body)
                answer = await reader.readuntil(b"\r\n\r\n")
                result.times.append(time.perf_counter() - started)
                result.failed += not answer.startswith(b"HTTP/1.1 200")
                result.sources[_source_of(answer)] += 1

    def computed_s() -> float:
        return 0.0 if way.pid is None else threads_cpu_s(way.pid)

    began, computed = time.perf_counter(), computed_s()
    await asyncio.gather(*(call_on() for _ in range(result.callers)))
    result.took_s += time.perf_counter() - began
    result.processor_s += computed_s() - computed


async def _know(measured: Result, numbers: Iterator[int]) -> None:
    """Until what is measured is pinned or cached, and its connections have been made."""
    end = time.perf_counter() + _KNOWN_WITHIN_S
    while time.perf_counter() < end:
        tried = Result(measured.way, measured.bytes, measured.callers)
        await measure(tried, _TURN_S / 5, numbers)
        if set(tried.sources) == {measured.way.source}:
            return


def _source_of(head: bytes) -> str:
    _, _, rest = head.partition(f"\r\n{SOURCE}: ".encode())
    return rest.partition(b"\r\n")[0].decode() or "-"


def ways(ports: Sequence[int], pids: Sequence[int], size: int) -> list[Way]:
    """The rows for bodies of a size.

    Args:
        ports: of Envoy alone, with the processor that parses nothing, with the sidecar.
        pids: of the latter two.
    """
    alone, noop, sidecar = ports
    same = padded(_QUESTION, size)
    unpinned = f"x-llm-policy: {_UNPINNED}\r\n"
    return [
        Way(ALONE, alone, lambda _: same, None, "-"),
        Way(NOOP, noop, lambda _: same, pids[0], "-"),
        Way(PIN, sidecar, lambda _: same, pids[1], "pin", "x-llm-conversation: bench\r\n"),
        Way(CACHE, sidecar, lambda _: same, pids[1], "cache", unpinned),
        Way(
            MODEL,
            sidecar,
            lambda number: padded(f"{_QUESTION} It is case {time.time_ns()} {number}.", size),
            pids[1],
            "model",
            unpinned,
        ),
    ]


async def run_all(ports: Sequence[int], pids: Sequence[int], seconds: float) -> list[Result]:
    """1 kB by 1, 16 and 64 callers; larger bodies by one."""
    plan = [(1024, callers) for callers in (1, 16, 64)] + [(size, 1) for size in _LARGE]
    numbers = count()
    turn_s = min(_TURN_S, seconds)
    done: list[Result] = []
    for size, callers in plan:
        results = [Result(way, size, callers) for way in ways(ports, pids, size)]
        *quick, by_model = results
        for result in quick:
            await _know(result, numbers)
        for _ in range(max(1, round(seconds / turn_s))):
            for result in quick:
                await measure(result, turn_s, numbers)
        # At once: each turn waits for the last answer, which the model takes long for.
        await measure(by_model, seconds, numbers)
        done += results
    return done


def targets(results: Sequence[Result]) -> list[Target]:
    """On a pin, with bodies of 1 kB, against the processor that parses nothing."""
    found = {(each.way.name, each.callers): each for each in results if each.bytes == 1024}
    above = found[PIN, 1].ms(50) - found[NOOP, 1].ms(50)
    made = [Target("on a pin, p50 above the no-op, at most 0.3", above, "ms", above <= 0.3)]
    for callers in (16, 64):
        share = found[PIN, callers].per_second / found[NOOP, callers].per_second
        name = f"on a pin, throughput of the no-op, {callers} callers, at least 70"
        made.append(Target(name, share * 100, "%", share >= 0.7))
    return made


def wrong_rows(results: Sequence[Result]) -> list[str]:
    """Rows that measured something else than they say."""
    return [
        f"{each.way.name}, {each.bytes} bytes, {each.callers} callers: {dict(each.sources)}, "
        f"{each.failed} failed"
        for each in results
        # Of the model's decisions some can be fallbacks: it is asked as often as it can be.
        if each.failed or (each.way.name != MODEL and set(each.sources) != {each.way.source})
    ]


@click.command()
@click.option("--seconds", default=5.0, show_default=True, help="Length of each row.")
@click.option(
    "--json",
    "json_path",
    type=OutputFile(),
    help="Write all that was measured there.",
)
def main(seconds: float, json_path: Path | None) -> None:
    """Measure what routing costs a request through Envoy, on this machine."""
    console = wide_console()
    ports = free_ports(3)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = load_settings(flags=_flags(folder), environ={})
        engine = default_model(console.print)
        local = stack.enter_context(running(LocalStack(engine, settings, quiet=True)))
        command = [sys.executable, "-m", "sidecar.bench.noop_processor", str(folder / "noop.sock")]
        process = ChildProcess(command, {}, folder / "noop.log")
        stack.callback(process.kill)
        sockets = {ports[1]: folder / "noop.sock", ports[2]: folder / "sidecar.sock"}
        stack.enter_context(EnvoyServer(config(ports[0], sockets)))
        pids = (process.pid, local.sidecar_pid)
        results = asyncio.run(run_all(ports, pids, seconds))
    console.print(_table(results), "")
    wrong = wrong_rows(results)
    # Of rows that measured something else nothing follows.
    told = [] if wrong else targets(results)
    for target in told:
        verdict = "reached" if target.reached else "NOT reached"
        console.print(f"{target.name}: {target.value:.2f} {target.unit}, {verdict}")
    if json_path is not None:
        document = {
            "rows": [each.as_json() for each in results],
            "targets": [asdict(each) for each in told],
            "wrong_rows": wrong,
        }
        json_path.write_text(json.dumps(document, indent=2) + "\n")
    if wrong:
        raise click.ClickException("rows that measured something else: " + "; ".join(wrong))


def _flags(folder: Path) -> dict[str, dict[str, object]]:
    policies = EXAMPLES / "policies"
    text = (policies / "default.yaml").read_text()
    unpinned = folder / "unpinned.yaml"
    unpinned.write_text(text.replace("name: default\n", f"name: {_UNPINNED}\npin: 'off'\n", 1))
    (api,) = free_ports(1)
    return {
        "server": {
            "grpc_address": f"127.0.0.1:{api}",
            "http_address": "",
        },
        # Far beyond what a decision takes: how long it takes is what is measured.
        "ext_proc": {"message_timeout_ms": 30_000, "uds_path": folder / "sidecar.sock"},
        "routing": {"decision_budget_ms": 20_000},
        "policies": {"paths": (policies, unpinned)},
    }


def _table(results: Sequence[Result]) -> Table:
    view = Table(box=None, header_style="bold")
    names = ("way", "body", "callers", "p50 ms", "p99 ms", "requests/s", "processor us", "failed")
    for name in names:
        view.add_column(name, justify="left" if name == "way" else "right", no_wrap=True)
    view.add_column("by source")
    for each in results:
        shares = each.sources.most_common()
        view.add_row(
            each.way.name,
            f"{each.bytes // 1024} kB",
            str(each.callers),
            f"{each.ms(50):.2f}",
            f"{each.ms(99):.2f}",
            f"{each.per_second:.0f}",
            f"{each.processor_us:.0f}" if each.way.pid is not None else "",
            str(each.failed),
            ", ".join(f"{name} {made / len(each.times):.0%}" for name, made in shares),
        )
    return view


if __name__ == "__main__":
    main()
