"""What the routing model's output means for a policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sidecar.core.decision import Candidate, Reason
from sidecar.core.model import Answer, LabelLogits, ModelOutput

UNPARSABLE = Answer(name="", problem=Reason.UNPARSABLE_ANSWER)


def read_labels(
    output: ModelOutput, names: Sequence[str], labels: Sequence[str], temperature: float
) -> Answer:
    """Softmax over the label logits.

    Args:
        names: what each label stands for; on equal logits the first wins.
        labels: the words, for the answer's text.
        temperature: divides the logits; > 0.
    """
    if not isinstance(output, LabelLogits) or len(output.logits) != len(names):
        return UNPARSABLE
    top = max(output.logits)
    if any(math.isnan(logit) for logit in output.logits) or math.isinf(top):
        return UNPARSABLE
    weights = [math.exp((logit - top) / temperature) for logit in output.logits]
    total = math.fsum(weights)
    ranked = sorted(range(len(names)), key=lambda i: -weights[i])
    return Answer(
        name=names[ranked[0]],
        candidates=tuple(Candidate(names[i], weights[i] / total) for i in ranked),
        text=labels[ranked[0]],
    )
