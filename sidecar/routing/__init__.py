"""Policy compilation, the registry and the walk of one routing request."""

from sidecar.routing.cache import DecisionCache
from sidecar.routing.latencies import Latencies
from sidecar.routing.pins import Pins
from sidecar.routing.registry import CompiledPolicy, PolicyRegistry
from sidecar.routing.router import Router, RouterLimits
from sidecar.routing.targets import Target, Targets
from sidecar.routing.walk import RoutingModelRef
from sidecar.routing.warmth import Warmth

__all__ = [
    "CompiledPolicy",
    "DecisionCache",
    "Latencies",
    "Pins",
    "PolicyRegistry",
    "Router",
    "RouterLimits",
    "RoutingModelRef",
    "Target",
    "Targets",
    "Warmth",
]
