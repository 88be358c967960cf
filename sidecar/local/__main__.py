"""Locked programs and the cache, for the Makefile.

python -m sidecar.local fetch            fetch all that tools.lock names, and the stub environment
python -m sidecar.local PROGRAM ARG...   run a locked program, e.g. `buf`
"""

from __future__ import annotations

import os
import sys

from sidecar.local.errors import LocalError
from sidecar.local.lockfile import read_lock
from sidecar.local.stub_environment import stub_environment
from sidecar.local.tools import tool, unpacked


def main(arguments: list[str]) -> int:
    """Does not return when the program could be started: it takes this process's place."""
    if not arguments:
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    try:
        if arguments == ["fetch"]:
            for name in read_lock():
                unpacked(name, _say)
            stub_environment(_say)
            return 0
        program = tool(arguments[0], _say)
    except (LocalError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    os.execv(program, [str(program), *arguments[1:]])  # noqa: S606


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
