"""Latency of decisions by PyTorch in a real Triton, beside what the roofline says: docs/scaling.md.

    python build/trtllm/gpu_bench/measure.py --wheel FOLDER --python-home FOLDER \
        --python-path FOLDER --out measured.json

Not TensorRT-LLM: it shows what a GPU, Triton and this network's size make of a decision, without
the NVIDIA container. Without a GPU it refuses, unless --cpu is given to try the program itself.

Needs the unpacked wheel nvidia-pytriton (`python -m sidecar.local` fetches it), an interpreter of
the stub's version with its libpython, a folder of packages with torch for it, and the sidecar's own
packages for this program.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import multiprocessing.pool
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio
from decision_times import SHAPES, SUFFIX, Report, Row, Setting, model_config, row, table
from tritonclient.grpc import service_pb2

from sidecar.local import free_ports

HERE = Path(__file__).parent
IDS = 500
"""Prompts are random ones below it, which every shape has."""
PROCESSES = {1: 1, 8: 4, 32: 8}
"""Of clients, by concurrency: one alone would be the bottleneck."""
WARM_UP_S = 0.7


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    if not options.cpu and (missing := missing_gpu()):
        sys.exit(f"measure.py: {missing}")
    rows: list[Row] = []
    reports: dict[str, Report] = {}
    for model in options.shapes:  # one after the other: a model that loads would disturb
        with tempfile.TemporaryDirectory() as name:
            rows += _of_model(options, model, Path(name))
            reports[model] = json.loads((Path(name) / f"{model}.json").read_text())
    result = {
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
        "models": reports,
        "rows": [asdict(each) for each in rows],
    }
    options.out.write_text(json.dumps(result, indent=1))
    sys.stdout.write(table(rows, reports))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Ends the program with what is wrong with the arguments (None: those of the program)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True, help="nvidia-pytriton, unpacked")
    parser.add_argument("--python-home", type=Path, required=True, help="prefix: bin/python3, lib/")
    parser.add_argument("--python-path", required=True, help="packages: torch")
    parser.add_argument("--version", default="3.12", type=_version, help="of that Python")
    parser.add_argument("--shapes", nargs="+", default=["arch_router", "smollm2"], choices=SHAPES)
    parser.add_argument("--prefixes", nargs="+", type=_tokens, default=[300, 800], help="tokens")
    parser.add_argument("--seconds", type=_seconds, default=4.0, help="of each measurement")
    parser.add_argument("--start-seconds", type=_seconds, default=150.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", type=Path, help="folder for copies of Triton's, one a shape")
    parser.add_argument("--cpu", action="store_true", help="no GPU: times then say nothing of one")
    return parser.parse_args(arguments)


def _version(text: str) -> str:
    if not re.fullmatch(r"3\.\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a version like 3.12")
    return text


def _tokens(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens above 0")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return float(text)


def missing_gpu(nvidia_smi: str = "nvidia-smi") -> str:
    """Why there is no GPU to measure, and what to do; empty if there is one."""
    remedy = "this measures a GPU; --cpu --shapes tiny tries the program without one"
    try:
        done = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as wrong:
        return f"no GPU: {wrong}; {remedy}"
    if done.returncode:
        said = (done.stderr + done.stdout).strip()
        return f"no GPU: {nvidia_smi} ended with {done.returncode}: {said}; {remedy}"
    return "" if done.stdout.strip() else f"no GPU: {nvidia_smi} lists none; {remedy}"


def _of_model(options: argparse.Namespace, model: str, folder: Path) -> list[Row]:
    rows = []
    with (
        _triton(options, folder, model) as address,
        multiprocessing.get_context("spawn").Pool(max(PROCESSES.values())) as pool,
    ):
        for prefix, reuse, concurrency in itertools.product(
            options.prefixes, (False, True), PROCESSES
        ):
            setting = Setting(address, model, prefix, reuse, concurrency, options.seconds)
            rows.append(_measured(setting, pool))
            sys.stderr.write(f"{rows[-1]}\n")
    return rows


def _measured(setting: Setting, pool: multiprocessing.pool.Pool) -> Row:
    processes = PROCESSES[setting.concurrency]
    begun = time.monotonic()
    parts = pool.starmap(
        _client, [(setting, setting.concurrency // processes, n) for n in range(processes)], 1
    )
    return row(setting, parts, time.monotonic() - begun)


def _client(setting: Setting, tasks: int, number: int) -> list[float]:
    """Milliseconds of each decision that began within the time, after a warm-up."""
    return asyncio.run(_ask(setting, tasks, number))


async def _ask(setting: Setting, tasks: int, number: int) -> list[float]:
    rng = random.Random(number)  # noqa: S311
    prefix = [random.Random(0).randrange(IDS) for _ in range(setting.prefix)]  # noqa: S311
    async with grpc.aio.insecure_channel(setting.address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        begin = time.monotonic() + WARM_UP_S
        end = begin + setting.seconds

        async def one() -> list[float]:
            took = []
            while (now := time.monotonic()) < end:
                suffix = [rng.randrange(IDS) for _ in range(SUFFIX)]
                request = decision_request(setting, prefix + suffix)
                asked = time.perf_counter()
                answer = await infer(request, timeout=60)
                ms = 1000 * (time.perf_counter() - asked)
                if len(answer.raw_output_contents[0]) != 32:
                    raise ValueError(f"not 8 logits: {answer}")
                if now >= begin:
                    took.append(ms)
            return took

        return [ms for part in await asyncio.gather(*(one() for _ in range(tasks))) for ms in part]


def decision_request(setting: Setting, ids: Sequence[int]) -> service_pb2.ModelInferRequest:
    """One prompt, whose first `setting.prefix` ids are the prefix."""
    request = service_pb2.ModelInferRequest(model_name=setting.model)
    reused = [setting.prefix if setting.reuse else 0]
    for name, values in (("input_ids", ids), ("reuse", reused)):
        tensor = request.inputs.add(name=name, datatype="INT32")
        tensor.shape.extend([1, len(values)])
        content = b"".join(value.to_bytes(4, "little") for value in values)
        request.raw_input_contents.append(content)
    return request


@contextmanager
def _triton(options: argparse.Namespace, folder: Path, shape: str) -> Iterator[str]:
    """A server with the model of that shape; its gRPC address. After an error the end of its log
    goes to standard error."""
    triton = options.wheel / "pytriton" / "tritonserver"
    backend, library = folder / "backends" / "python", folder / "lib"
    backend.mkdir(parents=True)
    library.mkdir()
    stub = f"python_backend_stubs/{options.version}/triton_python_backend_stub"
    shared = f"libpython{options.version}.so.1.0"
    for target in (*(triton / "backends/python").iterdir(), triton / stub):
        (backend / target.name).symlink_to(target.resolve())
    (library / shared).symlink_to((options.python_home / "lib" / shared).resolve())
    _add_model(options, folder, shape)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {
        "LD_LIBRARY_PATH": f"{library}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        # The stub looks for its standard library beside the first python3 of the path.
        "PATH": f"{options.python_home.resolve() / 'bin'}:{os.environ['PATH']}",
        "GPU_BENCH_PACKAGES": options.python_path,
    }
    command = [str(triton / "bin/tritonserver"), f"--model-repository={folder / 'models'}"]
    command += [f"--backend-directory={folder / 'backends'}", "--allow-metrics=false"]
    command.append("--disable-auto-complete-config")  # else models start twice
    grpc_port, http_port = free_ports(2)
    command += [f"--grpc-port={grpc_port}", f"--http-port={http_port}"]
    command.append("--pinned-memory-pool-byte-size=0")
    command += [f"--backend-config=python,stub-timeout-seconds={int(options.start_seconds)}"]
    log = folder / "triton.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file)  # noqa: S603
    try:
        _wait_ready(server, http_port, options.start_seconds)
        yield f"127.0.0.1:{grpc_port}"
    except BaseException:
        sys.stderr.write(log.read_text()[-6000:])
        raise
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        if options.logs is not None:
            options.logs.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, options.logs / f"{shape}.log")


def _add_model(options: argparse.Namespace, folder: Path, shape: str) -> None:
    version = folder / "models" / shape / "1"
    version.mkdir(parents=True)
    for name in ("model.py", "decider.py"):
        shutil.copy(HERE / name, version)
    device = "cpu" if options.cpu else "cuda"
    config = model_config(shape, options.prefixes, device, str(folder / f"{shape}.json"))
    (version.parent / "config.pbtxt").write_text(config)


def _wait_ready(server: subprocess.Popen[bytes], port: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"Triton ended with code {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"Triton was not ready within {seconds:g} s: raise --start-seconds")


if __name__ == "__main__":
    main()
