"""What can be said about Envoy before anything is started."""

from __future__ import annotations

import socket

import pytest

from sidecar.cli.failures import Failure
from sidecar.cli.gateway import GatewayWish
from sidecar.cli.up import check_gateway
from sidecar.config import load_settings
from sidecar.local import free_ports


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
