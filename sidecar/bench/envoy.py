"""What routing costs a request through Envoy: `python -m sidecar.bench.envoy`.

One run, one Envoy with a listener for each processor, one worker thread, BUFFERED mode, a Unix
domain socket, and no upstream: Envoy answers by itself (`direct_response`) once it has the body, so
that only the way to the decision is measured. Rows: Envoy alone; a Python processor that parses
nothing; the sidecar with its decision log on, on a pin, on a cache hit and with the routing model.
The machine must be idle otherwise.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sidecar.cli.model import default_model
from sidecar.cli.stack import LocalStack, running
from sidecar.cli.up import with_policies
from sidecar.config import load_settings
from sidecar.local import ChildProcess, EnvoyServer, free_ports

_TYPES = "type.googleapis.com/envoy.extensions"
_PATH = "/v1/chat/completions"
_BUFFER_BYTES = 12 * 1024 * 1024
_LARGE = (64 * 1024, 1024 * 1024)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a decision: `body` makes the body of the n-th request."""

    name: str
    port: int
    body: Callable[[int], bytes]
    headers: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """Times in milliseconds; `failed`: requests that were not answered 200."""

    way: str
    bytes: int
    callers: int
    p50: float
    p99: float
    per_second: float
    failed: int


def padded(text: str, size: int) -> bytes:
    """A request whose body has `size` bytes; the padding is a system message."""
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": text}]
    body: dict[str, Any] = {"model": "auto", "messages": messages}
    messages[0]["content"] = "x" * max(0, size - len(json.dumps(body)))
    return json.dumps(body).encode()


def config(alone: int, processors: dict[int, Path]) -> str:
    """Envoy's configuration: a port without a processor, and ports with one each."""
    clusters = [_cluster(f"p{port}", socket) for port, socket in processors.items()]
    listeners = [_listener(alone, None), *(_listener(port, f"p{port}") for port in processors)]
    return json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}})


def _listener(port: int, cluster: str | None) -> dict[str, Any]:
    filters: list[dict[str, Any]] = []
    if cluster is not None:
        filters.append({"name": "ext_proc", "typed_config": _processor(cluster)})
    else:
        # Otherwise it would answer before the body has come, and close the connection.
        kind = f"{_TYPES}.filters.http.buffer.v3.Buffer"
        whole = {"@type": kind, "max_request_bytes": _BUFFER_BYTES}
        filters.append({"name": "buffer", "typed_config": whole})
    kind = f"{_TYPES}.filters.http.router.v3.Router"
    filters.append({"name": "router", "typed_config": {"@type": kind}})
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": f"p{port}",
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [answer]}]},
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {
        "address": address,
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _processor(cluster: str) -> dict[str, Any]:
    return {
        "@type": f"{_TYPES}.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": cluster}, "timeout": "0s"},
        "message_timeout": "30s",
        "processing_mode": {"request_body_mode": "BUFFERED", "response_header_mode": "SKIP"},
        "metadata_options": {
            "receiving_namespaces": {"untyped": ["llm_router", "llm_router_failover"]}
        },
    }


def _cluster(name: str, socket: Path) -> dict[str, Any]:
    kind = f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions"
    http2 = {"@type": kind, "explicit_http_config": {"http2_protocol_options": {}}}
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {
        "name": name,
        "load_assignment": assignment,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
        },
    }


async def measure(way: Way, size: int, callers: int, seconds: float) -> Result:
    """Callers with a connection each, one request after the other."""
    numbers = count()
    times: list[float] = []
    failed = 0
    end = 0.0

    async def call_on() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        while time.perf_counter() < end:
            body = way.body(next(numbers))
            head = f"POST {_PATH} HTTP/1.1\r\nhost: b\r\ncontent-type: application/json\r\n"
            head += f"{way.headers}content-length: {len(body)}\r\n\r\n"
            started = time.perf_counter()
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            times.append(time.perf_counter() - started)
            failed += not answer.startswith(b"HTTP/1.1 200")
        writer.close()

    end = time.perf_counter() + min(1.0, seconds)
    await asyncio.gather(*(call_on() for _ in range(callers)))
    times.clear()
    failed = 0
    began = time.perf_counter()
    end = began + seconds
    await asyncio.gather(*(call_on() for _ in range(callers)))
    took = time.perf_counter() - began
    times.sort()
    return Result(
        way.name,
        size,
        callers,
        _quantile(times, 0.5) * 1000,
        _quantile(times, 0.99) * 1000,
        len(times) / took,
        failed,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ways(alone: int, noop: int, sidecar: int, size: int) -> list[Way]:
    """The rows for bodies of a size."""
    same = padded("Why does my loop never end?", size)
    return [
        Way("Envoy alone", alone, lambda _: same),
        Way("a processor that parses nothing", noop, lambda _: same),
        Way("sidecar, on a pin", sidecar, lambda _: same, "x-llm-conversation: bench\r\n"),
        Way("sidecar, on a cache hit", sidecar, lambda _: same),
        Way(
            "sidecar, with the model",
            sidecar,
            lambda number: padded(f"Why does loop {time.time_ns()} {number} never end?", size),
        ),
    ]


async def run_all(alone: int, noop: int, sidecar: int, seconds: float) -> list[Result]:
    """1 kB by 1, 16 and 64 callers; larger bodies by one."""
    plan = [(1024, callers) for callers in (1, 16, 64)] + [(size, 1) for size in _LARGE]
    return [
        await measure(way, size, callers, seconds)
        for size, callers in plan
        for way in ways(alone, noop, sidecar, size)
    ]


@click.command()
@click.option("--seconds", default=5.0, show_default=True, help="Length of each row.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a row.")
def main(seconds: float, as_json: bool) -> None:
    """Measure what routing costs a request through Envoy, on this machine."""
    console = Console()
    alone, noop, sidecar, api = free_ports(4)
    flags: dict[str, dict[str, object]] = {
        "server": {"grpc_address": f"127.0.0.1:{api}", "http_address": ""},
        "ext_proc": {"message_timeout_ms": 30_000},
        "routing": {"decision_budget_ms": 20_000},
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flags["server"]["uds_path"] = folder / "sidecar.sock"
        settings = with_policies(load_settings(flags=flags, environ={}), ())
        engine = default_model(console.print)
        stack.enter_context(running(LocalStack(engine, settings, quiet=True)))
        command = [sys.executable, "-m", "sidecar.bench.noop_processor", str(folder / "noop.sock")]
        process = ChildProcess(command, {}, folder / "noop.log")
        stack.callback(process.kill)
        sockets = {noop: folder / "noop.sock", sidecar: folder / "sidecar.sock"}
        stack.enter_context(EnvoyServer(config(alone, sockets)))
        results = asyncio.run(run_all(alone, noop, sidecar, seconds))
    if as_json:
        for result in results:
            click.echo(json.dumps({name: getattr(result, name) for name in Result.__slots__}))
    else:
        console.print(_table(results))


def _table(results: Sequence[Result]) -> Table:
    view = Table(box=None, header_style="bold")
    for name in ("way", "body", "callers", "p50 ms", "p99 ms", "requests/s", "failed"):
        view.add_column(name, justify="left" if name == "way" else "right", no_wrap=True)
    for each in results:
        view.add_row(
            each.way,
            f"{each.bytes // 1024} kB",
            str(each.callers),
            f"{each.p50:.2f}",
            f"{each.p99:.2f}",
            f"{each.per_second:.0f}",
            str(each.failed),
        )
    return view


if __name__ == "__main__":
    main()
