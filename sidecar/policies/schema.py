"""The shape of policy and catalog documents: keys and types.

What the values mean together is checked on the core types (`sidecar.policies.rules`), so that
policies from YAML and from the API meet the same rules. A document of the wrong shape is still
converted, with a blank in the place of every wrong value: the rules then find the rest of what is
wrong in the same run.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from sidecar.core.policy import (
    DEFAULT_SWITCH_CONFIDENCE,
    ApiDialect,
    Capability,
    Model,
    ModelList,
    PinMode,
    Policy,
    Preference,
    Route,
    WeightedModel,
)
from sidecar.policies.days import parsed_day
from sidecar.policies.findings import (
    Finding,
    closest,
    error,
    item,
    member,
    quoted,
    self_and_ancestors,
    shortened,
    spelled,
)

API_VERSION = "llmrouter.v1"

# Strict mode would ask for enum members where YAML can only give their text.
_Dialect = Annotated[ApiDialect, Field(strict=False)]
_Capability = Annotated[Capability, Field(strict=False)]
_PinMode = Annotated[PinMode, Field(strict=False)]
_Preference = Annotated[Preference, Field(strict=False)]


def _day(value: object) -> object:
    day = parsed_day(value) if isinstance(value, str) else None
    if day is None:
        raise PydanticCustomError("day", "no day")
    return day


_Day = Annotated[date, BeforeValidator(_day)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DocumentShape(_Shape):
    """A whole document.

    `BLANKS` has the values that take the place of wrong ones, by path; what is not there may be
    left out.
    """

    KIND: ClassVar[str]
    BLANKS: ClassVar[Mapping[str, object]]

    apiVersion: Literal["llmrouter.v1"]  # noqa: N815 -- the key's spelling, as in Kubernetes


class ModelEntry(_Shape):
    model: str
    weight: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_id(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class DefaultModels(_Shape):
    models: list[ModelEntry]
    preference: _Preference = Preference.DECLARED


class RouteShape(_Shape):
    name: str
    description: str
    domain: str = ""
    models: list[ModelEntry]
    preference: _Preference = Preference.DECLARED
    min_confidence: float = 0.0
    examples: list[str] = Field(default_factory=list)


class PolicyShape(DocumentShape):
    KIND: ClassVar[str] = "Policy"
    BLANKS: ClassVar[Mapping[str, object]] = {
        "name": "",
        "default": {"models": []},
        "default.models": [],
        "default.models[]": "",
        "default.models[].model": "",
        "routes[]": {"name": "", "description": "", "models": []},
        "routes[].name": "",
        "routes[].description": "",
        "routes[].models": [],
        "routes[].models[]": "",
        "routes[].models[].model": "",
        "routes[].examples[]": "",
    }

    kind: Literal["Policy"]
    name: str
    namespace: str = "default"
    description: str = ""
    pin: _PinMode | None = None
    switch_confidence: float = DEFAULT_SWITCH_CONFIDENCE
    default: DefaultModels
    routes: list[RouteShape] = Field(default_factory=list)

    def to_core(self) -> Policy:
        lists: dict[object, ModelList] = {}
        return Policy(
            name=self.name,
            namespace=self.namespace,
            description=self.description,
            pin=self.pin,
            switch_confidence=self.switch_confidence,
            default=_model_list(self.default, lists),
            routes=tuple(
                Route(
                    name=route.name,
                    description=route.description,
                    domain=route.domain,
                    models=_model_list(route, lists),
                    min_confidence=route.min_confidence,
                    examples=tuple(route.examples),
                )
                for route in self.routes
            ),
        )


class PricesShape(_Shape):
    input: float | None = None
    output: float | None = None
    as_of: _Day | None = None


class ModelShape(_Shape):
    id: str
    upstream_model: str
    cluster: str = ""
    host: str = ""
    dialects: list[_Dialect] = Field(default_factory=lambda: list(ApiDialect))
    capabilities: list[_Capability] = Field(default_factory=list)
    prices: PricesShape = PricesShape()
    latency_ms: float | None = None
    context_window: int | None = None


class CatalogShape(DocumentShape):
    KIND: ClassVar[str] = "ModelCatalog"
    BLANKS: ClassVar[Mapping[str, object]] = {
        "models": [],
        "models[]": {"id": "", "upstream_model": ""},
        "models[].id": "",
        "models[].upstream_model": "",
    }

    kind: Literal["ModelCatalog"]
    models: list[ModelShape]

    def to_core(self) -> tuple[Model, ...]:
        return tuple(
            Model(
                id=model.id,
                upstream_model=model.upstream_model,
                cluster=model.cluster,
                host=model.host,
                dialects=frozenset(model.dialects),
                capabilities=frozenset(model.capabilities),
                input_price=model.prices.input,
                output_price=model.prices.output,
                latency_ms=model.latency_ms,
                context_window=model.context_window,
                prices_as_of=model.prices.as_of,
            )
            for model in self.models
        )


def _model_list(of: DefaultModels | RouteShape, made: dict[object, ModelList]) -> ModelList:
    """`made`: those of the same policy, whose routes often share one."""
    key = (of.preference, *[(entry.model, entry.weight) for entry in of.models])
    known = made.get(key)
    if known is None:
        entries = [
            WeightedModel(entry.model, 1.0 if entry.weight is None else entry.weight)
            for entry in of.models
        ]
        known = made[key] = ModelList(tuple(entries), of.preference)
    return known


S = TypeVar("S", bound=DocumentShape)


@dataclass(frozen=True, slots=True)
class ShapeRead(Generic[S]):
    """A document read as a shape.

    Args:
        shape: None where too much is wrong to go on.
        findings: what is wrong with the text, the keys and the types.
        blank: paths of the values that are blank in `shape` because they are wrong.
    """

    shape: S | None
    findings: tuple[Finding, ...]
    blank: frozenset[str] = frozenset()

    def without_consequences(self, findings: Iterable[Finding]) -> list[Finding]:
        """`findings` of the rules, less those about blank values."""
        return [
            finding
            for finding in findings
            if self.blank.isdisjoint(self_and_ancestors(finding.path))
        ]


def read_shape(
    value: dict[str, object], shape: type[S], of_text: Sequence[Finding]
) -> ShapeRead[S]:
    """Reads `value` as `shape`.

    Args:
        of_text: what could not be read of the text; the shape is not asked about those values.
    """
    unread = {finding.path for finding in of_text}
    try:
        return ShapeRead(shape.model_validate(value), tuple(of_text), frozenset(unread))
    except ValidationError as problem:
        errors = problem.errors(include_url=False)
    misspelt = set(_misspelt(errors, shape))
    findings = [
        _finding(details, value, shape)
        for details in errors
        if not (details["type"] == "missing" and details["loc"] in misspelt)
        and _path(details["loc"]) not in unread
    ]
    patched = copy.deepcopy(value)
    for details in errors:
        _blank(patched, details["loc"], shape)
    # The rules know an entry of a model list by the entry, whichever way its id is written.
    blank = unread | {_path(details["loc"]).removesuffix(".model") for details in errors}
    try:
        read = shape.model_validate(patched)
    except ValidationError:
        read = None
    return ShapeRead(read, (*of_text, *findings), frozenset(blank - {""}))


def _misspelt(errors: Sequence[ErrorDetails], shape: type[S]) -> Iterator[tuple[int | str, ...]]:
    """Places of missing keys that are there under an unknown name close to theirs."""
    for details in errors:
        if details["type"] == "extra_forbidden":
            around, key = details["loc"][:-1], str(details["loc"][-1])
            meant = closest(key, _keys_at(around, shape))
            if meant is not None:
                yield (*around, meant)


def unused_weighting(policy: PolicyShape) -> list[Finding]:
    """`preference: weighted` in a list where no model has a weight.

    The core types cannot tell a weight of 1 that was given from one that was not.
    """
    lists = [("default", policy.default.models, policy.default.preference)]
    lists += [
        (item("routes", index), route.models, route.preference)
        for index, route in enumerate(policy.routes)
        if route.preference is Preference.WEIGHTED
    ]
    return [
        error(
            member(path, "preference"),
            '"weighted", but no model of the list has a weight; write the entries as '
            "{model: …, weight: …}",
        )
        for path, entries, preference in lists
        if preference is Preference.WEIGHTED and entries and all(e.weight is None for e in entries)
    ]


def _blank(document: Any, loc: tuple[int | str, ...], shape: type[S]) -> None:
    """Replaces the value at `loc` by its blank, or removes it where it may be absent."""
    try:
        parent = _at(document, loc[:-1])
    except (KeyError, IndexError, TypeError):
        return  # Another wrong value around it is blank already.
    pattern = _pattern(loc)
    if pattern in shape.BLANKS:
        parent[loc[-1]] = copy.deepcopy(shape.BLANKS[pattern])
    elif isinstance(loc[-1], int):
        _blank(document, loc[:-1], shape)
    elif isinstance(parent, dict):
        parent.pop(loc[-1], None)


def _pattern(loc: tuple[int | str, ...]) -> str:
    return re.sub(r"\[\d+\]", "[]", _path(loc))


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        path = item(path, part) if isinstance(part, int) else member(path, part)
    return path


def _at(document: Any, loc: tuple[int | str, ...]) -> Any:
    for part in loc:
        document = document[part]
    return document


_SHAPES: Mapping[str, type[BaseModel]] = {
    "routes[]": RouteShape,
    "default": DefaultModels,
    "models[].prices": PricesShape,
    "models[]": ModelShape,
}

_MISSING: Mapping[str, str] = {
    "apiVersion": f"`apiVersion: {API_VERSION}`",
    "kind": "the kind of the document",
    "default": "the models for everything that no route takes, `default: {models: [<model id>]}`",
    "models": "`models: [<model id>, …]`, best first",
    "name": "`name: <name>`",
    "description": "one sentence in plain language that says what belongs here",
    "id": "`id: <provider>/<model>`, the name policies use",
    "upstream_model": "the name that the provider knows the model by",
    "model": "`model: <model id>`",
}


def _finding(details: ErrorDetails, document: dict[str, object], shape: type[S]) -> Finding:
    loc = details["loc"]
    path = _path(loc)
    kind = details["type"]
    if kind == "missing":
        add = _MISSING[str(loc[-1])]
        if shape is CatalogShape and path == "models":
            add = "`models:` with one entry per model"
        return error(path, f"missing; add {add}")
    if kind == "extra_forbidden":
        return error(path, _unknown_key(str(loc[-1]), _keys_at(loc[:-1], shape)))
    value = _at(document, loc)
    if kind == "enum":
        return error(path, _not_one_of(value, details["ctx"]["expected"]))
    wanted = _WANTED.get(kind, "another value")
    if wanted == _MAPPING:
        wanted = _MAPPINGS[shape.KIND].get(_pattern(loc), wanted)
    if value is None:
        return error(path, f"has no value; it must be {wanted}")
    return error(path, f"must be {wanted}, not {_described(value, kind)}")


def _keys_at(loc: tuple[int | str, ...], shape: type[S]) -> list[str]:
    pattern = _pattern(loc)
    if not pattern:
        return list(shape.model_fields)
    if pattern.endswith("models[]") and shape is PolicyShape:
        return list(ModelEntry.model_fields)
    return list(_SHAPES[pattern].model_fields)


def _unknown_key(key: str, known: Sequence[str]) -> str:
    if (meant := closest(key, known)) is not None:
        return f"unknown key {spelled(key)}; did you mean {quoted(meant)}?"
    return f"unknown key {spelled(key)}; the keys here are {', '.join(known)}"


def _not_one_of(value: object, expected: str) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    if not isinstance(value, str):
        return f"must be one of {', '.join(choices)}, not {_described(value, '')}"
    if (meant := closest(value, choices)) is not None:
        return f"{spelled(value)} is none of {', '.join(choices)}; did you mean {quoted(meant)}?"
    return f"{spelled(value)} is none of {', '.join(choices)}; use one of them"


_MAPPING = "a mapping"
_WANTED: Mapping[str, str] = {
    "string_type": "text",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "list_type": "a list",
    "day": "a day such as 2026-08-21",
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
}
_ENTRY = "a model id or {model: <model id>, weight: <number>}"
_MAPPINGS: Mapping[str, Mapping[str, str]] = {
    PolicyShape.KIND: {
        "default": "a mapping such as {models: [<model id>]}",
        "default.models[]": _ENTRY,
        "routes[]": "a mapping with name, description and models",
        "routes[].models[]": _ENTRY,
    },
    CatalogShape.KIND: {
        "models[]": "a mapping with id and upstream_model",
        "models[].prices": "a mapping such as {input: 0.5, output: 1.5}",
    },
}


def _described(value: object, wanted: str) -> str:
    """The value as written, with the remedy where the type tells it."""
    if isinstance(value, dict):
        return _MAPPING + ("; begin each entry with a dash: - …" if wanted == "list_type" else "")
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        shown = f"the text {quoted(value)}"
        if wanted == "list_type":
            return f"{shown}; write it as a list: [<entry>, …]"
        if wanted in ("float_type", "int_type") and _NUMBER.fullmatch(value):
            return f"{shown}; write the number without quotes"
        return shown
    plain = shortened(str(value).lower() if isinstance(value, bool) else str(value))
    shown = plain if isinstance(value, bool) else f"the number {plain}"
    return f'{shown}; write it in quotes: "{plain}"' if wanted == "string_type" else shown


_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
