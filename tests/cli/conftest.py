"""A folder of policies, and a store that holds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.policy_commands import done
from tests.policies.stores import parts
from tests.policies.stores.parts import policy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parts.write_files(tmp_path / "mine", policy())
    return tmp_path / "mine"


@pytest.fixture
def at(tmp_path: Path, folder: Path) -> str:
    """A store with one policy."""
    where = f"sqlite:{tmp_path / 'policies.db'}"
    done("apply", folder, "--at", where, "--author", "ada", "-m", "first steps")
    return where
