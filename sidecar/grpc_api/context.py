"""The type of a call's context."""

from __future__ import annotations

from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
"""Of any method: what it reads and writes is checked where messages are made."""
