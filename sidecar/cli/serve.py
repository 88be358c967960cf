"""`sidecar serve`: the server alone, for a Triton that runs elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from sidecar.app import run
from sidecar.cli.common_options import config_option
from sidecar.cli.descriptions import described
from sidecar.config import load_settings


@click.command()
@config_option
@click.option(
    "--policies",
    type=click.Path(path_type=Path),
    multiple=True,
    help=described("policies", "paths") + " May be given more than once.",
)
@click.option("--store", metavar="URL", help=described("policy_store", "url"))
@click.option(
    "--model", type=click.Path(path_type=Path), help=described("routing_model", "directory")
)
@click.option(
    "--triton",
    metavar="HOST:PORT",
    multiple=True,
    help="gRPC address of Triton. May be given more than once. Setting triton.addresses.",
)
@click.option("--address", metavar="HOST:PORT", help=described("server", "grpc_address"))
@click.option("--http-address", metavar="HOST:PORT", help=described("server", "http_address"))
@click.option("--uds", type=click.Path(path_type=Path), help=described("server", "uds_path"))
@click.option(
    "--envoy-uds", type=click.Path(path_type=Path), help=described("ext_proc", "uds_path")
)
# For a process that starts this one and has to know whose answers it gets.
@click.option("--started-file", type=click.Path(path_type=Path), hidden=True)
def serve(
    config: Path | None,
    policies: tuple[Path, ...],
    store: str | None,
    model: Path | None,
    triton: tuple[str, ...],
    address: str | None,
    http_address: str | None,
    uds: Path | None,
    envoy_uds: Path | None,
    started_file: Path | None,
) -> None:
    """Serve the API until SIGTERM or Ctrl-C.

    Every setting can also come from the file or the environment; `sidecar settings` shows those in
    force.
    """
    settings = load_settings(
        config,
        {
            "server": {
                "grpc_address": address,
                "http_address": http_address,
                "uds_path": uds,
            },
            "ext_proc": {"uds_path": envoy_uds},
            "policies": {"paths": policies or None},
            "policy_store": {"url": store},
            "routing_model": {"directory": model},
            # Whatever the file says: what is given here is what is asked.
            "triton": {"addresses": triton or None},
        },
    )
    run(settings, lambda _: started_file.touch() if started_file is not None else None)
