"""What both models say of cases, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from router_training.cases import OTHER, Case, check_ids
from router_training.encoder_draws import TextsEncoder, logits_of
from router_training.encoder_model import SecondOpinionModel
from router_training.fusion import Opinions
from router_training.scoring import Scored

_LEAST_PROBABILITY = 1e-12


def opinions_of(
    scored: Sequence[Scored], model: SecondOpinionModel, encoder: TextsEncoder
) -> dict[str, Opinions]:
    """By the case's id, of cases that both have an opinion of.

    Args:
        scored: by the language model.

    Raises InputError for two cases with one id.
    """
    check_ids([one.case for one in scored])
    by_id = {one.case.id: one for one in scored}
    opinions = {}
    for case, logits in logits_of(model, encoder, [one.case for one in scored]):
        probabilities = np.maximum(by_id[case.id].probabilities, _LEAST_PROBABILITY)
        right = np.array([name in case.request.right for name in candidates(case)])
        opinions[case.id] = Opinions(case.family, np.log(probabilities), logits, right)
    return opinions


def candidates(case: Case) -> tuple[str, ...]:
    """The names of the routes, and `other`."""
    return (*(route.name for route in case.routes), OTHER)
