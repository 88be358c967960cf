"""Renders the Triton model repository that serves a TensorRT-LLM engine.

NVIDIA's own repository is a template of strings that are filled in and of which the backend takes
whatever it cannot read for "not set". This one is written from typed values: every parameter that
the backend reads is either written with the reason for its value, or listed with the reason why it
is not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.engines.engine_directory import read_engine
from sidecar.engines.errors import EngineError
from sidecar.engines.trtllm.commands import XGRAMMAR_FILE
from sidecar.engines.trtllm.tensors import INPUTS, OUTPUTS, Tensor

MODEL_NAME = "tensorrt_llm"
BACKEND = "tensorrtllm"

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class GpuRepositoryOptions:
    """What bounds the served model.

    Args:
        max_batch_size: of one Triton request; the executor batches requests by itself, up to what
            the engine was built for.
        max_queue_size: requests that wait, in Triton and again in TensorRT-LLM; more are answered
            UNAVAILABLE or INTERNAL. 0 sets no bound. That of the CPU model has none, because Triton
            then overlooks requests while the model computes; this backend returns at once
            (docs/gpu.md, measured with a stand-in).
        kv_cache_fraction: of the GPU memory that is free once the engine is loaded. 0.85 has the
            GPU to itself; 0.3 shares it.
        max_kv_tokens: bound of the KV cache in tokens, where the fraction is more than that.
        cuda_graphs: shapes of a step whose launch is kept.
        backend: `tensorrtllm`; a stand-in for tests is another one.
    """

    max_batch_size: int = 64
    max_queue_size: int = 256
    kv_cache_fraction: float = 0.85
    max_kv_tokens: int | None = None
    cuda_graphs: int = 64
    backend: str = BACKEND


@dataclass(frozen=True, slots=True)
class Parameter:
    """One entry of `parameters`, and why it has that value. `value` None: not written."""

    key: str
    value: str | int | float | bool | None
    reason: str


def render_gpu_repository(
    engine: Path,
    destination: Path,
    *,
    options: GpuRepositoryOptions | None = None,
    served_at: Path | None = None,
) -> Path:
    """Write a model repository with one model, `tensorrt_llm`, that serves `engine`.

    What was in `destination` under that name is replaced.

    Args:
        served_at: absolute path of the engine where Triton will run, if not here.

    Returns:
        `destination`, to be given to `tritonserver --model-repository`.

    Raises:
        EngineError: `engine` is not a whole engine directory, or its path cannot stand in
            config.pbtxt.
    """
    info = read_engine(engine)
    model = destination / MODEL_NAME
    text = render_config(served_at or info.path.resolve(), options or GpuRepositoryOptions())
    shutil.rmtree(model, ignore_errors=True)
    # Triton wants a folder for the version; the engine itself lies elsewhere.
    (model / "1").mkdir(parents=True)
    (model / "1" / ".keep").touch()
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
    return destination


def render_config(engine: Path, options: GpuRepositoryOptions) -> str:
    """config.pbtxt for the engine that lies at `engine` where Triton runs. Raises EngineError."""
    checked_path(engine)
    lines = [
        *_head(options),
        *render_tensors("input", INPUTS),
        *render_tensors("output", OUTPUTS),
        *render_parameters(parameters(engine, options)),
    ]
    return "\n".join(lines) + "\n"


def checked_path(engine: Path) -> str:
    """`engine` as it can stand in config.pbtxt. Raises EngineError."""
    if not engine.is_absolute() or any(character in str(engine) for character in '"\\\n'):
        raise EngineError(
            f"{engine}: an engine's path must be absolute, without quotes and backslashes"
        )
    return str(engine)


def parameters(engine: Path, options: GpuRepositoryOptions) -> tuple[Parameter, ...]:
    """Every parameter that the C++ backend reads (model_instance_state.cc and model_state.cc of
    NVIDIA/TensorRT-LLM, triton_backend/inflight_batcher_llm/src)."""
    return (*_engine(engine), *_memory(options), *_deciding(options), *_unused())


def _engine(engine: Path) -> tuple[Parameter, ...]:
    return (
        Parameter("gpt_model_path", str(engine), "The engine: config.json and rank0.engine."),
        Parameter(
            "gpt_model_type",
            "inflight_fused_batching",
            "Requests join and leave the running batch at every step. Must be there: a load "
            "without it fails.",
        ),
        Parameter(
            "executor_worker_path",
            "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
            "Of the container; used by engines over several GPUs.",
        ),
        Parameter(
            "guided_decoding_backend",
            "xgrammar",
            "Answers within a grammar, as Arch-Router's are. Any other word fails the load.",
        ),
        Parameter(
            "xgrammar_tokenizer_info_path",
            str(engine / XGRAMMAR_FILE),
            "Without it guided decoding is off, and a request with a guide fails.",
        ),
        Parameter(
            "tokenizer_dir",
            "",
            "Read by the Python backend alone; the key must be there, or the load fails.",
        ),
        Parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "no", "As NVIDIA's template has it."),
    )


def _memory(options: GpuRepositoryOptions) -> tuple[Parameter, ...]:
    return (
        Parameter(
            "enable_kv_cache_reuse",
            True,
            "The routes of a policy are computed once. Needs an engine with paged context "
            "attention.",
        ),
        Parameter(
            "kv_cache_free_gpu_mem_fraction",
            options.kv_cache_fraction,
            "Of what is free once the engine is loaded; the smaller of this and the next counts.",
        ),
        Parameter(
            "max_tokens_in_paged_kv_cache",
            options.max_kv_tokens,
            "Bound of the KV cache in tokens." if options.max_kv_tokens else "The fraction bounds.",
        ),
        Parameter(
            "kv_cache_host_memory_bytes",
            0,
            "No second cache in main memory: the GPU's holds the routes of hundreds of policies.",
        ),
        Parameter("kv_cache_onboard_blocks", True, "The backend's default; of that second cache."),
    )


def _deciding(options: GpuRepositoryOptions) -> tuple[Parameter, ...]:
    return (
        Parameter("max_beam_width", 1, "One answer; guided decoding knows no beams."),
        Parameter(
            "batch_scheduler_policy",
            "guaranteed_no_evict",
            "A request that was begun is ended. The other policy computes evicted ones anew, which "
            "loses the state of a grammar (https://github.com/NVIDIA/TensorRT-LLM/issues/18891).",
        ),
        Parameter("decoding_mode", "top_k", "The sidecar sends runtime_top_k 1: the best token."),
        Parameter(
            "normalize_log_probs",
            False,
            "Normalised over the candidates of top-k, which is one, every log-probability is 0 "
            "(https://github.com/NVIDIA/TensorRT-LLM/issues/2406).",
        ),
        Parameter("exclude_input_in_output", True, "The sidecar knows what it asked."),
        Parameter(
            "enable_chunked_context",
            False,
            "A step holds at least one whole prompt, see the engine's max_num_tokens.",
        ),
        Parameter("multi_block_mode", True, "Splits attention over long prompts in small batches."),
        Parameter("enable_context_fmha_fp32_acc", False, "The backend's default."),
        Parameter(
            "cuda_graph_mode", True, "Steps of few tokens take less time than their launch does."
        ),
        Parameter("cuda_graph_cache_size", options.cuda_graphs, "Shapes of a step that are kept."),
        Parameter("gpu_weights_percent", 1.0, "All weights stay on the GPU."),
        Parameter(
            "cancellation_check_period_ms",
            10,
            "Who has gone is noticed within this; the default of 100 is longer than a decision.",
        ),
        Parameter("stats_check_period_ms", 100, "The backend's default; of the metrics."),
        Parameter(
            "recv_poll_period_ms",
            0,
            "Waits for requests without sleeping: a core of the machine belongs to it.",
        ),
        Parameter("iter_stats_max_iterations", 1000, "Steps whose numbers are kept for metrics."),
        Parameter("request_stats_max_iterations", 0, "Numbers of each request are not read."),
    )


def _unused() -> tuple[Parameter, ...]:
    """An empty text is not the same as none: the backend would take it for a value."""
    one_gpu, plain, no_lora = (
        "One engine on the one GPU that is visible.",
        "No speculative decoding: the answer is one token, or a few that the grammar dictates.",
        "No LoRA: adapters are merged into the weights.",
    )
    return (
        *(Parameter(key, None, one_gpu) for key in ("gpu_device_ids", "participant_ids")),
        Parameter("num_nodes", 1, one_gpu),
        Parameter("encoder_model_path", None, "Decoders have no encoder."),
        Parameter("cross_kv_cache_fraction", None, "Decoders have no encoder."),
        Parameter("max_attention_window_size", None, "Every token sees the whole prompt."),
        Parameter("sink_token_length", None, "Every token sees the whole prompt."),
        Parameter("speculative_decoding_fast_logits", False, plain),
        *(
            Parameter(key, None, plain)
            for key in (
                "lookahead_window_size",
                "lookahead_ngram_size",
                "lookahead_verification_set_size",
                "medusa_choices",
                "eagle_choices",
            )
        ),
        *(
            Parameter(key, None, no_lora)
            for key in (
                "lora_cache_optimal_adapter_size",
                "lora_cache_max_adapter_size",
                "lora_cache_gpu_memory_fraction",
                "lora_cache_host_memory_bytes",
                "lora_prefetch_dir",
            )
        ),
    )


def _head(options: GpuRepositoryOptions) -> Iterator[str]:
    yield "# Written by the sidecar (sidecar/engines/trtllm/repository.py)."
    yield "#"
    yield from _comment(
        "Not set on purpose: default_timeout_microseconds (throughput degrades over time, "
        "https://github.com/triton-inference-server/server/issues/8870) and priority_levels. "
        "instance_group: one, of the CPU, because the executor owns the GPU."
    )
    yield f'name: "{MODEL_NAME}"'
    yield f'backend: "{options.backend}"'
    yield f"max_batch_size: {options.max_batch_size}"
    yield from _comment("One answer to one request; streaming alone would need more.")
    yield "model_transaction_policy { decoupled: false }"
    yield "dynamic_batching {"
    yield f"  preferred_batch_size: [ {options.max_batch_size} ]"
    yield from _comment("The executor batches; waiting for others first would only add time.", "  ")
    yield "  max_queue_delay_microseconds: 0"
    yield from _comment("Who would wait longer than this many others is refused at once.", "  ")
    yield f"  default_queue_policy {{ max_queue_size: {options.max_queue_size} }}"
    yield "}"
    yield "instance_group [ { count: 1 kind: KIND_CPU } ]"


def render_tensors(kind: str, tensors: tuple[Tensor, ...]) -> Iterator[str]:
    """Lines of config.pbtxt; `kind` is `input` or `output`."""
    yield f"{kind} ["
    for index, tensor in enumerate(tensors):
        dims = ", ".join(map(str, tensor.dims))
        parts = [
            f'name: "{tensor.name}"',
            f"data_type: TYPE_{tensor.datatype}",
            f"dims: [ {dims} ]",
        ]
        if kind == "input":
            parts += ["reshape: { shape: [ ] }"] * tensor.scalar
            parts += ["allow_ragged_batch: true"] * tensor.ragged
            parts += ["optional: true"] * tensor.optional
        comma = "," if index < len(tensors) - 1 else ""
        yield f"  {{ {' '.join(parts)} }}{comma}"
    yield "]"


def render_parameters(entries: tuple[Parameter, ...]) -> Iterator[str]:
    """Lines of config.pbtxt, each parameter below its reason."""
    for entry in entries:
        if entry.value is None:
            yield from _comment(f"{entry.key} is not set. {entry.reason}")
            continue
        yield from _comment(entry.reason)
        # The backend reads booleans in these spellings alone.
        value = str(entry.value).lower() if isinstance(entry.value, bool) else str(entry.value)
        yield f'parameters: {{ key: "{entry.key}" value: {{ string_value: "{value}" }} }}'


def _comment(text: str, indent: str = "") -> Iterator[str]:
    line = f"{indent}#"
    for word in text.split():
        if len(line) + 1 + len(word) > _WIDTH:
            yield line
            line = f"{indent}#"
        line += f" {word}"
    yield line
