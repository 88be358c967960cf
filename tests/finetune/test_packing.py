"""Packs: the tree of several prompts' tokens."""

from __future__ import annotations

import pytest
from router_training.packing import pack_prompts

PROMPTS = {
    "one prompt": [[5, 6, 7]],
    "shared start": [[1, 2, 3, 4], [1, 2, 9, 4]],
    "one prompt begins another": [[1, 2], [1, 2, 3]],
    "twice the same": [[1, 2, 3], [1, 2, 3]],
    "nothing shared": [[1, 2], [3, 4]],
    "later prompt goes back to an earlier branch": [[1, 2, 3], [1, 4], [1, 2, 5]],
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS.keys())
def test_every_prompt_is_the_path_that_its_last_token_sees(prompts: list[list[int]]) -> None:
    pack = pack_prompts(prompts)
    for prompt, end in zip(prompts, pack.read_at, strict=True):
        path = pack.mask[end].nonzero()[0]
        assert pack.ids[path].tolist() == prompt
        assert pack.positions[path].tolist() == list(range(len(prompt)))


def test_shared_tokens_are_in_the_pack_once() -> None:
    assert len(pack_prompts([[1, 2, 3, 4], [1, 2, 9, 4], [1, 2, 3, 8]]).ids) == 7


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        pack_prompts([[1], []])
