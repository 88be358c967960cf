"""`sidecar soak`: faults, one after another, under steady calls."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
import click
from rich.table import Table

from sidecar.bench import own, traffic
from sidecar.bench.aims import aims
from sidecar.bench.faults import CLOCK_JUMPS, FAULTS, Revival, World
from sidecar.bench.faulty_proxy import FaultyProxy
from sidecar.bench.jumping_clock import JumpingClock, NoClockError
from sidecar.bench.measuring import closed_loop
from sidecar.bench.rows import shares
from sidecar.bench.soak import Called, Plan, Soaked, failed
from sidecar.bench.soak import soak as run_soak
from sidecar.cli.bench import wide_console
from sidecar.cli.common_options import model_option
from sidecar.cli.failures import Failure
from sidecar.cli.output_file import OutputFile
from sidecar.cli.stack import LocalStack, running
from sidecar.cli.steps import Steps
from sidecar.cli.up import chosen_engine
from sidecar.config import Settings, load_settings
from sidecar.local import free_ports, new_run_folder, remove_run_folder
from sidecar.observability.logging import LogOptions, configure_logging

_RATE_SECONDS = 5.0
_RATE_SHARE = 0.5

_METRICS_TIMEOUT = aiohttp.ClientTimeout(total=1)
_CACHE_BYTES = re.compile(
    r"^llmrouter_(?:cached_decisions|compiled_policies)_bytes (\S+)$", re.MULTILINE
)


@dataclass(slots=True)
class _Proxy:
    """Made when Triton's address is known."""

    running: list[FaultyProxy] = field(default_factory=list)

    def between(self, address: str) -> str:
        (port,) = free_ports(1)
        proxy = FaultyProxy(f"127.0.0.1:{port}", address)
        proxy.start()
        self.running.append(proxy)
        return proxy.address

    def stop(self) -> None:
        for proxy in self.running:
            proxy.stop()


@click.command("soak")
@click.option(
    "--minutes", type=click.FloatRange(min=0), default=3.0, show_default=True, metavar="N"
)
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Between the beginnings of two faults.",
)
@click.option(
    "--hold",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="Of each fault.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0.1),
    metavar="N",
    help="Calls a second; without it half of what the model decides here, measured first.",
)
@click.option(
    "--fault",
    "faults",
    type=click.Choice(tuple(FAULTS)),
    multiple=True,
    help="This fault alone; may be given more than once.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Fail as well where what is aimed at was not reached, which takes an idle machine.",
)
@model_option
@click.option(
    "--json",
    "json_path",
    type=OutputFile(),
    help="Write what was found there.",
)
def soak(
    minutes: float,
    every: float,
    hold: float,
    rate: float | None,
    faults: tuple[str, ...],
    strict: bool,
    model: Path | None,
    json_path: Path | None,
) -> None:
    """Break what can break while calls come steadily.

    Exit status: 0 if every call was answered, 1 if one was not.
    """
    configure_logging(LogOptions("error", "auto", False))
    console, steps = wide_console(), Steps()
    engine = chosen_engine(model, load_settings(environ={}), steps)
    folder = new_run_folder("soak")
    proxy = _Proxy()
    try:
        settings, clock = _settings(folder), _clock(folder, faults)
        made = LocalStack(
            engine,
            settings,
            quiet=True,
            steps=steps,
            between=proxy.between,
            environment=clock.environment if clock is not None else None,
        )
        with running(made) as stack:
            revival = Revival(stack.triton)
            proxied = proxy.running[0]
            pid = stack.sidecar_pid
            world = World(stack.triton, proxied, stack.address, pid, revival, clock)
            possible = tuple(name for name in FAULTS if clock is not None or name != CLOCK_JUMPS)
            wanted = _Wanted(minutes * 60, every, hold, rate, faults or possible)
            metrics = f"http://{settings.server.http_address}/metrics"
            found = asyncio.run(_soak(world, wanted, metrics))
    finally:
        proxy.stop()
        remove_run_folder(folder)
    console.print(_table(found), _summary(found), _aims_text(found))
    if json_path is not None:
        json_path.write_text(json.dumps(_document(found), indent=2) + "\n")
    sys.exit(exit_status(found, strict))


def exit_status(found: Soaked, strict: bool) -> int:
    """See the command; `strict`: 1 too where an aim was missed."""
    missed = strict and any(each.reached is False for each in aims(found))
    return 1 if failed(found.calls) or missed else 0


@dataclass(frozen=True, slots=True)
class _Wanted:
    seconds: float
    every_s: float
    hold_s: float
    rate: float | None
    faults: Sequence[str]


def _clock(folder: Path, faults: Sequence[str]) -> JumpingClock | None:
    """None where it cannot be moved or need not be. Raises Failure where it was asked for."""
    if faults and CLOCK_JUMPS not in faults:
        return None
    try:
        return JumpingClock(folder)
    except NoClockError as error:
        if faults:
            raise Failure(f"{CLOCK_JUMPS} cannot be brought about: {error}") from None
        click.echo(f"Without {CLOCK_JUMPS}: {error}", err=True)
        return None


def _settings(folder: Path) -> Settings:
    policies = folder / "policies"
    policies.mkdir()
    for number, content in enumerate(traffic.policy_files((6,), 0)):
        (policies / f"{number}.yaml").write_text(content)
    grpc_port, http_port = free_ports(2)
    return load_settings(
        flags={
            "server": {
                "grpc_address": f"127.0.0.1:{grpc_port}",
                "http_address": f"127.0.0.1:{http_port}",
            },
            "policies": {"paths": (policies,)},
        },
        environ={},
    )


async def _soak(world: World, wanted: _Wanted, metrics: str) -> Soaked:
    async with own.calling(world.sidecar) as routes, aiohttp.ClientSession() as http:
        caches = _Caches(http, metrics)
        rate = wanted.rate or await _half_of_what_is_possible(routes)
        click.echo(f"{rate:.1f} calls a second", err=True)
        plan = Plan(wanted.seconds, wanted.every_s, wanted.hold_s, rate, wanted.faults)
        return await run_soak(
            world, routes, plan, lambda line: click.echo(f"  {line}", err=True), caches.nbytes
        )


class _Caches:
    """What the sidecar's metrics at `url` say of its caches."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url
        self._last = 0

    async def nbytes(self) -> int:
        """Bytes; what it last said, while it cannot be asked."""
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._http.get(self._url, timeout=_METRICS_TIMEOUT) as answer:
                found = _CACHE_BYTES.findall(await answer.text())
                self._last = round(sum(map(float, found)))
        return self._last


async def _half_of_what_is_possible(routes: own.Routes) -> float:
    call = own.asking(routes, "default", 15)
    measured = await closed_loop(call, 2, seconds=_RATE_SECONDS)
    return max(measured.model_per_second * _RATE_SHARE, 0.1)


def _table(found: Soaked) -> Table:
    table = Table(title="Faults", title_justify="left", header_style="bold", box=None)
    table.add_column("fault")
    for name in ("times", "calls", "failed", "slowest ms", "back after s", "Triton restarted"):
        table.add_column(name, justify="right")
    table.add_column("by source")
    for fault in dict.fromkeys(window.fault for window in found.windows):
        windows = [each for each in found.windows if each.fault == fault]
        calls = [call for window in windows for call in window.calls]
        back = [each.recovery_s for each in windows]
        slowest_back = max((each for each in back if each is not None), default=None)
        lost = "never" if None in back else f"{slowest_back or 0:.1f}"
        table.add_row(
            fault,
            str(len(windows)),
            str(len(calls)),
            str(failed(calls)),
            f"{max(each.slowest_ms for each in windows):,.0f}",
            lost,
            str(sum(each.restarts for each in windows) or ""),
            _shares_text(shares([each.sample for each in calls])),
        )
    return table


def _shares_text(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in found.items())


def _summary(found: Soaked) -> str:
    between = found.between()
    decided = sum(each.decided for each in between)
    slope = found.bytes_per_hour()
    growth = (
        ""
        if slope is None
        else f"; without the caches {slope / 2**20:+.1f} MiB an hour after the first third"
    )
    first, last = found.memory[0], found.memory[-1]
    return (
        f"\n{len(found.calls)} calls, {failed(found.calls)} failed; "
        f"{_shares_text(found.sources())}.\n"
        f"Outside faults: {len(between)} calls, "
        f"{decided / max(len(between), 1):.1%} by the model or the cache"
        f"{_undecided_text(between)}.\n"
        f"The sidecar's own memory: {_mib(first.own)} MiB at first, {_mib(last.own)} at last, of "
        f"which its caches hold {_mib(first.caches)} and {_mib(last.caches)}{growth}."
    )


def _aims_text(found: Soaked) -> str:
    return "\n" + "\n".join(map(str, aims(found)))


def _undecided_text(calls: Sequence[Called]) -> str:
    """What the others got, which says where to look."""
    others = shares([each.sample for each in calls if not each.decided])
    return f"; of the others {_shares_text(others)}" if others else ""


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def _document(found: Soaked) -> dict[str, object]:
    between = found.between()
    return {
        "calls": len(found.calls),
        "failed": failed(found.calls),
        "sources": found.sources(),
        "outside_faults": {
            "calls": len(between),
            "decided": sum(each.decided for each in between),
            "sources": shares([each.sample for each in between]),
        },
        "aims": [asdict(each) for each in aims(found)],
        "memory_bytes": [each.own for each in found.memory],
        "cache_bytes": [each.caches for each in found.memory],
        "memory_bytes_per_hour": found.bytes_per_hour(),
        "windows": [
            {
                "fault": each.fault,
                "calls": len(each.calls),
                "failed": each.failed,
                "slowest_ms": each.slowest_ms,
                "recovery_s": each.recovery_s,
                "triton_restarts": each.restarts,
                "sources": shares([call.sample for call in each.calls]),
            }
            for each in found.windows
        ],
    }
