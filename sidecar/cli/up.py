"""`sidecar up`: everything on this machine, in the foreground."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console

from sidecar.app_policies import PolicySourceError, require_default
from sidecar.cli.common_options import config_option, model_option
from sidecar.cli.failures import Failure
from sidecar.cli.findings_view import print_findings
from sidecar.cli.gateway import GatewayWish, misplaced, read_providers
from sidecar.cli.model import default_model
from sidecar.cli.policy_options import place
from sidecar.cli.policy_place import PlaceFailure
from sidecar.cli.printing import echo
from sidecar.cli.stack import LocalStack, check_addresses, running
from sidecar.cli.steps import Steps
from sidecar.config import ServerSettings, Settings, load_settings
from sidecar.core.errors import SidecarError
from sidecar.engines import EngineError, EngineInfo, read_engine
from sidecar.engines.cpu import RUNTIME
from sidecar.grpc_api.listening import is_loopback
from sidecar.local.preflight import require
from sidecar.policies import load_policies
from sidecar.policies.stores import open_store

_NEEDED = {"header_prefix": "x-llm-", "clear_route_cache": True, "dynamic_metadata": True}
"""Without these all requests would arrive at Envoy's default provider, with another one's model."""
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _providers(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    try:
        return read_providers(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option(
    "--policies",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="File or folder with policies and the model catalog; may be given more than once. "
    "Without it and without policies.paths in the settings: the examples.",
)
@model_option
@config_option
@click.option("--envoy", is_flag=True, help="Run Envoy in front: clients of LLM APIs are routed.")
@click.option(
    "--envoy-port",
    type=click.IntRange(1, 65535),
    default=10_000,
    show_default=True,
    help="Port that clients speak to.",
)
@click.option(
    "--envoy-keys",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the providers' keys: a file for each, named as its cluster.",
)
@click.option(
    "--envoy-provider",
    metavar="NAME=URL",
    multiple=True,
    callback=_providers,
    help="Reach the provider NAME of the catalog's `cluster` at URL: a server of your own, or a "
    "stand-in for tests. May be given more than once.",
)
@click.option(
    "--envoy-variant",
    type=click.Choice(["full_duplex", "shadow"]),
    help="Another way to attach the sidecar; see docs/ext-proc.md.",
)
def up(
    policies: tuple[Path, ...],
    model: Path | None,
    config: Path | None,
    envoy: bool,
    envoy_port: int,
    envoy_keys: Path | None,
    envoy_provider: dict[str, str],
    envoy_variant: str | None,
) -> None:
    """Run Triton and the sidecar on this machine until Ctrl-C.

    Exit status: 0 if it was stopped, 1 if a part could not start or has died.
    """
    if not envoy:
        _refuse_of_envoy()
    settings = with_console(with_policies(load_settings(config), policies))
    check_policies(settings)
    check_addresses(settings)
    wish = GatewayWish(envoy_port, envoy_keys, envoy_variant or "", envoy_provider)
    gateway = wish if envoy else None
    if gateway is not None:
        check_gateway(gateway, settings)
    steps = Steps()
    ready = False
    try:
        engine = chosen_engine(model, settings, steps)
        with running(LocalStack(engine, settings, steps=steps, gateway=gateway)) as stack:
            ready = True
            with stack.noted_interrupts():
                _announce(stack, settings, gateway)
                stack.watch()
    except KeyboardInterrupt:
        # Asked to stop: that is how this command ends well, once it has started.
        if not ready:
            raise


def _refuse_of_envoy() -> None:
    """Raises UsageError for an option that would be ignored."""
    context = click.get_current_context()
    for name in ("envoy_port", "envoy_keys", "envoy_provider", "envoy_variant"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --envoy")


def check_gateway(gateway: GatewayWish, settings: Settings) -> None:
    """Before anything takes its time to start. Raises Failure."""
    if not settings.ext_proc.enabled:
        raise Failure("--envoy needs the setting ext_proc.enabled, which is off")
    for key, needed in _NEEDED.items():
        if gateway.variant != "shadow" and getattr(settings.ext_proc, key) != needed:
            raise Failure(
                f"--envoy runs the shipped configuration, which needs ext_proc.{key} as it is by "
                "default; leave it out, or run an Envoy of your own (docs/ext-proc.md)"
            )
    missing = {"model", "cluster", "fallbacks"}.difference(settings.ext_proc.headers)
    if missing and gateway.variant != "shadow":
        raise Failure(
            "--envoy runs the shipped configuration, which routes by headers that "
            f"ext_proc.headers leaves out: {', '.join(sorted(missing))}; add them, or run an Envoy "
            "of your own (docs/ext-proc.md)"
        )
    for key in ("grpc_address", "http_address"):
        if getattr(settings.server, key).endswith(f":{gateway.port}"):
            raise Failure(
                f"--envoy-port {gateway.port} is the port of server.{key}; choose another"
            )
    gateway.check()


def with_policies(settings: Settings, policies: tuple[Path, ...]) -> Settings:
    """The settings with `policies`, or else the examples where they name none."""
    paths = policies or settings.policies.paths
    if not paths:
        if not EXAMPLES.is_dir():
            raise click.UsageError("name policies with --policies or policies.paths")
        paths = (EXAMPLES / "policies",)
    return settings.model_copy(
        update={"policies": settings.policies.model_copy(update={"paths": paths})}
    )


def with_console(settings: Settings) -> Settings:
    """The settings with the console, where they do not say, this machine alone reaches it, and no
    caller needs a certificate, or the rights to a socket, that the console would do without."""
    section, server = settings.admin, settings.server
    stated = "console" in section.model_fields_set
    guarded = server.tls_client_ca is not None or not server.grpc_address
    if stated or guarded or not is_loopback(server.http_address):
        return settings
    return settings.model_copy(update={"admin": section.model_copy(update={"console": True})})


def check_policies(settings: Settings) -> None:
    """Before anything takes its time to start. Raises Failure once the findings are printed."""
    if settings.policy_store.url and _has_policies(settings.policy_store.url):
        return  # The files are not read any more.
    found = load_policies(settings.policies.paths, pipes=False)
    if not found.valid:
        print_findings(found, Console(stderr=True))
        raise Failure("the policies have errors; nothing was started")
    if not settings.policy_store.url:
        try:
            require_default(settings, found.records)
        except PolicySourceError as error:
            raise Failure(str(error)) from None


def _has_policies(url: str) -> bool:
    """Raises Failure for a database that cannot be used."""
    try:
        with closing(open_store(url)) as store:
            return bool(store.last_change())
    except SidecarError as error:
        raise Failure(f"policy_store.url: {error}") from None


def chosen_engine(model: Path | None, settings: Settings, steps: Steps) -> EngineInfo:
    """The engine that was named, or else the default one. Raises EngineError or LocalError, also
    where the machine cannot serve it: minutes of fetching and building would be for nothing."""
    require()
    folder = model or settings.routing_model.directory
    if folder is not None:
        return _for_this_machine(read_engine(folder))
    with steps.step("Preparing the routing model") as report:
        return default_model(report)


def _for_this_machine(engine: EngineInfo) -> EngineInfo:
    """Raises EngineError for one that runs on GPUs alone."""
    if engine.router.runtime != RUNTIME:
        raise EngineError(
            f"{engine.path}: an engine of {engine.router.runtime}, for GPUs; serve it with Triton "
            "there (docs/gpu.md) and run `sidecar serve`"
        )
    return engine


def _announce(stack: LocalStack, settings: Settings, gateway: GatewayWish | None) -> None:
    lines = [f"gRPC     {stack.address}"]
    if settings.server.grpc_address and settings.server.uds_path is not None:
        lines.append(f"         unix:{settings.server.uds_path}")
    if settings.server.http_address:
        lines.append(f"HTTP     http://{settings.server.http_address}/metrics, /status, /healthz")
        if settings.admin.console:
            lines.append(f"Console  http://{settings.server.http_address}/console")
    if gateway is not None:
        lines.append(f"Envoy    {gateway.url} for Anthropic's SDK, {gateway.url}/v1 for OpenAI's,")
        lines.append("         model `auto`")
        lines.append(f"         log {stack.gateway.log}")
        keys = ", ".join(gateway.with_key())
        told = f"keys of {keys}" if keys else "requests go on without a key: see --envoy-keys"
        lines.append(f"         {told}")
        lines += [f"         {name} is at {url}" for name, url in gateway.providers.items()]
        warnings = (*gateway.stray_keys(), *_of_catalog(stack.plaintext_address, gateway))
        lines += [f"         warning: {each}" for each in warnings]
    lines.append(f"Triton   {stack.triton.grpc_address}, log {stack.triton.log}")
    default = stack.plaintext_address == ServerSettings().grpc_address
    at = "" if default else f" --address {stack.plaintext_address}"
    lines.append(
        f"Ready. Try: {own_name()} route 'Why does my loop never end?'{at}. Ctrl-C stops all."
    )
    echo("\n".join(lines))


def _of_catalog(at: str, gateway: GatewayWish) -> Sequence[str]:
    """What is doubtful about the catalog that the sidecar has: with a store the files are only what
    that began with."""
    with place(at) as sidecar:
        try:
            models = sidecar.catalog().models.values()
            return [*gateway.unused(models), *misplaced(models, gateway.clusters())]
        except PlaceFailure as failure:
            if not failure.unreadable:
                raise
            # It decides by an earlier one.
            return [failure.message]


def own_name() -> str:
    """What the reader types for this program: `make up` starts one that is not in the shell's
    search path."""
    started = sys.argv[0]
    return started if Path(started).name == "sidecar" and not shutil.which("sidecar") else "sidecar"
