"""The manifests that attach the sidecar to gateways of Kubernetes.

There is no cluster here: they are held against schemas (see `tests.deployment.custom_resources`),
compared with the settings, and the parts that are Envoy's own configuration are loaded by a real
Envoy.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sidecar.config import load_settings
from sidecar.ext_proc.options import Writing
from sidecar.local import GatewayOptions, adapted, shipped_config, tool
from tests.deployment.custom_resources import is_custom, problems

FOLDER = shipped_config().parent / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))


def documents(path: Path) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all(path.read_text()))


def of_kind(path: Path, kind: str) -> Any:
    return next(each for each in documents(path) if each["kind"] == kind)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_document_says_what_it_is(path: Path) -> None:
    for each in documents(path):
        assert each["apiVersion"]
        assert each["kind"]
        assert each["metadata"]["name"]
        assert each["spec"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_resources_fit_their_schemas(path: Path) -> None:
    found = {each["metadata"]["name"]: problems(each) for each in documents(path)}

    assert all(is_custom(each["apiVersion"]) for each in documents(path))
    assert not {name: what for name, what in found.items() if what}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_all_owned_headers_are_removed_early(path: Path) -> None:
    text = path.read_text()

    assert all(name in text for name in Writing().owned)


@pytest.mark.parametrize("name", ["envoy-gateway.yaml", "envoy-ai-gateway.yaml"])
def test_policies_agree_with_the_default_settings(name: str) -> None:
    settings = load_settings(environ={}).ext_proc
    (processor,) = of_kind(FOLDER / name, "EnvoyExtensionPolicy")["spec"]["extProc"]
    traffic = of_kind(FOLDER / name, "ClientTrafficPolicy")["spec"]

    assert processor["messageTimeout"] == f"{settings.message_timeout_ms}ms"
    assert traffic["connection"]["bufferLimit"] == f"{settings.max_body_bytes // 2**20}Mi"
    assert set(traffic["headers"]["earlyRequestHeaders"]["remove"]) == set(Writing().owned)


def test_credentials_are_kept_from_the_sidecar_in_istio_too() -> None:
    def kept(processor: Any) -> Any:
        return processor["typed_config"]["forward_rules"]["disallowed_headers"]["patterns"]

    patches = of_kind(FOLDER / "istio.yaml", "EnvoyFilter")["spec"]["configPatches"]
    (ours,) = [each["patch"]["value"] for each in patches if each["applyTo"] == "HTTP_FILTER"]
    shipped = YAML(typ="safe", pure=True).load(shipped_config().read_text())
    (listener,) = shipped["static_resources"]["listeners"]
    filters = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]

    assert kept(ours) == kept(filters[0]) == kept(filters[1])


def test_filters_for_istio_are_taken_by_a_real_envoy(tmp_path: Path) -> None:
    patches = of_kind(FOLDER / "istio.yaml", "EnvoyFilter")["spec"]["configPatches"]
    values = {patch["applyTo"]: patch["patch"]["value"] for patch in patches}
    options = GatewayOptions(port=1, sidecar=tmp_path / "s")
    config = json.loads(adapted(shipped_config().read_text(), options))
    resources = config["static_resources"]
    listener = resources["listeners"][0] | values["LISTENER"]
    resources["listeners"] = [listener]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager |= values["NETWORK_FILTER"]["typed_config"]
    manager["http_filters"] = [values["HTTP_FILTER"], manager["http_filters"][-1]]
    resources["clusters"] = [
        values["CLUSTER"],
        *(each for each in resources["clusters"] if each["name"] != "llm_router"),
    ]
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(config))

    result = subprocess.run(
        [tool("envoy"), "--mode", "validate", "--config-path", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert result.returncode == 0, result.stderr[-2000:]
