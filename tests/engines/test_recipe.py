import subprocess
import sys
from pathlib import Path

from sidecar.engines import load_engine
from tests.engines.tiny_models import LLAMA

RECIPE = Path(__file__).parents[2] / "build" / "openvino" / "build.py"


def run(tmp_path: Path, source: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPE), "--source", str(source)]
    command += ["--prompt-format", "compact-v1", "--model-id", "tiny"]
    command += ["--out", str(tmp_path / "engine"), "--repository", str(tmp_path / "repository")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_writes_an_engine_and_what_serves_it(tmp_path: Path) -> None:
    finished = run(tmp_path, LLAMA.write(tmp_path / "weights"))
    assert finished.returncode == 0, finished.stderr
    assert load_engine(tmp_path / "engine").router.model_id == "tiny"
    assert (tmp_path / "repository" / "tensorrt_llm" / "1" / "model.py").is_file()


def test_says_what_is_wrong_with_the_source(tmp_path: Path) -> None:
    weights = LLAMA.write(tmp_path / "weights")
    (weights / "tokenizer.json").unlink()
    finished = run(tmp_path, weights)
    assert finished.returncode == 1
    assert "tokenizer.json: missing" in finished.stderr
    assert "Traceback" not in finished.stderr
