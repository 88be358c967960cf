#!/bin/bash
# Installs the sidecar into a folder of its own: install.sh SOURCE PREFIX LOCK
#
# The images are built with it, and a test replays it in an empty folder. Packages are those of the
# lock file, with their hashes; what is only needed to install does not stay, unless KEEP_PIP is set.
set -euo pipefail

source=$1 prefix=$2 lock=$3
python=${PYTHON:-python3}

"$python" -m venv "$prefix"
pip=("$prefix/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install --no-compile --require-hashes --no-deps --only-binary=:all: -r "$lock"

# The build backend, of the version that pyproject.toml names, comes and goes with a temporary folder.
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"${pip[@]}" wheel --no-deps --wheel-dir "$wheels" "$source"
"${pip[@]}" install --no-compile --no-deps "$wheels"/*.whl

if [ -z "${KEEP_PIP:-}" ]; then
  "${pip[@]}" uninstall --yes setuptools pip
  rm -f "$prefix"/bin/pip*
fi
"$prefix/bin/sidecar" --version
