"""Tensors of one Triton request -> what is asked; an answer -> tensors.

Names, types and shapes: `tensorrt_llm` of
https://github.com/NVIDIA/TensorRT-LLM/tree/main/triton_backend/all_models/inflight_batcher_llm
(release 1.2). Client shapes are [1, …]: one decision per request.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpu_engine.errors import RefusedError
from cpu_engine.forward import Floats, Ints
from cpu_engine.grammar import read_literals

Tensors = Mapping[str, npt.NDArray[Any]]

TOKENS_PER_BLOCK = 32
"""Unit of the kv_cache_* outputs: TensorRT-LLM's default block."""

_MANDATORY_OUTPUTS = ("output_ids", "sequence_length")

# Inputs that have one supported value. Absent means that value.
_FIXED: Mapping[str, float] = {
    "beam_width": 1,
    "num_return_sequences": 1,
    "runtime_top_k": 1,
    "runtime_top_p": 0.0,
    "repetition_penalty": 1.0,
    "streaming": False,
    "return_context_logits": False,
}

_OPINION = "second_opinion_"

MAX_ROUTE_TOKENS = 1 << 17
"""Of one policy's routes, whose states are held as long as they are read: 200 MB where a state has
384 numbers. Policies have fewer (`MAX_ROUTES` and `ROUTE_TOKENS` of the sidecar)."""

_RETENTION = tuple(f"retention_token_range_{name}" for name in ("starts", "ends", "priorities"))


@dataclass(frozen=True, slots=True)
class OpinionLimits:
    """What the encoder can read: ids, and tokens of one text."""

    vocab_size: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine can hold, in tokens. Without `second_opinion` the engine has no encoder, and
    what is sent for one is not read."""

    context_length: int
    vocab_size: int
    max_output_tokens: int
    second_opinion: OpinionLimits | None = None


@dataclass(frozen=True, slots=True)
class Enough:
    """When the encoder decides by itself: one candidate's probability, the softmax of `factor`
    times its logits with `other_bias` added to the last, is `probability` or more."""

    factor: float
    other_bias: float
    probability: float

    def reached(self, logits: Floats) -> bool:
        """Of [routes + 1] logits."""
        scaled = self.factor * logits.astype(np.float64)
        scaled[-1] += self.other_bias
        return float(1 / np.exp(scaled - scaled.max()).sum()) >= self.probability


@dataclass(frozen=True, slots=True, eq=False)
class Opinion:
    """What the encoder is asked.

    Args:
        request_ids, request_types: [tokens]; empty: the routes are only to be kept.
        routes: ids of each, at least one.
        enough: when the language model need not be computed; None: never.
        alone: the language model is not computed where the encoder is not enough either.
    """

    request_ids: Ints
    request_types: Ints
    routes: tuple[Ints, ...]
    enough: Enough | None = None
    alone: bool = False

    @property
    def has_request(self) -> bool:
        return len(self.request_ids) > 0


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One checked request.

    Args:
        ids: the whole prompt.
        prefix_length: leading tokens whose keys and values are kept for later requests; 0: none.
        max_tokens: most tokens of the answer.
        end_id: the token that ends it; -1: none does.
        literals: the texts the answer must be one of; None: free text.
        outputs: names of the requested outputs.
        is_cancelled: whether the caller has gone.
        opinion: what the encoder is asked; None: nothing.
        label_ids: the tokens that the answer is one of, and the columns of its logits; None: the
            whole vocabulary.
    """

    ids: Ints
    prefix_length: int
    max_tokens: int
    end_id: int
    literals: tuple[bytes, ...] | None = None
    log_probs: bool = False
    logits: bool = False
    without_input: bool = False
    perf_metrics: bool = False
    outputs: frozenset[str] = frozenset()
    is_cancelled: Callable[[], bool] = lambda: False
    opinion: Opinion | None = None
    label_ids: Ints | None = None

    @property
    def prefix(self) -> Ints:
        return self.ids[: self.prefix_length]

    @property
    def suffix(self) -> Ints:
        return self.ids[self.prefix_length :]


def read_request(
    tensors: Tensors,
    outputs: Collection[str],
    limits: Limits,
    is_cancelled: Callable[[], bool],
) -> Asked:
    """Check one request.

    Raises:
        RefusedError: something is missing, out of range or unsupported; the text names the tensor
            and the value.
    """
    _check_fixed(tensors, outputs)
    ids = _prompt(tensors, limits)
    max_tokens = _integer(tensors, "request_output_len")
    if not 1 <= max_tokens <= limits.max_output_tokens:
        raise RefusedError(
            f"request_output_len is {max_tokens}; must be 1..{limits.max_output_tokens}"
        )
    if len(ids) + max_tokens > limits.context_length:
        raise RefusedError(
            f"input_lengths {len(ids)} + request_output_len {max_tokens} exceeds the context of "
            f"{limits.context_length} tokens"
        )
    literals = _literals(tensors)
    logits = _flag(tensors, "return_generation_logits")
    if logits and literals is not None:
        raise RefusedError("return_generation_logits is not supported with guided_decoding_guide")
    return Asked(
        ids=ids,
        prefix_length=_prefix_length(tensors, len(ids)),
        max_tokens=max_tokens,
        end_id=_end_id(tensors, limits.vocab_size),
        literals=literals,
        log_probs=_flag(tensors, "return_log_probs"),
        logits=logits,
        without_input=_flag(tensors, "exclude_input_in_output"),
        perf_metrics=_flag(tensors, "return_perf_metrics"),
        outputs=frozenset(outputs),
        is_cancelled=is_cancelled,
        opinion=read_opinion(tensors, limits.second_opinion),
        label_ids=_label_ids(tensors, limits.vocab_size),
    )


def _check_fixed(tensors: Tensors, outputs: Collection[str]) -> None:
    for name in _MANDATORY_OUTPUTS:
        if name not in outputs:
            raise RefusedError(f"{name} tensor must be present in list of output tensors")
    for name, value in _FIXED.items():
        if name in tensors and _scalar(tensors, name) != value:
            raise RefusedError(f"{name} is {_scalar(tensors, name)}; only {value} is supported")
    temperature = _scalar(tensors, "temperature") if "temperature" in tensors else 1.0
    if temperature <= 0:
        raise RefusedError(f"temperature is {temperature}; must be above 0 (decoding is greedy)")


def _prompt(tensors: Tensors, limits: Limits) -> Ints:
    if "input_ids" not in tensors:
        raise RefusedError("input_ids is not present in the request")
    ids = tensors["input_ids"]
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise RefusedError(f"input_ids has shape {list(ids.shape)}; must be [1, length]")
    length = _integer(tensors, "input_lengths")
    if not 1 <= length <= ids.shape[1]:
        raise RefusedError(f"input_lengths is {length}; must be 1..{ids.shape[1]}")
    prompt = np.ascontiguousarray(ids[0, :length], np.int32)
    if prompt.min() < 0 or prompt.max() >= limits.vocab_size:
        raise RefusedError(f"input_ids must be 0..{limits.vocab_size - 1}")
    return prompt


def _end_id(tensors: Tensors, vocab_size: int) -> int:
    end_id = _integer(tensors, "end_id", default=-1)
    if not -1 <= end_id < vocab_size:
        raise RefusedError(f"end_id is {end_id}; must be 0..{vocab_size - 1}, or -1 for none")
    return end_id


def _prefix_length(tensors: Tensors, length: int) -> int:
    """Tokens 0..P-1 are to be retained. Priority and duration rank TensorRT-LLM's blocks; here the
    least recently used prefix goes first, whatever they say."""
    present = [name for name in _RETENTION if name in tensors]
    if not present:
        return 0
    if len(present) < len(_RETENTION):
        raise RefusedError(f"{', '.join(_RETENTION)} must be given together")
    starts, ends, priorities = (tensors[name].reshape(-1) for name in _RETENTION)
    if not len(starts) == len(ends) == len(priorities) == 1 or starts[0] != 0:
        raise RefusedError("only one retention range is supported, and it must start at token 0")
    prefix = int(ends[0])
    if not 1 <= prefix < length:
        raise RefusedError(
            f"retention_token_range_ends is {prefix}; must be 1..{length - 1}, so that a token of "
            "the prompt follows"
        )
    return prefix


def _literals(tensors: Tensors) -> tuple[bytes, ...] | None:
    kind, guide = "guided_decoding_guide_type", "guided_decoding_guide"
    if kind not in tensors and guide not in tensors:
        return None
    if kind not in tensors or guide not in tensors:
        raise RefusedError(f"{kind} and {guide} must be given together")
    value = _text(tensors, kind)
    if value != "ebnf_grammar":
        raise RefusedError(f"{kind} is {value!r}; only 'ebnf_grammar' is supported")
    return read_literals(_text(tensors, guide))


def _label_ids(tensors: Tensors, vocab_size: int) -> Ints | None:
    name = "label_ids"
    if name not in tensors:
        return None
    ids = _integers(tensors, name)
    if not len(ids):
        raise RefusedError(f"{name} is empty; must have one token id or more")
    _check_range(name, ids, vocab_size)
    if not _flag(tensors, "return_generation_logits") or _flag(tensors, "return_log_probs"):
        raise RefusedError(
            f"{name} needs return_generation_logits, and return_log_probs is not supported with it"
        )
    if _integer(tensors, "request_output_len") != 1:
        raise RefusedError(f"{name} needs request_output_len 1: the answer is one of them")
    return ids


def read_opinion(tensors: Tensors, limits: OpinionLimits | None) -> Opinion | None:
    """What the encoder is asked; None if nothing, or there is none.

    Raises:
        RefusedError: as `read_request`.
    """
    names = [name for name in tensors if name.startswith(_OPINION)]
    if limits is None or not names:
        return None
    ids, lengths = (_integers(tensors, f"{_OPINION}route_{part}") for part in ("ids", "lengths"))
    if len(ids) > MAX_ROUTE_TOKENS:
        raise RefusedError(
            f"{_OPINION}route_ids has {len(ids)} tokens; must have {MAX_ROUTE_TOKENS} at most"
        )
    _check_texts(f"{_OPINION}route_lengths", lengths, limits)
    if lengths.sum() != len(ids):
        raise RefusedError(
            f"{_OPINION}route_lengths add up to {lengths.sum()}; {_OPINION}route_ids has {len(ids)}"
        )
    _check_range(f"{_OPINION}route_ids", ids, limits.vocab_size)
    routes = tuple(np.split(ids, np.cumsum(lengths)[:-1]))
    request, types = f"{_OPINION}request_ids", f"{_OPINION}request_types"
    if request not in tensors and types not in tensors:
        nothing = np.zeros(0, np.int32)
        return Opinion(nothing, nothing, routes)
    request_ids, request_types = _integers(tensors, request), _integers(tensors, types)
    _check_texts(request, np.array([len(request_ids)]), limits)
    if len(request_types) != len(request_ids):
        raise RefusedError(
            f"{types} has {len(request_types)} elements; {request} {len(request_ids)}"
        )
    _check_range(request, request_ids, limits.vocab_size)
    _check_range(types, request_types, 2)
    enough, alone = _enough(tensors), _flag(tensors, f"{_OPINION}alone")
    if alone and enough is None:
        raise RefusedError(f"{_OPINION}alone needs {_OPINION}enough: nothing else would decide")
    return Opinion(request_ids, request_types, routes, enough, alone)


def _enough(tensors: Tensors) -> Enough | None:
    name = f"{_OPINION}enough"
    if name not in tensors:
        return None
    values = tensors[name].reshape(-1).astype(np.float64)
    if len(values) != 3 or not np.isfinite(values).all() or not 0.5 <= values[2] <= 1:
        raise RefusedError(
            f"{name} is {values.tolist()}; must be a factor, what is added to the last logit, and "
            "a probability from 0.5 to 1"
        )
    if "label_ids" not in tensors:
        raise RefusedError(f"{name} needs label_ids: the encoder's candidates are those")
    return Enough(*values.tolist())


def _integers(tensors: Tensors, name: str) -> Ints:
    if name not in tensors:
        raise RefusedError(f"{name} is not present in the request")
    return np.ascontiguousarray(tensors[name].reshape(-1), np.int32)


def _check_texts(name: str, lengths: npt.NDArray[Any], limits: OpinionLimits) -> None:
    if not len(lengths) or lengths.min() < 1 or lengths.max() > limits.max_tokens:
        raise RefusedError(f"{name}: a text must have 1..{limits.max_tokens} tokens")


def _check_range(name: str, ids: Ints, end: int) -> None:
    if ids.min() < 0 or ids.max() >= end:
        raise RefusedError(f"{name} must be 0..{end - 1}")


def _text(tensors: Tensors, name: str) -> str:
    value = _scalar(tensors, name)
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise RefusedError(f"{name} is not UTF-8") from error


def _scalar(tensors: Tensors, name: str) -> Any:
    values = tensors[name].reshape(-1)
    if len(values) != 1:
        raise RefusedError(f"{name} has {len(values)} elements; must have one")
    return values[0]


def _integer(tensors: Tensors, name: str, default: int | None = None) -> int:
    if name not in tensors:
        if default is None:
            raise RefusedError(f"{name} is not present in the request")
        return default
    return int(_scalar(tensors, name))


def _flag(tensors: Tensors, name: str) -> bool:
    return name in tensors and bool(_scalar(tensors, name))
