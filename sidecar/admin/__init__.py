"""The HTTP edge: health, metrics and the console."""

from sidecar.admin.console import Console
from sidecar.admin.server import AdminServer

__all__ = ["AdminServer", "Console"]
