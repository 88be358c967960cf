"""Policies, routes and the catalog of models they name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Any

OTHER = "other"
"""The router's answer for "no route fits, or the request is finished". Reserved as a name."""


class ApiDialect(StrEnum):
    """The API a caller speaks and a model's provider answers."""

    OPENAI_CHAT = "openai-chat"
    OPENAI_RESPONSES = "openai-responses"
    ANTHROPIC_MESSAGES = "anthropic-messages"
    OPENAI_COMPLETIONS = "openai-completions"
    """The older API of text that is continued; few providers of chat models answer it."""


class Capability(StrEnum):
    IMAGES = "images"
    TOOLS = "tools"


class Preference(StrEnum):
    """How the models of a route are ordered."""

    DECLARED = "declared"
    CHEAPEST = "cheapest"
    FASTEST = "fastest"
    WEIGHTED = "weighted"


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the catalog.

    Args:
        id: the name policies use, e.g. `openai/gpt-4o-mini`.
        upstream_model: the name its provider knows it by, e.g. `gpt-4o-mini`.
        cluster: the Envoy cluster that reaches it; empty where the caller does not use Envoy.
        host: authority of the provider, e.g. `api.openai.com`; empty if unknown.
        input_price, output_price: US dollars per million tokens; None if unknown.
        prices_as_of: day on which the prices were looked up; None if unknown.
        latency_ms: configured time to first token in milliseconds; None if unknown.
        context_window: tokens; None if unknown.
    """

    id: str
    upstream_model: str
    cluster: str = ""
    host: str = ""
    dialects: frozenset[ApiDialect] = frozenset(ApiDialect)
    capabilities: frozenset[Capability] = frozenset()
    input_price: float | None = None
    output_price: float | None = None
    latency_ms: float | None = None
    context_window: int | None = None
    prices_as_of: date | None = None

    @property
    def price(self) -> float | None:
        """Input plus output price, which `CHEAPEST` orders by; None if one is unknown."""
        if self.input_price is None or self.output_price is None:
            return None
        return self.input_price + self.output_price


Catalog = Mapping[str, Model]
"""Model id -> model."""


@dataclass(frozen=True, slots=True)
class WeightedModel:
    """A model id in a route's list. `weight` only matters to `Preference.WEIGHTED`."""

    id: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelList:
    """Ranked models, best first, and how to order them. Never empty."""

    models: tuple[WeightedModel, ...]
    preference: Preference = Preference.DECLARED


@dataclass(frozen=True, slots=True)
class Route:
    """A preference: requests that fit `description` go to `models`.

    A route with `domain` is an action inside the domain route of that name; a route that others
    name as their domain is coarse and takes what none of its actions takes
    (Domain-Action taxonomy of arXiv 2506.16655).
    """

    name: str
    description: str
    models: ModelList
    domain: str = ""
    min_confidence: float = 0.0
    examples: tuple[str, ...] = ()


class PinMode(StrEnum):
    """What keeps its route once it has one."""

    CONVERSATION = "conversation"
    TASK = "task"
    """What the user asked for last, with all that the model and its tools do about it."""
    OFF = "off"


DEFAULT_SWITCH_CONFIDENCE = 0.5


@dataclass(frozen=True, slots=True)
class Policy:
    """Routes in declared order, and the models for everything that no route takes.

    Args:
        pin: what keeps its route; None: a task, where the caller shows that there is one.
        switch_confidence: where a task keeps its route: probability in 0..1 that another route
            needs to take over from the one that the conversation has.
    """

    name: str
    routes: tuple[Route, ...]
    default: ModelList
    namespace: str = "default"
    description: str = ""
    pin: PinMode | None = None
    switch_confidence: float = DEFAULT_SWITCH_CONFIDENCE

    @property
    def resource_name(self) -> str:
        return f"namespaces/{self.namespace}/policies/{self.name}"

    def route(self, name: str) -> Route | None:
        for route in self.routes:
            if route.name == name:
                return route
        return None

    def actions_of(self, domain: str) -> tuple[Route, ...]:
        return tuple(route for route in self.routes if route.domain == domain)

    def digest(self) -> str:
        """`sha256:<hex>` over the canonical JSON of the whole policy, declared order included."""
        parts = [
            f'"default":{_list_json(self.default)}',
            f'"description":{_text_json(self.description)}',
            f'"name":{_text_json(self.name)}',
            f'"namespace":{_text_json(self.namespace)}',
        ]
        # Policies that say nothing of pins keep the digests they had before there were any.
        if self.pin is not None:
            parts.append(f'"pin":{_text_json(self.pin.value)}')
        parts.append(f'"routes":[{",".join(map(_route_json, self.routes))}]')
        if self.switch_confidence != DEFAULT_SWITCH_CONFIDENCE:
            parts.append(f'"switch_confidence":{self.switch_confidence!r}')
        canonical = f"{{{','.join(parts)}}}"
        return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


# What `json.dumps` writes of `dataclasses.asdict`, keys sorted, nothing escaped that need not be,
# in a tenth of the time: at a start there are thousands of policies.

_text_json = json.encoder.encode_basestring


def _route_json(route: Route) -> str:
    examples = ",".join(map(_text_json, route.examples))
    return (
        f'{{"description":{_text_json(route.description)},"domain":{_text_json(route.domain)},'
        f'"examples":[{examples}],"min_confidence":{route.min_confidence!r},'
        f'"models":{_list_json(route.models)},"name":{_text_json(route.name)}}}'
    )


def _list_json(models: ModelList) -> str:
    entries = [f'{{"id":{_text_json(each.id)},"weight":{each.weight!r}}}' for each in models.models]
    return f'{{"models":[{",".join(entries)}],"preference":{_text_json(models.preference.value)}}}'


@dataclass(frozen=True, slots=True)
class Attribution:
    """Who made a revision, when and why.

    Args:
        author: as the writer said, or as known from its credentials if `verified`.
        message: why, in the author's words; may be empty.
        time: when the store took it, with time zone.
    """

    author: str
    message: str
    time: datetime
    verified: bool = False


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """An accepted policy as a store keeps it. `revision` counts from 1; `etag` changes with it.

    Args:
        attribution: None where the store does not keep it.
        deleted: the policy is deleted as of this revision, which has the content of the last one
            before it.
        change: number of the change that made this revision, among all changes of the store; 0
            where the store does not count them.
    """

    policy: Policy
    revision: int
    etag: str
    digest: str = field(default="")
    attribution: Attribution | None = None
    deleted: bool = False
    change: int = 0


@dataclass(frozen=True, slots=True)
class CatalogRecord:
    """The model catalog as a store keeps it; the fields mean what those of `PolicyRecord` do.
    Revision 0: there has never been one."""

    models: Catalog
    revision: int = 0
    etag: str = ""
    digest: str = ""
    attribution: Attribution | None = None
    change: int = 0


def catalog_digest(models: Catalog) -> str:
    """`sha256:<hex>` over the canonical JSON of the models, in their order."""
    plain = [_plain_model(model) for model in models.values()]
    canonical = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _plain_model(model: Model) -> dict[str, Any]:
    plain = {
        **asdict(model),
        "dialects": sorted(model.dialects),
        "capabilities": sorted(model.capabilities),
    }
    day = plain.pop("prices_as_of")
    # Catalogs whose prices have no day keep the digests they had before there were any.
    return plain if day is None else {**plain, "prices_as_of": day.isoformat()}


def etag_of(revision: int, digest: str) -> str:
    """The etag of a revision with that content."""
    return f"{revision}-{digest.removeprefix('sha256:')[:16]}"
