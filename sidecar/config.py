"""Settings: one section per component.

Sources, each over the next: flags, environment (`SIDECAR_TRITON__ADDRESS`), YAML file (`--config`
or `SIDECAR_CONFIG`), defaults. Unknown keys are errors wherever they stand. The reference
`docs/settings.md` is made from this module: `python -m sidecar.config docs/settings.md`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from sidecar.config_ext_proc import ExtProcSettings
from sidecar.config_fields import Section as _Section
from sidecar.config_fields import setting as _setting
from sidecar.config_policy_store import PolicyStoreSettings
from sidecar.policies.findings import closest, quoted
from sidecar.policies.yaml_source import Document, decode, read_documents

ENV_PREFIX = "SIDECAR_"
CONFIG_VARIABLE = "SIDECAR_CONFIG"

_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
_POLICY = re.compile(
    r"(namespaces/[a-z0-9]([a-z0-9-]*[a-z0-9])?/policies/)?[a-z0-9]([a-z0-9-]*[a-z0-9])?"
)
_RULE = re.compile(r"[a-z0-9!#$&'*+.^_`|~-]+=(?:(?!=>)[ -~])+=>(.+)")
_METADATA_KEY = re.compile(r"(?!grpc-)[a-z0-9._-]+(?<!-bin)")


class SettingsError(Exception):
    """Settings that cannot be used.

    `problems` has a line for each: where the value was given, its path, what is wrong, the remedy.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or int(match[1]) > 65535:
        raise ValueError(f"{quoted(value)} is not host:port; write it like 127.0.0.1:50051")
    return value


def _address_or_empty(value: str) -> str:
    return _address(value) if value else value


def _policy(value: str) -> str:
    if not _POLICY.fullmatch(value):
        raise ValueError(
            f"{quoted(value)} is not a policy; write an id of the namespace `default`, or "
            "namespaces/<namespace>/policies/<policy>"
        )
    return value


def _rule(value: str) -> str:
    match = _RULE.fullmatch(value)
    if match is None:
        raise ValueError(
            f"{quoted(value)} is not HEADER=VALUE=>POLICY, with the header in lower case, such as "
            "x-team=search=>search-team"
        )
    _policy(match[1])
    return value


def _metadata_key(value: str) -> str:
    if value and not _METADATA_KEY.fullmatch(value):
        raise ValueError(
            f"{quoted(value)} is not a key of gRPC metadata: lower-case letters, digits and -_., "
            "not beginning with grpc- and not ending in -bin"
        )
    return value


def _paths(value: object) -> object:
    """Environment variables and flags give one string."""
    if isinstance(value, str):
        return [part for part in value.split(os.pathsep) if part]
    return value


def _addresses(value: object) -> object:
    """Environment variables and flags give one string."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Address = Annotated[str, AfterValidator(_address)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(_addresses)]
OptionalAddress = Annotated[str, AfterValidator(_address_or_empty)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_paths)]
PolicyId = Annotated[str, AfterValidator(_policy)]
Rules = Annotated[tuple[Annotated[str, AfterValidator(_rule)], ...], BeforeValidator(_addresses)]
MetadataKey = Annotated[str, AfterValidator(_metadata_key)]


class ServerSettings(_Section):
    """Where the sidecar listens and how much it takes at once."""

    grpc_address: OptionalAddress = _setting(
        "127.0.0.1:50051",
        "Address of the gRPC API. Port 0 takes a free one; empty listens on no TCP port.",
    )
    uds_path: Path | None = _setting(
        None, "Unix domain socket of the gRPC API, besides the address. Made when serving starts."
    )
    http_address: OptionalAddress = _setting(
        "127.0.0.1:9091", "Address of health and metrics over HTTP. Empty switches them off."
    )
    max_message_bytes: int = _setting(
        16 * 1024 * 1024,
        "Largest gRPC message taken or sent. A larger one is RESOURCE_EXHAUSTED.",
        "bytes",
        ge=64 * 1024,
        le=2**31 - 1,
    )
    max_concurrent_calls: int = _setting(
        1000,
        "gRPC calls served at once, streams included. More are RESOURCE_EXHAUSTED.",
        "calls",
        ge=1,
    )
    policy_metadata: MetadataKey = _setting(
        "x-llm-policy",
        "Key of a gRPC call's metadata that names the policy of requests that name none. Empty: "
        "none.",
    )
    drain_seconds: float = _setting(
        10.0,
        "On stop, health flips first; calls in flight then have this long to end.",
        "s",
        ge=0,
        le=3600,
    )
    reflection: bool = _setting(True, "Offer gRPC server reflection.")
    channelz: bool = _setting(True, "Offer the channelz service.")

    @model_validator(mode="after")
    def _listens(self) -> ServerSettings:
        if not self.grpc_address and self.uds_path is None:
            raise ValueError("nothing to listen on; give grpc_address or uds_path")
        return self


class PolicySettings(_Section):
    """Where policies and the model catalog come from."""

    paths: Paths = _setting(
        (),
        "Files and folders of *.yaml and *.yml with policies and the model catalog. In the "
        f"environment separated by `{os.pathsep}`.",
    )
    default_policy: PolicyId = _setting(
        "default", "The policy of requests that name none: an id, or a resource name."
    )
    rules: Rules = _setting(
        (),
        "HEADER=VALUE=>POLICY: requests with that value of the header are decided by that policy, "
        "if they name none; the first that fits counts. HTTP headers of what comes through Envoy, "
        "metadata of gRPC calls; in the environment separated by commas.",
    )
    compiled_max_bytes: int = _setting(
        128 * 1024 * 1024,
        "Memory for compiled policies, by estimate; one of 34 routes takes some 80 kB. Those used "
        "least recently go first and are compiled again when they are needed, in milliseconds. "
        "Inline policies have a small memory of their own.",
        "bytes",
        ge=0,
    )


class RoutingSettings(_Section):
    """How long a decision may take."""

    decision_budget_ms: int = _setting(
        # On two CPU cores a warm decision takes 50 to 150 ms, one that has to read a long
        # conversation several hundred; the chosen LLM then takes longer than a second. A budget
        # much below a second would turn the slow ones into fallbacks, one much above would be felt
        # whenever the model server hangs.
        1000,
        "Longest a decision may take; the caller's own deadline shortens it. After it the answer "
        "is a fallback with reason `deadline_exceeded`.",
        "ms",
        ge=1,
        le=60_000,
    )
    reserve_ms: int = _setting(
        20,
        "Part of the budget, or of the caller's deadline, kept for sending the answer.",
        "ms",
        ge=0,
        le=10_000,
    )
    max_waiting: int = _setting(
        64,
        "Decisions that may wait for the routing model at once. More are fallbacks with reason "
        "`overloaded`, and so is, at once, what could not be answered within its budget by the "
        "time that decisions took lately.",
        "decisions",
        ge=1,
    )

    @model_validator(mode="after")
    def _reserve_fits(self) -> RoutingSettings:
        if self.reserve_ms >= self.decision_budget_ms:
            raise ValueError(
                f"reserve_ms ({self.reserve_ms}) leaves nothing of decision_budget_ms "
                f"({self.decision_budget_ms}); make it smaller"
            )
        return self


class CacheSettings(_Section):
    """Decisions of the routing model that are kept. Fallbacks never are."""

    max_bytes: int = _setting(
        32 * 1024 * 1024,
        "Memory for decisions, by estimate; the least recently used go first. 0: none are kept.",
        "bytes",
        ge=0,
    )
    ttl_seconds: float = _setting(
        600.0,
        "How long one is kept. The same conversation under the same policy gets the same decision "
        "from the routing model, so this bounds how long a rare misreading lasts, not how stale a "
        "decision is.",
        "s",
        gt=0,
    )


class PinSettings(_Section):
    """Routes that conversations and tasks keep, as their policies say."""

    max_entries: int = _setting(
        50_000,
        "Most that are remembered, of about 400 bytes each; the least recently used go first. 0: "
        "none are, and each request is decided by itself.",
        "pins",
        ge=0,
    )
    ttl_seconds: float = _setting(
        # Providers keep their prompt caches for five minutes to an hour after the last use; then
        # there is little left that a switch could cost.
        3600.0,
        "How long one is kept after its last use.",
        "s",
        gt=0,
    )


class TritonSettings(_Section):
    """The model server."""

    address: Address = _setting("127.0.0.1:8001", "gRPC address of Triton.")
    addresses: Addresses = _setting(
        (),
        "gRPC addresses of several Tritons that serve the same model, instead of `address`; in the "
        "environment separated by commas. Each decision goes where it is answered soonest; one "
        "that fails is asked again when it is back and holds the policies in use.",
    )
    affinity: bool = _setting(
        False,
        "With several addresses: keep each policy at one of them while that can answer in time, so "
        "that many policies share the memory that Tritons have for prefixes.",
    )
    model: str = _setting("tensorrt_llm", "Name of the model in Triton's repository.", min_length=1)
    interface: Literal["tensorrt_llm", "llmapi", "vllm"] = _setting(
        "tensorrt_llm",
        "What the model takes. `tensorrt_llm`: token ids, as TensorRT-LLM's engines and the CPU "
        "model do. `llmapi` and `vllm`: text, as TensorRT-LLM's `llmapi` model and Triton's vLLM "
        "models do, for Arch-Router's formats alone; what is lost is in docs/gpu.md.",
    )
    warm_timeout_ms: int = _setting(
        30_000, "Longest the first pass over a policy's routes may take.", "ms", ge=1
    )
    keepalive_ms: int = _setting(
        10_000, "Time between HTTP/2 pings on an idle connection.", "ms", ge=1000
    )
    keepalive_timeout_ms: int = _setting(
        5_000, "A ping unanswered for this long closes the connection.", "ms", ge=100
    )
    breaker_failures: int = _setting(
        3,
        "Calls that fail in a row before the breaker opens: decisions are then fallbacks with "
        "reason `breaker_open`, without waiting.",
        "calls",
        ge=1,
    )
    breaker_probe_interval_ms: int = _setting(
        100, "Time between probes while the breaker is open.", "ms", ge=10
    )


class RoutingModelSettings(_Section):
    """The model that decides."""

    directory: Path | None = _setting(
        None,
        "Folder of the engine. manifest.json, router.json and tokenizer.json are enough where the "
        "model server is elsewhere. Needed to serve.",
    )
    prompt_format: str | None = _setting(
        None, "Prompt format instead of the one that router.json names, e.g. `compact-v1`."
    )
    max_prompt_tokens: int | None = _setting(
        None, "Longest prompt, instead of the length that router.json gives.", "tokens", ge=64
    )
    max_conversation_tokens: int | None = _setting(
        None,
        "Longest conversation shown to the routing model; older turns go first. By default, for an "
        "engine of a CPU, what it was measured to read there in half of the budget when it was "
        "built, from 64 to 256; else whatever the prompt has room for.",
        "tokens",
        ge=64,
    )


class LoggingSettings(_Section):
    """What is logged, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = _setting("info", "Least grave entry.")
    format: Literal["auto", "json", "pretty"] = _setting(
        "auto", "`auto`: pretty on a terminal, else JSON, one object a line."
    )
    log_message_text: bool = _setting(
        False, "Log the text of messages with each decision. They may hold personal data."
    )


class Settings(BaseSettings):
    """All settings. Made by `load_settings`."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    server: ServerSettings = ServerSettings()
    policies: PolicySettings = PolicySettings()
    policy_store: PolicyStoreSettings = PolicyStoreSettings()
    routing: RoutingSettings = RoutingSettings()
    cache: CacheSettings = CacheSettings()
    pins: PinSettings = PinSettings()
    triton: TritonSettings = TritonSettings()
    routing_model: RoutingModelSettings = RoutingModelSettings()
    ext_proc: ExtProcSettings = ExtProcSettings()
    logging: LoggingSettings = LoggingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources that `load_settings` read, and no other: it knows where each value is from,
        and the library's own environment source ignores variables it does not know."""
        assert isinstance(init_settings, InitSettingsSource)
        sources = init_settings.init_kwargs.get("sources", ())
        return tuple(InitSettingsSource(settings_cls, source.values) for source in sources)


@dataclass(frozen=True)
class _Source:
    """Values by section and key, and the spelling of the place each comes from."""

    values: dict[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)
    default_place: str = ""

    def place(self, path: str) -> str | None:
        """Where the value at `path` is given; None if this source does not give it."""
        node: Any = self.values
        for part in path.split("."):
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return self.places.get(path, self.default_place)


def load_settings(
    config: Path | None = None,
    flags: Mapping[str, Mapping[str, object]] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Reads all sources.

    Args:
        config: the YAML file; None: the one that `SIDECAR_CONFIG` names, if it does.
        flags: values by section and key; those that are None were not given.

    Raises:
        SettingsError: with every problem of every source.
    """
    problems: list[str] = []
    if config is None and environ.get(CONFIG_VARIABLE):
        config = Path(environ[CONFIG_VARIABLE])
    sources = [
        _from_flags(flags or {}),
        _from_environment(environ, problems),
        _from_file(config, problems) if config is not None else _Source({}),
    ]
    try:
        settings = Settings(sources=sources)  # type: ignore[call-arg]
    except ValidationError as wrong:
        problems += [_problem(details, sources) for details in wrong.errors(include_url=False)]
    if problems:
        raise SettingsError(problems)
    return settings


def _from_flags(flags: Mapping[str, Mapping[str, object]]) -> _Source:
    values = {
        section: {key: value for key, value in keys.items() if value is not None}
        for section, keys in flags.items()
    }
    return _Source({section: keys for section, keys in values.items() if keys}, {}, "flag")


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> _Source:
    """Variables `SIDECAR_<SECTION>__<KEY>`.

    Others that begin with SIDECAR_ are not settings: Kubernetes sets SIDECAR_SERVICE_HOST and the
    like for a service of that name.
    """
    known = {variable(section, key): (section, key) for section, key, _ in _all_fields()}
    values: dict[str, dict[str, object]] = {}
    places: dict[str, str] = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or "__" not in name:
            continue
        if name not in known:
            meant = closest(name, known)
            remedy = f"did you mean {meant}?" if meant else "see docs/settings.md"
            problems.append(f"{name}: unknown setting; {remedy}")
            continue
        section, key = known[name]
        values.setdefault(section, {})[key] = environ[name]
        places[f"{section}.{key}"] = name
    return _Source(dict(values), places, "environment")


def _from_file(path: Path, problems: list[str]) -> _Source:
    try:
        text, unreadable = decode(path.read_bytes())
    except OSError as wrong:
        problems.append(f"{path}: cannot be read: {wrong.strerror}")
        return _Source({})
    documents, findings = read_documents(text)
    findings = [unreadable] if unreadable else findings
    findings += [finding for document in documents for finding in document.findings]
    for finding in findings:
        place = f"{path}:{finding.line}" if finding.line else str(path)
        problems.append(": ".join(part for part in (place, finding.path, finding.message) if part))
    if len(documents) > 1:
        problems.append(f"{path}:{documents[1].line}: a second document; settings are one")
    if findings or len(documents) != 1:
        return _Source({})
    return _file_values(path, documents[0], problems)


def _file_values(path: Path, document: Document, problems: list[str]) -> _Source:
    if not isinstance(document.value, dict):
        problems.append(f"{path}:{document.line}: must be a mapping of sections to settings")
        return _Source({})
    # A section whose keys are all commented out reads as null.
    values = {key: {} if value is None else value for key, value in document.value.items()}
    places = {where: f"{path}:{line}" for where, line in document.lines.items()}
    return _Source(values, places, str(path))


def _problem(details: ErrorDetails, sources: list[_Source]) -> str:
    """One line: where the value was given, its path, what is wrong with it."""
    path = ".".join(str(part) for part in details["loc"])
    places = [place for source in sources if (place := source.place(path)) is not None]
    place = places[0] if places else ""
    if details["type"] == "extra_forbidden":
        message = _unknown_key(details["loc"])
    elif details["type"] == "value_error":
        message = str(details["ctx"]["error"])
    else:
        message = f"{details['msg'].replace('Input should', 'must')}, not {_shown(details)}"
    return ": ".join(part for part in (place, path, message) if part)


def _shown(details: ErrorDetails) -> str:
    value = details["input"]
    return quoted(value) if isinstance(value, str) else quoted(str(value))[1:-1]


def _unknown_key(loc: tuple[int | str, ...]) -> str:
    if len(loc) == 1:
        known = list(Settings.model_fields)
        what = "section"
    else:
        known = list(_section(str(loc[0])).model_fields)
        what = "setting"
    key = str(loc[-1])
    if (meant := closest(key, known)) is not None:
        return f"unknown {what} {quoted(key)}; did you mean {quoted(meant)}?"
    return f"unknown {what} {quoted(key)}; there are {', '.join(known)}"


def variable(section: str, key: str) -> str:
    """Name of the environment variable of a setting."""
    return f"{ENV_PREFIX}{section}__{key}".upper()


def _section(name: str) -> type[_Section]:
    annotation = Settings.model_fields[name].annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, _Section)
    return annotation


def _all_fields() -> Iterator[tuple[str, str, FieldInfo]]:
    for section in Settings.model_fields:
        for key, info in _section(section).model_fields.items():
            yield section, key, info


# --- Reference ------------------------------------------------------------------------------------

_INTRODUCTION = """\
# Settings

<!-- Made by `python -m sidecar.config docs/settings.md`; a test compares the two. -->

Each setting can be given in four places. The first that gives it counts:

1. a flag of `sidecar serve` or `sidecar up`, where the command has one;
2. an environment variable: `SIDECAR_`, the section, two underscores, the key;
3. the YAML file that `--config` or `SIDECAR_CONFIG` names;
4. the default.

Unknown keys and variables (`SIDECAR_…__…`) are errors, and so are values out of range; all of them
are reported at once, each with its place. Relative paths count from the working directory.

```yaml
triton:
  address: triton.internal:8001
policies:
  paths: [/etc/sidecar/policies]
```
"""


def reference() -> str:
    """The settings as Markdown."""
    parts = [_INTRODUCTION]
    for section in Settings.model_fields:
        parts.append(f"\n## {section}\n\n{_section(section).__doc__}\n\n")
        parts.append("| Key | Environment variable | Default | Unit | |\n|---|---|---|---|---|\n")
        for key, info in _section(section).model_fields.items():
            parts.append(_row(section, key, info))
    return "".join(parts)


def _row(section: str, key: str, info: FieldInfo) -> str:
    extra = info.json_schema_extra
    unit = extra.get("unit", "") if isinstance(extra, dict) else ""
    cells = [f"`{key}`", f"`{variable(section, key)}`", _default(info), unit, info.description]
    return f"| {' | '.join(str(cell) for cell in cells)} |\n"


def _default(info: FieldInfo) -> str:
    assert info.default is not PydanticUndefined
    if info.default is None or info.default in ((), ""):
        return "none"
    if isinstance(info.default, bool):
        return f"`{str(info.default).lower()}`"
    if isinstance(info.default, tuple):
        return f"`{', '.join(info.default)}`"
    return f"`{info.default:g}`" if isinstance(info.default, float) else f"`{info.default}`"


if __name__ == "__main__":
    if len(sys.argv) == 2:
        Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
    else:
        sys.stdout.write(reference())
