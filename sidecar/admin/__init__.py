"""The HTTP edge: health and metrics."""

from sidecar.admin.server import AdminServer

__all__ = ["AdminServer"]
