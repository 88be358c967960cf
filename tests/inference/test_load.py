"""How long a server takes, measured from when answers come. The clock is the test's."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest

from sidecar.core.model import LabelAnswer, Prompt, TextAnswer
from sidecar.inference.load import PASS_TOKENS, Load, work_of
from tests.doubles import Clock


def waits(load: Load, tokens: float) -> float:
    found = load.wait_s(tokens)
    assert found is not None
    return found


def test_nothing_is_predicted_before_anything_was_measured() -> None:
    assert Load(Clock()).wait_s(10) is None


def test_one_after_the_other_the_wait_grows_with_what_is_before() -> None:
    clock = Clock()
    load = Load(clock)
    for _ in range(3):
        with load.working(100):
            clock.now += 0.1
        clock.now += 5  # idle time is not working time

    assert waits(load, 100) == pytest.approx(0.1)
    with load.working(100), load.working(50):
        assert load.in_flight == 2
        assert waits(load, 100) == pytest.approx(0.25)


def test_a_server_that_answers_many_at_once_is_not_taken_for_one_that_queues() -> None:
    clock = Clock()
    load = Load(clock)
    with ExitStack() as calls:
        for _ in range(10):
            calls.enter_context(load.working(100))
        clock.now += 0.1
    # 1,000 tokens in 0.1 s, however long each of them waited.
    assert waits(load, 1000) == pytest.approx(0.1)


def test_what_is_not_to_be_measured_counts_while_it_is_under_way_alone() -> None:
    clock = Clock()
    load = Load(clock)
    with load.working(100):
        clock.now += 0.1
    with load.working(50, measured=False):
        assert waits(load, 100) == pytest.approx(0.15)
        with load.working(100):
            clock.now += 0.1
        clock.now += 5

    assert waits(load, 100) == pytest.approx(0.1)


def test_what_fails_is_not_measured_but_its_time_counts() -> None:
    clock = Clock()
    load = Load(clock)
    with load.working(100):
        with suppress(RuntimeError), load.working(100):
            clock.now += 1
            raise RuntimeError
        clock.now += 1

    assert load.in_flight == 0
    assert waits(load, 100) == pytest.approx(2.0)


def test_a_server_that_became_too_slow_is_not_judged_by_what_it_did_before() -> None:
    clock = Clock()
    load = Load(clock)
    with load.working(100):
        clock.now += 0.1
    began = clock.now
    with suppress(TimeoutError), load.working(100):
        clock.now += 1
        raise TimeoutError
    load.late(began)
    load.late(began + 0.5)  # of the same time

    assert waits(load, 100) == pytest.approx(1.1)


def test_a_server_from_which_nothing_came_is_too_slow_for_more() -> None:
    clock = Clock()
    load = Load(clock)
    began = clock.now
    clock.now += 1
    load.late(began)
    with load.working(100):
        assert waits(load, 100) == pytest.approx(2)


def test_what_is_late_where_others_were_not_tells_nothing_of_the_speed() -> None:
    clock = Clock()
    load = Load(clock)
    began = clock.now
    with suppress(TimeoutError), load.working(100):
        with load.working(100):
            clock.now += 0.1
        clock.now += 1
        raise TimeoutError
    load.late(began)

    assert waits(load, 100) == pytest.approx(0.1)


def test_what_the_language_model_had_no_part_in_changes_no_prediction() -> None:
    clock = Clock()
    load = Load(clock)
    with load.working(100):
        clock.now += 0.1
    with load.working(1000) as by_encoder:
        # While it is not known who decides, it counts.
        assert waits(load, 100) == pytest.approx(1.1)
        clock.now += 5
        with load.working(100):
            clock.now += 0.1
        by_encoder.by_language_model = False

    assert waits(load, 100) == pytest.approx(0.1)


def test_measurements_grow_old_and_can_be_forgotten() -> None:
    clock = Clock()
    load = Load(clock)
    with load.working(100):
        clock.now += 1
    clock.now += 60
    old = load.wait_s(100)
    with load.working(100):
        clock.now += 1
    load.forget()

    assert (old, load.wait_s(100)) == (None, None)


def test_time_in_which_the_server_was_held_up_is_not_counted_once_it_is_forgotten() -> None:
    clock = Clock()
    load = Load(clock)
    with load.working(100):
        clock.now += 60
        load.forget()
        clock.now += 1

    assert waits(load, 100) == pytest.approx(1)


def test_recent_answers_outweigh_those_of_another_load() -> None:
    clock = Clock()
    load = Load(clock)
    for took in (1.0,) * 5 + (0.1,) * 40:
        with load.working(100):
            clock.now += took

    assert waits(load, 100) == pytest.approx(0.1)


def test_work_counts_the_passes_and_a_cold_prefix() -> None:
    prompt = Prompt((1,) * 300, (2,) * 60)

    assert work_of(prompt, LabelAnswer((1, 2))) == 60 + PASS_TOKENS
    assert work_of(prompt, LabelAnswer((1, 2)), 300) == 360 + PASS_TOKENS
    assert work_of(prompt, TextAnswer("root", 30)) > 60 + 2 * PASS_TOKENS
