"""Weights from GGUF files and Hugging Face directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from tokenizers import Tokenizer

from sidecar.engines import EngineError, build_cpu_engine
from sidecar.engines.gguf_source import open_gguf
from sidecar.engines.gguf_tokenizer import tokenizer_from_gguf
from sidecar.engines.hf_source import open_hugging_face
from sidecar.engines.sources import open_source
from sidecar.engines.weights import FloatArray
from tests.engines.tiny_models import LLAMA, QWEN2, SPECIAL, TinyModel, tiny_tokenizer

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    for ours, theirs in GGUF_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def interleaved(values: FloatArray, heads: int) -> FloatArray:
    """What llama.cpp's converter does to the Q and K rows of Llama models."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def write_gguf(
    path: Path,
    model: TinyModel,
    quantization: GGMLQuantizationType | None = None,
    change: Callable[[GGUFWriter], None] = lambda writer: None,
    architecture: str = "",
    broken: float = 0.0,
) -> Path:
    writer = GGUFWriter(path, architecture or model.family)
    writer.add_context_length(512)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.intermediate)
    writer.add_block_count(model.layers)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_vocabulary(writer, model.vocab)
    change(writer)
    heads = {"q_proj": model.heads, "k_proj": model.kv_heads}
    for name, stored in model.tensors().items():
        values: FloatArray = stored
        if broken and name == "model.embed_tokens.weight":
            values = np.full_like(values, broken, np.float32)
        projection = name.split(".")[-2]
        if model.family == "llama" and projection in heads:
            values = interleaved(values, heads[projection])
        if quantization is not None and values.ndim == 2:
            data = quantize(values.astype(np.float32), quantization)
            writer.add_tensor(gguf_name(name), data, raw_dtype=quantization)
        else:
            writer.add_tensor(gguf_name(name), values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    content = json.loads(tiny_tokenizer(size).to_str())
    vocabulary = content["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def check_same_weights(left: Any, right: Any, model: TinyModel, tolerance: float = 0.0) -> None:
    for name in model.tensors():
        np.testing.assert_allclose(
            left.weights.tensor(name), right.weights.tensor(name), atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("model", [LLAMA, QWEN2], ids=["llama", "qwen2"])
class TestGguf:
    def test_gives_the_weights_of_the_hugging_face_directory(
        self, model: TinyModel, tmp_path: Path
    ) -> None:
        from_gguf = open_gguf(write_gguf(tmp_path / "model.gguf", model))
        from_directory = open_hugging_face(model.write(tmp_path / "hf"))
        check_same_weights(from_gguf, from_directory, model)
        assert from_gguf.end_id == from_directory.end_id
        assert from_gguf.pad_id == from_directory.pad_id

    def test_gives_the_same_architecture(self, model: TinyModel, tmp_path: Path) -> None:
        from_gguf = open_gguf(write_gguf(tmp_path / "model.gguf", model)).architecture
        from_directory = open_hugging_face(model.write(tmp_path / "hf")).architecture
        assert from_gguf.rms_eps == pytest.approx(from_directory.rms_eps)
        for fact in ("family", "vocab_size", "heads", "kv_heads", "head_dim", "rope_theta"):
            assert getattr(from_gguf, fact) == getattr(from_directory, fact)
        assert from_gguf.qkv_bias == from_directory.qkv_bias
        assert from_gguf.tied_embeddings == from_directory.tied_embeddings


@pytest.mark.parametrize(
    ("quantization", "tolerance"),
    [(GGMLQuantizationType.Q8_0, 0.01), (GGMLQuantizationType.Q4_1, 0.2)],
    ids=["Q8_0", "Q4_1"],
)
def test_quantised_weights_are_close_to_the_originals(
    quantization: GGMLQuantizationType, tolerance: float, tmp_path: Path
) -> None:
    # Blocks of 32 weights: rows must be a multiple of that.
    model = TinyModel("llama", True, 10000.0, 7, hidden=64, heads=4, head_dim=16)
    quantised = open_gguf(write_gguf(tmp_path / "model.gguf", model, quantization))
    exact = open_hugging_face(model.write(tmp_path / "hf"))
    check_same_weights(quantised, exact, model, tolerance)


def test_tokenizer_of_a_gguf_file_encodes_as_the_original(tmp_path: Path) -> None:
    source = open_gguf(write_gguf(tmp_path / "model.gguf", LLAMA))
    ours = Tokenizer.from_str(json.dumps(source.tokenizer))
    for text in ("code review, größe", "<|im_start|>user\nbilling<|im_end|>"):
        assert ours.encode(text).ids == tiny_tokenizer(LLAMA.vocab).encode(text).ids
    assert ours.get_added_tokens_decoder()[1].special


@pytest.mark.parametrize(
    ("pre", "text", "tokens"),
    [
        ("smollm", "a 12", ["a", "Ġ", "1", "2"]),
        ("qwen2", "it's 12", ["i", "t", "'", "s", "Ġ", "1", "2"]),
    ],
)
def test_digits_stand_alone(pre: str, text: str, tokens: list[str]) -> None:
    # Merges of digits, and of a space with a digit, that the pre-tokenizer must keep from applying.
    vocabulary = ["a", "i", "t", "'", "s", "Ġ", "1", "2", "12", "Ġ1"]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.merges": ["1 2", "Ġ 1"],
    }
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_from_gguf(Path("x"), fields)))
    assert tokenizer.encode(text).tokens == tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_rope_scaling_type(_scaling("linear")), "rotary scaling 'linear'"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)), "rope_freqs"),
    ],
    ids=["scaling", "factors"],
)
def test_scaled_rotary_embeddings_in_gguf_are_refused(
    change: Callable[[GGUFWriter], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=message):
        open_gguf(write_gguf(tmp_path / "model.gguf", LLAMA, change=change))


def _scaling(name: str) -> Any:
    from gguf import RopeScalingType

    return RopeScalingType(name)


def test_other_architectures_in_gguf_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", LLAMA, architecture="gemma3")
    with pytest.raises(EngineError, match="architecture 'gemma3' is not supported"):
        open_gguf(path)


@pytest.mark.parametrize("content", [b"", b"no GGUF at all, but long enough to look at"])
def test_a_file_that_is_not_gguf_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"weights\.gguf: not a readable GGUF"):
        open_source(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "tokenizer model 'llama'"),
        ({"tokenizer.ggml.pre": "falcon"}, "pre-tokenizer 'falcon'"),
    ],
)
def test_other_tokenizers_in_gguf_are_refused(fields: dict[str, Any], message: str) -> None:
    base = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.merges": [],
    }
    with pytest.raises(EngineError, match=message):
        tokenizer_from_gguf(Path("model.gguf"), {**base, **fields})


class TestHuggingFace:
    def test_shards_give_the_same_weights(self, tmp_path: Path) -> None:
        one = open_hugging_face(QWEN2.write(tmp_path / "one"))
        three = open_hugging_face(QWEN2.write(tmp_path / "three", shards=3))
        check_same_weights(one, three, QWEN2)

    def test_bfloat16_is_read(self, tmp_path: Path) -> None:
        exact = open_hugging_face(LLAMA.write(tmp_path / "f16"))
        cut = open_hugging_face(LLAMA.write(tmp_path / "bf16", bfloat16=True))
        check_same_weights(exact, cut, LLAMA, tolerance=0.02)
        assert cut.weights.tensor("model.norm.weight").dtype == np.float32

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            ("config.json", r"config\.json: missing"),
            ("tokenizer.json", r"tokenizer\.json: missing"),
            ("model.safetensors", r"model\.safetensors: missing"),
        ],
    )
    def test_a_missing_file_is_named(self, missing: str, message: str, tmp_path: Path) -> None:
        (LLAMA.write(tmp_path) / missing).unlink()
        with pytest.raises(EngineError, match=message):
            open_source(tmp_path)

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        (LLAMA.write(tmp_path, shards=2) / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(EngineError, match="00002-of-00002"):
            open_source(tmp_path)

    def test_a_damaged_weight_file_is_named(self, tmp_path: Path) -> None:
        (LLAMA.write(tmp_path) / "model.safetensors").write_bytes(b"\xff" * 20)
        with pytest.raises(EngineError, match=r"model\.safetensors: not a readable"):
            open_source(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
            ({"architectures": []}, "supported are LlamaForCausalLM, Qwen2ForCausalLM"),
            ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rotary scaling 'llama3'"),
            ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rotary scaling 'yarn'"),
            ({"rope_parameters": {"rope_type": "dynamic"}}, "rotary scaling 'dynamic'"),
            ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
            ({"use_sliding_window": True}, "use_sliding_window"),
            ({"attention_bias": True}, "attention_bias"),
            ({"mlp_bias": True}, "mlp_bias"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
            ({"eos_token_id": None}, "eos_token_id"),
            ({"hidden_size": None}, "hidden_size"),
        ],
        ids=str,
    )
    def test_what_is_not_computed_is_refused(
        self, changes: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        path = LLAMA.write(tmp_path) / "config.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
        with pytest.raises(EngineError, match=message):
            open_source(tmp_path)

    @pytest.mark.parametrize(
        ("generation", "end_id"), [({"eos_token_id": [1, 2]}, 1), ({"eos_token_id": 0}, 0)]
    )
    def test_the_generation_config_names_the_end(
        self, generation: dict[str, Any], end_id: int, tmp_path: Path
    ) -> None:
        (LLAMA.write(tmp_path) / "generation_config.json").write_text(json.dumps(generation))
        assert open_hugging_face(tmp_path).end_id == end_id

    def test_the_rotary_base_of_transformers_5_is_read(self, tmp_path: Path) -> None:
        path = LLAMA.write(tmp_path) / "config.json"
        content = json.loads(path.read_text())
        del content["rope_theta"]
        content["rope_parameters"] = {"rope_theta": 5000.0, "rope_type": "default"}
        path.write_text(json.dumps(content))
        assert open_hugging_face(tmp_path).architecture.rope_theta == 5000.0


@pytest.mark.parametrize("value", [1e5, float("nan"), float("inf")])
def test_weights_beyond_float16_are_refused(value: float, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "model.gguf", LLAMA, broken=value)
    with pytest.raises(EngineError, match=r"model\.embed_tokens\.weight.*not finite in float16"):
        build_cpu_engine(source, tmp_path / "engine", model_id="x", prompt_format="compact-v1")
