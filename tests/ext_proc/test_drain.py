"""Requests in a real Envoy while the sidecar drains: streams are then ended from here, which in
FULL_DUPLEX_STREAMED must not cost the body or its trailers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sidecar.local import EnvoyServer, free_ports
from tests.ext_proc.client import post
from tests.ext_proc.gateway import Filter, gateway
from tests.ext_proc.standins import ALONE, chat, service_on, spliced
from tests.ext_proc.upstream import Upstream

FULL_DUPLEX = "FULL_DUPLEX_STREAMED"
FILTERS = [
    Filter(),
    Filter(body=FULL_DUPLEX, trailers="SEND", fail_open=False),
    # Envoy waits for an answer to the response's headers, too.
    Filter(body=FULL_DUPLEX, trailers="SEND", fail_open=False, response_headers="SEND"),
]


@pytest.mark.parametrize("size", [100, 3_000_000])
@pytest.mark.parametrize("name", ["s", f"s{ALONE}"])
async def test_whole_requests_arrive_while_the_sidecar_drains(
    tmp_path: Path, name: str, size: int
) -> None:
    body = chat("code", size=size)
    pieces: Sequence[bytes] = [body[:30], body[30:]]
    async with Upstream("small") as small, Upstream("big") as big:
        clusters = {"small": small.port, "big": big.port}
        ports = free_ports(len(FILTERS))
        listeners = dict(zip(ports, FILTERS, strict=True))
        config = gateway(listeners, clusters, tmp_path / name, tmp_path / "access.log")
        async with service_on(tmp_path / name) as service, EnvoyServer(config):
            service.drain.begin()
            for port in ports:
                big.requests.clear()
                plain = await post(port, body)
                chunked = await post(port, body, chunks=pieces, trailers={"x-sum": "1"})

                assert (plain.status, chunked.status) == (200, 200)
                assert [each.body for each in big.requests] == [spliced(body, "coder-1")] * 2
                assert dict(big.requests[1].trailers) == {"x-sum": "1"}
