"""The shipped configuration made to fit a machine, and Envoy as a process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sidecar.local import (
    EnvoyServer,
    GatewayOptions,
    LocalError,
    adapted,
    free_ports,
    shipped_config,
)

SHIPPED = shipped_config().read_text()


def made(tmp_path: Path, **options: Any) -> dict[str, Any]:
    given = {"port": 12345, "sidecar": tmp_path / "s", **options}
    resources: dict[str, Any] = json.loads(adapted(SHIPPED, GatewayOptions(**given)))
    return resources["static_resources"]  # type: ignore[no-any-return]


def cluster(resources: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in resources["clusters"] if each["name"] == name)


def test_port_socket_and_timeout_are_those_that_were_asked_for(tmp_path: Path) -> None:
    resources = made(tmp_path, message_timeout_s=2.5)

    text = json.dumps(resources)
    assert resources["listeners"][0]["address"]["socket_address"]["port_value"] == 12345
    assert str(tmp_path / "s") in text
    assert '"message_timeout": "2.5s"' in text


def test_envoy_waits_as_long_as_the_sidecar_may_ask_it_to(tmp_path: Path) -> None:
    longer = json.dumps(made(tmp_path, message_timeout_s=1, max_message_timeout_s=3))
    alike = json.dumps(made(tmp_path, message_timeout_s=1, max_message_timeout_s=1))

    assert '"max_message_timeout": "3s"' in longer
    assert "max_message_timeout" not in alike


@pytest.mark.parametrize(("asked", "buffered"), [(1024, 12_582_912), (20_000_000, 20_000_000)])
def test_bodies_that_the_sidecar_reads_are_buffered(
    tmp_path: Path, asked: int, buffered: int
) -> None:
    resources = made(tmp_path, buffer_bytes=asked)

    key = "per_connection_buffer_limit_bytes"
    assert resources["listeners"][0][key] == buffered
    assert cluster(resources, "mistral")[key] == buffered
    assert key not in cluster(resources, "llm_router")


def test_names_that_ask_for_routing_are_listed_and_become_a_model(tmp_path: Path) -> None:
    given = ("smart", 'say "cheap"', *(f"alias-{number}" for number in range(100)))
    (listener,) = made(tmp_path, aliases=given)["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]

    routes = manager["route_config"]
    of_anthropic, of_openai = texts = [
        route["direct_response"]["body"]["inline_string"]
        for route in routes["virtual_hosts"][0]["routes"]
        if route["match"].get("path") == "/v1/models"
    ]
    assert [tuple(each["id"] for each in json.loads(text)["data"]) for text in texts] == [given] * 2
    page = json.loads(of_anthropic)
    assert tuple(each["display_name"] for each in page["data"]) == given
    assert (page["first_id"], page["last_id"]) == (given[0], given[-1])
    assert {each["owned_by"] for each in json.loads(of_openai)["data"]} == {"llm_router"}
    assert routes["max_direct_response_body_size_bytes"] >= max(map(len, texts))
    (lua,) = (each for each in manager["http_filters"] if each["name"].endswith(".lua"))
    code = lua["typed_config"]["default_source_code"]["inline_string"]
    assert 'local ALIASES = {["smart"] = true, ["say \\"cheap\\""] = true, ' in code
    assert "auto = true" not in code


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("smart", ["smart", "smart?beta=true"]),
        ("a.b:free", ["a.b:free", "a.b%3Afree", "a.b%3afree"]),
        ("team/smart", ["team/smart", "team%2Fsmart"]),
        ('say "größe"', ["say%20%22gr%C3%B6%C3%9Fe%22"]),
    ],
)
def test_name_that_asks_for_routing_is_found_however_a_client_escapes_it(
    odd_names: int, name: str, paths: list[str]
) -> None:
    for path in paths:
        for headers in ({}, {"anthropic-version": "2023-06-01"}):
            client = HTTPConnection("127.0.0.1", odd_names, timeout=30)
            client.request("GET", f"/v1/models/{path}", headers=headers)
            answer = client.getresponse()
            found = json.load(answer)
            client.close()
            assert (answer.status, found["id"]) == (200, name)
            assert found.get("display_name", name) == name
            assert ("display_name" in found) == bool(headers)


@pytest.mark.parametrize("path", ["auto", "axb:free", "smart/team", "smart2"])
def test_name_that_does_not_ask_for_routing_goes_on(odd_names: int, path: str) -> None:
    client = HTTPConnection("127.0.0.1", odd_names, timeout=30)
    client.request("GET", f"/v1/models/{path}")
    assert client.getresponse().status == 503
    client.close()


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of an Envoy without a provider that answers."""
    port, nobody = free_ports(2)
    options = GatewayOptions(
        port=port,
        sidecar=tmp_path_factory.mktemp("odd") / "nobody",
        aliases=("smart", "a.b:free", "team/smart", 'say "größe"'),
        providers={"openai": f"http://127.0.0.1:{nobody}"},
    )
    with EnvoyServer(adapted(SHIPPED, options)):
        yield port


def test_nothing_is_listed_where_no_name_asks_for_routing(tmp_path: Path) -> None:
    text = json.dumps(made(tmp_path, aliases=()))

    assert r"\"data\": [], \"has_more\": false, \"first_id\": null, \"last_id\": null" in text
    assert "/v1/models/" not in text


def test_names_that_ask_for_routing_are_as_shipped_unless_given(tmp_path: Path) -> None:
    text = json.dumps(made(tmp_path))

    assert "local ALIASES = {auto = true}" in text


def test_key_is_read_without_the_newline_that_editors_add(tmp_path: Path) -> None:
    (tmp_path / "openai").write_text("sk-1\n")

    resources = made(tmp_path, keys=tmp_path)

    (secret,) = resources["secrets"]
    assert secret["name"] == "openai"
    assert secret["generic_secret"]["secret"]["inline_string"] == "sk-1"


def test_provider_without_a_key_gets_none_and_others_keep_theirs(tmp_path: Path) -> None:
    (tmp_path / "openai").write_text("sk-1")

    resources = made(tmp_path, keys=tmp_path)

    injector = "credential_injector"
    assert injector in json.dumps(cluster(resources, "openai"))
    assert injector not in json.dumps(cluster(resources, "mistral"))


@pytest.mark.parametrize(
    ("name", "url", "address", "host"),
    [
        ("openai", "http://127.0.0.1:81", ("127.0.0.1", 81), "api.openai.com"),
        ("openai", "http://litellm.internal", ("litellm.internal", 80), "litellm.internal"),
        ("openai", "https://litellm.internal", ("litellm.internal", 443), "litellm.internal"),
        ("openai", "http://localhost:81", ("localhost", 81), "localhost:81"),
        ("openai", "https://localhost:81", ("localhost", 81), "localhost"),
        ("local", "http://127.0.0.1:81", ("127.0.0.1", 81), "127.0.0.1:81"),
        ("local", "http://[::1]:81", ("::1", 81), "[::1]:81"),
    ],
)
def test_provider_is_asked_elsewhere(
    tmp_path: Path, name: str, url: str, address: tuple[str, int], host: str
) -> None:
    made_one = cluster(made(tmp_path, providers={name: url}), name)

    assert made_one["load_assignment"]["cluster_name"] == name
    (locality,) = made_one["load_assignment"]["endpoints"]
    (endpoint,) = (each["endpoint"] for each in locality["lb_endpoints"])
    assert tuple(endpoint["address"]["socket_address"].values()) == address
    assert endpoint["hostname"] == host
    assert ("transport_socket" in made_one) is url.startswith("https:")


def test_further_provider_gets_its_own_key(tmp_path: Path) -> None:
    (tmp_path / "local").write_text("sk-2")

    resources = made(tmp_path, providers={"local": "http://127.0.0.1:81"}, keys=tmp_path)

    assert [each["name"] for each in resources["secrets"]] == ["local"]
    assert '"credential": {"name": "local"}' in json.dumps(cluster(resources, "local"))


class Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_provider_whose_name_has_an_address_that_is_not_reached_is_asked_at_another(
    tmp_path: Path,
) -> None:
    """localhost is ::1, too, as providers have addresses of IPv6 on machines without it."""
    port = free_ports(1)[0]
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as provider:
        threading.Thread(target=provider.serve_forever, daemon=True).start()
        options = GatewayOptions(
            port=port,
            sidecar=tmp_path / "nobody",
            providers={"openai": f"http://localhost:{provider.server_port}"},
        )
        with EnvoyServer(adapted(SHIPPED, options)):
            client = HTTPConnection("127.0.0.1", port, timeout=30)
            client.request("POST", "/v1/chat/completions", "{}")
            assert client.getresponse().status == 200
            client.close()
        provider.shutdown()


def test_file_that_is_not_shipped_is_named() -> None:
    with pytest.raises(LocalError, match=r"docker/envoy/variants/none\.yaml"):
        shipped_config("variants/none.yaml")


def test_configuration_that_envoy_refuses_is_an_error_with_what_it_says() -> None:
    envoy = EnvoyServer('{"static_resources": {"listeners": [{"name": "without an address"}]}}')

    with pytest.raises(LocalError, match="ended with code 1") as refused:
        envoy.start()

    assert "address" in str(refused.value).lower()
