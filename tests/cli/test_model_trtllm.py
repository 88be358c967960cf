"""`sidecar model build --target trtllm`, from the command line to a verified engine, with NVIDIA's
programs faked."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cpu_engine.engine_files import open_second_opinion

from sidecar.cli import cli
from sidecar.cli.failures import is_expected
from sidecar.cli.steps import Steps
from sidecar.cli.up import chosen_engine
from sidecar.config import load_settings
from sidecar.engines import EngineError, load_engine
from sidecar.evaluation.cases import CaseError
from tests.engines import tiny_adapter
from tests.engines.tiny_encoder import FUSION, TINY_ENCODER
from tests.engines.tiny_models import LLAMA, TINY_MODELS
from tests.engines.trtllm import fake_nvidia
from tests.engines.trtllm.conftest import Nvidia, nvidia
from tests.prompts.vocabularies import qwen_tokenizer_text

__all__ = ["nvidia"]

END_ID = 151_645
ROUTES = [
    {"name": "billing", "description": "invoices and payments"},
    {"name": "travel", "description": "flights and hotels"},
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with Qwen's vocabulary, in which words are tokens."""
    shape = replace(LLAMA, hidden=16, heads=2, kv_heads=1, layers=1, vocab=151_936)
    folder = shape.write(tmp_path_factory.mktemp("weights") / "tiny-router")
    ids = {"eos_token_id": END_ID, "pad_token_id": 151_643, "max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps(shape.config() | ids))
    (folder / "tokenizer.json").write_text(qwen_tokenizer_text())
    return folder


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    lines = [
        {
            "id": f"{label}-{number}",
            "conversation": [{"role": "user", "content": f"{label} question {number}"}],
            "routes": ROUTES,
            "label": label,
        }
        for label in ("billing", "travel")
        for number in range(3)
    ]
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def out_of(nvidia: Nvidia) -> Path:
    return nvidia.log.parents[1] / "engine"


def build(weights: Path, nvidia: Nvidia, *arguments: str | Path) -> Result:
    start = f"import sys; sys.path.insert(0, {str(fake_nvidia.REPO)!r})\n"
    start += "from tests.engines.trtllm.fake_tritonserver import main\nmain()\n"
    triton = Path(nvidia.tools.python).with_name("tritonserver")
    triton.write_text(f"#!{sys.executable}\n{start}")
    triton.chmod(0o755)
    command = ["model", "build", "--target", "trtllm", "--source", str(weights)]
    command += ["--prompt-format", "compact-v1", "--examples", str(nvidia.tools.examples)]
    command += ["--out", str(out_of(nvidia)), *map(str, arguments)]
    return CliRunner().invoke(cli, command)


def test_an_engine_that_decides_alike_is_verified_calibrated_and_published(
    weights: Path, nvidia: Nvidia, cases: Path
) -> None:
    result = build(weights, nvidia, "--cases", cases)
    assert result.exit_code == 0, (result.output, result.exception)
    engine = load_engine(out_of(nvidia))
    found = json.loads((engine.path / "verification.json").read_text())
    assert (found["passed"], found["questions"], found["same"]) == (True, 6, 6)
    assert found["latency_p50_ms"] > 0
    assert engine.router.temperature == found["temperature"] != 1.0
    assert "6 of 6 decided alike" in result.output


def test_an_engine_that_decides_otherwise_is_not_published(
    weights: Path, nvidia: Nvidia, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_REFERENCE", "contrary")
    result = build(weights, nvidia, "--cases", cases)
    assert isinstance(result.exception, EngineError)
    assert "cases that the reference is sure of" in str(result.exception)
    assert not out_of(nvidia).exists()


def test_other_cases_are_asked_though_an_earlier_build_asked_some(
    weights: Path, nvidia: Nvidia, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_REFERENCE", "contrary")
    build(weights, nvidia, "--cases", cases)
    monkeypatch.delenv("FAKE_REFERENCE")
    again = build(weights, nvidia, "--cases", cases, "--limit", "4")
    assert again.exit_code == 0, (again.output, again.exception)
    found = json.loads((out_of(nvidia) / "verification.json").read_text())
    assert (found["passed"], found["questions"]) == (True, 4)


@pytest.mark.parametrize("reference", ["", "contrary"])
def test_an_unverified_engine_has_no_verdict_of_an_earlier_build(
    weights: Path, nvidia: Nvidia, cases: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.setenv("FAKE_REFERENCE", reference)
    build(weights, nvidia, "--cases", cases)
    again = build(weights, nvidia, "--no-verify")
    assert again.exit_code == 0, (again.output, again.exception)
    engine = load_engine(out_of(nvidia))
    assert not (engine.path / "verification.json").exists()
    assert engine.router.temperature == 1.0


def test_a_verification_that_fails_is_told_and_all_that_the_next_try_does(
    weights: Path, nvidia: Nvidia, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = 3
    for variable, broken, reason in (
        ("FAKE_NVIDIA_FAIL", "reference.py", "CUDA error: out of memory"),
        ("FAKE_TRITON", "broken", "the engine cannot be read"),
    ):
        monkeypatch.setenv(variable, broken)
        failed = build(weights, nvidia, "--cases", cases)
        monkeypatch.delenv(variable)
        assert isinstance(failed.exception, EngineError)
        assert reason in str(failed.exception)
        assert not out_of(nvidia).exists()
        assert len(nvidia.ran) == programs

    again = build(weights, nvidia, "--cases", cases)
    assert again.exit_code == 0, (again.output, again.exception)
    assert len(nvidia.ran) == programs


def test_without_cases_it_wants_to_be_told_that_nothing_is_compared(
    weights: Path, nvidia: Nvidia
) -> None:
    result = build(weights, nvidia)
    assert isinstance(result.exception, EngineError)
    assert "--no-verify" in str(result.exception)
    assert nvidia.ran == []


def test_a_dry_run_prints_commands_and_sizes_and_needs_no_gpu(
    weights: Path, cases: Path, tmp_path: Path, nvidia: Nvidia
) -> None:
    policies = Path(__file__).parents[2] / "examples" / "policies"
    result = build(weights, nvidia, "--dry-run", "--policies", policies, "--precision", "fp8")
    assert result.exit_code == 0, result.exception
    assert "quantize.py --model_dir" in result.output
    assert "trtllm-build --checkpoint_dir" in result.output
    assert "--gather_generation_logits" in result.output
    assert "nothing was run" in result.output
    assert nvidia.ran == []
    # 1,024 tokens of conversation beside the longest route block, and not the default of 4,096.
    longest = int(result.output.split("longest prompt")[1].split()[0])
    assert 1024 < longest < 2048


def test_a_router_with_a_second_opinion_is_built_with_it(
    nvidia: Nvidia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = TINY_MODELS["llama"].write(tmp_path / "weights")
    (base / "tokenizer.json").write_text(qwen_tokenizer_text())
    encoder = TINY_ENCODER.write(tmp_path / "encoder")
    section = TINY_ENCODER.write_second_opinion(tmp_path / "adapter", encoder)
    change = tiny_adapter.change_of(TINY_MODELS["llama"])
    adapter = tiny_adapter.write_adapter(
        tmp_path / "adapter", base, change, second_opinion=section, prompt_format="compact-v1"
    )
    command = ["model", "build", "--target", "trtllm", "--source", base, "--adapter", adapter]
    command += ["--encoder", encoder, "--examples", nvidia.tools.examples, "--no-verify"]
    command += ["--max-prompt-tokens", "256", "--out", out_of(nvidia)]

    cache = tmp_path / "cache"
    monkeypatch.setenv("LLM_ROUTING_SIDECAR_CACHE", str(cache))
    planned = CliRunner().invoke(cli, [*map(str, command), "--dry-run"])
    assert planned.exit_code == 0, planned.exception
    assert "a sentence encoder, on the CPU" in planned.output
    assert f"--model_dir {cache / 'checkpoints'}" in planned.output
    # The merged weights are written by a build alone.
    assert list(cache.iterdir()) == []
    built = CliRunner().invoke(cli, [str(word) for word in command])
    assert built.exit_code == 0, (built.output, built.exception)

    engine = load_engine(out_of(nvidia))
    second = engine.router.second_opinion
    assert second is not None
    assert engine.router.encoder_apart
    assert asdict(second.fusion) == FUSION | {"alone_encoder": 0.0, "alone_other_bias": 0.0}
    # What the model `second_opinion` opens when Triton loads it.
    assert open_second_opinion(engine.path).scales == second.scales
    model = out_of(nvidia).with_name("engine-repository") / "second_opinion"
    assert f'"{engine.path}"' in (model / "config.pbtxt").read_text()
    assert (model / "1" / "model.py").is_file()
    assert (model / "1" / "cpu_engine" / "second_opinion.py").is_file()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "tokenizer.json: missing"), ("{}", "is not a tokenizer.json")]
)
def test_a_source_without_a_tokenizer_is_told(
    weights: Path, nvidia: Nvidia, tmp_path: Path, content: str | None, message: str
) -> None:
    source = Path(shutil.copytree(weights, tmp_path / "source"))
    (source / "tokenizer.json").unlink()
    if content is not None:
        (source / "tokenizer.json").write_text(content)
    result = build(source, nvidia, "--no-verify")
    assert isinstance(result.exception, EngineError)
    assert message in str(result.exception)


def test_cases_that_are_none_are_told(weights: Path, nvidia: Nvidia, tmp_path: Path) -> None:
    cases = tmp_path / "bad.jsonl"
    cases.write_text("{}\n")
    result = build(weights, nvidia, "--cases", cases)
    assert isinstance(result.exception, CaseError)
    assert is_expected(result.exception)


@pytest.mark.parametrize(
    "given",
    [
        ["--precision", "fp8", "--force"],
        ["--policies", "/", "--cases", "/"],
        # Also where what is given is the default.
        ["--limit", "1000", "--max-batch-size", "64", "--examples", "/app"],
        ["--max-prompt-tokens", "64", "--repository", "r", "--served-at", "s"],
        ["--ensemble", "--dry-run", "--no-verify"],
    ],
    ids=lambda given: given[0],
)
def test_options_of_this_target_are_refused_for_others(weights: Path, given: list[str]) -> None:
    command = ["model", "build", "--source", str(weights), "--prompt-format", "compact-v1"]
    result = CliRunner().invoke(cli, [*command, *given])
    assert result.exit_code == 2
    named = ", ".join(each for each in given if each.startswith("--"))
    assert f"Error: {named}: for --target trtllm, not for cpu" in result.output


def test_up_says_where_an_engine_for_gpus_runs(weights: Path, nvidia: Nvidia) -> None:
    build(weights, nvidia, "--no-verify")
    with pytest.raises(EngineError, match="an engine of tensorrt_llm, for GPUs"):
        chosen_engine(out_of(nvidia), load_settings(environ={}), Steps())
