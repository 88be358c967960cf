"""NVIDIA's programs, faked, and a tiny model to build."""

from __future__ import annotations

import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sidecar.engines.trtllm import BuildRequest, EngineLimits, Toolchain
from tests.engines.tiny_models import TINY_MODELS
from tests.engines.trtllm import fake_nvidia


@dataclass(frozen=True)
class Nvidia:
    """The faked programs and the file that says which ran."""

    tools: Toolchain
    log: Path

    @property
    def ran(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvidia:
    folder = tmp_path / "nvidia"
    tools = install(folder)
    monkeypatch.setenv("FAKE_NVIDIA_LOG", str(folder / "log"))
    monkeypatch.setenv("FAKE_GPU", fake_nvidia.GPU)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    return Nvidia(tools, folder / "log")


def install(folder: Path) -> Toolchain:
    """Write the stand-ins into `folder`, as NVIDIA's container has the real ones."""
    packages = folder / "site-packages"
    for name, version in fake_nvidia.VERSIONS.items():
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    start = f"import sys; sys.path.insert(0, {str(fake_nvidia.REPO)!r})\n"
    start += "from tests.engines.trtllm.fake_nvidia import main, reference\n"
    for program in fake_nvidia.PROGRAMS:
        path = folder / ("bin" if "/" not in program else "") / program
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without site packages, which take it longer to start.
        path.write_text(f"#!{sys.executable} -S\n{start}main({program!r}, sys.argv[1:])\n")
        _executable(path)
    python, nvidia_smi = folder / "bin" / "python3", folder / "bin" / "nvidia-smi"
    reference = folder / "reference.py"
    reference.write_text(start + "reference(sys.argv[1:])\n")
    python.write_text(
        f'#!/bin/sh\ncase "$1" in */gpu/reference.py) shift; set -- {reference} "$@";; esac\n'
        f'PYTHONPATH={packages} exec {sys.executable} -S "$@"\n'
    )
    # The first two fields alone where the first two are asked for.
    nvidia_smi.write_text(
        '#!/bin/sh\ncase "$1" in *driver*) echo "$FAKE_GPU";;'
        ' *) echo "$FAKE_GPU" | cut -d, -f1,2;; esac\n'
    )
    _executable(python)
    _executable(nvidia_smi)
    return Toolchain(
        python=str(python),
        examples=folder / "examples",
        trtllm_build=str(folder / "bin" / "trtllm-build"),
        nvidia_smi=str(nvidia_smi),
    )


def _executable(path: Path) -> None:
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def request_for(tmp_path: Path, family: str = "llama") -> BuildRequest:
    """A build of a tiny model with random weights, of widths that INT4-AWQ's blocks divide."""
    shape = replace(TINY_MODELS[family], hidden=64, heads=8, intermediate=128)
    return BuildRequest(
        source=shape.write(tmp_path / f"{family}-weights"),
        out=tmp_path / "engine",
        repository=tmp_path / "repository",
        model_id="tiny",
        prompt_format="compact-v1",
        limits=EngineLimits(max_input_len=256),
        calibration=("<|im_start|>system\nroutes<|im_end|>",),
    )
