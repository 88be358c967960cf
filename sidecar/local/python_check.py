"""Says whether the Python that runs this file can run the sidecar and its Triton.

`make` runs it with one interpreter after the other, so it uses nothing but the standard library
and no syntax that an old Python cannot read. Exit status: 0 yes; 1 no, with the reason on stderr.
"""

import os
import sys


def problem():
    # type: () -> str
    """Why not, and what to do; empty if all is well."""
    # Old interpreters fail here already: what is imported below has syntax that they cannot read.
    version = "{}.{}".format(*sys.version_info[:2])
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        return "is Python " + version + "; 3.11, 3.12 or 3.13 is needed"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "has no module venv: run `apt-get install python" + version + "-venv`"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path.insert(0, root)
    from sidecar.local.preflight import check_libpython, this_machine

    return check_libpython(this_machine()).problem


if __name__ == "__main__":
    reason = problem()
    if reason:
        sys.stderr.write(reason + "\n")
    sys.exit(1 if reason else 0)
