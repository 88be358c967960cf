"""What a policy and a catalog must be, beyond their shape.

The one place of every rule: YAML files, `ValidatePolicy`, inline policies and writes all meet the
same texts. Paths are spelled as in YAML.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from sidecar.core.policy import (
    OTHER,
    ApiDialect,
    Catalog,
    Model,
    ModelList,
    Policy,
    Preference,
    Route,
)
from sidecar.policies.findings import (
    Finding,
    closest,
    error,
    item,
    member,
    quoted,
    spelled,
    warning,
)

MAX_ROUTE_NAME = 64
MAX_MODEL_ID = 128
MAX_UPSTREAM_NAME = 256
"""Long enough for an Amazon Bedrock inference profile ARN."""
MAX_LABEL = 63
"""RFC 1035: the length of a DNS label, which Kubernetes names keep to as well."""
MAX_ROUTES = 512
"""Far more than the routing model's prompt has room for."""
MAX_TEXT = 2000
"""Characters of a description or an example."""
MAX_EXAMPLES = 100
"""Of one route."""
MAX_CONTEXT_WINDOW = 2**31 - 1
"""Tokens; what the API's field holds."""
MAX_FINDINGS = 50
"""Of one document."""
RARELY_REACHED = 0.99

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_NO_LETTERS = re.compile(r"[\W_]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_AUTHORITY = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def check_policy(policy: Policy, catalog: Catalog | None) -> tuple[Finding, ...]:
    """Everything that is wrong with `policy`; what is doubtful only where nothing is wrong.

    Args:
        catalog: None if there is none, and models are not looked up.
    """
    errors = limited(policy_errors(policy, catalog))
    if errors or catalog is None:
        return errors
    return limited(_policy_warnings(policy, catalog))


def check_catalog(models: Sequence[Model]) -> tuple[Finding, ...]:
    """Everything that is wrong with the models of one catalog document."""
    return limited(_catalog_errors(models))


def limited(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The first `MAX_FINDINGS`: looking for what an unknown name may have meant takes time, and
    nobody reads more at once."""
    shown = tuple(itertools.islice(findings, MAX_FINDINGS + 1))
    if len(shown) <= MAX_FINDINGS:
        return shown
    more = f"more than {MAX_FINDINGS} findings; correct these first, the rest is not shown"
    return (*shown[:MAX_FINDINGS], replace(shown[-1], path="", message=more, line=0))


# --- Errors of a policy ---------------------------------------------------------------------------


def policy_errors(policy: Policy, catalog: Catalog | None) -> Iterator[Finding]:
    """What is wrong with `policy`, one after the other: who only wants to know whether anything is
    needs the first alone. `catalog` as in `check_policy`."""
    yield from _label_errors("name", policy.name)
    yield from _label_errors("namespace", policy.namespace)
    if policy.description:
        yield from _text_errors("description", policy.description, "write one or remove the key")
    if not 0.0 <= policy.switch_confidence <= 1.0:
        yield error(
            "switch_confidence",
            f"{policy.switch_confidence:g} is outside 0..1; give a probability such as 0.6",
        )
    yield from _model_list_errors("default", policy.default, catalog)
    if (too_many := too_many_routes(len(policy.routes))) is not None:
        yield too_many
        return
    first: dict[str, int] = {}
    for index, route in enumerate(policy.routes):
        earlier = first.setdefault(route.name, index)
        if earlier == index and _is_simple(route, catalog):
            continue
        path = item("routes", index)
        yield from _route_name_errors(path, route.name, earlier if earlier < index else None)
        yield from _route_errors(path, route, catalog)
        yield from _domain_errors(policy, route, path)


def _is_simple(route: Route, catalog: Catalog | None) -> bool:
    """True only where none of the rules for a route finds anything: nearly everywhere in thousands
    of policies that are read at a start, where no path needs to be spelled out then."""
    return (
        not route.domain
        and 0.0 <= route.min_confidence <= 1.0
        and _stands_in_header(route.name, MAX_ROUTE_NAME)
        and route.name.lower() != OTHER
        and _is_plain_language(route.description)
        and len(route.examples) <= MAX_EXAMPLES
        and all(map(_is_plain_language, route.examples))
        and _are_simple(route.models, catalog)
    )


def _are_simple(models: ModelList, catalog: Catalog | None) -> bool:
    """True only where `_model_list_errors` finds nothing."""
    ids = {entry.id for entry in models.models if 0 < entry.weight < math.inf}
    known = catalog is None or ids <= catalog.keys()
    return known and 0 < len(ids) == len(models.models)


def too_many_routes(count: int) -> Finding | None:
    """What is wrong with `count` routes: known before any of them is looked at."""
    if count <= MAX_ROUTES:
        return None
    return error(
        "routes",
        f"has {count} routes, at most {MAX_ROUTES} are allowed; "
        "split the policy by the kind of caller",
    )


def _route_name_errors(route: str, name: str, earlier: int | None) -> Iterator[Finding]:
    """
    Args:
        route: its path.
        earlier: index of the route that has the name already.
    """
    path = member(route, "name")
    yield from _header_errors(path, name, MAX_ROUTE_NAME)
    if name.strip().lower() == OTHER:
        yield error(
            path,
            f"{quoted(name)} is reserved for requests that no route takes; "
            "choose another name, or put these models under `default`",
        )
    if earlier is not None and name:
        yield error(
            path,
            f"{quoted(name)} is already the name of {item('routes', earlier)}; rename one of them",
        )


def _route_errors(path: str, route: Route, catalog: Catalog | None) -> Iterator[Finding]:
    yield from _text_errors(
        member(path, "description"),
        route.description,
        "say in plain language what belongs here, the routing model decides by it",
    )
    yield from _model_list_errors(path, route.models, catalog)
    if not 0.0 <= route.min_confidence <= 1.0:
        yield error(
            member(path, "min_confidence"),
            f"{route.min_confidence:g} is outside 0..1; give a probability such as 0.6",
        )
    if not route.examples:
        return
    examples = member(path, "examples")
    if len(route.examples) > MAX_EXAMPLES:
        yield error(
            examples,
            f"has {len(route.examples)} examples, at most {MAX_EXAMPLES} are allowed; "
            "keep those that differ most",
        )
        return
    for number, example in enumerate(route.examples):
        if not _is_plain_language(example):
            where = item(examples, number)
            yield from _text_errors(where, example, "write a request or remove it")


def _domain_errors(policy: Policy, route: Route, path: str) -> Iterator[Finding]:
    if not route.domain:
        return
    where = member(path, "domain")
    if route.domain == route.name:
        yield error(where, f"the route {quoted(route.name)} names itself; remove the key")
        return
    domain = policy.route(route.domain)
    if domain is None:
        others = [known.name for known in policy.routes if known.name != route.name]
        yield error(where, _unknown("route", route.domain, others, "add the domain as a route"))
    elif domain.domain:
        yield error(
            where,
            f"{quoted(domain.name)} is itself inside the domain {quoted(domain.domain)}; "
            "domains and actions are the only two levels, name a route without a domain",
        )


def _model_list_errors(owner: str, models: ModelList, catalog: Catalog | None) -> Iterator[Finding]:
    if not models.models:
        yield error(member(owner, "models"), "is empty; name at least one model, best first")
    seen: dict[str, int] = {}
    for index, entry in enumerate(models.models):
        if catalog is not None and entry.id not in catalog:
            yield error(
                item(member(owner, "models"), index),
                _unknown("model", entry.id, catalog, "add it to the model catalog"),
            )
        elif entry.id in seen:
            path = member(owner, "models")
            yield error(
                item(path, index),
                f"the model {quoted(entry.id)} is listed twice, first as "
                f"{item(path, seen[entry.id])}; remove one",
            )
        seen.setdefault(entry.id, index)
        if not (entry.weight > 0 and math.isfinite(entry.weight)):
            yield error(
                member(item(member(owner, "models"), index), "weight"),
                f"{entry.weight:g} is not a share of traffic; give a number above 0, "
                "or remove the model",
            )


def _unknown(what: str, name: str, known: Iterable[str], remedy: str) -> str:
    if (meant := closest(name, known)) is not None:
        return f"unknown {what} {spelled(name)}; did you mean {quoted(meant)}?"
    return f"unknown {what} {spelled(name)}; {remedy}"


def _label_errors(path: str, value: str) -> Iterator[Finding]:
    """Ids that stand in resource names."""
    if not value:
        yield error(path, "is empty; give a name such as support")
    elif len(value) > MAX_LABEL:
        yield error(
            path, f"has {len(value)} characters, at most {MAX_LABEL} are allowed; shorten it"
        )
    elif not _LABEL.fullmatch(value):
        yield error(
            path,
            f"{spelled(value)} may have only lower-case letters, digits and inner hyphens, "
            "such as support or eu-support",
        )


def _is_plain_language(value: str) -> bool:
    """True only where `_text_errors` finds nothing."""
    return len(value) <= MAX_TEXT and value.isprintable() and bool(value.strip())


def _stands_in_header(value: str, limit: int) -> bool:
    """True only where `_header_errors` finds nothing."""
    if not (value.isascii() and value.isprintable() and 0 < len(value) <= limit):
        return False
    return value[0] != " " != value[-1]


def _text_errors(path: str, value: str, remedy: str) -> Iterator[Finding]:
    """Plain language: not blank, and nothing that a terminal, a log or a store would trip over."""
    if len(value) > MAX_TEXT:
        yield error(
            path, f"has {len(value)} characters, at most {MAX_TEXT} are allowed; shorten it"
        )
        return
    # Characters without a width, such as U+200B, are no blanks, and no text either.
    if all(char.isspace() or unicodedata.category(char) == "Cf" for char in value):
        yield error(path, f"is empty; {remedy}")
    control = _CONTROL.search(value)
    if control is not None:
        yield error(
            path, f"has the control character U+{ord(control[0]):04X}; remove it, or use a space"
        )


def _header_errors(path: str, value: str, limit: int) -> Iterator[Finding]:
    """Values that can stand in an HTTP header (field-value of RFC 9110, without tabs)."""
    if not value:
        yield error(path, "is empty; give a name")
        return
    wrong = next((char for char in value if not " " <= char <= "~"), None)
    if wrong is not None:
        yield error(
            path,
            f"{quoted(value)} has the character U+{ord(wrong):04X}, which cannot stand in an "
            "HTTP header; use printable ASCII",
        )
    elif value != value.strip():
        yield error(path, f"{quoted(value)} begins or ends with a space; remove it")
    if len(value) > limit:
        yield error(path, f"has {len(value)} characters, at most {limit} are allowed; shorten it")


# --- Warnings of a policy -------------------------------------------------------------------------


def _policy_warnings(policy: Policy, catalog: Catalog) -> Iterator[Finding]:
    served = frozenset(dialect for model in catalog.values() for dialect in model.dialects)
    yield from _model_list_warnings("default", policy.default, catalog)
    yield from _dialect_warnings("default", policy.default, catalog, served)
    if not policy.routes:
        yield warning("routes", "there are none: every request goes to the default models")
    yield from _likeness_warnings(policy.routes)
    for index, route in enumerate(policy.routes):
        if not _is_usual(route.models, catalog, served):
            path = item("routes", index)
            yield from _model_list_warnings(path, route.models, catalog)
            yield from _dialect_warnings(path, route.models, catalog, served)
        if route.min_confidence >= RARELY_REACHED:
            yield warning(
                member(item("routes", index), "min_confidence"),
                f"hardly any decision is as sure as {route.min_confidence:g}: "
                "the route will rarely be taken",
            )


def _likeness_warnings(routes: Sequence[Route]) -> Iterator[Finding]:
    """What makes two routes hard to tell apart."""
    names: dict[str, int] = {}
    descriptions: dict[str, int] = {}
    examples: dict[str, int] = {}
    for index, route in enumerate(routes):
        # A name of punctuation alone is like no other.
        first = names.setdefault(_letters(route.name) or route.name, index)
        if first != index:
            yield warning(
                member(item("routes", index), "name"),
                f"{quoted(route.name)} differs from {quoted(routes[first].name)} "
                f"({item('routes', first)}) only in case or punctuation: an answer that spells it "
                "otherwise fits both",
            )
        first = descriptions.setdefault(_words(route.description), index)
        if first != index:
            yield warning(
                member(item("routes", index), "description"),
                f"is that of {item('routes', first)} too: the routing model cannot tell the two "
                "apart",
            )
        for number, example in enumerate(route.examples):
            first = examples.setdefault(_words(example), index)
            if first != index:
                yield warning(
                    item(member(item("routes", index), "examples"), number),
                    f"{quoted(example)} is an example of {item('routes', first)} too: only one "
                    "can take it",
                )


def _letters(text: str) -> str:
    return text.casefold() if text.isalnum() else _NO_LETTERS.sub("", text).casefold()


def _words(text: str) -> str:
    # Letters with accents can be written in two ways that look alike.
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold())


def _is_usual(models: ModelList, catalog: Catalog, served: frozenset[ApiDialect]) -> bool:
    """True only where `_model_list_warnings` and `_dialect_warnings` find nothing."""
    if models.preference is not Preference.DECLARED:
        return False
    speaks_all = False
    for entry in models.models:
        if entry.weight != 1.0:
            return False
        speaks_all = speaks_all or served <= catalog[entry.id].dialects
    return speaks_all


def _model_list_warnings(owner: str, models: ModelList, catalog: Catalog) -> Iterator[Finding]:
    where = member(owner, "preference")
    if models.preference is not Preference.WEIGHTED and any(e.weight != 1.0 for e in models.models):
        yield warning(
            where,
            f'is "{models.preference}", so the weights are not used; write `preference: weighted`',
        )
    if len(models.models) == 1:
        return
    if models.preference is Preference.CHEAPEST:
        unknown = [e.id for e in models.models if catalog[e.id].price is None]
        if unknown:
            yield warning(
                where,
                f'is "cheapest", but the catalog has no input and output price of '
                f"{_listed(unknown)}: unknown prices come last",
            )
    if models.preference is Preference.FASTEST:
        unknown = [e.id for e in models.models if catalog[e.id].latency_ms is None]
        if unknown:
            yield warning(
                where,
                f'is "fastest", but the catalog has no latency_ms of {_listed(unknown)}: '
                "unknown latencies come last",
            )


def _dialect_warnings(
    owner: str, models: ModelList, catalog: Catalog, served: frozenset[ApiDialect]
) -> Iterator[Finding]:
    spoken = {dialect for entry in models.models for dialect in catalog[entry.id].dialects}
    missing = [dialect for dialect in ApiDialect if dialect in served - spoken]
    if not missing:
        return
    if owner == "default":
        consequence = "callers of that API get a model that does not speak it"
    else:
        consequence = "callers of that API get the default models"
    yield warning(
        member(owner, "models"), f"no model speaks {_listed(missing, quote=False)}: {consequence}"
    )


def _listed(names: Sequence[str], quote: bool = True) -> str:
    shown = [quoted(name) if quote else name for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


# --- Errors of a catalog --------------------------------------------------------------------------


def _catalog_errors(models: Sequence[Model]) -> Iterator[Finding]:
    if not models:
        yield error("models", "is empty; add at least one model")
    first: dict[str, int] = {}
    for index, model in enumerate(models):
        path = item("models", index)
        yield from _header_errors(member(path, "id"), model.id, MAX_MODEL_ID)
        if model.id in first:
            yield error(
                member(path, "id"),
                f"{quoted(model.id)} is already the id of {item('models', first[model.id])}; "
                "rename one of them",
            )
        elif model.id:
            first[model.id] = index
        yield from _header_errors(
            member(path, "upstream_model"), model.upstream_model, MAX_UPSTREAM_NAME
        )
        yield from _reach_errors(path, model)
        yield from _number_errors(path, model)


def _reach_errors(path: str, model: Model) -> Iterator[Finding]:
    if model.cluster:
        yield from _header_errors(member(path, "cluster"), model.cluster, MAX_UPSTREAM_NAME)
    if model.host and not _AUTHORITY.fullmatch(model.host):
        yield error(
            member(path, "host"),
            f"{quoted(model.host)} is not a host; write it as api.example.com or "
            "api.example.com:8443, without https:// and without a path",
        )
    if not model.dialects:
        yield error(
            member(path, "dialects"),
            "is empty; name the APIs that the model's provider answers, or remove the key for all",
        )


def _number_errors(path: str, model: Model) -> Iterator[Finding]:
    numbers: list[tuple[str, float | None, str]] = [
        ("prices.input", model.input_price, "US dollars per million tokens"),
        ("prices.output", model.output_price, "US dollars per million tokens"),
        ("latency_ms", model.latency_ms, "milliseconds to the first token"),
    ]
    for key, value, unit in numbers:
        if value is not None and not (value >= 0 and math.isfinite(value)):
            yield error(f"{path}.{key}", f"{value:g} is not a number of {unit}, 0 or more")
    if model.prices_as_of is not None and model.input_price is model.output_price is None:
        yield error(
            f"{path}.prices.as_of", "is the day of no price; add input and output, or remove it"
        )
    if model.context_window is not None and not 0 < model.context_window <= MAX_CONTEXT_WINDOW:
        yield error(
            member(path, "context_window"),
            f"{model.context_window} is not a number of tokens from 1 to {MAX_CONTEXT_WINDOW}; "
            "remove the key if it is unknown",
        )
