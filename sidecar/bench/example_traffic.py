"""Conversations as people have them, under the policies of `examples/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.bench import traffic
from sidecar.bench.example_requests import OF_NO_ROUTE, REPLIES, REQUESTS
from sidecar.core.policy import Route
from sidecar.policies import load_policies

POLICY = "like-examples"


class ExampleTraffic:
    """Requests like the examples of the policies in a folder.

    Each conversation is a request, a reply and another request, together some 40 words. No two
    numbers give the same one, up to tens of thousands.

    Args:
        folder: of policies that have the routes of `REQUESTS`.
        routes: most routes of the policy that is made of them.
    """

    def __init__(self, folder: Path, routes: int) -> None:
        known: dict[str, Route] = {
            route.name: route
            for record in load_policies((folder,)).records.values()
            for route in record.policy.routes
        }
        self.routes = [known[name] for name in list(REQUESTS)[:routes]]
        asked = [text for each in self.routes for text in (*each.examples, *REQUESTS[each.name])]
        self._asked: Sequence[str] = (*asked, *OF_NO_ROUTE)

    def policy_document(self) -> dict[str, object]:
        """A policy of the routes, side by side."""
        return {
            "apiVersion": "llmrouter.v1",
            "kind": "Policy",
            "name": POLICY,
            "default": {"models": [traffic.DEFAULT]},
            "routes": [
                {
                    "name": each.name,
                    "description": each.description,
                    "models": [traffic.MODEL],
                }
                for each in self.routes
            ],
        }

    def request(self, number: int) -> routing_pb2.RouteRequest:
        """Conversation `number`: as many ask for one route as for another, and a few for none."""
        count = len(self._asked)
        rest, newest = divmod(number, count)
        rest, ahead = divmod(rest, count - 1)
        made = routing_pb2.RouteRequest(policy=POLICY)
        for role, text in (
            (routing_pb2.ROLE_USER, self._asked[(newest + 1 + ahead) % count]),
            (routing_pb2.ROLE_ASSISTANT, REPLIES[rest % len(REPLIES)]),
            (routing_pb2.ROLE_USER, self._asked[newest]),
        ):
            made.messages.add(role=role).parts.add(text=text)
        return made
