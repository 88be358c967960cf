"""A program whose children write to a store until they are killed.

    python -m tests.policies.stores.writer URL

For each line of standard input it forks a child, which prints its process id, then for each write
that was acknowledged `ack CHANGE REVISION DIGEST`. Forking from a program that has imported
everything makes a child in milliseconds.
"""

from __future__ import annotations

import os
import sys

# What a store imports when it is opened, before there are children.
import sidecar.policies.stores.postgres
import sidecar.policies.stores.sqlite  # noqa: F401
from sidecar.policies.stores import ChangeKind, open_store
from tests.policies.stores.parts import policy, write


def main() -> None:
    url = sys.argv[1]
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            write_for_ever(url)
        os.waitpid(child, 0)
        say("gone")


def write_for_ever(url: str) -> None:
    say(f"pid {os.getpid()}")
    store = open_store(url)
    number = 0
    while True:
        number += 1
        content = policy(description=f"{os.getpid()} wrote {number}")
        change = write(store, ChangeKind.UPDATE, content)
        say(f"ack {change.number} {change.record.revision} {change.record.digest}")


def say(line: str) -> None:
    # One call: a line is there as a whole or not at all.
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main()
