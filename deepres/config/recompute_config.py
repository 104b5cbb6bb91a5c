"""The section `recompute` of a configuration: what is discarded in the forward pass and replayed later."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deepres.config.fields import Bytes, HostPath, PositiveInt, Section
from deepres.wording import listed


class RecomputeConfig(Section):
    """What is discarded in the forward pass and replayed in the backward pass."""

    segments: Literal["none", "sqrt"] | PositiveInt = "none"
    """Uniform segments over the units: how many, or the square root of the number of units."""
    budget: Bytes | None = None
    """The fastest plan whose activations take no more than this (`2GiB`)."""
    device_memory: Bytes | Literal["auto"] | None = None
    """The fastest plan with which training takes no more than this of a device, or than it has free. Of a GPU,
    PyTorch's allocator then gets no more than that number of bytes in each process. Not counted are an evaluation with
    a larger `train.eval_batch_size` and, on a CPU, the copy of a checkpoint that is saved and what is offloaded."""
    plan: HostPath | None = None
    """A plan that `Plan.save` wrote."""
    max_extra: Annotated[float, Field(ge=0)] = 0.5
    """With `train.micro_batch_size: auto`: how much longer than with everything kept a step may take."""

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
