"""Settings: one section per component.

Sources, each over the next: flags, environment (`SIDECAR_TRITON__ADDRESS`), YAML file (`--config`
or `SIDECAR_CONFIG`), defaults. Unknown keys are errors wherever they stand. What can be set is in
`config_sections`, `config_policy_store` and `config_ext_proc`; the reference `docs/settings.md` is
made from them: `python -m sidecar.config docs/settings.md`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from sidecar.config_ext_proc import ExtProcSettings
from sidecar.config_fields import Section
from sidecar.config_policy_store import PolicyStoreSettings
from sidecar.config_sections import (
    AdminSettings,
    CacheSettings,
    LoggingSettings,
    MetricsSettings,
    PinSettings,
    PolicySettings,
    RoutingModelSettings,
    RoutingSettings,
    ServerSettings,
    TracingSettings,
    TritonSettings,
)
from sidecar.policies.findings import closest, item, member, quoted
from sidecar.policies.yaml_source import Document, decode, read_documents

__all__ = [
    "CONFIG_VARIABLE",
    "ENV_PREFIX",
    "AdminSettings",
    "CacheSettings",
    "ExtProcSettings",
    "LoggingSettings",
    "MetricsSettings",
    "PinSettings",
    "PolicySettings",
    "PolicyStoreSettings",
    "RoutingModelSettings",
    "RoutingSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "TracingSettings",
    "TritonSettings",
    "load_settings",
    "reference",
    "variable",
]

ENV_PREFIX = "SIDECAR_"
CONFIG_VARIABLE = "SIDECAR_CONFIG"


class SettingsError(Exception):
    """Settings that cannot be used.

    `problems` has a line for each: where the value was given, its path, what is wrong, the remedy.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    admin: AdminSettings = AdminSettings()
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

    def place(self, loc: Sequence[int | str]) -> str | None:
        """Where the value at `loc` is given; None if this source does not give it."""
        node: Any = self.values
        path, found = "", self.default_place
        for part in loc:
            if isinstance(node, dict) and part in node:
                node, path = node[part], member(path, str(part))
            elif isinstance(part, int) and isinstance(node, list | tuple):
                if part >= len(node):
                    # Of another source's list, which is longer.
                    return None
                node, path = node[part], item(path, part)
            else:
                # A list may be given as one string.
                return found if isinstance(part, int) and isinstance(node, str) else None
            found = self.places.get(path, self.default_place)
        return found


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
    like for a service of that name. One that has but one underscore too few is meant to be one.
    """
    known = {variable(section, key): (section, key) for section, key, _ in _all_fields()}
    mistyped = {name.replace("__", "_"): name for name in known}
    values: dict[str, dict[str, object]] = {}
    places: dict[str, str] = {}
    for name in sorted(environ):
        if name in mistyped:
            problems.append(f"{name}: unknown setting; did you mean {mistyped[name]}?")
            continue
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


_IN_OUR_WORDS = {
    "model_type": "must be a mapping of settings",
    "path_type": "must be a path",
    "string_too_short": "must be a text with something in it",
    "tuple_type": "must be a list",
}
"""For those of pydantic's that speak of its classes."""


_CREDENTIALS = re.compile(r"://[^\s:/]*:\S*[@…]")
"""User and password of a URL, in whatever setting; its end may be cut off."""


def _problem(details: ErrorDetails, sources: list[_Source]) -> str:
    """One line: where the value was given, its path, what is wrong with it."""
    path = ".".join(str(part) for part in details["loc"])
    places = [place for source in sources if (place := source.place(details["loc"])) is not None]
    place = places[0] if places else ""
    if details["type"] == "extra_forbidden":
        message = _unknown_key(details["loc"])
    elif details["type"] == "value_error":
        message = str(details["ctx"]["error"])
    else:
        wrong = _IN_OUR_WORDS.get(details["type"]) or details["msg"].replace("Input should", "must")
        message = f"{wrong}, not {_shown(details)}"
    message = _CREDENTIALS.sub("://…@", message)
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


def _section(name: str) -> type[Section]:
    annotation = Settings.model_fields[name].annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, Section)
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

Unknown keys and variables (`SIDECAR_…__…`) are errors, and so are a variable with one underscore
where two belong and values out of range; all of them are reported at once, each with its place. An
empty path is none; relative paths count from the working directory. `sidecar settings` shows what
file and environment make of them, as a file that can be used.

```yaml
triton:
  address: triton.internal:8001
policies:
  paths: [/etc/sidecar/policies]
```

Other variables are no settings: `SIDECAR_ADDRESS` is the sidecar that `sidecar route` and
`sidecar policy` ask, `SIDECAR_TLS_CA`, `SIDECAR_TLS_CERTIFICATE`, `SIDECAR_TLS_KEY` and
`SIDECAR_TLS_SERVER_NAME` are how they and `sidecar eval --target` reach one by TLS (their options
`--tls-…`), `LLM_ROUTING_SIDECAR_CACHE` is the folder of what is fetched and built, else
`llm-routing-sidecar` in `XDG_CACHE_HOME` or `~/.cache`. Logs and sockets of what runs are in it as
well, or in the folder for temporary files where its path is long or has blanks.
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
