"""The manifests that attach the sidecar to gateways of Kubernetes.

There is no cluster here: they are held against schemas (see `tests.deployment.custom_resources`),
compared with the settings, and the parts that are Envoy's own configuration are loaded by a real
Envoy.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sidecar.config import load_settings
from sidecar.ext_proc.options import Writing
from sidecar.local import GatewayOptions, adapted, shipped_config, tool
from tests.deployment.custom_resources import is_custom, problems
from tests.ext_proc import istio

FOLDER = shipped_config().parent / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))


def documents(path: Path) -> list[Any]:
    found = list(YAML(typ="safe", pure=True).load_all(path.read_text()))
    assert found
    return found


def all_of_kind(path: Path, kind: str) -> list[Any]:
    return [each for each in documents(path) if each["kind"] == kind]


def of_kind(path: Path, kind: str) -> Any:
    return all_of_kind(path, kind)[0]


def named(path: Path, kind: str, name: str) -> Any:
    """What it specifies."""
    return {each["metadata"]["name"]: each["spec"] for each in all_of_kind(path, kind)}[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_document_says_what_it_is(path: Path) -> None:
    for each in documents(path):
        assert each["apiVersion"]
        assert each["kind"]
        assert each["metadata"]["name"]
        assert each["spec"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_resources_fit_their_schemas(path: Path) -> None:
    found = {(each["kind"], each["metadata"]["name"]): problems(each) for each in documents(path)}

    assert all(is_custom(each["apiVersion"]) for each in documents(path))
    assert not {name: what for name, what in found.items() if what}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_all_owned_headers_are_removed_early(path: Path) -> None:
    text = path.read_text()

    assert all(name in text for name in Writing().owned)


@pytest.mark.parametrize("name", ["envoy-gateway.yaml", "envoy-ai-gateway.yaml"])
def test_policies_agree_with_the_default_settings(name: str) -> None:
    settings = load_settings(environ={}).ext_proc
    traffic = of_kind(FOLDER / name, "ClientTrafficPolicy")["spec"]

    for policy in all_of_kind(FOLDER / name, "EnvoyExtensionPolicy"):
        decides = policy["spec"]["extProc"][0]
        assert decides["messageTimeout"] == f"{settings.message_timeout_ms}ms"
    assert traffic["connection"]["bufferLimit"] == f"{settings.max_body_bytes // 2**20}Mi"
    assert set(traffic["headers"]["earlyRequestHeaders"]["remove"]) == set(Writing().owned)


@pytest.mark.parametrize("name", ["envoy-gateway.yaml", "envoy-ai-gateway.yaml"])
def test_gateways_refuse_and_ignore_what_the_shipped_one_does(name: str) -> None:
    manager = shipped_manager()
    (host,) = manager["route_config"]["virtual_hosts"]
    (refused,) = (
        header
        for route in host["routes"]
        for header in route["match"].get("headers", ())
        if header["name"] == "sec-fetch-site"
    )
    traffic = of_kind(FOLDER / name, "ClientTrafficPolicy")["spec"]
    security = of_kind(FOLDER / name, "SecurityPolicy")["spec"]
    (rule,) = security["authorization"]["rules"]
    (principal,) = rule["principal"]["headers"]

    assert security["targetRefs"] == traffic["targetRefs"]
    assert (security["authorization"]["defaultAction"], rule["action"]) == ("Allow", "Deny")
    assert principal == {"name": refused["name"], "values": [refused["string_match"]["exact"]]}
    removed = set(host["response_headers_to_remove"]) - set(Writing().owned)
    assert set(traffic["headers"]["lateResponseHeaders"]["remove"]) == removed
    ignored = manager["http_protocol_options"]["ignore_http_11_upgrade"]
    assert [
        {each["type"].lower(): each["value"]} for each in traffic["http1"]["ignoredUpgradeTypes"]
    ] == ignored


def test_what_the_ai_gateway_refuses_is_not_decided_on() -> None:
    """Envoy Gateway itself has `rbac` behind `ext_proc`; later entries count over earlier ones."""
    order = of_kind(FOLDER / "envoy-ai-gateway.yaml", "EnvoyProxy")["spec"]["filterOrder"]

    assert order[-1] == {"name": "envoy.filters.http.rbac", "before": "envoy.filters.http.ext_proc"}


# --- The filter that sees who issues responses ----------------------------------------------------


def shipped_manager() -> Any:
    shipped = YAML(typ="safe", pure=True).load(shipped_config().read_text())
    (listener,) = shipped["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def shipped_filters() -> tuple[Any, Any]:
    """Of the gateway for one machine: the one that decides, and the one that sees responses."""
    decides, sees = shipped_manager()["http_filters"][:2]
    return decides, sees


@pytest.mark.parametrize(
    ("name", "policy"),
    [("envoy-gateway.yaml", "llm-router-responses"), ("envoy-ai-gateway.yaml", "llm-router")],
)
def test_responses_are_seen_behind_the_decision_without_waiting(name: str, policy: str) -> None:
    decides, sees = named(FOLDER / name, "EnvoyExtensionPolicy", policy)["extProc"]

    assert decides == of_kind(FOLDER / name, "EnvoyExtensionPolicy")["spec"]["extProc"][0]
    assert decides["processingMode"]["request"]["body"] == "Buffered"
    assert not decides.get("shadowMode")
    # What Envoy Gateway makes of it is the shipped filter's mode: headers are sent where a
    # direction is named, bodies where they are.
    assert sees["shadowMode"]
    assert sees["failOpen"]
    assert sees["processingMode"] == {"request": {}, "response": {"body": "Streamed"}}
    assert sees["backendRefs"] == decides["backendRefs"]


def test_envoy_gateway_shows_the_responses_of_the_same_paths_as_the_shipped_gateway() -> None:
    path = FOLDER / "envoy-gateway.yaml"
    policies = {
        each["metadata"]["name"]: each for each in all_of_kind(path, "EnvoyExtensionPolicy")
    }
    routes = {each["metadata"]["name"]: each for each in all_of_kind(path, "HTTPRoute")}
    (target,) = policies["llm-router-responses"]["spec"]["targetRefs"]
    (rule,) = routes[target["name"]]["spec"]["rules"]
    (watched,) = (
        route["match"]["safe_regex"]["regex"]
        for route in shipped_manager()["route_config"]["virtual_hosts"][0]["routes"]
        if "llm_router_responses" in route.get("typed_per_filter_config", {})
        and "safe_regex" in route["match"]
    )

    prefixes = [match["path"]["value"] for match in rule["matches"]]
    assert prefixes == ["/v1/responses", "/v1/conversations"]
    assert all(re.fullmatch(watched, prefix) for prefix in prefixes)


def test_decision_counts_for_more_than_a_path_in_envoy_gateway() -> None:
    """By its order: regular expressions before prefixes, then the longer path."""
    routes = all_of_kind(FOLDER / "envoy-gateway.yaml", "HTTPRoute")
    matches = [
        each for route in routes for rule in route["spec"]["rules"] for each in rule["matches"]
    ]

    by_decision = []
    for match in matches:
        decided = [header["name"] for header in match.get("headers", [])] == ["x-llm-cluster"]
        assert (match["path"]["type"] == "RegularExpression") == decided
        by_decision += [match] if decided else []
    assert len(by_decision) == 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [("envoy-gateway.yaml", "HTTPRoute"), ("envoy-ai-gateway.yaml", "AIGatewayRoute")],
)
def test_no_route_has_the_gateways_own_time_limit(name: str, kind: str) -> None:
    """Of 15 s and of a minute, which ends most answers in the middle."""
    rules = [rule for route in all_of_kind(FOLDER / name, kind) for rule in route["spec"]["rules"]]

    assert rules
    assert all(rule["timeouts"] == {"request": "1h"} for rule in rules)


def test_sidecar_is_before_the_ai_gateways_own_processor() -> None:
    """Which that puts behind a request buffer."""
    path = FOLDER / "envoy-ai-gateway.yaml"
    limit = of_kind(path, "BackendTrafficPolicy")["spec"]["requestBuffer"]["limit"]

    first, *_ = of_kind(path, "EnvoyProxy")["spec"]["filterOrder"]
    assert first == {"name": "envoy.filters.http.ext_proc", "before": "envoy.filters.http.buffer"}
    assert limit == of_kind(path, "ClientTrafficPolicy")["spec"]["connection"]["bufferLimit"]


def test_filters_of_istio_are_those_of_the_shipped_gateway() -> None:
    patches = of_kind(FOLDER / "istio.yaml", "EnvoyFilter")["spec"]["configPatches"]
    decides, sees = (p["patch"]["value"] for p in patches if p["applyTo"] == "HTTP_FILTER")
    shipped_decides, shipped_sees = shipped_filters()
    # Istio's clusters are not the catalog's, so neither their names nor a choice among them.
    metadata = {"receiving_namespaces": {"untyped": ["llm_router"]}}
    expected_decides = shipped_decides["typed_config"] | {"metadata_options": metadata}
    expected_sees = dict(shipped_sees["typed_config"])
    del expected_sees["response_attributes"]

    assert decides["typed_config"] == expected_decides
    assert sees == shipped_sees | {"typed_config": expected_sees}


def test_filters_for_istio_are_taken_by_a_real_envoy(tmp_path: Path) -> None:
    path = FOLDER / "istio.yaml"
    options = GatewayOptions(port=1, sidecar=tmp_path / "s")
    config = json.loads(adapted(shipped_config().read_text(), options))
    resources = config["static_resources"]
    (listener,) = resources["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = manager["http_filters"][-1:]
    hosts = {"api.openai.com": "openai", "api.anthropic.com": "anthropic"}
    (host,) = manager["route_config"]["virtual_hosts"]
    host["routes"] = istio.routes(of_kind(path, "VirtualService"), hosts)
    resources["clusters"] = [c for c in resources["clusters"] if c["name"] != "llm_router"]
    given = json.dumps(config)
    made = istio.patched(given, of_kind(path, "EnvoyFilter"), listener["name"])
    written = tmp_path / "envoy.json"
    written.write_text(made)

    result = subprocess.run(
        [tool("envoy"), "--mode", "validate", "--config-path", str(written)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert result.returncode == 0, result.stderr[-2000:]
