"""`triton_models/gpu/serve.py`: an engine is served where it was built for, and nowhere else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from sidecar.engines.engine_directory import write_manifest
from sidecar.engines.trtllm import build_trtllm_engine
from tests.engines.trtllm import fake_nvidia
from tests.engines.trtllm.conftest import Nvidia, request_for
from tests.engines.trtllm.contract import parse

SERVE = fake_nvidia.REPO / "triton_models" / "gpu" / "serve.py"
SHELL = "/bin/echo"
"""In the place of tritonserver, which would be started in the place of the script."""


@pytest.fixture
def engine(nvidia: Nvidia, tmp_path: Path) -> Path:
    return build_trtllm_engine(request_for(tmp_path), nvidia.tools).path


def serve(nvidia: Nvidia, engine: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    command = [nvidia.tools.python, str(SERVE), "--engine", str(engine)]
    command += ["--repository", "/models/repository", "--tritonserver", SHELL, *extra]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_triton_takes_the_place_of_the_script_with_flags_that_it_knows(
    nvidia: Nvidia, engine: Path
) -> None:
    finished = serve(nvidia, engine, "--", "--grpc-port=9001")
    assert finished.returncode == 0, finished.stderr
    words = finished.stdout.split()
    assert words[0] == "--model-repository=/models/repository"
    assert words[-1] == "--grpc-port=9001"
    options = [part for word in words for part in word.split("=", 1)]
    given = parse(["tritonserver", *options])
    assert given.model_control_mode == "none"
    assert given.disable_auto_complete_config


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        ("NVIDIA H100, 9.0, 590.44, 81559, 80000", "built on NVIDIA L40S (compute capability 8.9)"),
        ("", "no GPU was found"),
    ],
)
def test_another_gpu_is_refused(
    nvidia: Nvidia, engine: Path, monkeypatch: pytest.MonkeyPatch, gpu: str, reason: str
) -> None:
    monkeypatch.setenv("FAKE_GPU", gpu)
    finished = serve(nvidia, engine)
    assert finished.returncode == 1
    assert reason in finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""


def test_another_gpu_of_the_same_generation_is_a_warning(
    nvidia: Nvidia, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPU", "NVIDIA L4, 8.9, 590.44, 23034, 22000")
    finished = serve(nvidia, engine, "--check-only")
    assert finished.returncode == 0
    assert "built on NVIDIA L40S, here is NVIDIA L4" in finished.stderr


def test_another_tensorrt_is_refused_and_the_remedy_is_named(
    nvidia: Nvidia, engine: Path, tmp_path: Path
) -> None:
    packages = tmp_path / "nvidia" / "site-packages"
    metadata = packages / "tensorrt-10.14.1.48.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("10.14.1.48", "10.15.1"))
    finished = serve(nvidia, engine)
    assert finished.returncode == 1
    assert "built with tensorrt 10.14.1.48, here is 10.15.1; build it again" in finished.stderr


def test_a_changed_engine_is_refused(nvidia: Nvidia, engine: Path) -> None:
    with (engine / "rank0.engine").open("r+b") as file:
        file.write(b"!")
    finished = serve(nvidia, engine)
    assert finished.returncode == 1
    assert "rank0.engine: was changed" in finished.stderr


def test_an_engine_for_cpus_is_refused(nvidia: Nvidia, engine: Path) -> None:
    manifest = json.loads((engine / "manifest.json").read_text())
    del manifest["target"]
    (engine / "manifest.json").write_text(json.dumps(manifest))
    finished = serve(nvidia, engine)
    assert finished.returncode == 1
    assert "not an engine for GPUs" in finished.stderr


class TestSecondOpinion:
    """An engine with a sentence encoder is served with the model that computes it, or not at all
    unless that is asked for."""

    @pytest.fixture
    def with_encoder(self, nvidia: Nvidia, engine: Path) -> Path:
        facts = json.loads((engine / "router.json").read_text())
        (engine / "router.json").write_text(json.dumps(facts | {"second_opinion": {}}))
        target = json.loads((engine / "manifest.json").read_text())["target"]
        write_manifest(engine, target)
        packages = Path(nvidia.tools.python).parents[1] / "site-packages" / "openvino"
        packages.mkdir()
        (packages / "__init__.py").touch()
        return engine

    @pytest.fixture
    def second(self, tmp_path: Path) -> Path:
        (tmp_path / "second-opinion" / "second_opinion").mkdir(parents=True)
        return tmp_path / "second-opinion"

    def test_its_repository_is_given_to_triton(
        self, nvidia: Nvidia, with_encoder: Path, second: Path
    ) -> None:
        finished = serve(nvidia, with_encoder, "--second-opinion", str(second))
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.split()[:2] == [
            "--model-repository=/models/repository",
            f"--model-repository={second}",
        ]

    def test_an_engine_without_encoder_gets_none(
        self, nvidia: Nvidia, engine: Path, second: Path
    ) -> None:
        finished = serve(nvidia, engine, "--second-opinion", str(second))
        assert finished.returncode == 0, finished.stderr
        assert str(second) not in finished.stdout

    def test_it_can_be_left_out(self, nvidia: Nvidia, with_encoder: Path, second: Path) -> None:
        extra = ("--second-opinion", str(second), "--language-model-alone")
        finished = serve(nvidia, with_encoder, *extra)
        assert finished.returncode == 0, finished.stderr
        assert str(second) not in finished.stdout

    def test_a_repository_without_it_is_refused(
        self, nvidia: Nvidia, with_encoder: Path, tmp_path: Path
    ) -> None:
        finished = serve(nvidia, with_encoder, "--second-opinion", str(tmp_path / "none"))
        assert finished.returncode == 1
        assert "/models/repository has no model second_opinion" in finished.stderr

    def test_a_container_without_openvino_is_refused(
        self, nvidia: Nvidia, with_encoder: Path, second: Path
    ) -> None:
        packages = Path(nvidia.tools.python).parents[1] / "site-packages" / "openvino"
        (packages / "__init__.py").unlink()
        packages.rmdir()
        finished = serve(nvidia, with_encoder, "--second-opinion", str(second))
        assert finished.returncode == 1
        assert "needs the package openvino" in finished.stderr
