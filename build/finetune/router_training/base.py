"""Base weights out of a GGUF file or a Hugging Face directory, and checkpoints as the latter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from router_training.errors import InputError
from router_training.files import written_whole
from router_training.llama import Llama, LlamaShape
from sidecar.engines.gguf_source import open_gguf
from sidecar.engines.hf_source import open_hugging_face


@dataclass(frozen=True, slots=True)
class Base:
    """A starting point: where it was read from, its weights' file, sizes, weights under their
    Hugging Face names (float32), tokenizer."""

    path: Path
    file: Path
    shape: LlamaShape
    weights: dict[str, torch.Tensor]
    tokenizer: Tokenizer

    def model(self) -> Llama:
        model = Llama(self.shape)
        model.load_state_dict(self.weights)
        return model


def read_base(path: Path) -> Base:
    """A `.gguf` file or a Hugging Face directory of a Llama model with tied embeddings.

    Raises:
        EngineError: the file or directory cannot be read.
        InputError: it is a model of another kind.
    """
    source = open_gguf(path) if path.suffix == ".gguf" else open_hugging_face(path)
    facts = source.architecture
    if facts.family != "llama" or not facts.tied_embeddings:
        raise InputError(f"{path} is not a Llama model with tied embeddings")
    shape = LlamaShape(
        vocab_size=facts.vocab_size,
        hidden=facts.hidden_size,
        intermediate=facts.intermediate_size,
        layers=facts.layers,
        heads=facts.heads,
        kv_heads=facts.kv_heads,
        rope_theta=facts.rope_theta,
        norm_eps=facts.rms_eps,
        context=facts.context_length,
    )
    with torch.device("meta"):
        names = list(Llama(shape).state_dict())
    weights = {
        name: torch.from_numpy(np.array(source.weights.tensor(name), np.float32)) for name in names
    }
    tokenizer = Tokenizer.from_str(json.dumps(source.tokenizer))
    return Base(path, weights_file(path), shape, weights, tokenizer)


def weights_file(path: Path) -> Path:
    return path / "model.safetensors" if path.is_dir() else path


def write_hugging_face(path: Path, model: Llama, tokenizer: Tokenizer) -> None:
    """A `LlamaForCausalLM` directory in bfloat16: config, tokenizer, weights. Raises
    OSError or InputError if it cannot be written."""
    path.mkdir(parents=True, exist_ok=True)
    shape = model.shape
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": tokenizer.token_to_id("<|im_start|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(str(path / "tokenizer.json"))
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with written_whole(path / "model.safetensors") as file:
        save_file(weights, file, metadata={"format": "pt"})
