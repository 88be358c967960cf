"""Compressed bodies: every encoding, its cap, and what is not what it says."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from sidecar.ext_proc.dialects import decoding
from sidecar.ext_proc.dialects.decoding import TooLargeError, UndecodableError, decode
from tests.ext_proc.dialects.requests import PROPERTY

TEXT = b'{"model": "auto", "messages": []}' * 40


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def light_brotli(data: bytes) -> bytes:
    return brotli.compress(data, quality=1)  # type: ignore[no-any-return]


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without its wrapper": ("deflate", raw_deflate),
    "br": ("br", light_brotli),
    "zstd": ("zstd", zstd.compress),
    "upper case": ("GZIP", gzip.compress),
    "two on top of each other": ("gzip, br", lambda data: light_brotli(gzip.compress(data))),
    "identity among them": ("identity, gzip", gzip.compress),
}
encoders = pytest.mark.parametrize(("name", "encode"), ENCODERS.values(), ids=ENCODERS.keys())


@encoders
def test_decoded_under_the_cap(name: str, encode: Callable[[bytes], bytes]) -> None:
    assert decode(encode(TEXT), name, len(TEXT)) == TEXT


@encoders
def test_beyond_the_cap(name: str, encode: Callable[[bytes], bytes]) -> None:
    with pytest.raises(TooLargeError):
        decode(encode(TEXT), name, len(TEXT) - 1)


@encoders
def test_a_bomb_is_not_decoded_to_its_end(name: str, encode: Callable[[bytes], bytes]) -> None:
    bomb = encode(bytes(16 * 1024 * 1024))
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            decode(bomb, name, 64 * 1024)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4 * 1024 * 1024


@encoders
def test_cut_off(name: str, encode: Callable[[bytes], bytes]) -> None:
    with pytest.raises(UndecodableError):
        decode(encode(TEXT)[:-5], name, len(TEXT))


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
@PROPERTY
@given(data=st.binary(min_size=1, max_size=200))
def test_any_bytes_are_decoded_or_refused(name: str, data: bytes) -> None:
    try:
        decoded = decode(data, name, 1000)
    except (UndecodableError, TooLargeError):
        return
    assert decoded is not None
    assert len(decoded) <= 1000


@pytest.mark.parametrize("name", ["compress", "aes128gcm", "gzip,gzip,gzip,gzip", "gzip;q=1"])
def test_what_is_not_known_is_refused_without_quoting_it(name: str) -> None:
    with pytest.raises(UndecodableError) as caught:
        decode(TEXT, name, 10_000)

    assert "aes128gcm" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "identity", " , identity "])
def test_nothing_to_undo(name: str) -> None:
    assert decode(TEXT, name, 1) is None


def test_members_of_gzip_and_frames_of_zstd_follow_one_another() -> None:
    assert decode(gzip.compress(b"a") + gzip.compress(b"b"), "gzip", 2) == b"ab"
    assert decode(zstd.compress(b"a") + zstd.compress(b"b"), "zstd", 2) == b"ab"
    with pytest.raises(TooLargeError):
        decode(gzip.compress(b"aa") + gzip.compress(b"bb"), "gzip", 3)


def noise(size: int) -> bytes:
    """What no encoding makes shorter."""
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_body_of_very_many_streams_is_refused(name: str) -> None:
    _, encode = ENCODERS[name]
    empty = encode(b"")

    assert decode(empty * 255 + encode(TEXT), name, len(TEXT)) == TEXT
    with pytest.raises(UndecodableError, match="of more than 256 streams"):
        decode(empty * 256 + encode(TEXT), name, len(TEXT))


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
def test_body_of_many_slices_is_decoded_whole(name: str) -> None:
    _, encode = ENCODERS[name]
    plain = noise(200_000)

    assert decode(encode(plain), name, len(plain)) == plain


@pytest.mark.parametrize("before", [-1, 0, 1], ids=["ends before it", "ends with it", "ends after"])
@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_stream_that_ends_at_the_edge_of_a_slice(name: str, before: int) -> None:
    _, encode = ENCODERS[name]
    edge = 32 * 1024
    plain = noise(edge - (len(encode(noise(edge))) - edge) + before)
    first = encode(plain)
    assert len(first) == edge + before, "what it adds is always as much"

    assert decode(first + encode(TEXT), name, 100_000) == plain + TEXT


class Recording:
    """A member of gzip; notes how much all of them are given."""

    given = 0

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes:
        Recording.given += len(data)
        return self._stream.decompress(data, max_length)


def test_stream_is_not_given_all_that_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recording, "given", 0)
    body = gzip.compress(b"") * 100 + gzip.compress(noise(1_000_000))

    decoding._all(Recording, body, 1_000_000)

    assert Recording.given < 5 * len(body)


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
def test_data_after_the_end_is_refused(name: str) -> None:
    _, encode = ENCODERS[name]
    with pytest.raises(UndecodableError):
        decode(encode(TEXT) + b"more", name, 10_000)


def test_zstd_window_beyond_that_of_http_is_refused() -> None:
    stream = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    body = stream.compress(TEXT) + stream.flush()
    with pytest.raises(UndecodableError):
        decode(body, "zstd", 10_000)
