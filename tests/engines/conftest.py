"""Engines of the tiny models, built and compiled once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from cpu_engine.decisions import Decider
from cpu_engine.forward import Forward

from sidecar.engines import EngineInfo, build_cpu_engine
from tests.engines.parts import compile_engine, new_decider
from tests.engines.tiny_models import TINY_MODELS


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, EngineInfo]:
    """Engine by name of the tiny model."""
    folder = tmp_path_factory.mktemp("engines")
    return {
        name: build_cpu_engine(
            model.write(folder / f"{name}-weights"),
            folder / name,
            model_id=f"tiny-{name}",
            prompt_format="compact-v1",
        )
        for name, model in TINY_MODELS.items()
    }


@pytest.fixture(scope="session")
def forwards(engines: Mapping[str, EngineInfo]) -> Mapping[str, Forward]:
    """Compiled graph by name of the tiny model; in float32, so that numbers are the same on every
    CPU."""
    return {name: compile_engine(info.path, "f32") for name, info in engines.items()}


@pytest.fixture
def decider(engines: Mapping[str, EngineInfo], forwards: Mapping[str, Forward]) -> Decider:
    """The tiny Llama with an empty cache."""
    return new_decider(forwards["llama"], engines["llama"].tokenizer_path)
