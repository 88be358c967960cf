"""Many prompts as one sequence: the tree of their tokens.

Prompts over the same routes begin alike, and so do the turns of a dialogue. What two prompts share
is computed once: the pack holds every node of the prompts' token tree, each node at its depth and
seeing its ancestors only, so that every prompt gets the numbers it would get alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pack:
    """Args:
    ids, positions: int64 [length].
    mask: bool [length, length], True where the row's token sees the column's.
    read_at: int64 [prompts], the node that ends each prompt.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    mask: NDArray[np.bool_]
    read_at: NDArray[np.int64]


def pack_prompts(prompts: Sequence[Sequence[int]]) -> Pack:
    """The token tree of `prompts` (none of them empty), parents before children."""
    ids: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    children: dict[tuple[int, int], int] = {}
    ends: list[int] = []
    for prompt in prompts:
        if not prompt:
            raise ValueError("an empty prompt cannot be packed")
        node = -1
        for depth, token in enumerate(prompt):
            child = children.get((node, token))
            if child is None:
                child = children[(node, token)] = len(ids)
                ids.append(token)
                parents.append(node)
                depths.append(depth)
            node = child
        ends.append(node)
    mask = np.zeros((len(ids), len(ids)), dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] = mask[parent]
        mask[node, node] = True
    return Pack(np.array(ids), np.array(depths), mask, np.array(ends))
