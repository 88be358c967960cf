"""What can be said about Envoy before anything is started."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from sidecar.cli.failures import Failure
from sidecar.cli.gateway import GatewayWish, misplaced, options_of, read_providers
from sidecar.cli.up import EXAMPLES, check_gateway
from sidecar.config import load_settings
from sidecar.core.policy import Model
from sidecar.local import LocalError, free_ports
from sidecar.policies import load_policies


def test_port_that_is_taken_is_named_with_its_option() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(Failure, match=rf"127\.0\.0\.1:{port}.*--envoy-port"):
            GatewayWish(port).check()


def test_envoy_needs_the_service_that_it_asks() -> None:
    settings = load_settings(flags={"ext_proc": {"enabled": False}}, environ={})

    with pytest.raises(Failure, match=r"ext_proc\.enabled"):
        check_gateway(GatewayWish(free_ports(1)[0]), settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("header_prefix", "x-our-"),
        ("clear_route_cache", False),
        ("dynamic_metadata", False),
        ("headers", ["route", "model"]),
    ],
)
def test_setting_that_the_shipped_configuration_is_not_made_for_is_refused(
    key: str, value: object
) -> None:
    settings = load_settings(flags={"ext_proc": {key: value}}, environ={})
    port = free_ports(1)[0]

    with pytest.raises(Failure, match=rf"ext_proc\.{key}"):
        check_gateway(GatewayWish(port), settings)
    # In the shadow nothing is done to requests.
    check_gateway(GatewayWish(port, variant="shadow"), settings)


def test_envoy_is_told_what_the_settings_say_to_the_sidecar(tmp_path: Path) -> None:
    given = {
        "message_timeout_ms": 2000,
        "max_message_timeout_ms": 3000,
        "max_body_bytes": 14_000_000,
        "aliases": ["auto", "cheap=travel"],
    }
    settings = load_settings(flags={"ext_proc": given}, environ={})

    options = options_of(GatewayWish(1), tmp_path, settings)

    assert (options.message_timeout_s, options.max_message_timeout_s) == (2, 3)
    assert options.buffer_bytes == 14_000_000
    assert options.aliases == ("auto", "cheap")


@pytest.mark.parametrize("key", ["grpc_address", "http_address"])
def test_port_of_the_sidecar_is_not_envoys(key: str) -> None:
    settings = load_settings(environ={})
    port = int(getattr(settings.server, key).rpartition(":")[2])

    with pytest.raises(Failure, match=rf"--envoy-port {port} is the port of server\.{key}"):
        check_gateway(GatewayWish(port), settings)


def test_providers_with_a_key_are_those_whose_file_has_one(tmp_path: Path) -> None:
    (tmp_path / "openai").write_text("\ufeffsk-secret\n")
    (tmp_path / "anthropic").write_text("\n")

    assert GatewayWish(free_ports(1)[0], tmp_path).with_key() == ["openai"]


@pytest.mark.parametrize("content", [b"a\nb", b"OPENAI \xff", "sk-…".encode()])
def test_file_that_is_no_key_is_named_before_anything_starts(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "openai").write_bytes(content)

    with pytest.raises(LocalError) as raised:
        GatewayWish(free_ports(1)[0], tmp_path).check()
    assert str(raised.value) == (
        f"{tmp_path / 'openai'}: must hold a key and nothing else, on one line"
    )


def test_key_that_cannot_be_read_is_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "openai").mkdir()

    with pytest.raises(LocalError, match="openai: cannot be read: Is a directory"):
        GatewayWish(free_ports(1)[0], tmp_path).check()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("OpenAI", "did you mean openai?"),
        ("anthropic.txt", "did you mean anthropic?"),
        ("bedrock", "there are openai, anthropic"),
    ],
)
def test_key_of_no_provider_is_told(tmp_path: Path, name: str, remedy: str) -> None:
    for each in (name, ".hidden", "mistral"):
        (tmp_path / each).write_text("key")

    (told,) = GatewayWish(free_ports(1)[0], tmp_path).stray_keys()

    assert told.startswith(f"{tmp_path / name} is the key of no provider: {remedy}")


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ("", "has no cluster: Envoy sends its requests to the default provider of their API"),
        ("antropic", 'the cluster "antropic", which Envoy does not have: .*mean "anthropic"'),
        ("bedrock", "the cluster .bedrock.*: its requests fail; set one of openai, anthropic"),
        # Envoy's cluster of the sidecar is no provider.
        ("llm_router", "which Envoy does not have"),
    ],
)
def test_model_that_envoy_sends_elsewhere_is_named(cluster: str, said: str) -> None:
    right = Model("openai/mini", "mini", cluster="openai")

    (warning,) = misplaced([right, Model("anthropic/large", "large", cluster=cluster)])

    assert warning.startswith('"anthropic/large" has ')
    assert re.search(said, warning)


def test_every_model_of_the_examples_has_a_cluster_of_envoy() -> None:
    catalog = load_policies([EXAMPLES / "policies"]).catalog

    assert list(misplaced(catalog.values())) == []


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("openai=http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("openai=https://litellm.internal/", "https://litellm.internal"),
        ("openai=http://[::1]:8000", "http://[::1]:8000"),
        # Whoever stands in for a shipped provider may have a certificate for the provider's name.
        ("openai=https://127.0.0.1", "https://127.0.0.1"),
    ],
)
def test_provider_elsewhere_is_read(text: str, url: str) -> None:
    assert read_providers([text]) == {"openai": url}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("openai", "write NAME=http://HOST:PORT"),
        ("=http://127.0.0.1:8000", "write NAME="),
        ("openai=127.0.0.1:8000", "write NAME="),
        ("openai=ftp://127.0.0.1", "write NAME="),
        ("openai=http://:8000", "write NAME="),
        ("openai=http://127.0.0.1:80000", "write NAME="),
        ("openai=http://[::1", "write NAME="),
        ("openai=http://[::1%eth0]:8000", "write NAME="),
        ("openai=http://a\0b:8000", "write NAME="),
        ("openai=http://127.0.0.1:8000/v1", "the path is that of each request"),
        ("openai=http://me:secret@127.0.0.1", "keys come from --envoy-keys"),
        ("llm_router=http://127.0.0.1:8000", "llm_router is Envoy's cluster of the sidecar"),
        ("local=https://127.0.0.1:8000", "local: with https write the name of the host"),
    ],
)
def test_provider_elsewhere_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        read_providers([text])
    assert "secret" not in str(raised.value)


def test_provider_elsewhere_is_at_one_url() -> None:
    with pytest.raises(ValueError, match="openai is given twice"):
        read_providers(["openai=http://127.0.0.1:8000", "openai=http://127.0.0.1:8001"])


def test_further_provider_is_one_of_envoys(tmp_path: Path) -> None:
    (tmp_path / "local").write_text("key")
    wish = GatewayWish(1, tmp_path, providers={"local": "http://127.0.0.1:8000"})
    model = Model("local/small", "small", cluster="local")

    assert list(misplaced([model], wish.clusters())) == []
    assert (wish.with_key(), list(wish.stray_keys())) == (["local"], [])
    assert list(wish.unused([model])) == []
    assert list(wish.unused([])) == [
        'no model of the catalog has the cluster "local"; set one\'s `cluster`'
    ]
