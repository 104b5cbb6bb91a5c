"""The section `optim` of a configuration: SGD and its schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deepres.config.fields import NonNegativeFloat, PositiveFloat, PositiveInt, Section


class OptimConfig(Section):
    """SGD and its schedule."""

    learning_rate: PositiveFloat = 0.1
    """Until the first milestone."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """0: none."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: NonNegativeFloat = 1e-4
    """Of all parameters, as in the paper."""
    fused: bool = False
    """An update in one kernel for all parameters."""
    clip_grad_norm: PositiveFloat | None = None
    """The largest norm of all gradients together; null: any."""
    schedule_unit: Literal["iterations", "epochs"] = "epochs"
    """What `milestones` and `warmup` count."""
    milestones: tuple[PositiveInt, ...] = ()
    """When the learning rate is multiplied by `factor`."""
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """What the learning rate is multiplied by at each milestone."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """How long `warmup_learning_rate` holds (the paper: 0.01 for 400 iterations)."""
    warmup_learning_rate: PositiveFloat = 0.01
    """The learning rate during `warmup`."""

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self
