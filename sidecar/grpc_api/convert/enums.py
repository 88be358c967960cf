"""Protobuf enums and their core twins."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Generic, TypeVar

from sidecar._generated.llmrouter.v1 import decision_pb2, policy_pb2, routing_pb2
from sidecar.core.conversation import Role
from sidecar.core.decision import Reason, Source
from sidecar.core.policy import ApiDialect, Capability, PinMode, Preference
from sidecar.policies.stores import ChangeKind

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

M = TypeVar("M", bound=Enum)
V = TypeVar("V", bound=int)


class EnumTwin(Generic[M, V]):
    """A protobuf enum whose values are named `<prefix>_<name of the core member>`.

    Its zero value, `<prefix>_UNSPECIFIED`, has no core member.
    """

    def __init__(self, wrapper: _EnumTypeWrapper[V], prefix: str, members: type[M]) -> None:
        self.prefix = prefix
        self._to_proto = {member: wrapper.Value(f"{prefix}_{member.name}") for member in members}
        self._to_core = {value: member for member, value in self._to_proto.items()}
        # The values a caller can send, for error texts.
        self.names = ", ".join(f"{prefix}_{member.name}" for member in self._to_proto)

    def to_proto(self, member: M) -> V:
        return self._to_proto[member]

    def to_core(self, value: V) -> M | None:
        """None for the zero value and for values that this version does not know."""
        return self._to_core.get(value)


ROLE = EnumTwin(routing_pb2.Role, "ROLE", Role)
DIALECT = EnumTwin(routing_pb2.ApiDialect, "API_DIALECT", ApiDialect)
CAPABILITY = EnumTwin(routing_pb2.Capability, "CAPABILITY", Capability)
PREFERENCE = EnumTwin(policy_pb2.Preference, "PREFERENCE", Preference)
PIN_MODE = EnumTwin(policy_pb2.PinMode, "PIN_MODE", PinMode)
SOURCE = EnumTwin(decision_pb2.DecisionSource, "DECISION_SOURCE", Source)
REASON = EnumTwin(decision_pb2.DecisionReason, "DECISION_REASON", Reason)
CHANGE_KIND = EnumTwin(policy_pb2.ChangeKind, "CHANGE_KIND", ChangeKind)
