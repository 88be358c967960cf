"""The builder from end to end, with NVIDIA's programs faked: what it asks of them and what it does
with what they leave."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.engines import EngineError, load_engine
from sidecar.engines.trtllm import (
    BuildRequest,
    EngineLimits,
    Precision,
    Verdict,
    build_trtllm_engine,
    render_second_opinion,
)
from sidecar.engines.trtllm.build import Verification
from tests.engines.tiny_models import LLAMA
from tests.engines.trtllm.conftest import Nvidia, request_for
from tests.engines.trtllm.killed_builder import GOOD, PUBLICATION, kill_at, verify

PROGRAMS = {
    Precision.BF16: "convert_checkpoint.py",
    Precision.FP16: "convert_checkpoint.py",
    Precision.FP8: "quantize.py",
    Precision.INT4_AWQ: "quantize.py",
}


def verifying(verdict: Verdict, temperature: float | None = None) -> object:
    return lambda engine, repository, work, report: Verification(verdict, temperature)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_builds(nvidia: Nvidia, tmp_path: Path, family: str, precision: Precision) -> None:
    request = replace(request_for(tmp_path, family), precision=precision)
    engine = build_trtllm_engine(request, nvidia.tools)

    assert nvidia.ran == [
        PROGRAMS[precision],
        "trtllm-build",
        "generate_xgrammar_tokenizer_info.py",
    ]
    assert {file.name for file in request.out.iterdir()} == {
        "config.json",
        "rank0.engine",
        "tokenizer.json",
        "xgrammar_tokenizer_info.json",
        "router.json",
        "manifest.json",
    }
    assert load_engine(request.out).router == engine.router
    assert engine.router.runtime == "tensorrt_llm"
    assert engine.router.context_length == request.limits.max_seq_len
    config = (request.repository / "tensorrt_llm" / "config.pbtxt").read_text()
    assert f'"{request.out}"' in config


def test_the_manifest_says_what_the_engine_is_tied_to(nvidia: Nvidia, tmp_path: Path) -> None:
    build_trtllm_engine(request_for(tmp_path), nvidia.tools)
    target = json.loads((tmp_path / "engine" / "manifest.json").read_text())["target"]
    commands = target.pop("commands")
    assert target == {
        "trtllm_version": "1.2.1",
        "tensorrt_version": "10.14.1.48",
        "gpu": "NVIDIA L40S",
        "compute_capability": "8.9",
        "driver": "590.44.01",
        "precision": "bf16",
        "prompt_format": "compact-v1",
    }
    assert [command.split()[0].rpartition("/")[2] for command in commands] == [
        "python3",
        "trtllm-build",
        "python3",
    ]


@pytest.mark.parametrize(
    ("precision", "program"),
    [
        (Precision.BF16, "convert_checkpoint.py"),
        (Precision.FP8, "quantize.py"),
        (Precision.INT4_AWQ, "quantize.py"),
        (Precision.BF16, "trtllm-build"),
        (Precision.BF16, "generate_xgrammar_tokenizer_info.py"),
    ],
)
def test_a_step_that_fails_is_named_and_the_next_try_goes_on_there(
    nvidia: Nvidia,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    program: str,
) -> None:
    request = replace(request_for(tmp_path), precision=precision)
    monkeypatch.setenv("FAKE_NVIDIA_FAIL", program)
    with pytest.raises(EngineError) as error:
        build_trtllm_engine(request, nvidia.tools)
    assert program in str(error.value)
    assert "ended with exit status 1" in str(error.value)
    assert "CUDA error: out of memory" in str(error.value)
    assert not request.out.exists()

    monkeypatch.delenv("FAKE_NVIDIA_FAIL")
    before = len(nvidia.ran)
    build_trtllm_engine(request, nvidia.tools)
    assert nvidia.ran[before] == program


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP8], ids=str)
def test_killed_at_each_step_in_turn_the_next_try_does_that_step_anew_and_none_before_it(
    nvidia: Nvidia, tmp_path: Path, precision: Precision
) -> None:
    request = replace(request_for(tmp_path), precision=precision)
    steps = {
        **({"calibration": ""} if precision.facts.qformat else {}),
        "checkpoint": PROGRAMS[precision],
        "engine": "trtllm-build",
        "tokenizer": "generate_xgrammar_tokenizer_info.py",
        "assembled": "",
        "repository": "",
        "verify": "",
    }
    for number, step in enumerate((*steps, PUBLICATION)):
        told = tmp_path / f"{step}.txt"
        ended = kill_at(step, steps.get(step, ""), request, nvidia.tools, told)
        assert (step, ended) == (step, -signal.SIGKILL)
        assert not request.out.exists(), step
        lines = told.read_text().splitlines()
        assert [line for line in lines if line in steps or line.endswith("done before")] == [
            *(f"{done}: done before" for done in [*steps][: max(0, number - 1)]),
            *[*steps][max(0, number - 1) : number + 1],
        ]

    build_trtllm_engine(request, nvidia.tools, verify=verify)
    load_engine(request.out)
    # Each program twice: half way, and in the try that was killed at the step after it.
    assert nvidia.ran == [name for name in steps.values() if name for _ in range(2)]


def test_an_engine_without_encoder_has_none_to_serve(nvidia: Nvidia, tmp_path: Path) -> None:
    engine = build_trtllm_engine(request_for(tmp_path), nvidia.tools)
    with pytest.raises(EngineError, match="has no second opinion to serve"):
        render_second_opinion(engine.path, tmp_path / "repository")


def test_what_is_done_is_not_done_again_and_what_has_changed_is(
    nvidia: Nvidia, tmp_path: Path
) -> None:
    request = request_for(tmp_path)
    build_trtllm_engine(request, nvidia.tools)
    first = len(nvidia.ran)
    build_trtllm_engine(request, nvidia.tools)
    assert len(nvidia.ran) == first

    longer = replace(request, limits=EngineLimits(max_input_len=320))
    build_trtllm_engine(longer, nvidia.tools)
    assert nvidia.ran[first:] == ["trtllm-build", "generate_xgrammar_tokenizer_info.py"]


def test_the_kv_cache_of_an_awq_checkpoint_is_set_to_16_bits(
    nvidia: Nvidia, tmp_path: Path
) -> None:
    request = replace(request_for(tmp_path), precision=Precision.INT4_AWQ)
    build_trtllm_engine(request, nvidia.tools)
    config = json.loads((request.work / "checkpoint" / "config.json").read_text())
    assert config["quantization"] == {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None}


def test_an_engine_other_than_asked_for_is_refused(
    nvidia: Nvidia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(tmp_path)
    wrong = Path(nvidia.tools.trtllm_build)
    text = wrong.read_text()
    wrong.write_text(text.replace("sys.argv[1:]", "sys.argv[1:-1]"))
    with pytest.raises(EngineError, match="gather_generation_logits is False, asked for was True"):
        build_trtllm_engine(request, nvidia.tools)


def writes(program: Path, name: str, content: str) -> None:
    """Have a stand-in end well and leave `content` in its file `name`, or leave no file."""
    change = f"write_text({content!r})" if content else "unlink()"
    text = program.read_text()
    program.write_text(
        f"{text}\nimport pathlib\nout = sys.argv[sys.argv.index('--output_dir') + 1]\n"
        f"(pathlib.Path(out) / {name!r}).{change}\n"
    )


@pytest.mark.parametrize(
    ("program", "name", "content", "reason"),
    [
        ("models/core/llama/convert_checkpoint.py", "rank0.safetensors", "", "did not write"),
        ("models/core/llama/convert_checkpoint.py", "config.json", "{half", "cannot be read"),
        (
            "models/core/llama/convert_checkpoint.py",
            "config.json",
            '{"quantization": {"quant_algo": "FP8"}}',
            "the checkpoint is of another precision",
        ),
        (
            "generate_xgrammar_tokenizer_info.py",
            "xgrammar_tokenizer_info.json",
            '{"encoded_vocab": [], "tokenizer_str": ""}',
            "stop_token_ids missing",
        ),
        (
            "generate_xgrammar_tokenizer_info.py",
            "xgrammar_tokenizer_info.json",
            '{"encoded_vocab": [], "tokenizer_str": "", "stop_token_ids": [0]}',
            r"stop_token_ids is \[0\], the model ends its answers with 2",
        ),
    ],
    ids=["no file", "half a file", "another precision", "no stop tokens", "other stop tokens"],
)
def test_what_a_program_leaves_is_not_taken_on_trust(
    nvidia: Nvidia, tmp_path: Path, program: str, name: str, content: str, reason: str
) -> None:
    request = request_for(tmp_path)
    writes(nvidia.tools.examples / program, name, content)
    with pytest.raises(EngineError, match=reason):
        build_trtllm_engine(request, nvidia.tools)
    assert not request.out.exists()


def test_verification_calibrates_the_engine_and_is_kept(nvidia: Nvidia, tmp_path: Path) -> None:
    engine = build_trtllm_engine(
        request_for(tmp_path),
        nvidia.tools,
        verify=verifying(GOOD, 1.5),  # type: ignore[arg-type]
    )
    assert engine.router.temperature == 1.5
    kept = json.loads((engine.path / "verification.json").read_text())
    assert kept["passed"] is True
    assert load_engine(engine.path).router.temperature == 1.5


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (replace(GOOD, accuracy=0.89), "more than half a point less"),
        (replace(GOOD, flipped=("0:a",)), "1 cases that the reference is sure of"),
    ],
)
def test_an_engine_that_decides_worse_is_published_only_by_force(
    nvidia: Nvidia, tmp_path: Path, verdict: Verdict, reason: str
) -> None:
    request = request_for(tmp_path)
    verify = verifying(verdict)
    with pytest.raises(EngineError, match=reason):
        build_trtllm_engine(request, nvidia.tools, verify=verify)  # type: ignore[arg-type]
    assert not request.out.exists()

    build_trtllm_engine(request, nvidia.tools, verify=verify, force=True)  # type: ignore[arg-type]
    assert json.loads((request.out / "verification.json").read_text())["passed"] is False


def test_half_a_point_less_is_accepted() -> None:
    assert replace(GOOD, accuracy=0.895).problems == []


class TestPreflight:
    def refused(self, request: BuildRequest, nvidia: Nvidia) -> str:
        with pytest.raises(EngineError) as error:
            build_trtllm_engine(request, nvidia.tools)
        assert nvidia.ran == []
        return str(error.value)

    @pytest.mark.parametrize(
        ("gpu", "precision", "reason"),
        [
            ("NVIDIA A100, 8.0, 590.44, 81920, 80000", Precision.FP8, "fp8 needs 8.9 or newer"),
            ("Tesla T4, 7.5, 590.44, 16384, 15000", Precision.BF16, "bf16 needs 8.0 or newer"),
            ("NVIDIA L4, 8.9, 590.44, 23034, 900", Precision.BF16, "900 MiB of its memory"),
            ("what is this", Precision.BF16, "'what is this', which is not understood"),
        ],
    )
    def test_gpu(
        self,
        nvidia: Nvidia,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        gpu: str,
        precision: Precision,
        reason: str,
    ) -> None:
        monkeypatch.setenv("FAKE_GPU", gpu)
        request = replace(request_for(tmp_path), precision=precision)
        assert reason in self.refused(request, nvidia)

    @pytest.mark.parametrize("version", ["1.2.0", "1.3.0"])
    def test_another_tensorrt_llm(self, nvidia: Nvidia, tmp_path: Path, version: str) -> None:
        packages = tmp_path / "nvidia" / "site-packages"
        metadata = packages / "tensorrt_llm-1.2.1.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text().replace("1.2.1", version))
        message = self.refused(request_for(tmp_path), nvidia)
        assert f"TensorRT-LLM is {version}" in message
        assert "26.07-trtllm-python-py3" in message

    def test_outside_of_nvidias_container(self, nvidia: Nvidia, tmp_path: Path) -> None:
        elsewhere = replace(nvidia, tools=replace(nvidia.tools, python=sys.executable))
        assert "is not installed" in self.refused(request_for(tmp_path), elsewhere)

    def test_scripts_that_are_not_there(self, nvidia: Nvidia, tmp_path: Path) -> None:
        elsewhere = replace(nvidia, tools=replace(nvidia.tools, examples=tmp_path / "none"))
        message = self.refused(request_for(tmp_path), elsewhere)
        assert "none/models/core/llama/convert_checkpoint.py" in message

    def test_prompts_longer_than_the_models_context(self, nvidia: Nvidia, tmp_path: Path) -> None:
        request = replace(request_for(tmp_path), limits=EngineLimits(max_input_len=500))
        assert "choose --max-prompt-tokens 416 or less" in self.refused(request, nvidia)

    def test_widths_that_no_block_of_awq_divides(self, nvidia: Nvidia, tmp_path: Path) -> None:
        request = request_for(tmp_path)
        odd = replace(LLAMA, intermediate=100).write(tmp_path / "odd")
        odd_request = replace(request, source=odd, precision=Precision.INT4_AWQ)
        assert "choose another --precision" in self.refused(odd_request, nvidia)

    def test_fp8_without_cases(self, nvidia: Nvidia, tmp_path: Path) -> None:
        request = replace(request_for(tmp_path), precision=Precision.FP8, calibration=())
        assert "name some with --cases" in self.refused(request, nvidia)

    def test_a_folder_that_is_something_else(self, nvidia: Nvidia, tmp_path: Path) -> None:
        request = request_for(tmp_path)
        request.out.mkdir()
        assert "choose another path" in self.refused(request, nvidia)

    def test_a_gguf_file(self, nvidia: Nvidia, tmp_path: Path) -> None:
        request = replace(request_for(tmp_path), source=tmp_path / "x.gguf")
        assert "--target huggingface" in self.refused(request, nvidia)

    def test_the_licence_of_arch_router_is_pointed_out(
        self, nvidia: Nvidia, tmp_path: Path
    ) -> None:
        request = request_for(tmp_path)
        named = request.source.rename(tmp_path / "Arch-Router-1.5B")
        said: list[str] = []
        build_trtllm_engine(replace(request, source=named), nvidia.tools, progress=said.append)
        assert any("katanemo-research licence" in line for line in said)
