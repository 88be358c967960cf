from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from sidecar.config import (
    Settings,
    SettingsError,
    load_settings,
    reference,
    variable,
)

REPOSITORY = Path(__file__).parents[1]
BUDGET = variable("routing", "decision_budget_ms")

Flags = Mapping[str, Mapping[str, object]]


def config_file(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def problems(
    config: Path | None = None, flags: Flags | None = None, environ: Mapping[str, str] | None = None
) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load_settings(config, flags, environ or {})
    return raised.value.problems


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tracing: {endpoint: 'http://me:hunter2@h:4317'}", '"http://…@h:4317" is not the address'),
        ("tracing: {endpoint: 'http://h:4317/x'}", '"http://h:4317/x" is not the address'),
        ("policy_store: {url: ['postgresql://me:hunter2@h/db']}", "['postgresql://…@h/db']"),
        ("policy_store: postgresql://me:hunter2@h/db", 'not "postgresql://…@h/db"'),
        (f"policy_store: postgresql://me:hunter2{'x' * 1000}@h/db", 'not "postgresql://…@'),
        (
            "policy_store: {url: 'postgresql://me@h:x/db'}",
            "like postgresql://user@host:5432/database",
        ),
    ],
)
def test_no_password_of_a_url_is_shown(tmp_path: Path, text: str, shown: str) -> None:
    (problem,) = problems(config_file(tmp_path, text))

    assert shown in problem
    assert "hunter2" not in problem


def test_defaults_are_valid() -> None:
    assert load_settings(environ={}) == Settings()
    assert load_settings(environ={}).routing.decision_budget_ms == 1000


def test_flag_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    path = config_file(
        tmp_path,
        "routing: {decision_budget_ms: 200, reserve_ms: 1, max_waiting: 2}\n"
        "triton: {address: 'file:1'}\n",
    )
    environ = {BUDGET: "300", variable("routing", "reserve_ms"): "3"}
    flags = {"routing": {"decision_budget_ms": 400, "reserve_ms": None}}
    found = load_settings(path, flags, environ)
    assert found.routing.decision_budget_ms == 400
    assert found.routing.reserve_ms == 3
    assert found.routing.max_waiting == 2
    assert found.triton.address == "file:1"
    assert found.triton.model == "tensorrt_llm"


def test_environment_names_the_file_unless_the_flag_does(tmp_path: Path) -> None:
    named = config_file(tmp_path, "logging: {level: debug}\n")
    environ = {"SIDECAR_CONFIG": str(named)}
    assert load_settings(environ=environ).logging.level == "debug"
    (tmp_path / "other").mkdir()
    other = config_file(tmp_path / "other", "logging: {level: error}\n")
    assert load_settings(other, environ=environ).logging.level == "error"


def test_environment_gives_every_type() -> None:
    found = load_settings(
        environ={
            "SIDECAR_SERVER__REFLECTION": "false",
            "SIDECAR_SERVER__UDS_PATH": "/run/sidecar.sock",
            "SIDECAR_SERVER__DRAIN_SECONDS": "2.5",
            "SIDECAR_POLICIES__PATHS": "/etc/a:/etc/b",
            "SIDECAR_ROUTING_MODEL__MAX_PROMPT_TOKENS": "2048",
            "SIDECAR_LOGGING__FORMAT": "json",
        }
    )
    assert found.server.reflection is False
    assert found.server.uds_path == Path("/run/sidecar.sock")
    assert found.server.drain_seconds == 2.5
    assert found.policies.paths == (Path("/etc/a"), Path("/etc/b"))
    assert found.routing_model.max_prompt_tokens == 2048
    assert found.logging.format == "json"


def test_section_without_keys_means_its_defaults(tmp_path: Path) -> None:
    path = config_file(tmp_path, "routing:\n  # decision_budget_ms: 1\nlogging: {level: debug}\n")
    assert load_settings(path, environ={}).routing == Settings().routing


def test_empty_paths_of_policies_are_none(tmp_path: Path) -> None:
    path = config_file(tmp_path, "policies: {paths: ['', a]}")
    assert load_settings(path, environ={}).policies.paths == (Path("a"),)


def test_a_path_that_is_empty_is_none(tmp_path: Path) -> None:
    paths = {
        "server": ("uds_path", "tls_certificate", "tls_key", "tls_client_ca"),
        "routing_model": ("directory",),
        "ext_proc": ("uds_path",),
    }
    environ = {variable(section, key): "" for section, keys in paths.items() for key in keys}
    assert load_settings(environ=environ) == Settings()
    path = config_file(tmp_path, "server: {uds_path: '', tls_key: ''}\n")
    assert load_settings(path, environ={}) == Settings()


def test_a_sidecar_may_listen_on_a_socket_alone(tmp_path: Path) -> None:
    path = config_file(tmp_path, "server: {uds_path: /run/s, grpc_address: '', http_address: ''}")
    assert load_settings(path, environ={}).server.http_address == ""


def test_wrong_item_is_told_though_the_file_has_a_shorter_list(tmp_path: Path) -> None:
    path = config_file(tmp_path, "triton: {addresses: ['a:1']}")
    with pytest.raises(SettingsError, match=r"SIDECAR_TRITON__ADDRESSES: triton\.addresses\.1: "):
        load_settings(path, environ={"SIDECAR_TRITON__ADDRESSES": "a:1,b"})


def test_variables_that_kubernetes_sets_for_a_service_are_not_settings() -> None:
    environ = {"SIDECAR_SERVICE_HOST": "10.0.0.1", "SIDECAR_PORT_50051_TCP_PORT": "50051"}
    assert load_settings(environ=environ) == Settings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trition: {}", '1: trition: unknown section "trition"; did you mean "triton"?'),
        (
            "triton:\n  adress: a:1",
            '2: triton.adress: unknown setting "adress"; did you mean "address"?',
        ),
        (
            "policies:\n  zzz: 1",
            '2: policies.zzz: unknown setting "zzz"; there are paths, default_policy',
        ),
        (
            "triton: {address: localhost}",
            '1: triton.address: "localhost" is not host:port; write it like 127.0.0.1:50051',
        ),
        (
            "triton: {address: 'localhost:99999'}",
            '1: triton.address: "localhost:99999" is not host:port; write it like 127.0.0.1:50051',
        ),
        (
            "tracing: {endpoint: 'collector:4317'}",
            '1: tracing.endpoint: "collector:4317" is not the address of an OTLP receiver over '
            "gRPC; write it like http://127.0.0.1:4317, or https://collector.internal:4317 for TLS",
        ),
        (
            "tracing: {endpoint: 'http://collector:4318/v1/traces'}",
            '1: tracing.endpoint: "http://collector:4318/v1/traces" is not the address of an OTLP '
            "receiver over gRPC; write it like http://127.0.0.1:4317, or "
            "https://collector.internal:4317 for TLS",
        ),
        (
            "routing:\n  max_waiting: 0",
            "2: routing.max_waiting: must be greater than or equal to 1, not 0",
        ),
        (
            "routing: {reserve_ms: 1000}",
            "1: routing: reserve_ms (1000) leaves nothing of decision_budget_ms (1000); "
            "make it smaller",
        ),
        (
            "logging: {level: loud}",
            "1: logging.level: must be 'debug', 'info', 'warning' or 'error', not \"loud\"",
        ),
        (
            "server: {grpc_address: ''}",
            "1: server: nothing to listen on; give grpc_address or uds_path",
        ),
        (
            "server: {http_address: '127.0.0.1:50051'}",
            '1: server: grpc_address and http_address are both "127.0.0.1:50051"; give one of them',
        ),
        (
            "server: {tls_certificate: a.crt}",
            "1: server: tls_certificate needs tls_key; give both, or neither for plaintext",
        ),
        (
            "server: {tls_key: a.key}",
            "1: server: tls_key needs tls_certificate; give both, or neither for plaintext",
        ),
        (
            "server: {tls_client_ca: ca.crt}",
            "1: server: tls_client_ca needs TLS; give tls_certificate and tls_key too, or leave it "
            "out",
        ),
        (
            "server: {tls_certificate: a.crt, tls_key: a.key, grpc_address: '', uds_path: a.sock}",
            "1: server: tls_certificate is for grpc_address, which is empty, and sockets have no "
            "TLS; give an address, or leave the settings tls_… out",
        ),
        (
            "policies:\n  rules:\n    - x-team=a=>b\n    - X-Team=a=>b",
            '4: policies.rules.1: "X-Team=a=>b" is not HEADER=VALUE=>POLICY',
        ),
        ("server: [a]", "1: server: must be a mapping of settings, not ['a']"),
        ("policies: {paths: {a: 1}}", "1: policies.paths: must be a list, not {'a': 1}"),
        ("server: {uds_path: 5}", "1: server.uds_path: must be a path, not 5"),
        ("triton: {model: ''}", '1: triton.model: must be a text with something in it, not ""'),
        ("cache: {ttl_seconds: .inf}", "1: cache.ttl_seconds: must be a finite number, not inf"),
        (
            "policies: {default_policy: My Policy}",
            '1: policies.default_policy: "My Policy" is not a policy; write an id of the namespace '
            "`default`, or namespaces/<namespace>/policies/<policy>",
        ),
        (
            "server: {policy_metadata: grpc-policy}",
            '1: server.policy_metadata: "grpc-policy" is not a key of gRPC metadata: lower-case',
        ),
        (
            "logging: {level: info}\nlogging: {}",
            '2: logging: duplicate key "logging", first on line 1; keep one',
        ),
        ("- a", "1: must be a mapping of sections to settings"),
        ("a: 1\n---\nb: 1", "3: a second document; settings are one"),
        ("a: [", "1: not YAML, column 5: "),
    ],
)
def test_wrong_value_in_the_file_is_named_with_its_line(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = config_file(tmp_path, text)
    assert problems(path)[0].startswith(f"{path}:{expected}")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            {"SIDECAR_TRITON__ADRESS": "a:1"},
            "SIDECAR_TRITON__ADRESS: unknown setting; did you mean SIDECAR_TRITON__ADDRESS?",
        ),
        (
            {BUDGET: "fast"},
            f"{BUDGET}: routing.decision_budget_ms: must be a valid integer, unable to parse "
            'string as an integer, not "fast"',
        ),
        (
            {"SIDECAR_TRITON_ADDRESS": "a:1"},
            "SIDECAR_TRITON_ADDRESS: unknown setting; did you mean SIDECAR_TRITON__ADDRESS?",
        ),
        (
            {"SIDECAR_POLICIES__RULES": "X-Team=a=>b"},
            'SIDECAR_POLICIES__RULES: policies.rules.0: "X-Team=a=>b" is not HEADER=VALUE=>POLICY, '
            "with the header in lower case, such as x-team=search=>search-team",
        ),
        (
            {"SIDECAR_POLICIES__RULES": "x-team=a=>b,x-team=c=>My Policy"},
            'SIDECAR_POLICIES__RULES: policies.rules.1: "My Policy" is not a policy; write an id '
            "of the namespace `default`, or namespaces/<namespace>/policies/<policy>",
        ),
        ({"SIDECAR_CONFIG": "none.yaml"}, "none.yaml: cannot be read: No such file or directory"),
    ],
)
def test_wrong_variable_is_named(environ: Mapping[str, str], expected: str) -> None:
    assert problems(environ=environ) == [expected]


def test_problems_of_all_sources_come_at_once(tmp_path: Path) -> None:
    path = config_file(tmp_path, "logging: {level: loud}\n")
    found = problems(path, {"triton": {"address": "x"}}, {"SIDECAR_ROUTING__MAX_WAITING": "0"})
    assert {line.split(":")[0] for line in found} == {
        "flag",
        "SIDECAR_ROUTING__MAX_WAITING",
        str(path),
    }


def test_committed_reference_is_the_one_made_from_the_code() -> None:
    committed = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert committed == reference(), "run: python -m sidecar.config docs/settings.md"


def test_every_setting_is_described() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+?) \| (.*?) \| (.*?) \|$", reference(), re.M)
    declared = sum(
        len(type(getattr(Settings(), name)).model_fields) for name in Settings.model_fields
    )
    assert len(rows) == declared
    assert all(description.endswith(".") for *_, description in rows)
