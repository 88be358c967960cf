"""Writes models as Hugging Face directories, for what reads those: transformers, TensorRT-LLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sidecar import __version__
from sidecar.engines.adapter import Adapter, open_merged
from sidecar.engines.engine_directory import sha256_of
from sidecar.engines.safetensors_file import write_float16
from sidecar.engines.sources import source_files
from sidecar.engines.staging import refuse_foreign, staged
from sidecar.engines.weights import Architecture, ModelSource, tensor_shapes, to_float16

RECORD = "sidecar.json"
"""Marks a directory that may be replaced, and says what it was made from."""

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def write_checkpoint(
    source: Path,
    out: Path,
    *,
    model_id: str,
    prompt_format: str,
    adapter: Adapter | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Path:
    """Write the weights, with the adapter merged into them, as transformers reads them.

    Tensors are rounded to float16, as the engine for CPUs rounds matrices; bfloat16 would round
    them eight times as much. The largest activation of SmolLM2, that of the first token, is 27,900,
    well within float16's 65,504.

    Args:
        source: a GGUF file, or a Hugging Face directory.
        out: the directory; one that was written here before is replaced when all is complete.
        model_id: noted in sidecar.json, as is `prompt_format`.

    Returns:
        `out`

    Raises:
        EngineError: the source cannot be read or does not fit float16, the adapter was made for
            other weights, or `out` is something else.
    """
    refuse_foreign(out, RECORD, "a checkpoint that the sidecar wrote")
    progress(f"checksum of {source.name}")
    record = {
        "model_id": model_id,
        "prompt_format": prompt_format,
        "temperature": dict(adapter.facts.temperature) if adapter else {},
        "source_sha256": sha256_of(*source_files(source)),
        "adapter_sha256": adapter.facts.sha256 if adapter else "",
        "sidecar_version": __version__,
    }
    opened = open_merged(source, adapter)
    with staged(out) as staging:
        progress(f"writing {opened.architecture.layers} layers")
        write_float16(
            staging / "model.safetensors",
            tensor_shapes(opened.architecture),
            lambda name: to_float16(name, opened.weights.tensor(name)),
        )
        _write_json(staging / "config.json", _config(opened))
        _write_json(staging / "generation_config.json", _token_ids(opened))
        _write_json(staging / "tokenizer.json", opened.tokenizer, indent=None)
        _write_json(staging / "tokenizer_config.json", _tokenizer_config(opened))
        _write_json(staging / RECORD, record)
        if adapter and adapter.model_card:
            # The name that Hugging Face shows.
            shutil.copyfile(adapter.model_card, staging / "README.md")
    return out


def _config(source: ModelSource) -> Mapping[str, Any]:
    """Keys of transformers' LlamaConfig and Qwen2Config, in the form that versions 4 and 5 and
    TensorRT-LLM read."""
    a: Architecture = source.architecture
    return {
        "architectures": [_CLASSES[a.family]],
        "model_type": a.family,
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "intermediate_size": a.intermediate_size,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "max_position_embeddings": a.context_length,
        "rope_theta": a.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": a.rms_eps,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": a.tied_embeddings,
        "use_cache": True,
        "torch_dtype": "float16",
        **({"attention_bias": False, "mlp_bias": False} if a.family == "llama" else {}),
        **_token_ids(source),
    }


def _token_ids(source: ModelSource) -> Mapping[str, int]:
    begin = {} if source.begin_id is None else {"bos_token_id": source.begin_id}
    return {**begin, "eos_token_id": source.end_id, "pad_token_id": source.pad_id}


def _tokenizer_config(source: ModelSource) -> Mapping[str, Any]:
    text_of = _token_texts(source.tokenizer)
    named = {name.removesuffix("_id"): text_of.get(i) for name, i in _token_ids(source).items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source.architecture.context_length,
        "clean_up_tokenization_spaces": False,
        **{name: text for name, text in named.items() if text is not None},
        **({"chat_template": source.chat_template} if source.chat_template else {}),
    }


def _token_texts(tokenizer: Mapping[str, Any]) -> Mapping[int, str]:
    vocabulary: Mapping[str, int] = tokenizer["model"]["vocab"]
    texts = {index: text for text, index in vocabulary.items()}
    return texts | {token["id"]: token["content"] for token in tokenizer.get("added_tokens", ())}


def _write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
