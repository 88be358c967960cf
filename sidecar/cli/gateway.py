"""Envoy in front of the sidecar, on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sidecar.cli.failures import Failure
from sidecar.config import Settings
from sidecar.core.policy import Model
from sidecar.grpc_api.listening import ListenError, check_tcp
from sidecar.local import (
    SIDECAR_CLUSTER,
    EnvoyServer,
    GatewayOptions,
    adapted,
    is_address,
    provider_clusters,
    read_keys,
    shipped_config,
)
from sidecar.policies.findings import closest, quoted

_LAST_LINES = 15
_PROVIDER = re.compile(
    r"(?P<name>[A-Za-z0-9_-]+)="
    r"(?P<url>https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]+)?)/?"
)


@dataclass(frozen=True, slots=True)
class GatewayWish:
    """What a user asked for.

    Args:
        port: that clients speak to, on the loopback interface.
        keys: folder with a file for each provider that has a key.
        variant: name of a file of docker/envoy/variants, without its ending; empty: none.
        providers: cluster -> URL to be used instead of the real provider, or of a further one.
    """

    port: int
    keys: Path | None = None
    variant: str = ""
    providers: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def check(self) -> None:
        """Before anything starts. Raises Failure if Envoy could not listen there, LocalError for a
        key that cannot be used."""
        self.with_key()
        try:
            check_tcp(f"127.0.0.1:{self.port}")
        except ListenError as error:
            raise Failure(f"{error} (option --envoy-port)") from None

    def with_key(self) -> list[str]:
        """The providers that have one. Raises LocalError."""
        return [] if self.keys is None else list(read_keys(self.keys, self.clusters()))

    def clusters(self) -> tuple[str, ...]:
        """Names of the providers that Envoy reaches."""
        return tuple(dict.fromkeys((*_shipped_clusters(), *self.providers)))

    def stray_keys(self) -> Iterator[str]:
        """Of each file among the keys that is of no provider: what to do."""
        clusters = self.clusters()
        for file in sorted(self.keys.iterdir() if self.keys is not None else ()):
            if file.is_file() and file.name not in clusters and not file.name.startswith("."):
                meant = closest(file.stem, clusters)
                remedy = f"did you mean {meant}?" if meant else f"there are {', '.join(clusters)}"
                yield f"{file} is the key of no provider: {remedy}"

    def unused(self, models: Iterable[Model]) -> Iterator[str]:
        """Of each provider with a URL that no model names."""
        named = {model.cluster for model in models}
        for name in self.providers:
            if name not in named:
                yield f"no model of the catalog has the cluster {quoted(name)}; set one's `cluster`"


def _shipped_clusters() -> tuple[str, ...]:
    return provider_clusters(shipped_config().read_text(encoding="utf-8"))


def read_providers(texts: Iterable[str]) -> dict[str, str]:
    """Cluster -> URL of each `NAME=URL`. Raises ValueError with what to write."""
    providers: dict[str, str] = {}
    for name, url in map(_read_provider, texts):
        if name in providers:
            raise ValueError(f"{name} is given twice; each provider is at one URL")
        providers[name] = url
    return providers


def _read_provider(text: str) -> tuple[str, str]:
    """A URL can hold a password, so it is not repeated in errors."""
    match = _PROVIDER.fullmatch(text)
    try:
        parts = urlsplit(match["url"] if match else "")
        right = parts.port != 0
    except ValueError:
        right = False
    if match is None or not right:
        raise ValueError(
            "write NAME=http://HOST:PORT or NAME=https://HOST, such as "
            "openai=http://127.0.0.1:8000; the path is that of each request, "
            "and keys come from --envoy-keys"
        )
    name = match["name"]
    if name == SIDECAR_CLUSTER:
        raise ValueError(
            f"{SIDECAR_CLUSTER} is Envoy's cluster of the sidecar; choose another name"
        )
    if parts.scheme == "https" and is_address(parts.hostname) and name not in _shipped_clusters():
        raise ValueError(
            f"{name}: with https write the name of the host, which its certificate is checked for, "
            "and not its address"
        )
    return name, match["url"]


def misplaced(models: Iterable[Model], clusters: Sequence[str] = ()) -> Iterator[str]:
    """Of each model whose cluster is none of Envoy's: what becomes of it, and what to do."""
    clusters = clusters or _shipped_clusters()
    choice = f"one of {', '.join(clusters)}"
    for model in models:
        if not model.cluster:
            yield (
                f"{quoted(model.id)} has no cluster: Envoy sends its requests to the default "
                "provider of their API, whoever has the model; set `cluster` in the catalog to "
                f"{choice}"
            )
        elif model.cluster not in clusters:
            meant = closest(model.cluster, clusters)
            remedy = f"did you mean {quoted(meant)}?" if meant else f"set {choice}"
            yield (
                f"{quoted(model.id)} has the cluster {quoted(model.cluster)}, which Envoy does not "
                f"have: its requests fail; {remedy}"
            )


def options_of(wish: GatewayWish, sidecar: Path, settings: Settings) -> GatewayOptions:
    """What the settings say twice, once to the sidecar and once to Envoy, included."""
    section = settings.ext_proc
    variant = f"variants/{wish.variant}.yaml" if wish.variant else ""
    return GatewayOptions(
        port=wish.port,
        sidecar=sidecar,
        message_timeout_s=section.message_timeout_ms / 1000,
        max_message_timeout_s=section.max_message_timeout_ms / 1000,
        buffer_bytes=min(section.max_body_bytes, settings.server.max_message_bytes),
        aliases=tuple(each.partition("=")[0] for each in section.aliases),
        keys=wish.keys,
        providers=wish.providers,
        variant=shipped_config(variant).read_text(encoding="utf-8") if variant else "",
    )


class LocalGateway:
    """Envoy with the shipped configuration."""

    def __init__(self, wish: GatewayWish, sidecar: Path, settings: Settings) -> None:
        options = options_of(wish, sidecar, settings)
        config = adapted(shipped_config().read_text(encoding="utf-8"), options)
        self._envoy = EnvoyServer(config)

    @property
    def log(self) -> Path:
        """Access log and Envoy's own."""
        return self._envoy.log

    def start(self) -> None:
        """Raises LocalError."""
        self._envoy.start()

    def check(self) -> None:
        """Raises Failure if it has died, with its last log lines."""
        if (code := self._envoy.exit_code()) is not None:
            tail = self._envoy.last_log_lines(_LAST_LINES)
            raise Failure(f"Envoy has died (status {code}):\n{tail}")

    def stop(self) -> None:
        self._envoy.stop()

    def abandon(self) -> None:
        """As `stop`, at once."""
        self._envoy.kill()
        self._envoy.stop()
