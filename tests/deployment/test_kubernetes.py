"""The Kubernetes files: each resource against its schema, and what they promise.

The overlays are rendered with kubectl where it is installed. Resources of Kubernetes itself are
checked against the strict schemas of 1.29, the first version with native sidecars, and of
a new one; those of Istio, KEDA, cert-manager and the Prometheus Operator against theirs
(`custom_resources`). Those of the Gateway API and of Envoy Gateway have no schema in a package, see
there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from ruamel.yaml import YAML

from sidecar.local import data_file
from tests.deployment.custom_resources import is_custom, problems

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "docker" / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))
PROMETHEUS_COMPONENT = KUBERNETES / "components" / "prometheus"
# The others have Triton in a Deployment of its own.
WITH_TRITON = [overlay for overlay in OVERLAYS if overlay != "cpu"]
VERSIONS = ("v1.29.0", "v1.36.0")
KUBECTL = shutil.which("kubectl")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")

Manifest = Mapping[str, Any]


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    return kustomized(KUBERNETES / "overlays" / overlay)


def kustomized(folder: Path) -> tuple[Manifest, ...]:
    assert KUBECTL is not None
    command = [KUBECTL, "kustomize", "--load-restrictor=LoadRestrictionsNone", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return tuple(YAML(typ="safe", pure=True).load_all(finished.stdout))


def documented(before: str, folder: Path) -> tuple[Manifest, ...]:
    """The kustomization in docs/deployment.md that follows on `before`, in that folder."""
    document = (ROOT / "docs" / "deployment.md").read_text()
    example = document.partition(f"{before}\n\n```yaml\n")[2].partition("```")[0]
    checkout = os.path.relpath(ROOT, folder)
    text = example.replace("../llm-routing-sidecar/", f"{checkout}/")
    assert checkout in text
    (folder / "kustomization.yaml").write_text(text)
    return kustomized(folder)


def plain_files() -> Iterator[Path]:
    """Files that hold whole resources, readable without kubectl."""
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        own = path.name in ("kustomization.yaml", "envoy.yaml")
        if not own and not path.stem.endswith(("-secret", "-patch")):
            yield path
    yield from sorted((ROOT / "docker" / "envoy" / "kubernetes").glob("*.yaml"))


@cache
def definitions(version: str) -> Any:
    folder = data_file("kubernetes-schemas") / f"{version}-local-strict"
    content = json.loads((folder / "_definitions.json").read_text())
    resource = Resource.from_contents(content, default_specification=DRAFT202012)
    registry: Any = Registry().with_resource("_definitions.json", resource)
    # Otherwise each validator would walk through these thousands of definitions again.
    return registry.crawl()


@cache
def validator(kind: str, group: str, number: str, version: str) -> Any:
    family = f"{group.split('.')[0]}-" if group else ""
    folder = data_file("kubernetes-schemas") / f"{version}-local-strict"
    schema = json.loads((folder / f"{kind.lower()}-{family}{number}.json").read_text())
    return jsonschema.validators.Draft202012Validator(schema, registry=definitions(version))


def check(manifest: Manifest, version: str) -> None:
    if is_custom(manifest["apiVersion"]):
        assert problems(manifest) == []
        return
    group, _, number = manifest["apiVersion"].rpartition("/")
    errors = validator(manifest["kind"], group, number, version).iter_errors(manifest)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize("path", list(plain_files()), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_is_valid(path: Path) -> None:
    for manifest in YAML(typ="safe", pure=True).load_all(path.read_text()):
        for version in VERSIONS:
            check(manifest, version)


@pytest.mark.parametrize(
    ("api_version", "kind", "spec"),
    [
        ("policy/v1", "PodDisruptionBudget", {"maxUnavailable": 1}),
        ("keda.sh/v1alpha1", "ScaledObject", {"scaleTargetRef": {"name": "t"}, "triggers": []}),
        ("cert-manager.io/v1", "Certificate", {"secretName": "s", "issuerRef": {"name": "i"}}),
        ("monitoring.coreos.com/v1", "PodMonitor", {"selector": {}, "podMetricsEndpoints": []}),
        ("monitoring.coreos.com/v1", "PrometheusRule", {"groups": []}),
        ("security.istio.io/v1", "PeerAuthentication", {"mtls": {"mode": "STRICT"}}),
        ("networking.istio.io/v1", "DestinationRule", {"host": "h"}),
        ("networking.istio.io/v1alpha3", "EnvoyFilter", {"configPatches": []}),
    ],
)
def test_a_misspelt_field_is_noticed(api_version: str, kind: str, spec: Manifest) -> None:
    manifest = {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, "spec": spec}
    check(manifest, VERSIONS[0])
    with pytest.raises(AssertionError, match="misspelt"):
        check(manifest | {"spec": {**spec, "misspelt": 1}}, VERSIONS[0])


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
class TestOverlays:
    def test_every_resource_is_valid(self, overlay: str) -> None:
        for manifest in rendered(overlay):
            for version in VERSIONS:
                check(manifest, version)

    def test_what_is_referred_to_is_there_or_is_the_operators(self, overlay: str) -> None:
        manifests = rendered(overlay)
        given = {(each["kind"], each["metadata"]["name"]) for each in manifests}
        # Of the operator: the volume with the engine and the keys of the providers; of
        # cert-manager: the certificates.
        elsewhere = {
            ("PersistentVolumeClaim", "routing-model"),
            ("Secret", "llm-provider-keys"),
            ("Secret", "triton-tls"),
            ("Secret", "llm-router-tls"),
        }
        for pod in pods(manifests):
            assert set(references(pod)) <= given | elsewhere

    def test_every_container_is_locked_down(self, overlay: str) -> None:
        for pod in pods(rendered(overlay)):
            for container in containers(pod):
                context = pod.get("securityContext", {}) | container["securityContext"]
                name = container["name"]
                assert context["runAsNonRoot"] is True, name
                assert context["runAsUser"] >= 1000, name
                assert context["readOnlyRootFilesystem"] is True, name
                assert context["allowPrivilegeEscalation"] is False, name
                assert context["capabilities"] == {"drop": ["ALL"]}, name
                assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
                assert "memory" in container["resources"]["limits"], name

    def test_no_probe_of_the_sidecar_depends_on_triton(self, overlay: str) -> None:
        sidecars = [
            container
            for pod in pods(rendered(overlay))
            for container in containers(pod)
            if is_sidecar(container)
        ]
        # In the mesh they come with the applications' own Deployments.
        assert sidecars or overlay == "istio"
        for container in sidecars:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe in container:
                    # Both speak of the process alone (sidecar/admin/server.py).
                    assert container[probe]["httpGet"]["path"] in ("/healthz", "/readyz")


@needs_kubectl
@pytest.mark.parametrize("overlay", WITH_TRITON)
def test_triton_gets_longer_to_stop_than_it_gives_its_requests(overlay: str) -> None:
    assert deployment(overlay, "triton")["terminationGracePeriodSeconds"] > 30


@needs_kubectl
@pytest.mark.parametrize("overlay", WITH_TRITON)
def test_an_engine_whose_encoder_has_died_stays_in_use(overlay: str) -> None:
    """Triton from 26.04 on then answers /v2/health/ready with "no"."""
    [triton] = deployment(overlay, "triton")["containers"]
    probes = {name: triton[name]["httpGet"]["path"] for name in triton if name.endswith("Probe")}
    assert probes == {
        "startupProbe": "/v2/models/tensorrt_llm/ready",
        "readinessProbe": "/v2/models/tensorrt_llm/ready",
        "livenessProbe": "/v2/health/live",
    }
    dockerfile = (ROOT / "docker" / "triton" / "Dockerfile").read_text()
    assert "http://127.0.0.1:8000/v2/models/tensorrt_llm/ready'" in dockerfile


@needs_kubectl
@pytest.mark.parametrize("overlay", WITH_TRITON)
def test_triton_is_answered_to_sidecars_and_calls_nobody_but_the_mesh(overlay: str) -> None:
    manifests = rendered(overlay)
    policy = network_policies(manifests)["triton"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    by_port = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]}
    assert by_port.keys() == {8001, 8002}
    [who] = by_port[8001]
    assert who == {"podSelector": {"matchLabels": {"llm-routing/sidecar": "true"}}}
    # The proxy that Istio puts into its pods is not ready without istiod, on this port.
    called = [port["port"] for rule in policy["egress"] for port in rule["ports"]]
    assert called == ([15012, 53, 53] if overlay == "istio" else [])
    # Pods with a sidecar have that label; in a mesh they are the applications' own.
    pods = [each["spec"]["template"] for each in manifests if each["kind"] == "Deployment"]
    asking = [pod["metadata"]["labels"] for pod in pods if "llm-routing-sidecar" in str(pod)]
    assert [labels.get("llm-routing/sidecar") for labels in asking] == (
        [] if overlay == "istio" else ["true"]
    )


def test_hpa_and_keda_go_by_the_same_measure() -> None:
    yaml = YAML(typ="safe", pure=True)
    keda = yaml.load((KUBERNETES / "overlays" / "keda" / "scaledobject.yaml").read_text())
    [trigger] = keda["spec"]["triggers"]
    hpa = yaml.load((KUBERNETES / "overlays" / "hpa" / "hpa.yaml").read_text())
    [metric] = hpa["spec"]["metrics"]
    document = (ROOT / "docs" / "deployment.md").read_text()
    [rule] = yaml.load(document.partition("needs this rule:\n\n```yaml\n")[2].partition("```")[0])
    query = rule["metricsQuery"].replace(",<<.LabelMatchers>>", "")
    assert trigger["metadata"]["query"] == f"sum({query.replace('<<.GroupBy>>', 'instance')})"
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert metric["pods"]["target"]["averageValue"] == trigger["metadata"]["threshold"]


@needs_kubectl
def test_the_sidecar_is_a_native_one() -> None:
    gateway = deployment("gateway", "llm-gateway")
    [sidecar] = gateway["initContainers"]
    assert (sidecar["name"], sidecar["restartPolicy"]) == ("llm-router", "Always")


@needs_kubectl
def test_with_mutual_tls_the_sidecar_speaks_to_the_envoy_beside_it() -> None:
    gateway = deployment("mtls", "llm-gateway")
    by_name = {each["name"]: each for each in gateway["initContainers"]}
    environment = {each["name"]: each["value"] for each in by_name["llm-router"]["env"]}
    assert environment["SIDECAR_TRITON__ADDRESS"] == "127.0.0.1:8001"
    assert by_name["triton-tls"]["restartPolicy"] == "Always"


@needs_kubectl
class TestPrometheus:
    """The component `prometheus`, with each overlay."""

    @pytest.mark.parametrize("overlay", OVERLAYS)
    def test_scrapes_a_port_that_the_pods_have_and_that_is_open_to_it(
        self, overlay: str, tmp_path: Path
    ) -> None:
        resources = os.path.relpath(KUBERNETES / "overlays" / overlay, tmp_path)
        component = os.path.relpath(PROMETHEUS_COMPONENT, tmp_path)
        text = f"resources: [{resources}]\ncomponents: [{component}]\n"
        (tmp_path / "kustomization.yaml").write_text(text)
        manifests = kustomized(tmp_path)
        templates = [m["spec"]["template"] for m in manifests if m["kind"] == "Deployment"]
        scraped = set()
        for monitor in manifests:
            if monitor["kind"] != "PodMonitor":
                continue
            [endpoint] = monitor["spec"]["podMetricsEndpoints"]
            for template in templates:
                labels = template["metadata"]["labels"]
                if not monitor["spec"]["selector"]["matchLabels"].items() <= labels.items():
                    continue
                every = [p for c in containers(template["spec"]) for p in c.get("ports", ())]
                [port] = [p["containerPort"] for p in every if p["name"] == endpoint["port"]]
                policy = network_policies(manifests)[labels["app.kubernetes.io/name"]]
                [who] = [
                    rule["from"] for rule in policy["ingress"] if rule["ports"][0]["port"] == port
                ]
                assert who == PROMETHEUS
                scraped.add(labels["app.kubernetes.io/name"])
        assert scraped == {
            each["metadata"]["labels"]["app.kubernetes.io/name"] for each in templates
        }

    def test_jobs_have_the_names_that_they_have_without_kubernetes(self) -> None:
        yaml = YAML(typ="safe", pure=True)
        monitors = yaml.load_all((PROMETHEUS_COMPONENT / "podmonitors.yaml").read_text())
        named = {
            relabeling["replacement"]
            for monitor in monitors
            for endpoint in monitor["spec"]["podMetricsEndpoints"]
            for relabeling in endpoint["relabelings"]
            if relabeling["targetLabel"] == "job"
        }
        config = yaml.load((ROOT / "docker/prometheus/prometheus.yml").read_text())
        assert named == {each["job_name"] for each in config["scrape_configs"]}

    def test_is_included_as_documented(self, tmp_path: Path) -> None:
        manifests = documented("the component `prometheus`:", tmp_path)
        ours = [each for each in manifests if each["apiVersion"].startswith("monitoring.coreos")]
        assert {each["kind"] for each in ours} == {"PodMonitor", "PrometheusRule"}
        # By it the Operator of kube-prometheus-stack knows what to take.
        assert {each["metadata"]["labels"]["release"] for each in ours} == {"kube-prometheus-stack"}


def test_the_rules_for_the_operator_are_those_of_prometheus(tmp_path: Path) -> None:
    copy = tmp_path / "kubernetes/components/prometheus"
    shutil.copytree(PROMETHEUS_COMPONENT, copy)
    shutil.copytree(ROOT / "docker/prometheus", tmp_path / "prometheus")
    subprocess.run([copy / "rules.sh"], check=True)
    made = (copy / "rules.yaml").read_text()
    yaml = YAML(typ="safe", pure=True)
    rules = yaml.load((ROOT / "docker/prometheus/rules.yml").read_text())
    assert yaml.load(made)["spec"] == rules
    committed = (PROMETHEUS_COMPONENT / "rules.yaml").read_text()
    assert committed == made, "run docker/kubernetes/components/prometheus/rules.sh"


LABELLED = {"matchLabels": {"llm-routing/client": "true"}}
CLIENTS = [
    {"podSelector": LABELLED},
    {"namespaceSelector": LABELLED, "podSelector": LABELLED},
]
PROMETHEUS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
ENVOY_GATEWAY = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "envoy-gateway-system"}},
    "podSelector": {
        "matchLabels": {
            "app.kubernetes.io/managed-by": "envoy-gateway",
            "app.kubernetes.io/component": "proxy",
        }
    },
}


@needs_kubectl
class TestWhoIsLetIn:
    @pytest.mark.parametrize(
        ("overlay", "name", "by_port"),
        [
            ("cpu", "llm-router", {50051: CLIENTS, 9091: PROMETHEUS}),
            (
                "envoy-gateway",
                "llm-router",
                {50051: [*CLIENTS, ENVOY_GATEWAY], 9091: PROMETHEUS},
            ),
            *(
                (overlay, "llm-gateway", {10000: CLIENTS, 9091: PROMETHEUS})
                for overlay in ("gateway", "hpa", "keda", "mtls")
            ),
        ],
    )
    def test_clients_are_known_by_a_label(
        self, overlay: str, name: str, by_port: Mapping[int, Any]
    ) -> None:
        policy = network_policies(rendered(overlay))[name]
        assert policy["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": name}}
        assert policy["policyTypes"] == ["Ingress"]
        let_in = {
            port["port"]: rule["from"] for rule in policy["ingress"] for port in rule["ports"]
        }
        assert let_in == by_port
        # A client that is let in finds what it asked for there.
        pod = deployment(overlay, name)
        ports = [p["containerPort"] for each in containers(pod) for p in each.get("ports", ())]
        assert let_in.keys() <= set(ports)

    @pytest.mark.parametrize("overlay", OVERLAYS)
    def test_no_pod_is_open_to_the_whole_cluster(self, overlay: str) -> None:
        manifests = rendered(overlay)
        guarded = [
            each["podSelector"]["matchLabels"] for each in network_policies(manifests).values()
        ]
        for each in manifests:
            if each["kind"] == "Deployment":
                labels = each["spec"]["template"]["metadata"]["labels"]
                assert any(guard.items() <= labels.items() for guard in guarded)
        for policy in network_policies(manifests).values():
            assert "Ingress" in policy["policyTypes"]
            assert all(rule["from"] and rule["ports"] for rule in policy["ingress"])

    def test_the_document_names_the_label(self) -> None:
        document = (ROOT / "docs" / "deployment.md").read_text()
        assert '`llm-routing/client: "true"`' in document.partition("## Who can reach what")[2]


@needs_kubectl
class TestOnCpus:
    """The overlay `cpu`: everything in one container, whose root cannot be written."""

    def test_needs_its_image_alone(self) -> None:
        pod = deployment("cpu", "llm-router")
        assert {kind for kind, _ in references(pod)} == {"ConfigMap"}
        assert {each["image"] for each in containers(pod)} == {"llm-routing-standalone"}
        # It may have been loaded into the nodes, and be in no registry.
        assert {each["imagePullPolicy"] for each in containers(pod)} == {"IfNotPresent"}
        assert "nvidia.com" not in str(pod)

    def test_runs_what_the_image_runs_with_the_triton_and_the_model_in_it(self) -> None:
        [container] = deployment("cpu", "llm-router")["containers"]
        dockerfile = (ROOT / "docker/sidecar/Dockerfile").read_text()
        assert 'CMD ["up", "--policies", "/etc/sidecar/policies"]' in dockerfile
        assert container["args"] == ["up"]
        environment = {each["name"]: each["value"] for each in container["env"]}
        assert environment == {
            "SIDECAR_POLICIES__PATHS": "/etc/sidecar/policies",
            "LLM_ROUTING_SIDECAR_CACHE": "/cache",
        }

    def test_takes_an_image_and_policies_of_one_s_own_as_documented(self, tmp_path: Path) -> None:
        for name in ("catalog.yaml", "default.yaml"):
            (tmp_path / name).write_text("mine: 1\n")
        manifests = documented("in a kustomization of your own:", tmp_path)
        [pod] = pods(manifests)
        [policies] = [each for each in manifests if each["kind"] == "ConfigMap"]
        assert set(references(pod)) == {("ConfigMap", policies["metadata"]["name"])}
        assert policies["data"] == {"catalog.yaml": "mine: 1\n", "default.yaml": "mine: 1\n"}
        images = {each["image"] for each in containers(pod)}
        assert images == {"registry.example/llm-routing-standalone:1"}

    def test_what_is_written_has_a_volume_that_goes_with_the_pod(self) -> None:
        pod = deployment("cpu", "llm-router")
        [container] = pod["containers"]
        mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        volumes = {each["name"]: each for each in pod["volumes"]}
        assert mounted.keys() == {"/cache", "/dev/shm", "/tmp", "/etc/sidecar/policies"}
        for path in ("/cache", "/dev/shm", "/tmp"):
            assert "sizeLimit" in volumes[mounted[path]]["emptyDir"], path
        assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"

    def test_a_start_knows_what_an_earlier_one_in_the_pod_has_left(self) -> None:
        # By pids (sidecar/local/triton.py); without this each start would be number 1.
        assert deployment("cpu", "llm-router")["shareProcessNamespace"] is True

    def test_the_cache_is_the_image_s_with_an_engine_that_can_be_written_to(
        self, tmp_path: Path
    ) -> None:
        """Run for real, twice, as when a pod's containers are all started again."""
        [cache] = deployment("cpu", "llm-router")["initContainers"]
        image, volume = tmp_path / "image", tmp_path / "volume"
        for name in ("tools/triton", "environments/stub", "engines/router", "locks", "run"):
            (image / name).mkdir(parents=True)
        (image / "engines/router/manifest.json").write_text("{}")
        volume.mkdir()
        [script] = cache["args"]
        script = script.replace("/opt/cache/", f"{image}/").replace("/cache/", f"{volume}/")
        for _ in range(2):
            subprocess.run([*cache["command"], script], check=True)
            (volume / "engines/compiled").mkdir(exist_ok=True)

        assert {path.name for path in volume.iterdir()} == {"tools", "environments", "engines"}
        assert (volume / "tools").readlink() == image / "tools"
        assert (volume / "environments").readlink() == image / "environments"
        assert not (volume / "engines").is_symlink()
        assert {path.name for path in (volume / "engines").iterdir()} == {"router", "compiled"}
        assert (volume / "engines/router/manifest.json").read_text() == "{}"
        assert [path.name for path in (image / "engines").iterdir()] == ["router"]
        dockerfile = (ROOT / "docker/sidecar/Dockerfile").read_text()
        assert "LLM_ROUTING_SIDECAR_CACHE=/opt/cache\nCMD" in dockerfile


def network_policies(manifests: tuple[Manifest, ...]) -> dict[str, Any]:
    return {m["metadata"]["name"]: m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"}


def deployment(overlay: str, name: str) -> Any:
    """The pod of that Deployment."""
    [found] = [
        each["spec"]["template"]["spec"]
        for each in rendered(overlay)
        if each["kind"] == "Deployment" and each["metadata"]["name"] == name
    ]
    return found


def is_sidecar(container: Any) -> bool:
    """Not the container that lays out its cache, say."""
    ours = ("llm-routing-sidecar", "llm-routing-standalone")
    return container["image"].startswith(ours) and "command" not in container


def pods(manifests: tuple[Manifest, ...]) -> list[Any]:
    """Of whatever makes pods; there is one at least."""
    found = [m["spec"]["template"]["spec"] for m in manifests if "template" in m.get("spec", {})]
    assert found
    return found


def containers(pod: Any) -> list[Any]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def references(pod: Any) -> Iterator[tuple[str, str]]:
    for volume in pod.get("volumes", ()):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    if "serviceAccountName" in pod:
        yield "ServiceAccount", pod["serviceAccountName"]
