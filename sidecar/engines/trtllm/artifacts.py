"""What NVIDIA's programs wrote, checked; and the engine directory that is made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sidecar.engines.engine_directory import MANIFEST, ROUTER, RouterFacts, write_manifest
from sidecar.engines.errors import EngineError
from sidecar.engines.trtllm.commands import XGRAMMAR_FILE, Command
from sidecar.engines.trtllm.precision import Precision
from sidecar.engines.trtllm.preflight import Machine
from sidecar.engines.trtllm.sizing import EngineLimits
from sidecar.engines.weights import ModelSource

ENGINE_FILE = "rank0.engine"
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
VERIFICATION_FILE = "verification.json"

_QUANT_ALGOS = {Precision.FP8: "FP8", Precision.INT4_AWQ: "W4A16_AWQ"}


@dataclass(frozen=True, slots=True)
class Target:
    """What an engine is tied to; `target` in its manifest. `triton_models/gpu/serve.py` compares
    it with the machine before Triton starts."""

    trtllm_version: str
    tensorrt_version: str
    gpu: str
    compute_capability: str
    driver: str
    precision: str
    prompt_format: str
    commands: tuple[str, ...]

    @classmethod
    def of(
        cls,
        machine: Machine,
        precision: Precision,
        prompt_format: str,
        commands: Sequence[Command],
    ) -> Target:
        return cls(
            machine.trtllm_version,
            machine.tensorrt_version,
            machine.gpu,
            machine.compute_capability,
            machine.driver,
            precision.value,
            prompt_format,
            tuple(map(str, commands)),
        )


def settle_checkpoint(folder: Path, precision: Precision) -> None:
    """Check a checkpoint's config.json, and keep its KV cache in 16 bits.

    AWQ checkpoints may ask for a KV cache in FP8, which `trtllm-build` refuses together with paged
    context attention ("FP8 Paged Context FMHA only works with fp8 quantization workflow").

    Raises:
        EngineError: it is not of the precision that was asked for.
    """
    path = folder / CONFIG_FILE
    config = _json(path)
    quantization = config.get("quantization") or {}
    wanted = _QUANT_ALGOS.get(precision)
    if quantization.get("quant_algo") != wanted:
        raise EngineError(
            f"{path}: quantization.quant_algo is {quantization.get('quant_algo')!r}, {precision} "
            f"is {wanted!r}; the checkpoint is of another precision"
        )
    if quantization.get("kv_cache_quant_algo") is not None:
        config["quantization"] = {**quantization, "kv_cache_quant_algo": None}
        path.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def check_engine(
    folder: Path, version: str, limits: EngineLimits, *, generation_logits: bool
) -> None:
    """Raises EngineError if the engine's own config.json says something else than was asked."""
    path = folder / CONFIG_FILE
    config = _json(path)
    built = config.get("build_config") or {}
    plugins = built.get("plugin_config") or {}
    wanted: Mapping[str, tuple[object, object]] = {
        "version": (config.get("version"), version),
        "build_config.max_input_len": (built.get("max_input_len"), limits.max_input_len),
        "build_config.max_seq_len": (built.get("max_seq_len"), limits.max_seq_len),
        "build_config.max_batch_size": (built.get("max_batch_size"), limits.max_batch_size),
        "build_config.gather_generation_logits": (
            bool(built.get("gather_generation_logits")),
            generation_logits,
        ),
        "build_config.plugin_config.use_paged_context_fmha": (
            plugins.get("use_paged_context_fmha"),
            True,
        ),
    }
    for name, (found, right) in wanted.items():
        if found != right:
            raise EngineError(f"{path}: {name} is {found!r}, asked for was {right!r}")


def assemble(
    folder: Path,
    engine: Path,
    xgrammar: Path,
    source: ModelSource,
    facts: RouterFacts,
    target: Target,
    second_opinion: Path | None = None,
) -> None:
    """Write the engine directory: engine, tokenizer, router.json, manifest.

    Args:
        second_opinion: folder with the files of a sentence encoder; None without one.
    """
    _check_xgrammar(xgrammar / XGRAMMAR_FILE, source.end_id)
    encoder = sorted(second_opinion.iterdir()) if second_opinion else []
    for file in (
        engine / CONFIG_FILE,
        engine / ENGINE_FILE,
        xgrammar / XGRAMMAR_FILE,
        *encoder,
    ):
        _place(file, folder / file.name)
    tokenizer = json.dumps(source.tokenizer, ensure_ascii=False)
    (folder / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
    (folder / ROUTER).write_text(facts.to_json(), encoding="utf-8")
    write_manifest(folder, asdict(target))


def publish(
    assembled: Path,
    folder: Path,
    facts: RouterFacts,
    target: Target,
    verification: Mapping[str, Any] | None,
    temperature: float | None,
) -> None:
    """Copy an engine directory to where it is served from, with what verification found."""
    for file in assembled.iterdir():
        if file.name not in (ROUTER, MANIFEST):
            _place(file, folder / file.name)
    if temperature is not None:
        facts = replace(facts, temperature=temperature)
    (folder / ROUTER).write_text(facts.to_json(), encoding="utf-8")
    if verification is not None:
        text = json.dumps(verification, indent=2) + "\n"
        (folder / VERIFICATION_FILE).write_text(text, encoding="utf-8")
    write_manifest(folder, asdict(target))


def _check_xgrammar(path: Path, end_id: int) -> None:
    """After a grammar is complete only its stop token is allowed. If that is another than the end
    token that the sidecar sends, the answer runs on to its longest length."""
    content = _json(path)
    missing = {"encoded_vocab", "tokenizer_str", "stop_token_ids"} - content.keys()
    if missing:
        raise EngineError(f"{path}: {', '.join(sorted(missing))} missing")
    if end_id not in content["stop_token_ids"]:
        raise EngineError(
            f"{path}: stop_token_ids is {content['stop_token_ids']}, the model ends its answers "
            f"with {end_id}; set eos_token in its tokenizer_config.json to the chat's end token"
        )


def _place(file: Path, destination: Path) -> None:
    """A second name for the same data where the file system can, for engines are large."""
    try:
        destination.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, destination)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise EngineError(f"{path}: must hold a JSON object")
    return content
