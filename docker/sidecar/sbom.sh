#!/bin/bash
# Lists what an installation consists of, as CycloneDX: sbom.sh SOURCE PREFIX LOCK OUT
#
# The images are built with it, and a test replays it. The program that makes the list is installed
# from LOCK, with hashes, into a temporary folder beside the installation, and is not in the list.
set -euo pipefail

source=$1 prefix=$2 lock=$3 out=$4
python=${PYTHON:-python3}

program=$(mktemp -d)
trap 'rm -rf "$program"' EXIT
"$python" -m venv --without-pip "$program"
"$python" -m pip --python "$program/bin/python" --disable-pip-version-check --quiet \
  install --no-compile --require-hashes --no-deps --only-binary=:all: -r "$lock"
mkdir -p "$(dirname "$out")"
# Unvalidated: checking its own work takes the program ten times as long as doing it.
"$program/bin/cyclonedx-py" environment --pyproject "$source/pyproject.toml" \
  --output-reproducible --no-validate --output-format JSON --output-file "$out" "$prefix/bin/python"
