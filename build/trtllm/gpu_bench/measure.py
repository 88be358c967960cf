"""Latency of decisions by PyTorch in a real Triton, beside what the roofline says: docs/scaling.md.

    python build/trtllm/gpu_bench/measure.py --wheel FOLDER --python-home FOLDER \
        --python-path FOLDER --out measured.json

Not TensorRT-LLM: it shows what a GPU, Triton and this network's size make of a decision, without
the NVIDIA container. Needs the unpacked wheel nvidia-pytriton (`python -m sidecar.local` fetches
it), an interpreter of the stub's version with its libpython, a folder of packages with torch for
it, and the sidecar's own packages for this program.
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
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio
from tritonclient.grpc import service_pb2

from sidecar.capacity.roofline import ARCH_ROUTER, ASSUMED, GPUS, IDEAL, SMOLLM2, Engine, Gpu, Work

HERE = Path(__file__).parent
SUFFIX = 60
IDS = 500
"""Prompts are random ones below it, which every shape has."""
BATCHES = (1, 2, 4, 8, 16, 32)
PROCESSES = {1: 1, 8: 4, 32: 8}
"""Of clients: one alone would be the bottleneck."""
SHAPES = {"arch_router": ARCH_ROUTER, "smollm2": SMOLLM2, "tiny": SMOLLM2}
KNOWN_GPUS = (*GPUS, Gpu("H200", 989, 1979, 4800))
"""The H200's bandwidth is that of NVIDIA's data sheet, its arithmetic an H100's."""

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 32
input [ {{ name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] }},
        {{ name: "reuse" data_type: TYPE_INT32 dims: [ 1 ] }} ]
output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ 8 ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""


@dataclass(frozen=True)
class Setting:
    address: str
    model: str
    prefix: int
    reuse: bool
    concurrency: int
    seconds: float


def main() -> None:
    options = _options()
    rows, reports = [], {}
    for model in options.shapes:  # one after the other: a model that loads would disturb
        with tempfile.TemporaryDirectory() as name:
            rows += _of_model(options, model, Path(name))
            reports[model] = json.loads((Path(name) / f"{model}.json").read_text())
    result = {"at": datetime.now(UTC).isoformat(timespec="minutes"), "models": reports}
    options.out.write_text(json.dumps(result | {"rows": rows}, indent=1))
    sys.stdout.write(table(rows, reports))


def _of_model(options: argparse.Namespace, model: str, folder: Path) -> list[dict[str, object]]:
    rows = []
    with (
        _triton(options, folder, model) as address,
        multiprocessing.get_context("spawn").Pool(8) as pool,
    ):
        for prefix, reuse, concurrency in itertools.product(
            options.prefixes, (False, True), PROCESSES
        ):
            setting = Setting(address, model, prefix, reuse, concurrency, options.seconds)
            rows.append(_measured(setting, pool))
            sys.stderr.write(f"{rows[-1]}\n")
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True, help="nvidia-pytriton, unpacked")
    parser.add_argument("--python-home", type=Path, required=True, help="prefix: bin/python3, lib/")
    parser.add_argument("--python-path", required=True, help="packages: torch")
    parser.add_argument("--version", default="3.12", help="of that Python")
    parser.add_argument("--shapes", nargs="+", default=["arch_router", "smollm2"], choices=SHAPES)
    parser.add_argument("--prefixes", nargs="+", type=int, default=[300, 800], help="tokens")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--start-seconds", type=float, default=150.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path, help="copy of Triton's")
    return parser.parse_args()


def _measured(setting: Setting, pool: multiprocessing.pool.Pool) -> dict[str, object]:
    processes = PROCESSES[setting.concurrency]
    begun = time.monotonic()
    parts = pool.starmap(
        _client, [(setting, setting.concurrency // processes, n) for n in range(processes)], 1
    )
    took = sorted(ms for part in parts for ms in part)
    if not took:
        raise RuntimeError(f"no decision within {setting.seconds:g} s: raise --seconds")
    return {
        "model": setting.model,
        "prefix": setting.prefix,
        "suffix": SUFFIX,
        "reuse": setting.reuse,
        "concurrency": setting.concurrency,
        "decisions": len(took),
        "per_second": round(len(took) / setting.seconds, 1),
        "p50_ms": round(took[len(took) // 2], 2),
        "p99_ms": round(took[int(len(took) * 0.99)], 2),
        "wall_s": round(time.monotonic() - begun, 1),
    }


def _client(setting: Setting, tasks: int, number: int) -> list[float]:
    """Milliseconds of each decision that began and ended within the time, after a warm-up."""
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
        begin = time.monotonic() + 0.7
        end = begin + setting.seconds

        async def one() -> list[float]:
            took = []
            while (now := time.monotonic()) < end:
                suffix = [rng.randrange(IDS) for _ in range(SUFFIX)]
                request = _request(setting, prefix + suffix)
                asked = time.perf_counter()
                answer = await infer(request, timeout=60)
                ms = 1000 * (time.perf_counter() - asked)
                if len(answer.raw_output_contents[0]) != 32:
                    raise ValueError(f"not 8 logits: {answer}")
                if now >= begin:
                    took.append(ms)
            return took

        return [ms for part in await asyncio.gather(*(one() for _ in range(tasks))) for ms in part]


def _request(setting: Setting, ids: Sequence[int]) -> service_pb2.ModelInferRequest:
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
    """A server with the model of that shape; its gRPC address. The log goes to standard error if it
    does not get ready."""
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
    command += ["--grpc-port=18001", "--http-port=18000", "--pinned-memory-pool-byte-size=0"]
    command += [f"--backend-config=python,stub-timeout-seconds={int(options.start_seconds)}"]
    log = folder / "triton.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file)  # noqa: S603
    try:
        _wait_ready(server, options.start_seconds)
        yield "127.0.0.1:18001"
    except BaseException:
        sys.stderr.write(log.read_text()[-6000:])
        raise
    finally:
        if options.log is not None:
            shutil.copy(log, options.log)
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()


def _add_model(options: argparse.Namespace, folder: Path, shape: str) -> None:
    version = folder / "models" / shape / "1"
    version.mkdir(parents=True)
    for name in ("model.py", "decider.py"):
        shutil.copy(HERE / name, version)
    parameters = {
        "shape": shape,
        "prefixes": json.dumps(options.prefixes),
        "suffix": str(SUFFIX),
        "batches": json.dumps(BATCHES),
        "report": str(folder / f"{shape}.json"),
    }
    lines = [
        f'parameters {{ key: "{k}" value: {{ string_value: "{v}" }} }}'
        for k, v in parameters.items()
    ]
    (version.parent / "config.pbtxt").write_text(CONFIG.format(name=shape) + "\n".join(lines))


def _wait_ready(server: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"Triton ended with code {server.returncode}")
        try:
            with urllib.request.urlopen("http://127.0.0.1:18000/v2/health/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"Triton was not ready within {seconds:g} s")


def table(rows: Sequence[dict[str, object]], reports: dict[str, dict[str, object]]) -> str:
    """Markdown: measured latency, the step by itself, and the roofline of one decision."""
    lines = [
        "| model | prompt | reuse | concurrency | p50 ms | p99 ms | decisions/s"
        " | the step alone ms | roofline ms | assumed ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        report = reports[str(row["model"])]
        gpu = next((g for g in KNOWN_GPUS if g.name.split("-")[0] in str(report["device"])), None)
        prefix, batch = int(str(row["prefix"])), int(str(row["concurrency"]))
        work = Work(prefix + SUFFIX, prefix if row["reuse"] else 0)
        computed = ["", ""]
        if gpu is not None:
            engine = Engine(gpu, SHAPES[str(row["model"])])
            computed = [f"{engine.prefill_ms(work, how, batch):.2f}" for how in (IDEAL, ASSUMED)]
        step = next(
            s["ms"]
            for s in report["steps"]  # type: ignore[attr-defined]
            if (s["prompt"], s["reused"], s["batch"]) == (work.prompt, work.reused, batch)
        )
        lines.append(
            f"| {row['model']} | {prefix}+{SUFFIX} | {'yes' if row['reuse'] else 'no'} | {batch}"
            f" | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {row['per_second']:.0f}"
            f" | {step:.2f} | {computed[0]} | {computed[1]} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
