"""`sidecar capacity`: how many GPUs a fleet needs, computed."""

from __future__ import annotations

import math

import click

from sidecar.capacity.queueing import Load, simulate
from sidecar.capacity.roofline import ASSUMED, GPUS, SHAPES, Engine, Work
from sidecar.capacity.tables import TABLES, batch_ms

_COUNT = click.IntRange(min=1)


def _more_than_0(
    _context: click.Context, _option: click.Parameter, value: float | None
) -> float | None:
    # Written so that it is false for nan, which click's ranges let through.
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"must be more than 0, not {value:g}")
    return value


@click.group()
def capacity() -> None:
    """Compute times and numbers of GPUs. Nothing is measured; assumptions: docs/scaling.md."""


@capacity.command()
@click.argument("name", type=click.Choice([*TABLES, "all"]))
def table(name: str) -> None:
    """Print a table of docs/scaling.md."""
    for each in TABLES if name == "all" else (name,):
        click.echo(TABLES[each]())


@capacity.command("simulate")
@click.option("--gpu", type=click.Choice([gpu.name for gpu in GPUS]), default="L40S")
@click.option("--model", type=click.Choice([shape.name for shape in SHAPES]), default=None)
@click.option("--fp8", is_flag=True, help="Weights and arithmetic in FP8.")
@click.option("--prompt", default=800, type=_COUNT, show_default=True, help="Tokens of a prompt.")
@click.option("--reused", default=704, show_default=True, help="Of them, found in the KV cache.")
@click.option("--answer", default=1, type=_COUNT, show_default=True, help="Tokens; 1 for a label.")
@click.option(
    "--per-second",
    default=100.0,
    callback=_more_than_0,
    show_default=True,
    help="Decisions that arrive.",
)
@click.option("--replicas", default=1, type=_COUNT, show_default=True, help="GPUs.")
@click.option(
    "--policies",
    default=0,
    type=click.IntRange(min=0),
    show_default=True,
    help="Each at one replica; 0: any.",
)
@click.option(
    "--service-ms",
    type=float,
    callback=_more_than_0,
    help="Measured time of one decision on an idle GPU, instead of the computed one; batches are "
    "scaled alike.",
)
def simulate_command(
    gpu: str,
    model: str | None,
    fp8: bool,
    prompt: int,
    reused: int,
    answer: int,
    per_second: float,
    replicas: int,
    policies: int,
    service_ms: float | None,
) -> None:
    """Simulate a load on some GPUs."""
    if not 0 <= reused < prompt:
        raise click.UsageError(f"--reused {reused} must be less than --prompt {prompt}")
    shape = next(shape for shape in SHAPES if model in (None, shape.name))
    engine = Engine(next(each for each in GPUS if each.name == gpu), shape, fp8)
    computed = batch_ms(engine, Work(prompt, reused, answer))
    factor = 1.0 if service_ms is None else service_ms / computed(1)
    if per_second * computed(64) * factor / 64_000 >= replicas:
        raise click.UsageError(f"{replicas} x {gpu} cannot keep up with {per_second:g} a second")
    found = simulate(
        Load(per_second, replicas, policies=policies),
        lambda batch: computed(batch) * factor,
        ASSUMED.request_ms,
    )
    stated = "computed" if service_ms is None else "as given"
    click.echo(
        f"{shape.name} on {replicas} x {gpu}, service time {stated}: {computed(1) * factor:.2f} ms"
    )
    click.echo(f"p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms")
    click.echo(f"GPUs busy {found.busy:.0%}, {found.mean_batch:.1f} decisions in a batch")
