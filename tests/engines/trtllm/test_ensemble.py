"""The model `ensemble`: its repository, and what it takes for texts. A Triton asks it in
tests/integration/test_gpu_repository.py."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from text_routing import WrongInputError, read_conversation, read_policy
from tritonclient.grpc.model_config_pb2 import ModelConfig

from sidecar.core.conversation import Message, Role
from sidecar.core.model import Answer, LabelAnswer, Prompt
from sidecar.engines.trtllm import EnsembleOptions, build_trtllm_engine
from sidecar.engines.trtllm.ensemble import render_ensemble_config
from tests.engines.trtllm.conftest import Nvidia, request_for

REPO = Path(__file__).parents[3]
COMMITTED = REPO / "triton_models" / "gpu" / "ensemble" / "config.pbtxt"


def test_the_committed_configuration_is_what_is_rendered() -> None:
    rendered = render_ensemble_config(Path("/models/router"), EnsembleOptions())
    assert COMMITTED.read_text() == rendered
    config = text_format.Parse(rendered, ModelConfig())
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert config.parameters["engine"].string_value == "/models/router"


def test_a_build_adds_it_with_all_that_it_imports(nvidia: Nvidia, tmp_path: Path) -> None:
    request = replace(request_for(tmp_path), ensemble=True, served_at=Path("/models/router"))
    build_trtllm_engine(request, nvidia.tools)
    ensemble = request.repository / "ensemble"
    assert (request.repository / "tensorrt_llm" / "config.pbtxt").is_file()
    assert (ensemble / "config.pbtxt").read_text() == COMMITTED.read_text()
    # Isolated: what is not copied would be missed.
    script = "import sys; sys.path.insert(0, sys.argv[1]); import text_routing as t; "
    script += "import sidecar; print(sidecar.__file__)"
    command = [sys.executable, "-I", "-c", script, str(ensemble / "1")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(str(ensemble))


def routes(*named: Any) -> str:
    return json.dumps({"routes": list(named)})


GOOD = {"name": "travel", "description": "hotels"}


def test_a_policy_keeps_its_order() -> None:
    policy = read_policy(routes(GOOD, {"name": 'it\'s "code"', "description": "programs"}))
    assert [route.name for route in policy.routes] == ["travel", 'it\'s "code"']


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        ("{", "policy: is not JSON"),
        ("[]", "policy.routes: must be a list of 1 to 256 routes"),
        (routes(), "policy.routes: must be a list of 1 to 256 routes"),
        (routes(GOOD, GOOD), r"policy.routes\[1\].name: 'travel' is there twice"),
        (routes({"name": "a"}), r"policy.routes\[0\]: must have `name` and `description`"),
        (routes(GOOD | {"models": []}), "and nothing else"),
        (routes(GOOD | {"name": "Other"}), "stands for requests that no route takes"),
        (routes(GOOD | {"name": "a\nb"}), "has control characters"),
        (routes(GOOD | {"name": "a\u2028b"}), "has control characters"),
        (routes(GOOD | {"name": " "}), "is blank"),
        (routes(GOOD | {"name": "ä" * 33}), "1 to 64 bytes"),
        (routes(GOOD | {"description": " "}), "not blank"),
        (routes(GOOD | {"description": "a" * 8193}), "more than 8192"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused(policy: str, problem: str) -> None:
    with pytest.raises(WrongInputError, match=problem):
        read_policy(policy)


def test_a_text_is_the_message_of_a_user() -> None:
    assert read_conversation("[hi]", None).messages == (Message(Role.USER, "[hi]"),)


@pytest.mark.parametrize(
    ("text", "messages", "problem"),
    [
        (None, None, "give either text_input"),
        ("hi", "[]", "give either text_input"),
        ("", None, "no text of a user"),
        (None, "[]", "no text of a user"),
        (None, "nonsense", "messages: is not JSON"),
        (None, "{}", "messages: must be a JSON list"),
        (None, '[{"role": "user"}]', r"messages\[0\]: must have `role`, and `content`"),
        (None, '[{"role": "me", "content": "x"}]', r"messages\[0\].role: must be one of system"),
        (None, '[{"role": "system", "content": "x"}]', "no text of a user"),
    ],
)
def test_a_conversation_that_cannot_be_read_is_refused(
    text: str | None, messages: str | None, problem: str
) -> None:
    with pytest.raises(WrongInputError, match=problem):
        read_conversation(text, messages)


class Response:
    """As of the model `tensorrt_llm`."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = {name: SimpleNamespace(as_numpy=lambda v=v: v) for name, v in given.items()}

    def has_error(self) -> bool:
        return False


def request(policy: str) -> SimpleNamespace:
    texts = {"text_input": "hi", "policy": policy}
    inputs = [
        SimpleNamespace(
            name=lambda name=name: name,
            as_numpy=lambda text=text: np.array([[text.encode()]], object),
        )
        for name, text in texts.items()
    ]
    return SimpleNamespace(inputs=lambda: inputs, is_cancelled=lambda: False)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Policies are known by their names; the language model answers without logits at first."""
    responses = [Response({}), Response({"generation_logits": np.zeros((1, 1, 1, 9))})]

    async def ask() -> Response:
        return responses.pop(0)

    utils: Any = ModuleType("triton_python_backend_utils")
    utils.Tensor = lambda name, values: values
    utils.InferenceRequest = lambda **asked: SimpleNamespace(async_exec=ask)
    utils.InferenceResponse = lambda output_tensors=(), error="": error or "answered"
    utils.TritonError = lambda text, code: f"{code}: {text}"
    utils.TritonError.INTERNAL, utils.TritonError.INVALID_ARG = "INTERNAL", "INVALID_ARG"
    utils.get_output_tensor_by_name = lambda response, name: response.given.get(name)
    utils.Logger = SimpleNamespace(log_error=lambda text: None)
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("ensemble_model", COMMITTED.parent / "1/model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def compiled(policy: str) -> SimpleNamespace:
        if policy != "known":
            raise WrongInputError("policy: is not known")
        return SimpleNamespace(
            answer_form=LabelAnswer((3, 4)),
            render=lambda conversation: Prompt((1,), (2,)),
            read=lambda output: Answer("travel"),
        )

    made = module.TritonPythonModel()
    made._router = SimpleNamespace(compiled=compiled, end_id=0, pad_id=0)
    return made


def test_what_fails_one_request_is_its_answer_and_no_other_s(model: Any) -> None:
    requests = [request(policy) for policy in ("known", "none", "known")]
    assert asyncio.run(model.execute(requests)) == [
        "INTERNAL: the ensemble failed: AttributeError",
        "INVALID_ARG: policy: is not known",
        "answered",
    ]
