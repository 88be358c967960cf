"""What is measured of an engine at build, and what the sidecar makes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.app_routing import _conversation_tokens
from sidecar.config import Settings, load_settings
from sidecar.engines import EngineError, EngineInfo, build_cpu_engine, load_engine
from sidecar.engines.engine_directory import write_manifest
from sidecar.engines.timing import CpuTiming
from tests.engines.tiny_models import LLAMA


def settings(budget_ms: int, tokens: int | None = None) -> Settings:
    flags: dict[str, dict[str, object]] = {
        "routing": {"decision_budget_ms": budget_ms, "reserve_ms": 20}
    }
    if tokens is not None:
        flags["routing_model"] = {"max_conversation_tokens": tokens}
    return load_settings(flags=flags, environ={})


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> EngineInfo:
    folder = tmp_path_factory.mktemp("timed")
    return build_cpu_engine(
        LLAMA.write(folder / "weights"),
        folder / "engine",
        model_id="tiny",
        prompt_format="compact-v1",
        timed=True,
    )


def test_a_timed_build_says_what_a_token_takes_and_is_whole(timed: EngineInfo) -> None:
    timing = load_engine(timed.path).router.timing
    assert timing is not None
    assert timing.token_ms > 0
    assert timing.cpu


def test_a_timing_that_cannot_be_is_refused(timed: EngineInfo) -> None:
    router = json.loads((timed.path / "router.json").read_text())
    router["timing"]["token_ms"] = 0
    broken = timed.path.with_name("broken")
    broken.mkdir()
    for file in timed.path.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "router.json").write_text(json.dumps(router))
    write_manifest(broken)
    with pytest.raises(EngineError, match=r"timing is not as this version knows it"):
        load_engine(broken)


@pytest.mark.parametrize(
    ("pass_ms", "token_ms", "budget_ms", "tokens"),
    [
        (30, 1.5, 1000, 256),  # 306 within 490 ms: the most
        (30, 3.0, 1000, 153),
        (30, 1.5, 320, 80),
        (30, 30.0, 1000, 64),  # the least, however slow
        (600, 1.0, 1000, 64),
    ],
)
def test_a_conversation_is_as_long_as_is_read_in_half_of_the_budget(
    engines: Mapping[str, EngineInfo],
    pass_ms: float,
    token_ms: float,
    budget_ms: int,
    tokens: int,
) -> None:
    engine = _with(engines["llama"], CpuTiming("a CPU", pass_ms, token_ms))
    assert _conversation_tokens(settings(budget_ms), engine) == tokens


def test_an_unmeasured_engine_reads_the_most_and_a_setting_decides_over_both(
    engines: Mapping[str, EngineInfo],
) -> None:
    slow = _with(engines["llama"], CpuTiming("a CPU", 30, 30))
    assert _conversation_tokens(settings(1000), _with(slow, None)) == 256
    assert _conversation_tokens(settings(1000, tokens=700), slow) == 700


def _with(engine: EngineInfo, timing: CpuTiming | None) -> EngineInfo:
    return EngineInfo(Path(engine.path), replace(engine.router, timing=timing))
