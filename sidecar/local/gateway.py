"""The shipped configuration of Envoy (`docker/envoy`), made to fit this machine."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from sidecar.local.errors import LocalError

_FOLDERS = (
    # A clone of the repository, or an installed package.
    Path(__file__).resolve().parents[2] / "docker" / "envoy",
    Path(__file__).resolve().parents[1] / "_envoy",
)
SIDECAR_CLUSTER = "llm_router"
_PATTERN = "openai"
_ALIASES = "local ALIASES = {auto = true}"
_MODELS = "/v1/models"
_MODEL = "/v1/models/auto"
_BUFFER = "per_connection_buffer_limit_bytes"
_EXT_PROC = "envoy.filters.http.ext_proc"
_INJECTOR = "envoy.filters.http.credential_injector"
_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What differs from the shipped file.

    Args:
        port: that clients speak to, on the loopback interface.
        sidecar: socket of the sidecar.
        message_timeout_s: how long Envoy waits for the sidecar; None: as shipped.
        max_message_timeout_s: how long the sidecar can make it wait; 0: no longer than that.
        buffer_bytes: longest body that Envoy buffers, if that is more than as shipped.
        aliases: names in place of a model that ask for routing; None: as shipped.
        keys: folder with a file for each cluster that has a key; None, or a file that is not there
            or empty: requests go to that provider without one.
        providers: cluster -> URL to be used instead of the real provider. A cluster that is not
            shipped is made, and gets its key as OpenAI's API has it. Host and certificate are those
            of the URL's name; at an address those of the real provider.
        trusted_ca: certificates that are trusted for https; None: those of this machine.
        access_log: file for it instead of standard output.
        variant: content of a file of docker/envoy/variants; empty: none.
    """

    port: int
    sidecar: Path
    message_timeout_s: float | None = None
    max_message_timeout_s: float = 0.0
    buffer_bytes: int = 0
    aliases: tuple[str, ...] | None = None
    keys: Path | None = None
    providers: Mapping[str, str] = field(default_factory=dict)
    trusted_ca: Path | None = None
    access_log: Path | None = None
    variant: str = ""


def shipped_config(name: str = "envoy.yaml") -> Path:
    """A file of docker/envoy. Raises LocalError."""
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise LocalError(f"docker/envoy/{name} is not part of this installation; use a clone")


def provider_clusters(config: str) -> tuple[str, ...]:
    """Names of the clusters of `config` (YAML) that reach providers."""
    clusters = _load(config)["static_resources"]["clusters"]
    return tuple(cluster["name"] for cluster in clusters if cluster["name"] != SIDECAR_CLUSTER)


def adapted(shipped: str, options: GatewayOptions) -> str:
    """The configuration `shipped` (YAML) with `options` applied, as JSON.

    Raises:
        LocalError: a key or this machine's certificates cannot be read.
    """
    resources = _load(shipped)["static_resources"]
    clusters = {cluster["name"]: cluster for cluster in resources["clusters"]}
    for name in options.providers:
        if name not in clusters:
            clusters[name] = _like(clusters[_PATTERN], name, options.providers[name])
            resources["clusters"].append(clusters[name])
    for each in (*resources["listeners"], *resources["clusters"]):
        if (shipped_bytes := each.get(_BUFFER)) is not None:
            each[_BUFFER] = max(shipped_bytes, options.buffer_bytes)
    for listener in resources["listeners"]:
        _adapt_listener(listener, options)
    keys = read_keys(options.keys, clusters) if options.keys is not None else {}
    for name, cluster in clusters.items():
        if name == SIDECAR_CLUSTER:
            _set_address(cluster, {"pipe": {"path": str(options.sidecar)}})
        else:
            _adapt_provider(cluster, options, has_key=name in keys)
    resources["secrets"] = [
        {"name": name, "generic_secret": {"secret": {"inline_string": key}}}
        for name, key in keys.items()
    ]
    return json.dumps({"static_resources": resources}, indent=1)


def _load(text: str) -> Any:
    """Without the aliases of the YAML, so that changing one place does not change others."""
    # Not at the top: `make` imports this package with a Python that has nothing installed yet.
    from ruamel.yaml import YAML

    return json.loads(json.dumps(YAML(typ="safe", pure=True).load(text)))


def _adapt_listener(listener: dict[str, Any], options: GatewayOptions) -> None:
    listener["address"]["socket_address"]["port_value"] = options.port
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    if options.variant:
        manager["http_filters"] = [
            part
            for each in manager["http_filters"]
            for part in (_load(options.variant) if each["name"] == _EXT_PROC else [each])
        ]
    for each in manager["http_filters"]:
        filter_config = each["typed_config"]
        if "message_timeout" in filter_config and options.message_timeout_s is not None:
            filter_config["message_timeout"] = f"{options.message_timeout_s:g}s"
            if options.max_message_timeout_s > options.message_timeout_s:
                filter_config["max_message_timeout"] = f"{options.max_message_timeout_s:g}s"
    if options.aliases is not None:
        _set_aliases(manager, options.aliases)
    if options.access_log is not None:
        for log in manager["access_log"]:
            log["typed_config"] = _file_log(log["typed_config"], options.access_log)


def _set_aliases(manager: dict[str, Any], aliases: tuple[str, ...]) -> None:
    """Where front ends find them, and where they become a model without the sidecar."""
    routes = manager["route_config"]
    host = routes["virtual_hosts"][0]
    made = [each for route in host["routes"] for each in _of_aliases(route, aliases)]
    host["routes"] = made
    answers = [each["direct_response"]["body"] for each in made if "direct_response" in each]
    # Envoy refuses longer answers of its own than this, which is 4 KiB unless set.
    routes["max_direct_response_body_size_bytes"] = max(
        4096, *(len(each["inline_string"]) for each in answers)
    )
    table = ", ".join(f"[{json.dumps(name, ensure_ascii=False)}] = true" for name in aliases)
    for each in manager["http_filters"]:
        if (code := each["typed_config"].get("default_source_code")) is not None:
            code["inline_string"] = code["inline_string"].replace(
                _ALIASES, f"local ALIASES = {{{table}}}"
            )


def _of_aliases(route: dict[str, Any], aliases: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """What takes the place of a shipped route."""
    path = route["match"].get("path")
    if path not in (_MODELS, _MODEL):
        yield route
        return
    shipped = json.loads(route["direct_response"]["body"]["inline_string"])
    if path == _MODELS:
        yield _answering(route, _listed(shipped, aliases))
        return
    for name in aliases:
        made = _answering(route, _renamed(shipped, name))
        del made["match"]["path"]
        made["match"]["safe_regex"] = {"regex": f"{_MODELS}/{_in_path(name)}"}
        yield made


def _answering(route: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    answer = {**route["direct_response"], "body": {"inline_string": json.dumps(body)}}
    return {**route, "match": {**route["match"]}, "direct_response": answer}


def _listed(page: dict[str, Any], aliases: tuple[str, ...]) -> dict[str, Any]:
    """The shipped list with `aliases` in place of what it has, in the form of its first."""
    listed = {**page, "data": [_renamed(page["data"][0], name) for name in aliases]}
    if "first_id" in page:
        ends = (aliases[0], aliases[-1]) if aliases else (None, None)
        listed["first_id"], listed["last_id"] = ends
    return listed


def _renamed(model: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: name if value == model["id"] else value for key, value in model.items()}


def _in_path(name: str) -> str:
    """Pattern for `name` in a path. Clients differ in which characters they escape there."""
    pattern = ""
    for each in name:
        plain, escaped = re.escape(each), quote(each, safe="")
        pattern += plain if each == escaped else f"({plain}|(?i:{escaped}))"
    return pattern


def _file_log(log: dict[str, Any], path: Path) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
    return {**log, "@type": kind, "path": str(path)}


def _like(pattern: dict[str, Any], name: str, url: str) -> dict[str, Any]:
    """A further provider."""
    made: dict[str, Any] = json.loads(json.dumps(pattern))
    made["name"] = made["load_assignment"]["cluster_name"] = name
    for each in made["typed_extension_protocol_options"][_PROTOCOL]["http_filters"]:
        if each["name"] == _INJECTOR:
            credential = each["typed_config"]["credential"]["typed_config"]["credential"]
            credential["name"] = name
    for endpoint in _endpoints(made):
        endpoint["hostname"] = _host(urlsplit(url))
    return made


def _adapt_provider(cluster: dict[str, Any], options: GatewayOptions, has_key: bool) -> None:
    url = urlsplit(options.providers.get(cluster["name"], ""))
    if url.hostname is not None:
        port = url.port or (443 if url.scheme == "https" else 80)
        _set_address(cluster, {"socket_address": {"address": url.hostname, "port_value": port}})
        if not is_address(url.hostname):
            for endpoint in _endpoints(cluster):
                endpoint["hostname"] = _host(url)
        if url.scheme == "http":
            del cluster["transport_socket"]
            cluster["typed_extension_protocol_options"][_PROTOCOL] = _plain_http(
                cluster["typed_extension_protocol_options"][_PROTOCOL]
            )
    if "transport_socket" in cluster:
        tls = cluster["transport_socket"]["typed_config"]["common_tls_context"]
        tls["validation_context"]["trusted_ca"]["filename"] = str(
            options.trusted_ca or _trusted_ca()
        )
    if not has_key:
        protocol = cluster["typed_extension_protocol_options"][_PROTOCOL]
        filters = protocol["http_filters"]
        protocol["http_filters"] = [each for each in filters if each["name"] != _INJECTOR]


def _host(url: SplitResult) -> str | None:
    """For Host; with https without the port, since it is the name that TLS asks for, too."""
    return url.hostname if url.scheme == "https" else url.netloc


def is_address(host: str | None) -> bool:
    try:
        ip_address(host or "")
    except ValueError:
        return False
    return True


def _plain_http(protocol: dict[str, Any]) -> dict[str, Any]:
    """Without the choice of the protocol that TLS makes."""
    kept = {k: v for k, v in protocol.items() if k != "auto_config"}
    return {**kept, "explicit_http_config": {"http_protocol_options": {}}}


def _set_address(cluster: dict[str, Any], address: dict[str, Any]) -> None:
    for endpoint in _endpoints(cluster):
        endpoint["address"] = address


def _endpoints(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for locality in cluster["load_assignment"]["endpoints"]:
        for each in locality["lb_endpoints"]:
            yield each["endpoint"]


def read_keys(folder: Path, clusters: Iterable[str]) -> dict[str, str]:
    """Cluster -> key, of those whose file in `folder` has one. Raises LocalError."""
    keys = {}
    for file in (folder / name for name in clusters):
        try:
            # Editors end a file with a newline, which cannot stand in a header.
            key = file.read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise LocalError(f"{file}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            key = "\0"
        if not (key.isascii() and key.isprintable()):
            raise LocalError(f"{file}: must hold a key and nothing else, on one line")
        if key:
            keys[file.name] = key
    return keys


def _trusted_ca() -> Path:
    """Where this machine keeps the certificates it trusts; distributions differ."""
    paths = ssl.get_default_verify_paths()
    for candidate in ("/etc/ssl/certs/ca-certificates.crt", paths.cafile, paths.openssl_cafile):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise LocalError(
        "no file with trusted certificates was found; install ca-certificates, or name one in "
        "SSL_CERT_FILE"
    )
