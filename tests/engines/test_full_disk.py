"""What is built on a disk that is full: told in a line, and nothing is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.tiny_models import LLAMA

BUILD = """
import resource, sys
from pathlib import Path
from sidecar.engines import EngineError, build_cpu_engine, write_checkpoint
what, source, out, limit = sys.argv[1:]
# Stands in for a full disk: writing beyond it is an error.
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
build = {"engine": build_cpu_engine, "checkpoint": write_checkpoint}[what]
try:
    build(Path(source), Path(out), model_id="tiny", prompt_format="compact-v1")
except EngineError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("what", "limit", "told"),
    [
        ("engine", 0, "model.xml: cannot be written; is the disk full?"),
        # Room for the graph and its weights, but not for the tokenizer, which comes after them.
        ("engine", 170_000, "out: cannot be written: File too large"),
        ("checkpoint", 1000, "out: cannot be written: File too large"),
    ],
)
def test_a_full_disk_is_told(tmp_path: Path, what: str, limit: int, told: str) -> None:
    source = LLAMA.write(tmp_path / "source")
    if limit > 1000:
        tokenizer = source / "tokenizer.json"
        content = json.loads(tokenizer.read_text())
        tokenizer.write_text(json.dumps(content | {"larger_than_the_weights": "x" * limit}))
    command = [sys.executable, "-c", BUILD, what, str(source), str(tmp_path / "out"), str(limit)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
