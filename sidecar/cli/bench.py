"""`sidecar bench`: how fast, on this machine, in one run."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import click
from rich.console import Console

from sidecar import __version__
from sidecar.app_routing import build_routing
from sidecar.bench import cold, kinds, others, own, served, traffic
from sidecar.bench.application import application
from sidecar.bench.example_traffic import POLICY, ExampleTraffic
from sidecar.bench.kinds import LIKE_EXAMPLES, NEVER_ALONE, Kind
from sidecar.bench.rows import Row, table
from sidecar.bench.scale import FULL, QUICK, TINY, Scale
from sidecar.bench.targets import targets
from sidecar.cli.common_options import model_option
from sidecar.cli.failures import Failure
from sidecar.cli.output_file import OutputFile
from sidecar.cli.stack import LocalStack, running
from sidecar.cli.steps import Steps
from sidecar.cli.up import EXAMPLES, chosen_engine
from sidecar.config import Settings, load_settings
from sidecar.core.model import CompiledPrompt
from sidecar.engines import EngineInfo
from sidecar.inference.triton import TritonModel, TritonTarget
from sidecar.local import (
    ChildProcess,
    LocalError,
    TritonServer,
    data_file,
    free_ports,
    new_run_folder,
    remove_run_folder,
)
from sidecar.local.process import children
from sidecar.observability.decisions import DecisionSinks
from sidecar.observability.logging import LogOptions, configure_logging
from sidecar.policies import load_policies

GROUPS = (
    "matrix", "traffic", "share", "batch", "alone", "load", "large", "cold", "many", "app", "echo",
    "llama",
)  # fmt: skip

_SCALES = {"quick": QUICK, "full": FULL, "tiny": TINY}
_SETTLE_S = 10.0
_BUSY_LOAD = 0.5
"""Of the last minute's load average for a core, above which times say little."""

_LLAMA_START_S = 60
_PROVIDER_START_S = 30
_WIDTH = 150


@dataclass(slots=True)
class Bench:
    """What the run needs and what it found.

    Args:
        folder: for policies, sockets and logs.
        prompts: by the name of the policy.
        capacity, alone: decisions a second of the sidecar and of the model server alone, by kind
            of request, where they were measured.
    """

    engine: EngineInfo
    scale: Scale
    groups: tuple[str, ...]
    folder: Path
    settings: Settings
    console: Console
    examples: ExampleTraffic
    rows: list[Row] = field(default_factory=list)
    prompts: dict[str, CompiledPrompt] = field(default_factory=dict)
    capacity: dict[str, float] = field(default_factory=dict)
    alone: dict[str, float] = field(default_factory=dict)

    @property
    def never_alone(self) -> dict[str, object]:
        """Settings of a routing model whose encoder decides nothing by itself."""
        return {"encoder_alone_from": 1.0}

    def show(self, rows: list[Row]) -> None:
        self.rows += rows
        if rows:
            self.console.print(table(rows[0].group, rows), "")

    async def take(self, rows: AsyncIterator[Row]) -> None:
        self.show([each async for each in rows])


@click.command("bench")
@click.option("--quick", "size", flag_value="quick", help="A minute or two: few calls of each.")
@click.option(
    "--full",
    "size",
    flag_value="full",
    default="full",
    help="Some 25 minutes: the default.",
)
@click.option("--tiny", "size", flag_value="tiny", hidden=True)
@click.option(
    "--only",
    "groups",
    type=click.Choice(GROUPS),
    multiple=True,
    help="Measure this alone; may be given more than once.",
)
@model_option
@click.option(
    "--json",
    "json_path",
    type=OutputFile(),
    help="Write all that was measured there.",
)
def bench(size: str, groups: tuple[str, ...], model: Path | None, json_path: Path | None) -> None:
    """Measure a sidecar, its routing model and what they are compared with.

    Everything runs on this machine and shares its cores, the callers too. Run it on an otherwise
    idle one.
    """
    if not EXAMPLES.is_dir():
        raise Failure("examples/ is not part of this installation; measure from a clone")
    configure_logging(LogOptions("error", "auto", False))
    console, steps = wide_console(), Steps()
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    if busy > _BUSY_LOAD:
        click.echo(f"This machine is busy (load {busy:.1f} per core): times say little.", err=True)
    engine = chosen_engine(model, load_settings(environ={}), steps)
    with _folder() as folder:
        made = _bench(engine, _SCALES[size], groups or GROUPS, folder, console)
        started = time.monotonic()
        with running(LocalStack(engine, made.settings, quiet=True, steps=steps)) as stack:
            took = time.monotonic() - started
            _measure(made, stack)
            made.show(_memory(stack, took))
    budget_ms = made.settings.routing.decision_budget_ms
    made.show(list(targets(made.rows, budget_ms)))
    made.console.print(_about(made, size))
    if json_path is not None:
        json_path.write_text(json.dumps(_document(made, size, busy), indent=2) + "\n")


def wide_console() -> Console:
    """Wide enough for the tables where it is not a screen."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


@contextmanager
def _folder() -> Iterator[Path]:
    folder = new_run_folder("bench")
    try:
        yield folder
    finally:
        remove_run_folder(folder)


def _bench(
    engine: EngineInfo, scale: Scale, groups: tuple[str, ...], folder: Path, console: Console
) -> Bench:
    policies = folder / "policies"
    policies.mkdir()
    many = scale.many if "many" in groups else 0
    examples = ExampleTraffic(EXAMPLES / "policies", scale.standard_routes)
    files = traffic.policy_files(scale.routes, many, [examples.policy_document()])
    for number, content in enumerate(files):
        (policies / f"{number}.yaml").write_text(content)
    (port,) = free_ports(1)
    settings = load_settings(
        flags={
            "server": {
                "grpc_address": f"127.0.0.1:{port}",
                "uds_path": folder / "sidecar.sock",
                "http_address": "",
            },
            "policies": {"paths": (policies,)},
            "routing_model": {"directory": engine.path},
        },
        environ={},
    )
    return Bench(engine, scale, groups, folder, settings, console, examples)


def _measure(made: Bench, stack: LocalStack) -> None:
    made.prompts = _prompts(made, made.settings)
    routes, words = made.scale.standard_routes, made.scale.standard_words
    prompt = made.prompts[f"routes-{routes}"]
    with ExitStack() as servers:
        # Started from the main thread, whose end is theirs.
        echoes = servers.enter_context(_echoes(made)) if "echo" in made.groups else None
        provider = servers.enter_context(_provider(made)) if "app" in made.groups else ""
        never = servers.enter_context(_never_alone(made, stack))
        try:
            asyncio.run(_of_sidecar(made, stack, provider, never))
        except own.TooSlowError as error:
            raise Failure(str(error)) from None
        if echoes is not None:
            tokens = len(prompt.prefix_ids) + 60
            message = traffic.request(1, words, f"routes-{routes}").SerializeToString()
            asyncio.run(made.take(others.grpc_echo(echoes[0], message, made.scale)))
            asyncio.run(made.take(others.triton_echo(echoes[1], tokens, made.scale)))
    if "llama" in made.groups:
        _llama(made, prompt)


async def _of_sidecar(made: Bench, stack: LocalStack, provider: str, never: str) -> None:
    path = f"unix:{made.settings.server.uds_path}"
    async with (
        own.calling(stack.address) as tcp,
        own.calling(path) as uds,
        own.calling(never or stack.address) as language_model,
    ):
        subject = own.Subject(tcp, uds, made.scale)
        asked = [
            Kind(LIKE_EXAMPLES, tcp, POLICY, made.examples.request),
            Kind(NEVER_ALONE, language_model, POLICY, made.examples.request),
        ]
        groups: dict[str, Callable[[], AsyncIterator[Row]]] = {
            "matrix": lambda: own.matrix(subject),
            "traffic": lambda: _by_kind(made, asked),
            "share": lambda: own.own_share(subject),
            "batch": lambda: own.batch_and_stream(subject),
            "alone": lambda: _alone(made, stack),
            "load": lambda: _capacity(made, asked),
            "large": lambda: own.large_messages(subject, path),
            "cold": lambda: cold.cold_and_warm(subject),
            "many": lambda: cold.many_policies(subject, _prefix_bytes(made)),
            "app": lambda: application(subject, provider),
        }
        for name, rows in groups.items():
            if name in made.groups:
                await made.take(rows())
        if "load" in made.groups:
            await made.take(_load(made, asked))


async def _by_kind(made: Bench, asked: Sequence[Kind]) -> AsyncIterator[Row]:
    for number, kind in enumerate(asked):
        if number:
            # The sidecar that nobody asks now goes on to warm its policies, at the same Triton.
            await asyncio.sleep(_SETTLE_S)
        async for each in kinds.one_caller(kind, made.scale):
            yield each


async def _capacity(made: Bench, asked: Sequence[Kind]) -> AsyncIterator[Row]:
    for kind in asked:
        found = partial(made.capacity.__setitem__, kind.name)
        alone = made.alone.get(kind.name)
        async for each in kinds.capacity(kind, made.scale, found, alone):
            yield each


async def _load(made: Bench, asked: Sequence[Kind]) -> AsyncIterator[Row]:
    for kind in asked:
        if rate := made.capacity[kind.name]:
            async for each in kinds.load(kind, made.scale, rate):
                yield each


@contextmanager
def _never_alone(made: Bench, stack: LocalStack) -> Iterator[str]:
    """Address of a second sidecar at the same Triton, whose encoder decides nothing by itself;
    empty if no group asks it.

    It has the policy that it is asked for alone: others would be warmed while the first sidecar is
    measured.
    """
    if not {"traffic", "load"} & set(made.groups):
        yield ""
        return
    policies = made.folder / "one-policy"
    policies.mkdir()
    documents = traffic.catalog_document(), made.examples.policy_document()
    (policies / "policy.yaml").write_text("\n---\n".join(map(json.dumps, documents)))
    with served.serving(
        made.engine,
        stack.triton.grpc_address,
        made.folder / "never-alone",
        policies={"paths": [policies], "default_policy": POLICY},
        routing_model=made.never_alone,
    ) as sidecar:
        yield sidecar.address


async def _alone(made: Bench, stack: LocalStack) -> AsyncIterator[Row]:
    facts = made.engine.router
    model = TritonModel(
        TritonTarget(
            stack.triton.grpc_address,
            made.settings.triton.model,
            facts.end_id,
            facts.pad_id,
            facts.vocab_size,
            label_ids=facts.takes_label_ids,
        )
    )
    language_model = load_settings(
        flags={
            "policies": {"paths": made.settings.policies.paths},
            "routing_model": {"directory": made.engine.path, **made.never_alone},
        },
        environ={},
    )
    prompts = {LIKE_EXAMPLES: made.prompts, NEVER_ALONE: _prompts(made, language_model)}
    try:
        for kind, by_policy in prompts.items():
            rates: list[float] = []
            asked = (kind, lambda n: others.conversation_of(made.examples.request(n)))
            async for each in others.model_alone(
                model, by_policy[POLICY], asked, made.scale, rates
            ):
                yield each
            made.alone[kind] = max(rates)
    finally:
        await model.close()


def _prefix_bytes(made: Bench) -> int:
    """Of the keys and values of a policy of six routes."""
    prompt = made.prompts[f"routes-{min(made.scale.routes)}"]
    return served.kv_bytes_per_token(made.engine) * len(prompt.prefix_ids)


def _prompts(made: Bench, settings: Settings) -> dict[str, CompiledPrompt]:
    """By name of the policy, compiled as the sidecar does under `settings`."""
    registry = build_routing(settings, DecisionSinks()).registry
    loaded = load_policies(settings.policies.paths)
    records = {record.policy.name: record for record in loaded.records.values()}
    prompts: dict[str, CompiledPrompt] = {}
    for name in (*(f"routes-{count}" for count in made.scale.routes), POLICY):
        prompt = registry.compile_record(records[name], loaded.catalog).prompt
        assert prompt is not None, "it has routes"
        prompts[name] = prompt
    return prompts


@contextmanager
def _echoes(made: Bench) -> Iterator[tuple[str, str]]:
    """Addresses of a gRPC server and of a Triton that do nothing."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "sidecar.bench.echo_server", address]
    server = ChildProcess(command, dict(os.environ), made.folder / "echo.log")
    try:
        with TritonServer(others.ECHO_REPOSITORY, exit_timeout_s=1) as triton:
            yield address, triton.grpc_address
    finally:
        server.kill()


@contextmanager
def _provider(made: Bench) -> Iterator[str]:
    """URL of an LLM's provider that answers at once."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "sidecar.bench.provider", str(port)]
    server = ChildProcess(command, dict(os.environ), made.folder / "provider.log")
    try:
        _wait_for_port(port, server)
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        server.kill()


def _wait_for_port(port: int, server: ChildProcess) -> None:
    end = time.monotonic() + _PROVIDER_START_S
    while time.monotonic() < end and server.exit_code() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise Failure(f"the provider did not start:\n{server.last_lines(10)}")


def _llama(made: Bench, prompt: CompiledPrompt) -> None:
    group = others.LLAMA
    if find_spec("xllamacpp") is None:
        why = "not measured: pip install -r requirements/bench.txt"
        made.show([Row(group, "xllamacpp is not installed", note=why)])
        return
    try:
        weights = data_file("smollm2.gguf")
    except LocalError as error:
        made.show([Row(group, "no weights", note=str(error))])
        return
    log = made.folder / "llama.log"
    command = [sys.executable, "-m", "sidecar.bench.llama_server", str(weights)]
    server = ChildProcess(command, dict(os.environ), log)
    try:
        address = _llama_address(server, log)
        asyncio.run(made.take(others.llama(address, prompt, made.scale)))
    except (TimeoutError, aiohttp.ClientError) as error:
        # What was measured before is worth more than this comparison.
        made.show([Row(group, "no answer", note=type(error).__name__)])
    finally:
        server.kill()


def _llama_address(server: ChildProcess, log: Path) -> str:
    end = time.monotonic() + _LLAMA_START_S
    while time.monotonic() < end and server.exit_code() is None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("http://"):
                return line
        time.sleep(0.1)
    raise Failure(f"llama.cpp's server did not start:\n{server.last_lines(10)}")


def _memory(stack: LocalStack, took_s: float) -> list[Row]:
    group = "Memory and start"
    models = list(children(stack.triton.pid))
    return [
        Row(group, "Triton and sidecar until the first policy is warm", note=f"{took_s:.1f} s"),
        others.memory_row("sidecar", [stack.sidecar_pid]),
        others.memory_row("Triton, without its models", [stack.triton.pid]),
        others.memory_row("the model's process", models),
    ]


def _machine() -> dict[str, object]:
    names = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    flags = Path("/proc/cpuinfo").read_text()
    return {
        "cpu": ", ".join(sorted(names)) or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "amx": "amx_tile" in flags,
        "avx512": "avx512f" in flags,
    }


def _about(made: Bench, size: str) -> str:
    machine = _machine()
    extensions = "AMX" if machine["amx"] else "AVX-512" if machine["avx512"] else "no AMX"
    return (
        f"{made.engine.router.build_id}, {machine['cores']} cores of {machine['cpu']} "
        f"({extensions}), size {size}. `model`: share of the calls that the routing model answered "
        "within the budget, `encoder`: that its encoder answered alone."
    )


def _document(made: Bench, size: str, busy: float) -> dict[str, object]:
    return {
        "version": __version__,
        "size": size,
        "scale": asdict(made.scale),
        "machine": _machine() | {"load_per_core_before": round(busy, 2)},
        "routing_model": made.engine.router.build_id,
        "capacity_per_second": made.capacity,
        "rows": [each.as_json() for each in made.rows],
    }
