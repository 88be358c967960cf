"""Steps of AdamW, their rate, and the running average of the weights that they train."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from router_training.llama import Llama


class Schedule(Protocol):
    """See `loop.Plan`."""

    @property
    def rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def decay(self) -> float: ...
    @property
    def frozen_layers(self) -> int: ...
    @property
    def averaging(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip(self) -> float: ...


class Descent:
    """Of the layers of `model` that the plan does not freeze."""

    def __init__(self, model: Llama, plan: Schedule) -> None:
        self._plan = plan
        model.freeze(plan.frozen_layers)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained,
            lr=plan.rate,
            betas=(0.9, 0.98),
            weight_decay=plan.weight_decay,
            fused=True,
        )
        self._average: list[Tensor] = []

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"optimizer": self._optimizer.state_dict(), "average": self._average}

    def restore(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        # One that no longer follows would take the place of what this run trains.
        kept = state["average"] if self._plan.averaging else []
        self._average = [average.clone() for average in kept]

    def rate(self, step: int, spent: float) -> float:
        """Of the step after `step` steps, with a share `spent` of the budget."""
        plan = self._plan
        warm = min(1.0, (step + 1) / plan.warmup) if plan.warmup else 1.0
        left = 1.0 - spent
        cooled = max(0.1, left / plan.decay) if plan.decay and left < plan.decay else 1.0
        return plan.rate * warm * cooled

    def step(self, rate: float, decisions: int) -> None:
        """With the gradients of the sum of the losses of so many decisions, which are cleared."""
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item() / decisions
        torch._foreach_mul_(gradients, min(1.0, self._plan.clip / max(norm, 1e-9)) / decisions)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        self._follow()

    def adopt_average(self) -> None:
        """Give the model the running average, if there is one."""
        if self._average:
            for parameter, average in zip(self._trained, self._average, strict=True):
                parameter.data.copy_(average)

    def _follow(self) -> None:
        """Move the running average."""
        if not self._plan.averaging:
            return
        trained = [parameter.detach() for parameter in self._trained]
        if not self._average:
            self._average = [parameter.clone() for parameter in trained]
        torch._foreach_lerp_(self._average, trained, 1 - self._plan.averaging)
