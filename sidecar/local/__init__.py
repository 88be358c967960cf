"""Runs real programs on this machine out of locked wheels: Triton, and what the tests need."""

from sidecar.local.cache import CACHE_VARIABLE, cache_dir
from sidecar.local.envoy import EnvoyServer
from sidecar.local.errors import LocalError
from sidecar.local.gateway import (
    SIDECAR_CLUSTER,
    GatewayOptions,
    adapted,
    is_address,
    provider_clusters,
    read_keys,
    shipped_config,
)
from sidecar.local.ports import free_ports
from sidecar.local.postgres import PostgresServer
from sidecar.local.process import ChildProcess
from sidecar.local.run_folders import new_run_folder, remove_run_folder
from sidecar.local.stub_environment import stub_environment
from sidecar.local.tools import data_file, tool, unpacked
from sidecar.local.triton import TritonServer

__all__ = [
    "CACHE_VARIABLE",
    "SIDECAR_CLUSTER",
    "ChildProcess",
    "EnvoyServer",
    "GatewayOptions",
    "LocalError",
    "PostgresServer",
    "TritonServer",
    "adapted",
    "cache_dir",
    "data_file",
    "free_ports",
    "is_address",
    "new_run_folder",
    "provider_clusters",
    "read_keys",
    "remove_run_folder",
    "shipped_config",
    "stub_environment",
    "tool",
    "unpacked",
]
