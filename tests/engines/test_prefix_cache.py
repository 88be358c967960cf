import numpy as np
import pytest
from cpu_engine.forward import Ints, KeyValues
from cpu_engine.prefix_cache import PrefixCache

BYTES_PER_TOKEN = 2 * 4  # one layer's key and value of one head of one float


def ids(*values: int) -> Ints:
    return np.array(values, np.int32)


def entry(tokens: int) -> KeyValues:
    values = np.arange(tokens, dtype=np.float32).reshape(1, tokens, 1)
    return KeyValues([values, -values], np.full(tokens, -1, np.int32))


def test_gives_what_was_put() -> None:
    cache = PrefixCache(1000)
    kept = entry(3)
    cache.put(ids(1, 2, 3), kept)
    assert cache.get(ids(1, 2, 3)) is kept
    assert cache.get(ids(1, 2)) is None
    assert cache.get(ids(1, 2, 3, 4)) is None


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(4 * BYTES_PER_TOKEN)
    cache.put(ids(1, 1), entry(2))
    cache.put(ids(2, 2), entry(2))
    cache.get(ids(1, 1))
    cache.put(ids(3, 3), entry(2))
    assert cache.get(ids(2, 2)) is None
    assert cache.get(ids(1, 1)) is not None
    assert cache.get(ids(3, 3)) is not None


def test_a_flood_of_prefixes_used_once_leaves_those_in_use() -> None:
    cache = PrefixCache(6 * BYTES_PER_TOKEN)
    for used in (1, 2):
        cache.put(ids(used, used), entry(2))
        cache.get(ids(used, used))
    for number in range(10, 30):
        cache.put(ids(number, number), entry(2))
        assert cache.get(ids(1, 1)) is not None
    assert cache.get(ids(2, 2)) is not None
    assert cache.get(ids(29, 29)) is not None, "the newest is always held"


def test_a_new_prefix_displaces_the_oldest_where_all_are_in_use() -> None:
    cache = PrefixCache(4 * BYTES_PER_TOKEN)
    for used in (1, 2, 3):
        cache.put(ids(used, used), entry(2))
        assert cache.get(ids(used, used)) is not None
    assert cache.get(ids(1, 1)) is None


def test_never_holds_more_bytes_than_its_bound() -> None:
    cache = PrefixCache(10 * BYTES_PER_TOKEN)
    for number in range(50):
        tokens = 1 + number % 7
        cache.put(ids(*[number] * tokens), entry(tokens))
        assert cache.nbytes <= cache.max_bytes
    assert len(cache) > 1


def test_a_prefix_larger_than_the_bound_is_not_held_and_displaces_nothing() -> None:
    cache = PrefixCache(4 * BYTES_PER_TOKEN)
    cache.put(ids(1), entry(1))
    cache.put(ids(*range(9)), entry(9))
    assert cache.get(ids(*range(9))) is None
    assert cache.get(ids(1)) is not None


def test_putting_again_counts_once() -> None:
    cache = PrefixCache(1000)
    for _ in range(3):
        cache.put(ids(1, 2), entry(2))
    assert cache.nbytes == 2 * BYTES_PER_TOKEN
    assert len(cache) == 1


@pytest.mark.parametrize(
    ("wanted", "common"),
    [
        (ids(1, 2, 3, 4, 5), 4),
        (ids(1, 2, 3), 3),
        (ids(1, 2, 9), 2),
        (ids(1, 7, 7), 1),
        (ids(5, 5, 5), 0),
    ],
)
def test_the_longest_common_prefix_is_found(wanted: Ints, common: int) -> None:
    cache = PrefixCache(1000)
    cache.put(ids(1, 2, 3, 4, 8), entry(5))
    cache.put(ids(1, 2, 8, 8), entry(4))
    found = cache.longest_common(wanted)
    assert (0 if found is None else len(found)) == common
    if found is not None:
        np.testing.assert_array_equal(found.arrays[0][0, :, 0], np.arange(common))


def test_a_prefix_that_is_continued_is_not_copied() -> None:
    cache = PrefixCache(1000)
    held = entry(3)
    cache.put(ids(1, 2, 3), held)

    assert cache.longest_common(ids(1, 2, 3, 4)) is held


def test_entries_cannot_be_written() -> None:
    cache = PrefixCache(1000)
    cache.put(ids(1, 2), entry(2))
    kept = cache.get(ids(1, 2))
    assert kept is not None
    with pytest.raises(ValueError, match="read-only"):
        kept.arrays[0][0, 0, 0] = 1.0


def test_the_pieces_of_a_long_prefix_leave_only_the_whole() -> None:
    cache = PrefixCache(1000)
    for end in (2, 4, 6):
        cache.put(ids(*range(end)), entry(end))

    assert len(cache) == 1
    assert cache.get(ids(*range(6))) is not None


def test_a_beginning_that_was_asked_for_stays_beside_what_continues_it() -> None:
    cache = PrefixCache(1000)
    cache.put(ids(1, 2), entry(2))
    cache.get(ids(1, 2))
    cache.put(ids(1, 2, 3), entry(3))

    assert len(cache) == 2
