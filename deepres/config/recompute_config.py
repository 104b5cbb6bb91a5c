"""The section `recompute` of a configuration: what is discarded in the forward pass and replayed later."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deepres.config.fields import Bytes, HostPath, PositiveInt, Section
from deepres.wording import listed


class RecomputeConfig(Section):
    """What is discarded in the forward pass and replayed in the backward pass."""

    segments: Literal["none", "sqrt"] | PositiveInt = "none"
    """Divide the units into this many uniform segments; `sqrt`: the square root of the number of units."""
    budget: Bytes | None = None
    """Use the fastest plan whose activations take at most this much memory (`2GiB`)."""
    device_memory: Bytes | Literal["auto"] | None = None
    """Use the fastest plan with which training takes at most this much of a device's memory; `auto`: what is free. On a
    GPU, a number also limits PyTorch's allocator in each process. Not counted are an evaluation with a larger
    `train.eval_batch_size` and, on a CPU, the copy of a checkpoint that is being saved and offloaded states."""
    plan: HostPath | None = None
    """Use this plan, a file that `Plan.save` wrote."""
    max_extra: Annotated[float, Field(ge=0)] = 0.5
    """With `train.micro_batch_size: auto`: the fraction by which recomputation may lengthen a step."""

    @model_validator(mode="after")
    def _check(self) -> RecomputeConfig:
        given = [name for name in ("budget", "device_memory", "plan") if getattr(self, name) is not None]
        if self.segments != "none":
            given.insert(0, "segments")
        if len(given) > 1:
            other = "segments=none" if given[0] == "segments" else f"{given[0]}=null"
            raise ValueError(
                f"give one of segments, budget, device_memory and plan, got {listed(given)}: recompute.{other} "
                f"leaves {given[0]} out"
            )
        return self
