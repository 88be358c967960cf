"""What keeps a conversation with its model when models are weighted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import RoutingRequest
from sidecar.routing.walk import stable_key
from tests.doubles import talk


def test_the_callers_key_stands_for_the_conversation_whatever_is_said() -> None:
    asked = RoutingRequest(talk("hi"), conversation_key="c")

    assert stable_key(replace(asked, conversation=talk("hello"))) == stable_key(asked)
    assert stable_key(replace(asked, conversation_key="d")) != stable_key(asked)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (("hi", "yes?", "a"), ("hi", "yes?", "b"), True),
        (("hi",), ("hello",), False),
        (("x" * 5000 + "a",), ("x" * 5000 + "b",), True),
        (("x" * 4000 + "a",), ("x" * 4000 + "b",), False),
    ],
    ids=["later turns", "first message", "far into a long one", "early in a long one"],
)
def test_how_the_first_message_begins_stands_for_the_conversation(
    left: tuple[str, ...], right: tuple[str, ...], same: bool
) -> None:
    keys = {stable_key(RoutingRequest(talk(*texts))) for texts in (left, right)}

    assert (len(keys) == 1) is same


def test_an_applications_instructions_do_not_make_one_conversation_of_all_of_its() -> None:
    told = Message(Role.SYSTEM, "You are a helpful assistant.")
    asked = [
        Conversation((told, *talk(text).messages)) for text in ("Fix this loop.", "Book a flight.")
    ]

    assert len({stable_key(RoutingRequest(each)) for each in asked}) == 2


def test_a_conversation_in_which_the_user_says_nothing_goes_by_its_first_message() -> None:
    seen = [
        Conversation((Message(Role.SYSTEM, text), Message(Role.USER, images=1)))
        for text in ("Describe it.", "Translate it.")
    ]

    assert len({stable_key(RoutingRequest(each)) for each in seen}) == 2


@pytest.mark.parametrize("key", ["", "c"], ids=["without a key", "with a key"])
def test_callers_who_say_the_same_have_conversations_of_their_own(key: str) -> None:
    asked = RoutingRequest(talk("hi"), conversation_key=key)

    assert len({stable_key(replace(asked, caller=caller)) for caller in ("", "a", "b")}) == 3
