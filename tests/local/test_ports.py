import socket

import pytest

from sidecar.local import free_ports, ports


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([20_001, 20_001, 20_002])
    monkeypatch.setattr(ports, "_draw", lambda *_: next(drawn))
    monkeypatch.setattr(ports, "_is_free", lambda _: True)
    monkeypatch.setattr(ports, "_given", set())

    assert free_ports(1) + free_ports(1) == [20_001, 20_002]


def test_ports_are_free_and_different() -> None:
    free = free_ports(20)
    assert len(set(free)) == 20
    for port in free:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
