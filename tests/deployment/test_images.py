"""The images' files, checked by hadolint and docker compose, and the sidecar image's installation,
replayed. No image is built: that needs Docker and registries."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sidecar.config import load_settings
from sidecar.core.decision import Reason
from sidecar.ext_proc.request import PassReason
from sidecar.local import data_file, tool
from sidecar.observability.metrics import Metrics

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*/Dockerfile"))


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.parent.name)
class TestDockerfiles:
    def test_hadolint_has_nothing_to_say(self, path: Path) -> None:
        finished = run(tool("hadolint"), path)
        assert finished.stdout == ""
        assert finished.returncode == 0

    def test_what_is_copied_is_in_the_context(self, path: Path) -> None:
        allowed = [
            line[1:]
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line.startswith("!")
        ]
        copied = re.findall(r"^COPY (?!--from)(.*)$", path.read_text(), re.MULTILINE)
        assert copied
        for line in copied:
            *sources, _ = line.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert any(source == each or source.startswith(f"{each}/") for each in allowed)

    def test_runs_as_somebody_else_than_root(self, path: Path) -> None:
        [*_, user] = re.findall(r"^USER (\d+):(\d+)$", path.read_text(), re.MULTILINE)
        assert all(int(number) >= 1000 for number in user)

    def test_is_labelled(self, path: Path) -> None:
        assert "org.opencontainers.image.title" in path.read_text()
        assert "org.opencontainers.image.licenses" in path.read_text()


@pytest.mark.parametrize("image", ["sidecar", "triton"])
def test_health_is_asked_past_the_proxy_that_docker_hands_to_containers(image: str) -> None:
    dockerfile = (DOCKER / image / "Dockerfile").read_text()
    [command] = set(re.findall(r"^HEALTHCHECK .*\\\n +CMD (.*)$", dockerfile, re.MULTILINE))
    _, *arguments = json.loads(command)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = [
            re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{server.server_port}", a) for a in arguments
        ]
        finished = run(sys.executable, *here, env={"http_proxy": "http://127.0.0.1:1"})
        server.shutdown()
    assert finished.returncode == 0, finished.stderr


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def compose(profile: str) -> Mapping[str, Any]:
    """The compose file as docker compose resolves it."""
    command = [str(tool("docker-compose")), "-f", str(DOCKER / "compose.yaml")]
    command += ["--profile", profile, "config", "--format", "json"]
    finished = run(*command, env={"PATH": "/usr/bin:/bin"})
    assert finished.returncode == 0, finished.stderr
    services: Mapping[str, Any] = json.loads(finished.stdout)["services"]
    return services


@pytest.mark.parametrize(
    ("profile", "services"),
    [
        ("cpu", {"standalone", "envoy-cpu", "prometheus", "grafana"}),
        ("gpu", {"sidecar", "triton", "envoy-gpu", "prometheus", "grafana"}),
    ],
)
def test_compose(profile: str, services: set[str]) -> None:
    resolved = compose(profile)
    assert set(resolved) == services
    for name, service in resolved.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name
        for volume in service.get("volumes", ()):
            shipped = volume["type"] == "bind" and str(DOCKER) in volume["source"]
            if shipped and Path(volume["source"]).name not in ("keys", "engine"):
                assert Path(volume["source"]).exists(), volume["source"]


@pytest.mark.parametrize("folder", ["keys", "engine"])
def test_what_compose_mounts_by_default_is_not_committed(folder: str) -> None:
    assert f":-./{folder}}}:" in (DOCKER / "compose.yaml").read_text()
    assert f"/docker/{folder}/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    "path", ["docker/compose.yaml", "docker/kubernetes/overlays/gateway/gateway.yaml"]
)
def test_what_is_replaced_in_envoys_configuration_is_there(path: str) -> None:
    [old] = set(re.findall(r"sed 's/([^/]*)/", (ROOT / path).read_text()))
    assert (DOCKER / "envoy" / "envoy.yaml").read_text().count(old) == 1


@pytest.mark.parametrize("where", ["compose.yaml", "kubernetes/components/native-sidecar"])
def test_the_sidecar_serves_the_socket_that_envoy_beside_it_connects_to(where: str) -> None:
    [socket] = re.findall(r"pipe: \{path: (\S+?)\}", (DOCKER / "envoy/envoy.yaml").read_text())
    if where == "compose.yaml":
        given = [compose("cpu")["standalone"], compose("gpu")["sidecar"]]
        served = {each["environment"]["SIDECAR_EXT_PROC__UDS_PATH"] for each in given}
    else:
        patch = YAML(typ="safe", pure=True).load(
            (DOCKER / where / "sidecar-patch.yaml").read_text()
        )
        [sidecar] = patch["spec"]["template"]["spec"]["initContainers"]
        served = {e["value"] for e in sidecar["env"] if e["name"] == "SIDECAR_EXT_PROC__UDS_PATH"}
    assert served == {socket}


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "routing.json").read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ] + re.findall(r"\b(llmrouter_\w+)", (DOCKER / "prometheus" / "rules.yml").read_text())
    asked = {
        re.sub(r"_(total|bucket|count|sum)$", "", name)
        for expression in expressions
        for name in re.findall(r"\b(llmrouter_\w+)", expression)
    }
    source = (ROOT / "sidecar" / "observability" / "metrics.py").read_text()
    assert asked
    assert asked <= set(re.findall(r'"(llmrouter_\w+)"', source))
    assert Metrics()


RULES = DOCKER / "prometheus" / "rules.yml"


def test_an_alert_says_what_is_wrong_and_how_bad_it_is() -> None:
    read = YAML(typ="safe", pure=True).load(RULES.read_text())
    alerts = [rule for group in read["groups"] for rule in group["rules"]]
    for alert in alerts:
        assert alert["labels"]["severity"] in ("info", "warning", "critical")
        assert alert["annotations"]["summary"]
        assert alert["for"]
    assert len({alert["alert"] for alert in alerts}) == len(alerts)


@pytest.mark.parametrize(
    ("alert", "asks_for"),
    [
        ("PoliciesRefused", "llmrouter_policies_refused"),
        ("PolicyStoreAway", "llmrouter_policy_store_up"),
        ("ManyPassedOn", "llmrouter_envoy_passed_on_total"),
        ("SidecarGone", 'up{job="sidecar"}'),
    ],
)
def test_there_is_an_alert_for_what_leaves_requests_unrouted(alert: str, asks_for: str) -> None:
    read = YAML(typ="safe", pure=True).load(RULES.read_text())
    [rule] = [each for group in read["groups"] for each in group["rules"] if each["alert"] == alert]
    assert asks_for in rule["expr"]


def test_the_job_whose_absence_is_an_alert_is_the_one_that_prometheus_has() -> None:
    read = YAML(typ="safe", pure=True).load((DOCKER / "prometheus/prometheus.yml").read_text())
    jobs = {each["job_name"] for each in read["scrape_configs"]}
    asked = set(re.findall(r'job="(\w+)"', RULES.read_text()))
    assert asked
    assert asked <= jobs


def test_reasons_in_the_rules_are_reasons() -> None:
    found = re.findall(r'reason[!=]~"([\w|]+)"', RULES.read_text())
    named = {reason for each in found for reason in each.split("|")}
    assert len(found) == 3
    assert named <= {each.value for each in (*Reason, *PassReason)}


def test_alerts_fire_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, which comes with Prometheus, is not there")
    finished = run(promtool, "test", "rules", ROOT / "tests" / "deployment" / "rules_test.yml")
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_the_dashboard_shows_every_metric_of_prices() -> None:
    dashboard = (DOCKER / "grafana" / "dashboards" / "routing.json").read_text()
    source = (ROOT / "sidecar" / "observability" / "metrics.py").read_text()
    of_prices = set(re.findall(r'"(llmrouter_\w*price\w*)"', source))
    assert len(of_prices) == 4
    assert {name for name in of_prices if name not in dashboard} == set()


def test_the_dashboard_shows_requests_by_the_model_chosen() -> None:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "routing.json").read_text())
    [panel] = [each for each in dashboard["panels"] if each["title"] == "Requests by model"]
    assert "by (model) (rate(llmrouter_chosen_models_total[" in panel["targets"][0]["expr"]


def lost(given: Any, kept: Any, path: str = "$") -> Iterator[str]:
    """Where `kept` is not what `given` was."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from lost(value, kept.get(key), f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, pair in enumerate(zip(given, kept, strict=True)):
            yield from lost(*pair, f"{path}[{index}]")
    elif given != kept:
        yield path


def through_grafanas_types(dashboard: Any) -> Any:
    """The dashboard as Grafana's own library reads and writes it: what its types do not have is
    gone. In a process of its own, since it is not installed."""
    script = (
        "import json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from grafana_foundation_sdk.cog.encoder import JSONEncoder\n"
        "from grafana_foundation_sdk.cog.plugins import register_default_plugins\n"
        "from grafana_foundation_sdk.models.dashboard import Dashboard\n"
        "register_default_plugins()\n"
        "print(json.dumps(Dashboard.from_json(json.load(sys.stdin)), cls=JSONEncoder))\n"
    )
    command = (sys.executable, "-c", script, data_file("grafana-sdk"))
    finished = run(*command, input=json.dumps(dashboard))
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "routing.json").read_text())
    misspelt = json.loads(json.dumps(dashboard))
    misspelt["panels"][0]["options"]["misspelt"] = 1
    assert list(lost(dashboard, through_grafanas_types(dashboard))) == []
    assert list(lost(misspelt, through_grafanas_types(misspelt))) == [
        "$.panels[0].options.misspelt"
    ]


def test_panels_do_not_overlap_and_name_the_provisioned_source() -> None:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "routing.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["datasource"]["uid"] == "prometheus"
    source = (DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    assert "uid: prometheus" in source


class TestDigests:
    """`docker/digests.sh` on a copy, with a registry that is faked: none can be reached here."""

    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        shutil.copytree(DOCKER, tmp_path / "docker")
        program = tmp_path / "bin" / "docker"
        program.parent.mkdir()
        # docker buildx imagetools inspect IMAGE --format …
        program.write_text('#!/bin/sh\nprintf sha256:; printf %s "$4" | sha256sum | cut -c-64\n')
        program.chmod(0o755)
        return tmp_path

    def digests(self, copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = f"{copy / 'bin'}:/usr/bin:/bin"
        return run("docker/digests.sh", *arguments, cwd=copy, env={"PATH": path})

    def test_what_is_pinned_by_tag_alone_is_named_until_it_is_written(self, copy: Path) -> None:
        before = self.digests(copy, "--check")
        written = self.digests(copy, "--write")
        after = self.digests(copy, "--check")
        again = self.digests(copy, "--write")

        assert before.returncode == 1
        named = {line.rpartition(" ")[2] for line in written.stdout.splitlines()}
        assert {name.partition(":")[0] for name in named} >= {
            "nvcr.io/nvidia/tritonserver",
            "python",
            "envoyproxy/envoy",
            "prom/prometheus",
            "grafana/grafana",
        }
        assert (after.returncode, after.stdout) == (0, "")
        assert (again.returncode, again.stdout) == (0, "")
        base = (copy / "docker" / "triton" / "Dockerfile").read_text()
        assert re.search(r"^ARG BASE=nvcr\.io/\S+:26\.07-\S+@sha256:[0-9a-f]{64}$", base, re.M)

    def test_a_registry_that_gives_no_digest_changes_nothing(self, copy: Path) -> None:
        (copy / "bin" / "docker").write_text("#!/bin/sh\necho '<no value>'\n")
        failed = self.digests(copy, "--write")
        assert failed.returncode == 1
        assert "no digest: <no value>" in failed.stderr
        assert "@sha256" not in (copy / "docker" / "compose.yaml").read_text()


def test_the_triton_image_adds_the_openvino_that_engines_are_built_with() -> None:
    def openvino(name: str) -> tuple[str, ...]:
        text = (ROOT / "requirements" / name).read_text()
        [pinned] = re.findall(r"^openvino==.*(?:\n +--hash.*)+", text, re.MULTILINE)
        return tuple(re.findall(r"openvino==[\d.]+|sha256:\w+", pinned))

    assert openvino("second-opinion.lock") == openvino("cpu.lock")


def test_the_sidecar_image_s_settings_listen_everywhere_and_tell_nothing_of_connections() -> None:
    dockerfile = (DOCKER / "sidecar" / "Dockerfile").read_text()
    given = dict(re.findall(r"^(?:ENV)? +(SIDECAR_\w+)=(\S+)", dockerfile, re.MULTILINE))
    server = load_settings(environ=given).server
    assert (server.grpc_address, server.http_address) == ("0.0.0.0:50051", "0.0.0.0:9091")
    assert server.channelz is False


def replay(line: str, source: Path, places: Mapping[str, Path], **variables: str) -> None:
    """Run a command of the image's build outside of it.

    Args:
        places: the image's paths, elsewhere.
        variables: of the base image's environment.
    """
    command = re.split(r" (?:\\|&&)", line)[0].removeprefix("RUN ").split()
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL"))
    }
    finished = run(
        *(places.get(word, word) for word in command),
        cwd=source,
        env=environment | variables | {"PYTHON": sys.executable},
    )
    assert finished.returncode == 0, finished.stderr


def distributions(prefix: Path) -> dict[str, str]:
    found = (path.stem.split("-") for path in (prefix / "lib").rglob("*.dist-info"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_sidecar_image_s_installation_works_in_an_empty_folder(tmp_path: Path) -> None:
    dockerfile = (DOCKER / "sidecar" / "Dockerfile").read_text()
    source, prefix, listed = tmp_path / "src", tmp_path / "opt", tmp_path / "share" / "sidecar.json"
    build, _, rest = dockerfile.partition("AS build")[2].partition("FROM")
    for copied in re.findall(r"^COPY (.*)$", build, re.MULTILINE):
        *names, destination = copied.split()
        for name in names:
            target = source / destination / ("" if (ROOT / name).is_dir() else Path(name).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            run("cp", "-r", "-T", ROOT / name, target, check=True)
    places = {
        "/src": source,
        "/opt/sidecar": prefix,
        "/usr/share/sbom/sidecar.cdx.json": listed,
    }
    [install, sbom] = re.findall(r"^RUN docker/.*$", build, re.MULTILINE)
    # As NVIDIA's images may have it, of which docker/builder is made.
    (tmp_path / "constraint.txt").write_text("grpcio==1.0\n")
    replay(install, source, places, PIP_CONSTRAINT=str(tmp_path / "constraint.txt"))
    replay(sbom, source, places)

    packages = distributions(prefix)
    assert {"grpcio", "llm-routing-sidecar"} <= set(packages)
    assert not {"pip", "setuptools", "pytest", "mypy", "cyclonedx-bom"} & set(packages)
    check_sbom(json.loads(listed.read_text()), packages)
    assert "COPY --from=build /usr/share/sbom /usr/share/sbom" in rest
    assert 'llm-routing.sbom="/usr/share/sbom"' in rest

    # What the builder's image serves an engine with, and adds to its repository.
    [models] = prefix.glob("lib/python3*/site-packages/sidecar/_triton_models/gpu")
    for needed in ("serve.py", "reference.py", "ensemble/1/model.py", "second_opinion/1/model.py"):
        assert (models / needed).is_file(), needed

    bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    settings = run(prefix / "bin" / "sidecar", "settings", cwd=tmp_path, env=bare)
    assert settings.returncode == 0, settings.stderr
    assert "decision_budget_ms" in settings.stdout
    # It starts far enough to say what it lacks.
    serve = run(prefix / "bin" / "sidecar", "serve", cwd=tmp_path, env=bare)
    assert serve.returncode == 1
    assert "routing_model.directory is not set" in serve.stderr


def check_sbom(sbom: Mapping[str, Any], packages: Mapping[str, str]) -> None:
    """It names each installed package, and nothing of the folders it was made in."""
    itself = sbom["metadata"]["component"]["name"]
    named = {
        re.sub(r"[-_.]+", "-", component["name"]).lower(): component["version"]
        for component in sbom["components"]
    }
    assert itself == "llm-routing-sidecar"
    assert named | {itself: packages[itself]} == packages
    assert all(component["purl"].startswith("pkg:pypi/") for component in sbom["components"])
    assert "file:" not in json.dumps(sbom)
