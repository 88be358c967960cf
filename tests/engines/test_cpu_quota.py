"""Threads within a container's CPU limit, from the files of control groups of either version."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from sidecar.engines import EngineInfo, render_cpu_repository
from sidecar.engines.cpu_quota import threads_within_quota

V1 = "3:cpuset:/pod/c1\n2:cpu,cpuacct:/pod/c1\n1:name=systemd:/\n"
V2 = "0::/pod/c1\n"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("member_of", "files", "threads"),
    [
        (V2, {"pod/c1/cpu.max": "250000 100000\n"}, 2),
        (V2, {"pod/c1/cpu.max": "max 100000\n"}, 0),
        (V2, {"pod/c1/cpu.max": "50000 100000\n"}, 1),
        (V2, {"pod/c1/cpu.max": "800000 100000\n"}, 0),
        (V2, {"pod/c1/cpu.max": "max 100000\n", "pod/cpu.max": "300000 100000\n"}, 3),
        # In a namespace of its own: the container's files lie at the top.
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        # The path is the host's, and what is mounted is the container's.
        (V2, {"cpu.max": "400000 100000\n"}, 4),
        (V1, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        (
            V1,
            {
                "cpu/pod/c1/cpu.cfs_quota_us": "150000\n",
                "cpu/pod/c1/cpu.cfs_period_us": "50000\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0),
        (V2, {}, 0),
        ("", {"cpu.max": "100000 100000\n"}, 0),
    ],
)
def test_threads(tmp_path: Path, member_of: str, files: Mapping[str, str], threads: int) -> None:
    (tmp_path / "cgroup").write_text(member_of)
    for name, content in files.items():
        file = tmp_path / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert threads_within_quota(tmp_path / "cgroup", tmp_path / "fs") == threads


@pytest.mark.parametrize(
    ("served_at", "threads"), [(None, "3"), (Path("/models/router"), "0")], ids=["here", "there"]
)
def test_the_limit_counts_where_the_model_is_served(
    engines: Mapping[str, EngineInfo],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    served_at: Path | None,
    threads: str,
) -> None:
    monkeypatch.setattr("sidecar.engines.cpu_repository.threads_within_quota", lambda: 3)
    render_cpu_repository(engines["llama"].path, tmp_path, served_at=served_at)
    config = (tmp_path / "tensorrt_llm" / "config.pbtxt").read_text()
    assert f'key: "threads" value: {{ string_value: "{threads}" }}' in config
