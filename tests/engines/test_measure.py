"""`build/openvino/measure.py`, by which an engine is measured without a model server."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

from click.testing import CliRunner

from sidecar.engines import build_cpu_engine
from tests.engines.tiny_models import LLAMA

SCRIPT = Path(__file__).parents[2] / "build" / "openvino" / "measure.py"


def test_every_kind_of_decision_is_timed(tmp_path: Path) -> None:
    # The script draws its ids below the last 1,000 of the vocabulary.
    model = replace(LLAMA, vocab=1200)
    source = model.write(tmp_path / "weights")
    engine = build_cpu_engine(
        source, tmp_path / "engine", model_id="tiny", prompt_format="compact-v1"
    )
    measure = runpy.run_path(str(SCRIPT))["measure"]

    result = CliRunner().invoke(
        measure, [str(engine.path), "--prefix", "20", "--suffix", "4", "--runs", "2"]
    )

    assert result.exit_code == 0, result.output
    assert result.output.count(" ms  best ") == 4
