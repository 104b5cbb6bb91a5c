"""The section `optim` of a configuration: SGD and its schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deepres.config.fields import NonNegativeFloat, PositiveFloat, PositiveInt, Section


class OptimConfig(Section):
    """SGD and its schedule."""

    learning_rate: PositiveFloat = 0.1
    """The learning rate until the first milestone."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum; 0 disables it."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    weight_decay: NonNegativeFloat = 1e-4
    """Applied to all parameters, as in the paper."""
    fused: bool = False
    """Update all parameters in one kernel (PyTorch's fused SGD)."""
    clip_grad_norm: PositiveFloat | None = None
    """The gradients' total norm is clipped to this; null: no clipping."""
    schedule_unit: Literal["iterations", "epochs"] = "epochs"
    """What `milestones` and `warmup` count."""
    milestones: tuple[PositiveInt, ...] = ()
    """When to multiply the learning rate by `factor`."""
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """What the learning rate is multiplied by at each milestone."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """How long to train with `warmup_learning_rate` first (the paper: 0.01 for 400 iterations)."""
    warmup_learning_rate: PositiveFloat = 0.01
    """The learning rate during `warmup`."""

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self
