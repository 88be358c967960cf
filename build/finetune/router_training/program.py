"""How a program ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from router_training.errors import InputError
from sidecar.engines.errors import EngineError
from sidecar.evaluation.cases import CaseError


def run(main: Callable[[], None]) -> None:
    """`main`. What is wrong with its input ends the program with one line and status 1, Ctrl-C
    with one line and status 130; any other exception is a defect, and keeps its traceback."""
    try:
        main()
    except KeyboardInterrupt as interrupt:
        what = "; ".join(["interrupted", *map(str, interrupt.args)])
        print(f"{Path(sys.argv[0]).name}: {what}", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except (InputError, CaseError, EngineError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
