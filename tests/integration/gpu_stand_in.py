"""The GPU repository in a Triton that has no GPU.

What is rendered for TensorRT-LLM, with nothing replaced but the backend's name: `python` instead of
`tensorrtllm`. In the place of NVIDIA's backend stands the CPU model, which takes the tensors that
the sidecar sends and refuses all others. So names, types, shapes, queueing, cancellation and errors
are Triton's own; what the C++ backend itself does with a request is not tested here.
"""

from __future__ import annotations

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import tokenizers

from sidecar.engines import EngineInfo, read_routing_facts
from sidecar.engines.engine_directory import write_manifest
from sidecar.engines.trtllm import GpuRepositoryOptions, render_ensemble, render_gpu_repository
from sidecar.engines.trtllm.build import RUNTIME

_ROOT = Path(__file__).parents[2] / "triton_models"
_STAND_IN = '''\
"""In the place of TensorRT-LLM's backend: the CPU model, with its settings."""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cpu_model

_OWN = {
    "prefix_cache_bytes": 1 << 26,
    "route_cache_bytes": 1 << 20,
    "max_pass_tokens": 256,
    "max_output_tokens": 4000,
    "threads": 1,
    "precision": "f32",
    "compiled_folder": "",
}


class TritonPythonModel(cpu_model.TritonPythonModel):
    def initialize(self, args):
        config = json.loads(args["model_config"])
        policy = config["dynamic_batching"]["default_queue_policy"]
        own = {**_OWN, "max_queue_size": policy.get("max_queue_size", 0)}
        for name, value in own.items():
            config["parameters"][name] = {"string_value": str(value)}
        super().initialize({**args, "model_config": json.dumps(config)})
'''


def stand_in_repository(engine: Path, destination: Path, *, max_queue_size: int) -> Path:
    """A repository that Triton can load here, for an engine for CPUs."""
    options = GpuRepositoryOptions(
        backend="python", max_batch_size=4, max_queue_size=max_queue_size
    )
    render_gpu_repository(engine, destination, options=options)
    version = destination / "tensorrt_llm" / "1"
    ignored = shutil.ignore_patterns("__pycache__")
    source = _ROOT / "cpu" / "tensorrt_llm" / "1"
    shutil.copytree(source, version, ignore=ignored, dirs_exist_ok=True)
    (version / "model.py").rename(version / "cpu_model.py")
    (version / "model.py").write_text(_STAND_IN)
    return destination


def for_the_sidecar(engine: EngineInfo, folder: Path) -> EngineInfo:
    """The engine as the sidecar sees one for GPUs: the CPU model takes more than that."""
    folder.mkdir()
    facts = replace(engine.router, runtime=RUNTIME)
    (folder / "router.json").write_text(facts.to_json())
    shutil.copy(engine.tokenizer_path, folder)
    if engine.second_opinion_tokenizer_path is not None:
        shutil.copy(engine.second_opinion_tokenizer_path, folder)
    write_manifest(folder)
    return read_routing_facts(folder)


def add_ensemble(engine: Path, repository: Path, prompt_format: str) -> str:
    """Add the model `ensemble`, under a name for this prompt format; returns the name.

    Unlike NVIDIA's container, Triton's environment here has no `tokenizers`: it sees this one's.
    """
    name = f"ensemble_{prompt_format.partition('/')[0]}".replace("-", "_")
    facts = repository.parent / name
    facts.mkdir()
    content = json.loads((engine / "router.json").read_text())
    # A longer context than the engine has: what it refuses can be seen.
    content |= {"prompt_format": prompt_format, "context_length": 1_000_000}
    (facts / "router.json").write_text(json.dumps(content))
    shutil.copy(engine / "tokenizer.json", facts)
    model = render_ensemble(engine, repository, served_at=facts) / "ensemble"
    (model / "1" / "tokenizers").symlink_to(Path(tokenizers.__file__).parent)
    config = model / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "ensemble"', f'name: "{name}"'))
    model.rename(repository / name)
    return name


def production_flags(*without: str) -> list[str]:
    """Those that `triton_models/gpu/serve.py` starts Triton with."""
    flags = runpy.run_path(str(_ROOT / "gpu" / "serve.py"))["PRODUCTION_FLAGS"]
    return [flag for flag in flags if flag.partition("=")[0] not in without]
