#!/bin/bash
# Entry of the builder image: everything after the image's name goes to the builder.
set -euo pipefail

# What the calibration and the reference read with; NVIDIA's container has them, see requirements.txt.
python3 - <<'PYTHON'
import importlib.metadata as metadata
import sys

for line in open("/src/build/trtllm/requirements.txt"):
    package, _, version = line.partition("#")[0].strip().partition("==")
    if not package:
        continue
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        found = "none"
    if found != version:
        print(f"Warning: {package} is {found}, known to work is {version}", file=sys.stderr)
PYTHON
exec /opt/sidecar/bin/sidecar model build --target trtllm "$@"
