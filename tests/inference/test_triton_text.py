"""Answers of models that give text, which the real server does not send."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sidecar.core.model import InferenceError, InferenceFailure, Prompt, TextAnswer, TextOutput
from sidecar.inference.triton import TritonTarget
from sidecar.inference.triton_text import TritonTextModel
from tests.fake_triton import FakeTriton, Tensors, serving


class Letters:
    """A tokenizer of one token a letter, for prompts that nobody reads."""

    vocab_size = 300

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 256 for letter in text]

    def special(self, token: str) -> int:
        return 256 + len(token)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(each) for each in ids if each < 256)


TEXT = np.array([b"{'route': 'code'}"], object)

BAD: dict[str, tuple[Tensors, bytes]] = {
    "nothing": ({}, b""),
    "a text that is cut": ({"text_output": TEXT}, b"\x09\x00\x00\x00ab"),
    "a length that is cut": ({"text_output": TEXT}, b"\x09"),
    "numbers": ({"text_output": np.zeros(1, np.float32)}, b"\x00" * 4),
}


@pytest.mark.parametrize(("answer", "raw"), BAD.values(), ids=BAD.keys())
async def test_bad_answer_is_a_model_error(answer: Tensors, raw: bytes) -> None:
    async with serving(FakeTriton(answer, raw=raw)) as fake:
        model = TritonTextModel(TritonTarget(fake.address, "text", 2, 2, 300), Letters())
        with pytest.raises(InferenceError) as caught:
            await model.infer(Prompt((1,), (2,)), TextAnswer("", 4), 60)
        await model.close()

    assert caught.value.failure is InferenceFailure.ERROR


async def test_a_probability_that_is_no_number_is_none() -> None:
    answer = {"text_output": TEXT, "cumulative_logprob": np.array([b"certain"], object)}
    async with serving(FakeTriton(answer, raw=b"\x07\x00\x00\x00certain")) as fake:
        model = TritonTextModel(TritonTarget(fake.address, "text", 2, 2, 300), Letters())
        output = await model.infer(Prompt((1,), (2,)), TextAnswer("", 4), 60)
        await model.close()

    assert isinstance(output, TextOutput)
    assert output.log_probs == ()
