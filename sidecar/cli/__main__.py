"""`python -m sidecar.cli`, where the script `sidecar` is not in PATH."""

from sidecar.cli import main

main()
