"""`python -m sidecar.local PROGRAM ARG...` runs a locked program; `clean` removes the cache."""

from __future__ import annotations

import os
import shutil
import sys

from sidecar.local.cache import cache_dir
from sidecar.local.errors import LocalError
from sidecar.local.tools import tool


def main(arguments: list[str]) -> int:
    """Does not return when the program could be started: it takes this process's place."""
    if not arguments:
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    try:
        if arguments == ["clean"]:
            shutil.rmtree(cache_dir())
            return 0
        program = tool(arguments[0], lambda line: print(line, file=sys.stderr))  # noqa: T201
    except LocalError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    os.execv(program, [str(program), *arguments[1:]])  # noqa: S606


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
