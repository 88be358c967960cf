#!/usr/bin/env python3
"""Starts Triton with a TensorRT-LLM engine, if the engine was built for this machine.

An engine runs with the TensorRT-LLM and TensorRT that built it, on the GPU generation it was built
for. Elsewhere Triton would fail minutes later with a message about a serialised plan, or, on
another GPU of the same generation, run slower than it should. Needs Python's standard library
alone: NVIDIA's container has its own packages, and the sidecar's do not fit beside them.

    serve.py --engine /models/router --repository /models/repository [-- TRITON OPTION...]

Where the engine has a sentence encoder, Triton serves that, too: the model `second_opinion`, which
computes on the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

NEEDED_SHM_MIB = 256
"""Of /dev/shm. NVIDIA's examples give 2 GiB, for Python backends and for engines over several GPUs,
which exchange tensors there. The C++ backend with one engine does not, and what `second_opinion`
exchanges is a few kilobytes a request. Not measured."""

EXIT_TIMEOUT_S = 30
"""What running requests get on SIGTERM; terminationGracePeriodSeconds must be longer."""

PRODUCTION_FLAGS = (
    # What config.pbtxt says is all there is.
    "--disable-auto-complete-config",
    # Not ready until the engine is loaded; an engine that does not load ends the process.
    "--strict-readiness=true",
    "--exit-on-error=true",
    # Nobody loads, unloads or replaces models over the network.
    "--model-control-mode=none",
    f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
    # Interfaces of clouds that are not used; HTTP stays for the probes.
    "--allow-vertex-ai=false",
    "--allow-sagemaker=false",
    # Prompts are short: 64 MiB of pinned memory hold thousands of them.
    "--pinned-memory-pool-byte-size=67108864",
    "--log-format=ISO8601",
)


_TRITONSERVER = "/opt/tritonserver/bin/tritonserver"

SECOND_OPINION = "second_opinion"
"""The model with the engine's sentence encoder."""

_SECOND_REPOSITORY = Path(__file__).resolve().with_name("second-opinion")
"""Of that model alone: engines without an encoder must not load it."""


class MismatchError(Exception):
    """The engine cannot be served here; the text says what to rebuild."""


def check_files(engine: Path) -> Mapping[str, Any]:
    """The engine's manifest. Raises MismatchError if a file is missing or was changed."""
    manifest = _manifest(engine)
    for name, entry in manifest["files"].items():
        file = engine / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise MismatchError(f"{file}: missing or not whole; copy or build the engine again")
        if _sha256(file) != entry["sha256"]:
            raise MismatchError(f"{file}: was changed; copy or build the engine again")
    return manifest


def check_machine(engine: Path, target: Mapping[str, Any]) -> Iterator[str]:
    """Yields warnings. Raises MismatchError if this is not what the engine was built for."""
    if not target:
        raise MismatchError(f"{engine}: its manifest names no GPU; it is not an engine for GPUs")
    again = "build it again with `sidecar model build --target trtllm` in this container"
    for package, key in (("tensorrt_llm", "trtllm_version"), ("tensorrt", "tensorrt_version")):
        if (found := _version(package)) != target[key]:
            raise MismatchError(
                f"{engine}: built with {package} {target[key]}, here is {found}; {again}, or serve "
                "it in the one that built it"
            )
    gpu, capability = _gpu()
    if capability != target["compute_capability"]:
        raise MismatchError(
            f"{engine}: built on {target['gpu']} (compute capability "
            f"{target['compute_capability']}), here is {gpu} ({capability}); {again}, on this GPU"
        )
    if gpu != target["gpu"]:
        yield f"built on {target['gpu']}, here is {gpu}: one built here may be faster"


def shm_warnings(folder: Path = Path("/dev/shm")) -> Iterator[str]:  # noqa: S108
    total = shutil.disk_usage(folder).total >> 20
    if total < NEEDED_SHM_MIB:
        yield f"{folder} has {total} MiB; give the container {NEEDED_SHM_MIB} (--shm-size)"


def repositories(engine: Path, repository: Path, second: Path, *, alone: bool) -> list[Path]:
    """What Triton loads models from.

    Args:
        second: the repository of the model `second_opinion`, for a `repository` without it.
        alone: the language model decides alone, whatever the engine has.

    Raises:
        MismatchError: the engine's encoder cannot be served here.
    """
    there = (repository / SECOND_OPINION).is_dir()
    has_encoder = _read(engine / "router.json").get(SECOND_OPINION) is not None
    if alone or not has_encoder:
        if there:
            why = "--language-model-alone is given" if alone else f"{engine} has no encoder"
            raise MismatchError(f"{repository / SECOND_OPINION}: remove this folder: {why}")
        return [repository]
    if importlib.util.find_spec("openvino") is None:
        raise MismatchError(
            f"{engine}: its sentence encoder needs the package openvino, which this Python lacks; "
            "use the image of docker/triton, or --language-model-alone to decide without it"
        )
    if there:
        return [repository]
    if not (second / SECOND_OPINION).is_dir():
        raise MismatchError(
            f"{engine}: has a sentence encoder, but {repository} has no model {SECOND_OPINION}, "
            f"nor has {second}; take the repository that was written with the engine, or "
            "--language-model-alone to decide without it"
        )
    return [repository, second]


def command(tritonserver: str, folders: Sequence[Path], extra: Sequence[str]) -> list[str]:
    models = (f"--model-repository={folder}" for folder in folders)
    return [tritonserver, *models, *PRODUCTION_FLAGS, *extra]


def main(arguments: Sequence[str]) -> int:
    """Does not return when Triton could be started: it takes this process's place."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--tritonserver", default=shutil.which("tritonserver") or _TRITONSERVER)
    parser.add_argument("--second-opinion", type=Path, default=_SECOND_REPOSITORY)
    parser.add_argument(
        "--language-model-alone", action="store_true", help="Leave a sentence encoder out."
    )
    parser.add_argument("--check-only", action="store_true", help="Do not start Triton.")
    parser.add_argument("extra", nargs="*", help="Further options of tritonserver, after --.")
    given = parser.parse_args(arguments)
    try:
        target = check_files(given.engine).get("target", {})
        for warning in (*check_machine(given.engine, target), *shm_warnings()):
            _say(f"Warning: {warning}")
        folders = repositories(
            given.engine, given.repository, given.second_opinion, alone=given.language_model_alone
        )
    except MismatchError as error:
        _say(f"Error: {error}")
        return 1
    if given.check_only:
        return 0
    argv = command(given.tritonserver, folders, given.extra)
    _say(" ".join(argv))
    try:
        os.execvp(argv[0], argv)  # noqa: S606
    except OSError as error:
        _say(f"Error: {argv[0]} cannot be started: {error}")
        return 1


def _manifest(engine: Path) -> dict[str, Any]:
    path = engine / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(manifest["files"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise MismatchError(f"{path}: not the manifest of an engine ({error})") from None
    return dict(manifest)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise MismatchError(f"{path}: cannot be read ({error})") from None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _gpu() -> tuple[str, str]:
    """Name and compute capability of the first visible GPU."""
    query = ("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader,nounits")
    try:
        answer = subprocess.run(  # noqa: S603 - a fixed command
            query, capture_output=True, text=True, timeout=60, check=True
        )
        name, capability = (field.strip() for field in answer.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise MismatchError(f"no GPU was found; give the container one ({error})") from None
    return name, capability


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
