#!/bin/bash
# Installs the sidecar into a folder of its own: install.sh SOURCE PREFIX LOCK
#
# The images are built with it, and a test replays it in an empty folder. Packages are those of the
# lock file, with their hashes. They are installed from outside, so that what is only needed to
# install is never there; KEEP_PIP puts pip in, for what installs more later.
set -euo pipefail

source=$1 prefix=$2 lock=$3
python=${PYTHON:-python3}
# NVIDIA's images may pin their own packages by it, which have no say in an environment of its own.
unset PIP_CONSTRAINT

without_pip=(--without-pip)
[ -z "${KEEP_PIP:-}" ] || without_pip=()
"$python" -m venv "${without_pip[@]}" "$prefix"
pip=("$python" -m pip --python "$prefix/bin/python" --disable-pip-version-check --quiet)
"${pip[@]}" install --no-compile --require-hashes --no-deps --only-binary=:all: -r "$lock"

# The build backend, of the version that pyproject.toml names, comes and goes with a temporary folder.
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"${pip[@]}" wheel --no-deps --wheel-dir "$wheels" "$source"
# By its name: of a path the installation would keep a note, and the SBOM with it.
"${pip[@]}" install --no-compile --no-deps --no-index --find-links "$wheels" llm-routing-sidecar
"$prefix/bin/sidecar" --version
