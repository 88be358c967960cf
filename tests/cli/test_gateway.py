"""What can be said about Envoy before anything is started."""

from __future__ import annotations

import re
import socket

import pytest

from sidecar.cli.failures import Failure
from sidecar.cli.gateway import GatewayWish, misplaced
from sidecar.cli.up import EXAMPLES, check_gateway
from sidecar.config import load_settings
from sidecar.core.policy import Model
from sidecar.local import free_ports
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
