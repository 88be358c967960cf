"""Models small enough for a test: random weights by seed, in files as Hugging Face writes them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_ID = 2
_CORPUS = (
    "billing question about an invoice",
    "code generation and code review",
    "travel booking: flights and hotels",
    '{"route": "code_review"} {"route": "billing"} other',
)


@dataclass(frozen=True)
class TinyModel:
    """Shape of a tiny model; `family` as in `Architecture`."""

    family: str
    tied: bool
    rope_theta: float
    seed: int
    hidden: int = 48
    layers: int = 3
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 8
    intermediate: int = 96
    vocab: int = 320

    def config(self) -> dict[str, Any]:
        """Content of config.json."""
        name = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[self.family]
        return {
            "architectures": [name],
            "model_type": self.family,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 512,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "eos_token_id": END_ID,
            "pad_token_id": 0,
        }

    def tensors(self) -> dict[str, npt.NDArray[np.float16]]:
        """The weights, in float16 so that storing them loses nothing."""
        rng = np.random.default_rng(self.seed)
        tensors: dict[str, npt.NDArray[np.float16]] = {}

        def add(name: str, *shape: int, scale: float, shift: float = 0.0) -> None:
            tensors[name] = (rng.standard_normal(shape) * scale + shift).astype(np.float16)

        add("model.embed_tokens.weight", self.vocab, self.hidden, scale=0.5)
        add("model.norm.weight", self.hidden, scale=0.2, shift=1.0)
        if not self.tied:
            add("lm_head.weight", self.vocab, self.hidden, scale=0.4)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                add(f"{prefix}.{norm}.weight", self.hidden, scale=0.2, shift=1.0)
            sizes = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
            for kind, heads in sizes.items():
                rows = heads * self.head_dim
                add(f"{prefix}.self_attn.{kind}_proj.weight", rows, self.hidden, scale=0.25)
                if self.family == "qwen2":
                    add(f"{prefix}.self_attn.{kind}_proj.bias", rows, scale=0.5)
            inner = self.heads * self.head_dim
            add(f"{prefix}.self_attn.o_proj.weight", self.hidden, inner, scale=0.2)
            for kind in ("gate", "up"):
                name = f"{prefix}.mlp.{kind}_proj.weight"
                add(name, self.intermediate, self.hidden, scale=0.2)
            add(f"{prefix}.mlp.down_proj.weight", self.hidden, self.intermediate, scale=0.2)
        return tensors

    def write(self, folder: Path, *, shards: int = 1, bfloat16: bool = False) -> Path:
        """Write config.json, tokenizer.json and the weights into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config()))
        (folder / "tokenizer.json").write_text(tiny_tokenizer(self.vocab).to_str())
        tensors = self.tensors()
        if shards == 1:
            write_safetensors(folder / "model.safetensors", tensors, bfloat16=bfloat16)
            return folder
        files = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
        place = {name: files[index % shards] for index, name in enumerate(tensors)}
        for file in files:
            part = {name: values for name, values in tensors.items() if place[name] == file}
            write_safetensors(folder / file, part, bfloat16=bfloat16)
        index = json.dumps({"metadata": {}, "weight_map": place})
        (folder / "model.safetensors.index.json").write_text(index)
        return folder


LLAMA = TinyModel("llama", tied=True, rope_theta=10000.0, seed=7)
QWEN2 = TinyModel("qwen2", tied=False, rope_theta=1000000.0, seed=11)
TINY_MODELS: Mapping[str, TinyModel] = {"llama": LLAMA, "qwen2": QWEN2}


def tiny_tokenizer(vocab: int) -> Tokenizer:
    """Byte-level BPE with the ChatML tokens first, as SmolLM2 has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def write_safetensors(
    path: Path, tensors: Mapping[str, npt.NDArray[np.float16]], *, bfloat16: bool = False
) -> None:
    """https://github.com/huggingface/safetensors#format; bfloat16 cuts float32 to its upper half"""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, values in tensors.items():
        raw = values.tobytes()
        if bfloat16:
            upper = values.astype(np.float32).view(np.uint32) >> 16
            raw = upper.astype(np.uint16).tobytes()
        header[name] = {
            "dtype": "BF16" if bfloat16 else "F16",
            "shape": list(values.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))
