"""Checkpoints in Hugging Face's form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from sidecar.engines import EngineError, open_adapter, write_checkpoint
from sidecar.engines.hf_source import open_hugging_face
from sidecar.engines.weights import tensor_shapes
from tests.engines.test_adapter import MODELS, build, logits
from tests.engines.test_sources import write_gguf
from tests.engines.tiny_adapter import change_of, write_adapter
from tests.engines.tiny_models import LLAMA, SPECIAL, TinyModel, tiny_tokenizer

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def add_chat(writer: GGUFWriter) -> None:
    writer.add_chat_template(TEMPLATE)
    writer.add_bos_token_id(1)


def write(source: Path, out: Path, adapter: Path | None = None) -> Path:
    return write_checkpoint(
        source,
        out,
        model_id="tiny",
        prompt_format="compact-v1",
        adapter=open_adapter(adapter) if adapter else None,
    )


@MODELS
def test_an_engine_of_a_checkpoint_computes_as_that_of_base_and_adapter(
    model: TinyModel, tmp_path: Path
) -> None:
    base = model.write(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base, change_of(model))
    checkpoint = write(base, tmp_path / "checkpoint", adapter)
    direct = build(base, tmp_path / "direct", open_adapter(adapter))
    np.testing.assert_array_equal(logits(build(checkpoint, tmp_path / "engine")), logits(direct))


@MODELS
def test_a_checkpoint_of_a_gguf_file_is_the_model(model: TinyModel, tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "model.gguf", model, change=add_chat)
    source = open_hugging_face(write(gguf, tmp_path / "checkpoint"))
    for name, values in model.tensors().items():
        np.testing.assert_array_equal(source.weights.tensor(name), values, err_msg=name)
    assert tensor_shapes(source.architecture).keys() == model.tensors().keys()
    assert (source.begin_id, source.end_id, source.pad_id) == (1, 2, 0)
    assert source.chat_template == TEMPLATE
    assert source.tokenizer["model"] == json.loads(tiny_tokenizer(model.vocab).to_str())["model"]


def test_special_tokens_are_named(tmp_path: Path) -> None:
    checkpoint = write(LLAMA.write(tmp_path / "base"), tmp_path / "checkpoint")
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    assert (config["eos_token"], config["pad_token"]) == (SPECIAL[2], SPECIAL[0])
    assert "bos_token" not in config
    assert "chat_template" not in config


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", TEMPLATE),
        ("tokenizer_config.json", json.dumps({"chat_template": TEMPLATE})),
        (
            "tokenizer_config.json",
            json.dumps({"chat_template": [{"name": "default", "template": TEMPLATE}]}),
        ),
    ],
    ids=["file", "config", "several"],
)
def test_the_chat_template_of_a_hugging_face_source_is_kept(
    file: str, content: str, tmp_path: Path
) -> None:
    base = LLAMA.write(tmp_path / "base")
    (base / file).write_text(content)
    assert open_hugging_face(write(base, tmp_path / "checkpoint")).chat_template == TEMPLATE


def test_it_says_what_it_was_made_from_and_takes_the_model_card_along(tmp_path: Path) -> None:
    base = LLAMA.write(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base, change_of(LLAMA))
    (adapter / "MODEL_CARD.md").write_text("# Tiny")
    checkpoint = write(base, tmp_path / "checkpoint", adapter)
    record = json.loads((checkpoint / "sidecar.json").read_text())
    assert record["adapter_sha256"] == open_adapter(adapter).facts.sha256
    assert record["temperature"] == {"openvino": 1.25}
    assert (checkpoint / "README.md").read_text() == "# Tiny"


def test_a_checkpoint_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    base = LLAMA.write(tmp_path / "base")
    out = tmp_path / "out"
    write(base, out)
    (out / "old").touch()
    write(base, out)
    assert not (out / "old").exists()
    with pytest.raises(EngineError, match="exists and is not a checkpoint that the sidecar wrote"):
        write(base, base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]
