"""The shipped configuration made to fit a machine, and Envoy as a process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.local import EnvoyServer, GatewayOptions, LocalError, adapted, shipped_config

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


def test_nothing_is_listed_where_no_name_asks_for_routing(tmp_path: Path) -> None:
    text = json.dumps(made(tmp_path, aliases=()))

    assert r"\"data\": [], \"has_more\": false, \"first_id\": null, \"last_id\": null" in text


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


def test_provider_that_there_is_not_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="no cluster 'opnai'; there are llm_router, openai"):
        made(tmp_path, providers={"opnai": "http://127.0.0.1:1"})


def test_file_that_is_not_shipped_is_named() -> None:
    with pytest.raises(LocalError, match=r"docker/envoy/variants/none\.yaml"):
        shipped_config("variants/none.yaml")


def test_configuration_that_envoy_refuses_is_an_error_with_what_it_says() -> None:
    envoy = EnvoyServer('{"static_resources": {"listeners": [{"name": "without an address"}]}}')

    with pytest.raises(LocalError, match="ended with code 1") as refused:
        envoy.start()

    assert "address" in str(refused.value).lower()
