"""The optimizer of the paper, SGD with momentum, and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deepres.config import OptimConfig
from deepres.wording import listed


def sgd_settings(config: OptimConfig) -> dict[str, Any]:
    """Keyword arguments of `torch.optim.SGD`."""
    return {
        "lr": config.learning_rate,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "nesterov": config.nesterov,
        "fused": config.fused or None,
    }


def sgd(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.SGD:
    """SGD with weight decay on every parameter, batch norm's included, as in the paper's recipes."""
    return torch.optim.SGD([p for p in parameters if p.requires_grad], **sgd_settings(config))


@dataclass(frozen=True)
class StepSchedule:
    """The learning rate of each step: a constant warm-up, then drops at milestones (Section 4 of the paper).

    Args:
        config: rates, milestones and their unit.
        steps_per_epoch: optimizer steps per epoch, to convert epochs.
    """

    config: OptimConfig
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        """The learning rate of the `step`-th step, from 0."""
        if step < self.config.warmup * self._unit:
            return self.config.warmup_learning_rate
        drops = sum(step >= milestone * self._unit for milestone in self.config.milestones)
        return self.config.learning_rate * self.config.factor**drops

    def unreached(self, num_steps: int) -> str | None:
        """Describes what a run of `num_steps` does not reach of the schedule; None if it reaches all of it."""
        config, unit = self.config, self.config.schedule_unit
        parts = []
        if config.warmup and config.warmup * self._unit >= num_steps:
            parts.append(f"all of it is warm-up (optim.warmup is {config.warmup} {unit})")
        late = [each for each in config.milestones if each * self._unit >= num_steps]
        if late:
            parts.append(f"it ends before optim.milestones {listed(late)} ({unit})")
        steps = f"{num_steps} step{'s' * (num_steps != 1)}"
        return f"the run has {steps}: {' and '.join(parts)}" if parts else None

    @property
    def _unit(self) -> int:
        return self.steps_per_epoch if self.config.schedule_unit == "epochs" else 1
