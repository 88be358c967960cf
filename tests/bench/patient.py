"""`sidecar bench` and `sidecar soak` as a user runs them, but for the budget of a decision: other
tests compute beside them, and the routing model is to decide all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENT = """
import sys
from sidecar import config

load_settings, budget_ms = config.load_settings, int(sys.argv.pop(1))

def patient(file=None, flags=None, **others):
    flags = {**(flags or {}), "routing": {"decision_budget_ms": budget_ms}}
    return load_settings(file, flags, **others)

config.load_settings = patient

from sidecar.cli import main
from tests.own_ports import draw_own_ports

draw_own_ports(started=True)
main()
"""


def patient(budget_ms: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PATIENT, str(budget_ms), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
