"""The socket that Envoy connects to, and the methods that are served on it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import structlog
from google.protobuf.message import Message

from sidecar.ext_proc.http2.call import Call, CallEnd
from sidecar.ext_proc.http2.connection import Connection

_log = structlog.get_logger(__name__)

_FLUSH_S = 1.0
"""How long the last answers may take to leave."""

Behavior = Callable[[Any, Any], Awaitable[Any]]
"""Serves a call: gets the request (None where it is a stream) and the call."""


class Layer(Protocol):
    """Something that happens around every call."""

    def put_around(self, behavior: Behavior, method: str) -> Behavior:
        """`behavior` with the layer around it; `method` is `package.Service/Method`."""
        ...


@dataclass(frozen=True, slots=True)
class Method:
    """Args:
    behavior: returns what it has not written itself; None: nothing.
    request: type of the messages that come.
    streaming: the behavior reads the messages itself.
    always: taken however many calls there are.
    """

    behavior: Behavior
    request: type[Message]
    streaming: bool = False
    always: bool = False


class Listener:
    """Serves methods on a socket.

    Args:
        layers: the first is the outermost.
        max_calls: at once; more are RESOURCE_EXHAUSTED.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        layers: Sequence[Layer],
        max_calls: int,
        max_message_bytes: int,
    ) -> None:
        """`methods`: by `package.Service/Method`."""
        self._methods = {f"/{name}": method for name, method in methods.items()}
        self._behaviors = {
            path: _wrapped(path, each, layers) for path, each in self._methods.items()
        }
        self.max_calls = max_calls
        self.max_message_bytes = max_message_bytes
        self._calls = 0
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._all_closed = asyncio.Event()

    async def start(self, bound: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Connection(self), sock=bound)

    async def stop(self) -> None:
        """Takes no new calls, and ends those that do not end by themselves at once."""
        if self._server is None:
            return
        self._server.close()
        self._all_closed.clear()
        for each in list(self._connections):
            each.go_away()
        if self._connections:
            try:
                await asyncio.wait_for(self._all_closed.wait(), _FLUSH_S)
            except TimeoutError:
                for each in list(self._connections):
                    each.close()

    @property
    def running(self) -> int:
        """Calls that have begun and not ended."""
        return self._calls

    @property
    def connections(self) -> Collection[Connection]:
        return self._connections

    # --- For connections --------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_closed.set()

    def decoder(self, path: str) -> Callable[[bytes], Message]:
        method = self._methods.get(path)
        return Message.FromString if method is None else method.request.FromString

    async def run(self, path: str, call: Call) -> tuple[int, str]:
        behavior = self._behaviors.get(path)
        if behavior is None:
            return _number(grpc.StatusCode.UNIMPLEMENTED), "no such method on this socket"
        if self._calls >= self.max_calls and not self._methods[path].always:
            return _number(grpc.StatusCode.RESOURCE_EXHAUSTED), "too many calls at once"
        self._calls += 1
        try:
            await behavior(None, call)
        except CallEnd as end:
            return _number(end.status), str(end)
        except Exception:
            _log.exception("call failed", method=path.removeprefix("/"))
            return _number(grpc.StatusCode.INTERNAL), "a defect of the sidecar; see its log"
        finally:
            self._calls -= 1
        return 0, ""


def _wrapped(path: str, method: Method, layers: Sequence[Layer]) -> Behavior:
    behavior = method.behavior if method.streaming else _reading(method.behavior)
    for layer in reversed(layers):
        behavior = layer.put_around(behavior, path.removeprefix("/"))
    return behavior


def _reading(behavior: Behavior) -> Behavior:
    """Gives it the one message of the request, and writes what it returns."""

    async def read_first(_: object, call: Call) -> None:
        request = await call.read()
        if request is None:
            raise CallEnd(grpc.StatusCode.INVALID_ARGUMENT, "the request has no message")
        answer = await behavior(request, call)
        if answer is not None:
            await call.write(answer)

    return read_first


def _number(status: grpc.StatusCode) -> int:
    number: int = status.value[0]
    return number
