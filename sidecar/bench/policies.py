"""Many policies, and policies that change: `python -m sidecar.bench.policies`.

`many`: a sidecar with 2,000 policies of 34 routes beside one with a single policy. What a sidecar
takes for itself is measured in front of a real Triton whose model answers at once, so that the
model does not hide it; both sidecars in turns, so that the machine's moods fall on both. Policies
are drawn by Zipf's law. Then calls at half of the capacity for the same policies with the real
routing model: the share that was cold, of requests that the language model has to decide and of
requests that its encoder can decide without having read the policy.

`reload`: decisions at half of the capacity while a policy is changed again and again, and without.

The machine must be idle otherwise.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import grpc
from rich.console import Console

from sidecar._generated.llmrouter.v1 import policy_pb2, routing_pb2
from sidecar._generated.llmrouter.v1.policy_pb2_grpc import PolicyServiceStub
from sidecar.bench import own, processes, served, traffic
from sidecar.bench.measuring import (
    Call,
    Measured,
    Sample,
    closed_loop,
    open_loop,
    without_model,
)
from sidecar.bench.reload import Changes, reloads
from sidecar.bench.rows import Row, percentile, row, table
from sidecar.bench.served import Served
from sidecar.cli.bench import wide_console
from sidecar.cli.model import default_model
from sidecar.cli.output_file import OutputFile
from sidecar.engines import CpuRepositoryOptions, EngineInfo, read_engine
from sidecar.local.process import children

_WORDS = 15
_MANY = "Many policies: the sidecar's own share"
_START = "Many policies: start and memory"
_COLD = "Many policies: with the routing model"
_TURNS = 6
"""Measurements of each sidecar, in turns."""
_CALLERS = 2
"""Enough to keep the model server busy, as in `reload`."""
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        policies: of the large sidecar.
        calls: of one sidecar in one turn.
        seconds: with the routing model, of each kind of request.
        changes: of the part `reload`.
    """

    policies: int
    calls: int
    seconds: float
    changes: Changes


FULL = Size(2000, 1000, 120, Changes(60, 500, 3))
QUICK = Size(2000, 100, 10, Changes(30, 50, 1))
TINY = Size(40, 10, 1, Changes(2, 1, 1))


@dataclass(slots=True)
class Run:
    """One run and what it found. `budget_ms`: of a decision by the routing model."""

    engine: EngineInfo
    size: Size
    folder: Path
    console: Console
    budget_ms: int
    rows: list[Row]

    def show(self, rows: Sequence[Row]) -> None:
        self.rows += rows
        if rows:
            self.console.print(table(rows[0].group, rows), "")


def many(run: Run) -> None:
    """Start, memory, own share, cold share."""
    count = run.size.policies
    documents = [traffic.policy_document("default", served.ROUTES, 0)]
    documents += [
        traffic.policy_document(f"many-{n}", served.ROUTES, n + 1) for n in range(count - 1)
    ]
    urls = [served.filled_store(run.folder / f"{n}.db", documents[:n]) for n in (1, len(documents))]
    files = _written(run.folder / "files", documents)
    instant = run.folder / "instant"
    with served.model_server(run.engine, instant, instant=True) as triton:
        with ExitStack() as stack:
            few, all_ = (
                stack.enter_context(
                    served.serving(
                        run.engine,
                        triton.grpc_address,
                        run.folder / f"sidecar-{number}",
                        policy_store={"url": url},
                        # Every decision asks the model.
                        cache={"max_bytes": 0},
                    )
                )
                for number, url in enumerate(urls)
            )
            started = [_started("1 policy, SQLite", few), _started(f"{count}, SQLite", all_)]
            asyncio.run(_own_share(run, few, all_))
            started.append(_memory(f"{count}, SQLite, after the calls", all_))
        with served.serving(
            run.engine, triton.grpc_address, run.folder / "files-sidecar", policies={"paths": files}
        ) as of_files:
            started.append(_started(f"{count}, YAML files", of_files))
    run.show(started)
    _with_model(run, urls[1])


def _written(folder: Path, documents: Sequence[dict[str, object]]) -> list[str]:
    """YAML files as people write them, a policy each."""
    folder.mkdir()
    (folder / "models.yaml").write_text(_yaml(traffic.catalog_document()))
    for each in documents:
        (folder / f"{each['name']}.yaml").write_text(_yaml(each))
    return [str(folder)]


def _yaml(value: object, indent: str = "") -> str:
    """Block style. `documents.yaml_text` writes the same, for one policy in the time of this for
    a hundred."""
    if isinstance(value, dict):
        parts = []
        for key, each in value.items():
            nested = isinstance(each, list | dict)
            parts.append(f"{indent}{key}:" + ("\n" if nested else " ") + _yaml(each, indent + "  "))
        return "\n".join(parts)
    if isinstance(value, list):
        return "\n".join(f"{indent}- {_yaml(each, indent + '  ').lstrip()}" for each in value)
    text = str(value)
    return json.dumps(text) if ": " in text else text


def _started(name: str, sidecar: Served) -> Row:
    resident = sidecar.resident_bytes() / 2**20
    note = (
        f"{sidecar.start_s:.1f} s until it serves (aim: 5), {sidecar.start_cpu_s:.1f} s of "
        f"processor time; {resident:,.0f} MiB resident"
    )
    return Row(_START, name, note=note)


def _memory(name: str, sidecar: Served) -> Row:
    return Row(_START, name, note=f"{sidecar.resident_bytes() / 2**20:,.0f} MiB resident")


async def _own_share(run: Run, few: Served, all_: Served) -> None:
    count, calls = run.size.policies, run.size.calls
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(own.calling(few.address))
        other = await stack.enter_async_context(own.calling(all_.address))
        for each in (one, other):
            await own.warm(each, "default")
        drawn = _drawn(count, calls * (_TURNS + 1))
        before = all_.cpu_s()
        first = await closed_loop(_asking(other, drawn[:calls]), 1, calls)
        size = traffic.request(1, _WORDS, "default").ByteSize()
        rows = [
            row(
                _MANY,
                f"{count} policies, the first calls",
                first,
                message_bytes=size,
                concurrency=1,
                note=_cost(all_.cpu_s() - before, calls),
            )
        ]
        # Every policy of the measured draws has been asked for: what is left is looking it up.
        for policy in sorted(set(drawn)):
            await own.warm(other, policy)
        taken: list[list[Sample]] = [[], []]
        cpu = [0.0, 0.0]
        for turn in range(_TURNS):
            part = drawn[(turn + 1) * calls : (turn + 2) * calls]
            for place, (sidecar, call) in enumerate(
                ((few, _asking(one, ["default"] * calls)), (all_, _asking(other, part)))
            ):
                began = sidecar.cpu_s()
                taken[place] += (await closed_loop(call, 1, calls)).samples
                cpu[place] += sidecar.cpu_s() - began
        total = calls * _TURNS
        for name, samples, seconds in zip(
            ("1 policy", f"{count} policies, Zipf"), taken, cpu, strict=True
        ):
            rows.append(
                row(
                    _MANY,
                    name,
                    Measured(without_model(samples)),
                    message_bytes=size,
                    concurrency=1,
                    note=f"of {total} calls those that the model decided; {_cost(seconds, total)}",
                )
            )
    run.show([*rows, _ratios(taken, cpu)])


def _drawn(count: int, draws: int) -> list[str]:
    """Names of policies by Zipf's law; the most frequent is `default`."""
    return [f"many-{n - 1}" if n else "default" for n in traffic.zipf(count, draws)]


Request = Callable[[int, str], routing_pb2.RouteRequest]
"""Of a number and a policy."""


def _random(number: int, policy: str) -> routing_pb2.RouteRequest:
    return traffic.request(number, _WORDS, policy)


def _fitting(number: int, policy: str) -> routing_pb2.RouteRequest:
    """Asks for what one of the policy's routes describes."""
    made = traffic.request(number, _WORDS, policy)
    seed = 0 if policy == "default" else int(policy.removeprefix("many-")) + 1
    route = traffic.routes(served.ROUTES, seed)[number % served.ROUTES]
    made.messages[-1].parts[0].text = f"{route['description']} It is case {number}."
    return made


def _asking(routes: own.Routes, policies: Sequence[str], request: Request = _random) -> Call:
    order = iter(policies)

    async def call(number: int) -> Sample:
        return await routes.route(request(number, next(order)))

    return call


def _cost(cpu_s: float, calls: int) -> str:
    return f"{cpu_s / calls * 1000:.2f} ms of processor time a call"


def _ratios(taken: Sequence[Sequence[Sample]], cpu: Sequence[float]) -> Row:
    ordered = [sorted(each.seconds for each in without_model(samples)) for samples in taken]
    p50, p99 = (percentile(ordered[1], at) / percentile(ordered[0], at) for at in (50, 99))
    note = f"{p50:.2f} times at p50, {p99:.2f} at p99; processor time {cpu[1] / cpu[0]:.2f} times"
    return Row(_MANY, "many to one", note=f"{note} (aim: 1.1)")


def _with_model(run: Run, url: str) -> None:
    folder = run.folder / "real"
    with (
        served.model_server(run.engine, folder / "repository", instant=False) as triton,
        served.serving(
            run.engine,
            triton.grpc_address,
            folder / "sidecar",
            policy_store={"url": url},
            routing={"decision_budget_ms": run.budget_ms},
            cache={"max_bytes": 0},
        ) as sidecar,
    ):
        before = sum(map(processes.resident_bytes, children(triton.pid)))
        rows, prefix_tokens = asyncio.run(_cold_share(run, sidecar))
        after = sum(map(processes.resident_bytes, children(triton.pid)))
    run.show([*rows, _held(run, prefix_tokens, before, after)])


async def _cold_share(run: Run, sidecar: Served) -> tuple[list[Row], int]:
    """Rows, and tokens of a policy's prefix."""
    drawn = _drawn(run.size.policies, 100_000)
    rows = []
    async with own.calling(sidecar.address) as routes:
        await own.warm(routes, "default")
        asking = own.asking(routes, "default", _WORDS)
        busy = await closed_loop(asking, _CALLERS, seconds=run.size.seconds / 4)
        rate = busy.model_per_second / 2
        if not rate:
            raise own.TooSlowError("the routing model answered nothing in time; raise --budget-ms")
        for name, request in (("random words", _random), ("what a route describes", _fitting)):
            call = _asking(routes, drawn, request)
            measured = await open_loop(call, rate, run.size.seconds)
            calls = len(measured.samples)
            cold = sum(each.source == "fallback:warming" for each in measured.samples)
            rows.append(
                row(
                    _COLD,
                    f"{run.size.policies} policies, Zipf, {name}",
                    measured,
                    message_bytes=request(1, "default").ByteSize(),
                    offered=rate,
                    note=f"cold {cold / max(calls, 1):.0%}; {len(set(drawn[:calls]))} policies "
                    "asked for",
                )
            )
        tokens = await _prefix_tokens(sidecar.address)
    return rows, tokens


async def _prefix_tokens(address: str) -> int:
    """Of the default policy, as the sidecar counts them."""
    options = [("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        policies = PolicyServiceStub(channel)
        get = policy_pb2.GetPolicyRequest(name="namespaces/default/policies/default")
        present = await policies.GetPolicy(get, timeout=_TIMEOUT_S)
        request = policy_pb2.ValidatePolicyRequest(policy=present)
        return (await policies.ValidatePolicy(request, timeout=_TIMEOUT_S)).prefix_tokens


def _held(run: Run, prefix_tokens: int, before: int, after: int) -> Row:
    """Memory of the model's process, beside what it may keep of policies."""
    policy = prefix_tokens * served.kv_bytes_per_token(run.engine)
    bound = CpuRepositoryOptions().prefix_cache_bytes
    note = (
        f"{prefix_tokens} tokens and {policy / 2**20:.1f} MiB of keys and values a policy; at most "
        f"{bound / 2**20:,.0f} MiB are held, {bound // policy} policies; "
        f"{before / 2**20:,.0f} MiB resident before the calls, {after / 2**20:,.0f} after"
    )
    return Row(_COLD, "the model's process", note=note)


PARTS = ("many", "reload")


@click.command()
@click.option("--quick", "size", flag_value="quick", help="Minutes: few calls of each.")
@click.option("--full", "size", flag_value="full", default="full", help="The default.")
@click.option("--tiny", "size", flag_value="tiny", hidden=True)
@click.option("--only", type=click.Choice(PARTS), help="This part alone.")
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--budget-ms",
    default=1000,
    show_default=True,
    help="Of a decision by the routing model; a slow machine answers few within a second.",
)
@click.option("--json", "json_path", type=OutputFile())
def main(
    size: str, only: str | None, model: Path | None, budget_ms: int, json_path: Path | None
) -> None:
    """Measure many policies, and policies that change under load, on this machine."""
    console = wide_console()
    engine = read_engine(model) if model is not None else default_model(console.print)
    with tempfile.TemporaryDirectory() as name:
        sizes = {"full": FULL, "quick": QUICK, "tiny": TINY}
        run = Run(engine, sizes[size], Path(name), console, budget_ms, [])
        busy = os.getloadavg()[0] / (os.cpu_count() or 1)
        try:
            if only in (None, "many"):
                many(run)
            if only in (None, "reload"):
                reloads(engine, run.folder, run.size.changes, run.budget_ms, run.show)
        except (own.TooSlowError, served.StartError) as error:
            raise click.ClickException(str(error)) from None
    if json_path is not None:
        found = {
            "size": asdict(run.size),
            "budget_ms": budget_ms,
            "load_per_core_before": round(busy, 2),
            "routing_model": engine.router.build_id,
            "rows": [each.as_json() for each in run.rows],
        }
        json_path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
