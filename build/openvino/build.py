"""Builds an OpenVINO engine and the Triton model repository that serves it; see README.md."""

from __future__ import annotations

from pathlib import Path

import click

from sidecar.engines import (
    CpuRepositoryOptions,
    EngineError,
    WeightStorage,
    build_cpu_engine,
    render_cpu_repository,
)

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--source", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--prompt-format", required=True, help="The one the weights were trained for.")
@click.option("--model-id", required=True, help="Reported with every decision.")
@click.option("--temperature", default=1.0, show_default=True, help="Calibration of the labels.")
@click.option("--out", type=_FOLDER, required=True, help="Engine folder to write.")
@click.option("--repository", type=_FOLDER, required=True, help="Model repository to write.")
@click.option("--served-at", type=_FOLDER, help="Where the engine will lie; default: --out.")
@click.option(
    "--weights",
    type=click.Choice([WeightStorage.F16.value, WeightStorage.INT8.value]),
    default="f16",
    show_default=True,
)
@click.option("--threads", default=0, show_default="all cores", help="Threads of computation.")
def build(
    source: Path,
    prompt_format: str,
    model_id: str,
    temperature: float,
    out: Path,
    repository: Path,
    served_at: Path | None,
    threads: int,
    weights: str,
) -> None:
    """Compile WEIGHTS and render what serves them."""
    try:
        engine = build_cpu_engine(
            source,
            out,
            model_id=model_id,
            prompt_format=prompt_format,
            temperature=temperature,
            weight_storage=WeightStorage(weights),
            progress=click.echo,
        )
        options = CpuRepositoryOptions(threads=threads)
        render_cpu_repository(engine.path, repository, options=options, served_at=served_at)
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{engine.path}\n{repository}")


if __name__ == "__main__":
    build()
