"""The adapter: the change of the weights in a few bits each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("safetensors", reason="safetensors is not installed; only training needs it")

from router_training.delta import RowCodes, encode_rows, write_delta

from sidecar.engines.delta import Delta, MergedWeights, decode_rows

Arrays = dict[str, NDArray[np.float32]]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def decoded(rows: RowCodes, bits: int, columns: int) -> NDArray[np.float32]:
    return decode_rows(rows.packed, rows.scale, bits, columns)


# Squared error of the best quantiser of a normal distribution (Lloyd and Max).
@pytest.mark.parametrize(("bits", "best"), [(1, 0.363), (2, 0.1175), (4, 0.0095)])
def test_the_error_is_that_of_the_best_quantiser(bits: int, best: float) -> None:
    delta = normal(64, 501) * np.linspace(0.1, 10, 64, dtype=np.float32)[:, None]
    back = decoded(encode_rows(delta, bits), bits, 501)
    error = ((back - delta) ** 2).sum(1) / (delta**2).sum(1)
    assert error.mean() == pytest.approx(best, rel=0.08)


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("columns", [1, 7, 8, 9])
def test_any_number_of_columns_comes_back(bits: int, columns: int) -> None:
    delta = np.sign(normal(3, columns)) * 2
    back = decoded(encode_rows(delta, bits), bits, columns)
    assert back == pytest.approx(delta, rel=0.01)


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


class Base:
    """`Weights` of arrays."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self._arrays[name]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_merging_what_was_written_gives_the_tuned_weights(tmp_path: Path, bits: int) -> None:
    base, tuned = weights()
    write_delta(tmp_path / "a.safetensors", base, tuned, bits, "abc")
    delta = Delta(tmp_path / "a.safetensors")
    delta.check({name: array.shape for name, array in base.items()})
    assert delta.base_sha256 == "abc"
    assert delta.changed == {"matrix", "norm"}
    merged = MergedWeights(Base(base), delta)
    for name, array in tuned.items():
        assert merged.tensor(name) == pytest.approx(array, abs=2e-3)


def test_what_the_base_has_not_is_added(tmp_path: Path) -> None:
    base, tuned = weights()
    added = {"head": normal(8, seed=5)}
    write_delta(tmp_path / "a.safetensors", base, tuned, 4, "abc", added)
    assert (Delta(tmp_path / "a.safetensors").vector("head") == added["head"]).all()


def test_rows_that_did_not_change_stay(tmp_path: Path) -> None:
    delta = normal(3, 9)
    delta[1] = 0
    assert (decoded(encode_rows(delta, 4), 4, 9)[1] == 0).all()


def test_weights_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    base, tuned = weights()
    with pytest.raises(ValueError, match="names or shapes"):
        write_delta(tmp_path / "a.safetensors", base, {**tuned, "more": tuned["norm"]}, 1, "")


def test_a_number_of_bits_that_no_reader_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="bits is 3"):
        encode_rows(normal(2, 8), 3)
