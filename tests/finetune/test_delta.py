"""The adapter: the change of the weights in one or two bits each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("safetensors", reason="safetensors is not installed; only training needs it")

from router_training.delta import encode_rows, merge_delta, write_delta

Arrays = dict[str, NDArray[np.float32]]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Squared error of the best quantiser of a normal distribution (Lloyd and Max).
@pytest.mark.parametrize(("bits", "best"), [(1, 0.363), (2, 0.1175)])
def test_the_error_is_that_of_the_best_quantiser(bits: int, best: float) -> None:
    delta = normal(64, 501) * np.linspace(0.1, 10, 64, dtype=np.float32)[:, None]
    decoded = encode_rows(delta, bits).decode(bits, 501)
    error = ((decoded - delta) ** 2).sum(1) / (delta**2).sum(1)
    assert error.mean() == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("columns", [1, 7, 8, 9])
def test_any_number_of_columns_comes_back(bits: int, columns: int) -> None:
    delta = np.sign(normal(3, columns)) * 2
    decoded = encode_rows(delta, bits).decode(bits, columns)
    assert decoded == pytest.approx(delta, rel=0.01)


def weights() -> tuple[Arrays, Arrays]:
    base: Arrays = {
        "frozen": normal(4, 8),
        "matrix": normal(4, 8, seed=1),
        "norm": normal(8, seed=2),
    }
    change = (
        np.sign(normal(4, 8, seed=3)) * np.array([[1], [2], [3], [4]], np.float32) / np.float32(64)
    )
    return base, {
        **base,
        "matrix": (base["matrix"] + change).astype(np.float32),
        "norm": base["norm"] * np.float32(2),
    }


def test_merging_what_was_written_gives_the_tuned_weights(tmp_path: Path) -> None:
    base, tuned = weights()
    write_delta(tmp_path / "a.safetensors", base, tuned, 1, "abc")
    merged = merge_delta(tmp_path / "a.safetensors", base, "abc")
    assert merged.keys() == tuned.keys()
    for name, array in tuned.items():
        assert merged[name] == pytest.approx(array, abs=1e-4)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base, tuned = weights()
    write_delta(tmp_path / "a.safetensors", base, tuned, 1, "abc")
    with pytest.raises(ValueError, match="sha256 abc, these have def"):
        merge_delta(tmp_path / "a.safetensors", base, "def")


def test_weights_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    base, tuned = weights()
    with pytest.raises(ValueError, match="names or shapes"):
        write_delta(tmp_path / "a.safetensors", base, {**tuned, "more": tuned["norm"]}, 1, "")
