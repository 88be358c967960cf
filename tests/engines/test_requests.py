"""What the CPU model accepts, and that everything else is an error rather than ignored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpu_engine.answers import FreeAnswer
from cpu_engine.decisions import Outcome
from cpu_engine.errors import RefusedError
from cpu_engine.requests import Asked, Limits, read_request
from cpu_engine.responses import to_tensors

LIMITS = Limits(context_length=64, vocab_size=320, max_output_tokens=16)
GUIDE = b'root ::= "a" | "b"'
MANDATORY = ("output_ids", "sequence_length")


def tensors(**changes: Any) -> dict[str, npt.NDArray[Any]]:
    """A label request; `changes` replace tensors, None removes one."""
    base: dict[str, Any] = {
        "input_ids": [[5, 6, 7, 8, 9]],
        "input_lengths": [[5]],
        "request_output_len": [[1]],
        "end_id": [[2]],
        "pad_id": [[0]],
        "return_generation_logits": [[True]],
    }
    merged = {name: value for name, value in {**base, **changes}.items() if value is not None}
    return {
        name: value if isinstance(value, np.ndarray) else _array(value)
        for name, value in merged.items()
    }


def _array(value: Any) -> npt.NDArray[Any]:
    array = np.array(value)
    return array.astype(np.int32) if array.dtype.kind == "i" else array


def retention(start: int = 0, end: int = 3) -> dict[str, Any]:
    names = {"starts": start, "ends": end, "priorities": 90, "durations_ms": -1}
    return {f"retention_token_range_{name}": [[value]] for name, value in names.items()}


def guided(kind: bytes = b"ebnf_grammar", guide: bytes = GUIDE) -> dict[str, Any]:
    return {
        "guided_decoding_guide_type": np.array([[kind]], object),
        "guided_decoding_guide": np.array([[guide]], object),
        "return_generation_logits": None,
        "request_output_len": [[4]],
    }


def read(outputs: tuple[str, ...] = MANDATORY, **changes: Any) -> Asked:
    return read_request(tensors(**changes), outputs, LIMITS, lambda: False)


class TestAccepted:
    def test_label_request(self) -> None:
        asked = read(**retention())
        assert asked.prefix.tolist() == [5, 6, 7]
        assert asked.suffix.tolist() == [8, 9]
        assert (asked.max_tokens, asked.end_id, asked.logits) == (1, 2, True)
        assert asked.literals is None

    def test_text_request(self) -> None:
        asked = read(**guided(), return_log_probs=[[True]])
        assert asked.literals == (b"a", b"b")
        assert asked.log_probs

    def test_padding_after_the_input_length_is_not_read(self) -> None:
        asked = read(input_ids=[[5, 6, 0, 0]], input_lengths=[[2]])
        assert asked.ids.tolist() == [5, 6]

    @pytest.mark.parametrize(
        "changes",
        [
            {"beam_width": [[1]]},
            {"runtime_top_k": [[1]]},
            {"repetition_penalty": [[1.0]]},
            {"temperature": [[0.5]]},
            {"streaming": [[False]]},
            {"end_id": None},
        ],
        ids=str,
    )
    def test_values_that_change_nothing(self, changes: dict[str, Any]) -> None:
        asked, plain = read(**changes), read()
        assert asked.ids.tolist() == plain.ids.tolist()
        assert (asked.max_tokens, asked.literals) == (plain.max_tokens, plain.literals)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"input_ids": None}, "input_ids"),
        ({"input_ids": [[[5]]]}, "input_ids"),
        ({"input_ids": [[5] * 5, [6] * 5]}, "input_ids"),
        ({"input_ids": [[5, 6, 7, 8, 320]]}, "input_ids"),
        ({"input_ids": [[5, 6, 7, 8, -1]]}, "input_ids"),
        ({"input_lengths": None}, "input_lengths"),
        ({"input_lengths": [[0]]}, "input_lengths"),
        ({"input_lengths": [[6]]}, "input_lengths"),
        ({"input_lengths": [[1, 2]]}, "input_lengths"),
        ({"request_output_len": None}, "request_output_len"),
        ({"request_output_len": [[0]]}, "request_output_len"),
        ({"request_output_len": [[17]]}, "request_output_len"),
        ({"input_ids": [[5] * 64], "input_lengths": [[64]]}, "context"),
        ({"end_id": [[320]]}, r"end_id is 320; must be 0\.\.319, or -1"),
        ({"end_id": [[-2]]}, "end_id is -2"),
        ({"beam_width": [[2]]}, "beam_width"),
        ({"num_return_sequences": [[2]]}, "num_return_sequences"),
        ({"runtime_top_k": [[5]]}, "runtime_top_k"),
        ({"runtime_top_p": [[0.9]]}, "runtime_top_p"),
        ({"temperature": [[0.0]]}, "temperature"),
        ({"repetition_penalty": [[1.2]]}, "repetition_penalty"),
        ({"streaming": [[True]]}, "streaming"),
        ({"return_context_logits": [[True]]}, "return_context_logits"),
        (retention(start=1), "retention"),
        (retention(end=5), "retention_token_range_ends"),
        (retention(end=0), "retention_token_range_ends"),
        (retention(end=-1), "retention_token_range_ends"),
        ({**retention(), "retention_token_range_ends": None}, "retention_token_range_ends"),
        ({name: [[0, 3]] for name in retention()}, "retention"),
        (guided(kind=b"json_schema"), "json_schema"),
        (guided(kind=b"regex"), "regex"),
        (guided(kind=b""), "guided_decoding_guide_type"),
        (guided(guide=b"root ::= [a-z]+"), "guided_decoding_guide"),
        (guided(guide=b"\xff"), "UTF-8"),
        ({**guided(), "guided_decoding_guide": None}, "guided_decoding_guide"),
        ({**guided(), "guided_decoding_guide_type": None}, "guided_decoding_guide_type"),
        ({**guided(), "return_generation_logits": [[True]]}, "return_generation_logits"),
        ({"label_ids": [[4, 320]]}, r"label_ids must be 0\.\.319"),
        ({"label_ids": np.zeros((1, 0), np.int32)}, "label_ids is empty"),
        ({"label_ids": [[4]], "return_generation_logits": None}, "needs return_generation_logits"),
        ({"label_ids": [[4]], "return_log_probs": [[True]]}, "return_log_probs is not supported"),
        ({"label_ids": [[4]], "request_output_len": [[2]]}, "needs request_output_len 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_refused(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(RefusedError, match=names):
        read(**changes)


@pytest.mark.parametrize("missing", MANDATORY)
def test_output_that_the_backend_insists_on(missing: str) -> None:
    outputs = tuple(name for name in MANDATORY if name != missing)
    with pytest.raises(RefusedError, match=f"{missing} tensor must be present"):
        read(outputs)


ALL_OUTPUTS = (
    *MANDATORY,
    "cum_log_probs",
    "output_log_probs",
    "generation_logits",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_new_blocks",
    "kv_cache_alloc_total_blocks",
)


def outcome(tokens: list[int], reused: int = 0) -> Outcome:
    answer = FreeAnswer(2, 16)
    answer.tokens, answer.log_probs = tokens, [-0.5] * len(tokens)
    answer.cum_log_prob = sum(answer.log_probs)
    return Outcome(answer, reused, [np.zeros(320, np.float32)] * max(1, len(tokens)))


class TestResponse:
    def test_everything_switched_on(self) -> None:
        asked = read(
            ALL_OUTPUTS,
            return_log_probs=[[True]],
            return_perf_metrics=[[True]],
            exclude_input_in_output=[[True]],
        )
        shapes = {n: (t.shape, t.dtype.name) for n, t in to_tensors(asked, outcome([7, 8])).items()}
        assert shapes == {
            "output_ids": ((1, 1, 2), "int32"),
            "sequence_length": ((1, 1), "int32"),
            "cum_log_probs": ((1, 1), "float32"),
            "output_log_probs": ((1, 1, 2), "float32"),
            "generation_logits": ((1, 1, 2, 320), "float32"),
            "kv_cache_reused_blocks": ((1, 1), "int32"),
            "kv_cache_alloc_new_blocks": ((1, 1), "int32"),
            "kv_cache_alloc_total_blocks": ((1, 1), "int32"),
        }

    def test_what_is_not_switched_on_is_left_out(self) -> None:
        asked = read(ALL_OUTPUTS, return_generation_logits=None)
        assert set(to_tensors(asked, outcome([7]))) == set(MANDATORY)

    def test_what_is_not_requested_is_left_out(self) -> None:
        asked = read(MANDATORY, return_log_probs=[[True]])
        assert set(to_tensors(asked, outcome([7]))) == set(MANDATORY)

    def test_the_input_precedes_the_answer_unless_excluded(self) -> None:
        with_input = to_tensors(read(), outcome([7]))
        assert with_input["output_ids"].tolist() == [[[5, 6, 7, 8, 9, 7]]]
        assert with_input["sequence_length"].tolist() == [[6]]
        without = to_tensors(read(exclude_input_in_output=[[True]]), outcome([7]))
        assert without["output_ids"].tolist() == [[[7]]]

    def test_an_empty_answer_still_has_logits(self) -> None:
        asked = read(ALL_OUTPUTS, exclude_input_in_output=[[True]])
        answered = to_tensors(asked, outcome([]))
        assert answered["output_ids"].shape == (1, 1, 0)
        assert answered["generation_logits"].shape == (1, 1, 1, 320)

    def test_blocks_count_whole_reused_ones(self) -> None:
        asked = read(
            ALL_OUTPUTS,
            input_ids=[[5] * 60],
            input_lengths=[[60]],
            return_perf_metrics=[[True]],
        )
        answered = to_tensors(asked, outcome([7], reused=40))
        counts = [int(answered[name][0, 0]) for name in ALL_OUTPUTS[-3:]]
        assert counts == [1, 1, 2]
