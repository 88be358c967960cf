"""What the routing model's output means for a policy. Nothing here raises for what a model says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sidecar.core.decision import Candidate, Reason
from sidecar.core.model import Answer, LabelLogits, ModelOutput, TextOutput, Tokenizer
from sidecar.prompts.parsing import find_route
from sidecar.prompts.skeleton import Skeleton

_UNPARSABLE = Answer(name="", problem=Reason.UNPARSABLE_ANSWER)


def read_labels(
    output: ModelOutput, names: Sequence[str], labels: Sequence[str], temperature: float
) -> Answer:
    """Softmax over the label logits.

    Args:
        names: what each label stands for; of equal logits the first wins.
        labels: the words, for the answer's text.
        temperature: divides the logits; > 0.
    """
    if not isinstance(output, LabelLogits) or len(output.logits) != len(names):
        return _UNPARSABLE
    probabilities = softmax(output.logits, temperature)
    if math.isnan(probabilities[0]):
        return _UNPARSABLE
    # Reversed it still keeps the order of equals.
    ranked = sorted(range(len(names)), key=probabilities.__getitem__, reverse=True)
    return Answer(
        name=names[ranked[0]],
        candidates=tuple([Candidate(names[i], probabilities[i]) for i in ranked]),
        text=labels[ranked[0]],
    )


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    """Probabilities, of at least one; all of them nan if a logit is, or if the largest is infinite.

    Args:
        temperature: divides the logits; > 0.
    """
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def literal_guide(answers: Sequence[str]) -> str:
    """A grammar that admits exactly `answers`.

    EBNF as xgrammar and TensorRT-LLM's guided decoding read it: one rule, an alternation of
    literals in double quotes, in which only `\\` and `"` are escaped, each by a backslash.

    Args:
        answers: without line breaks, which a literal cannot hold.
    """
    literals = (answer.replace("\\", "\\\\").replace('"', '\\"') for answer in answers)
    return "root ::= " + " | ".join(f'"{literal}"' for literal in literals)


def read_text(
    output: ModelOutput,
    names: Sequence[str],
    written: Mapping[str, str],
    tokenizer: Tokenizer,
    skeleton: Skeleton | None = None,
) -> Answer:
    """The route that a text names, and the probability of that text where it is given.

    Args:
        names: the policy's routes and `other`.
        written: complete answers in the model's own style -> the name each stands for. A guided
            answer is one of them, and needs no guessing.
        skeleton: the part of the answer that stood in the prompt.
    """
    if not isinstance(output, TextOutput):
        return _UNPARSABLE
    if not all(0 <= token < tokenizer.vocab_size for token in output.token_ids):
        return _UNPARSABLE
    text = tokenizer.decode(output.token_ids)
    found: str | Reason | None = skeleton.name_of(text) if skeleton else None
    text = skeleton.text + text if skeleton and text else text
    found = found or written.get(text.strip()) or find_route(text, names)
    if isinstance(found, Reason):
        return replace(_UNPARSABLE, problem=found, text=text)
    return Answer(name=found, candidates=_confidence(found, output), text=text)


def _confidence(name: str, output: TextOutput) -> tuple[Candidate, ...]:
    if not output.log_probs or len(output.log_probs) != len(output.token_ids):
        return ()
    # Not `math.fsum`, which raises where the sum is too large.
    log_prob = sum(output.log_probs)
    if not math.isfinite(log_prob):
        return ()
    # Rounding in the model server can put a certain token a little above 0.
    return (Candidate(name, math.exp(min(log_prob, 0.0))),)
