"""A decision from texts: what the sidecar does between a request and token ids, for callers without
a sidecar. Knows nothing of Triton."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.errors import SidecarError
from sidecar.core.model import Answer, CompiledPrompt
from sidecar.core.policy import OTHER, ModelList, Policy, Route, WeightedModel
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.prompts import get_format

ANSWER_TOKENS = 96
"""Part of the context length kept for the answer, as in the sidecar."""

MAX_ROUTES = 256
MAX_NAME_BYTES = 64
MAX_DESCRIPTION_CHARS = 8192
_NO_MODELS = ModelList((WeightedModel("none"),))


class WrongInputError(Exception):
    """The caller's input; the text names the field and the remedy."""


class TextRouter:
    """Prompts for the engine in `folder`, whose policies it keeps compiled.

    Args:
        max_policies: compiled ones that are kept; the least recently used go first.
    """

    def __init__(self, folder: Path, max_policies: int) -> None:
        facts = json.loads((folder / "router.json").read_text(encoding="utf-8"))
        self.end_id: int = facts["end_id"]
        self.pad_id: int = facts["pad_id"]
        self._format = get_format(facts["prompt_format"])
        self._max_tokens: int = facts["context_length"] - ANSWER_TOKENS
        self._temperature: float = facts["temperature"]
        self.tokenizer = HfTokenizer(folder / facts["tokenizer_file"])
        self._compiled: OrderedDict[str, CompiledPrompt] = OrderedDict()
        self._max_policies = max_policies

    def compiled(self, policy: str) -> CompiledPrompt:
        """The prompt of a policy given as JSON. Raises WrongInputError."""
        key = hashlib.sha256(policy.encode()).hexdigest()
        found = self._compiled.get(key)
        if found is None:
            found = self._compile(read_policy(policy))
            self._compiled[key] = found
            while len(self._compiled) > self._max_policies:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return found

    def _compile(self, policy: Policy) -> CompiledPrompt:
        try:
            return self._format.compile(policy, self.tokenizer, self._max_tokens, self._temperature)
        except SidecarError as error:
            raise WrongInputError(f"policy: {error.message}") from None


def read_policy(text: str) -> Policy:
    """`{"routes": [{"name": ..., "description": ...}, ...]}`. Raises WrongInputError.

    Names become literals of a grammar, and a grammar that does not compile fails every request that
    the engine is working on: what they may hold is checked here.
    """
    content = _json("policy", text)
    routes = content.get("routes") if isinstance(content, Mapping) else None
    if not isinstance(routes, list) or not 1 <= len(routes) <= MAX_ROUTES:
        raise WrongInputError(f"policy.routes: must be a list of 1 to {MAX_ROUTES} routes")
    read = tuple(_route(f"policy.routes[{index}]", route) for index, route in enumerate(routes))
    names = [route.name for route in read]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise WrongInputError(f"policy.routes[{index}].name: {name!r} is there twice")
    return Policy("text", read, _NO_MODELS)


def _route(where: str, route: Any) -> Route:
    if not isinstance(route, Mapping) or route.keys() != {"name", "description"}:
        raise WrongInputError(f"{where}: must have `name` and `description`, and nothing else")
    name, description = route["name"], route["description"]
    if not isinstance(name, str) or not 0 < len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES:
        raise WrongInputError(f"{where}.name: must be a text of 1 to {MAX_NAME_BYTES} bytes")
    if not name.isprintable() or name.strip().lower() in ("", OTHER):
        raise WrongInputError(
            f"{where}.name: {name!r} is blank, has control characters or is {OTHER!r}, "
            "which stands for requests that no route takes"
        )
    if not isinstance(description, str) or not description.strip():
        raise WrongInputError(f"{where}.description: must be a text that is not blank")
    if len(description) > MAX_DESCRIPTION_CHARS:
        raise WrongInputError(f"{where}.description: more than {MAX_DESCRIPTION_CHARS} characters")
    return Route(name, description, _NO_MODELS)


def read_conversation(text_input: str | None, messages: str | None) -> Conversation:
    """One user message, or `[{"role": "user", "content": ...}, ...]`. Raises WrongInputError."""
    if (text_input is None) == (messages is None):
        raise WrongInputError("give either text_input, one user message, or messages, a JSON list")
    if messages is None:
        conversation = Conversation((Message(Role.USER, text_input or ""),))
    else:
        content = _json("messages", messages)
        if not isinstance(content, list):
            raise WrongInputError("messages: must be a JSON list")
        read = (_message(f"messages[{index}]", each) for index, each in enumerate(content))
        conversation = Conversation(tuple(read))
    if not conversation.shown_to_router():
        raise WrongInputError("there is no text of a user or assistant to decide by")
    return conversation


def _message(where: str, message: Any) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
        raise WrongInputError(f"{where}: must have `role`, and `content` that is a text")
    roles = [role.value for role in Role]
    if message.get("role") not in roles:
        raise WrongInputError(f"{where}.role: must be one of {', '.join(roles)}")
    return Message(Role(message["role"]), message["content"])


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # Not what the parser says: it may quote the text.
        raise WrongInputError(f"{name}: is not JSON") from None


def confidence(answer: Answer) -> float:
    """Of the chosen name; not a number where the answer gives none."""
    candidates: Sequence[Any] = answer.candidates
    return next((each.probability for each in candidates if each.name == answer.name), float("nan"))
