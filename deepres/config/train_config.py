"""The section `train` of a configuration: length, batch, reproducibility and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deepres.config.fields import HostPath, PositiveInt, Section


class TrainConfig(Section):
    """Length, batch, reproducibility and checkpoints of a run."""

    epochs: PositiveInt | None = None
    """Passes over the training images."""
    max_steps: PositiveInt | None = None
    """Optimizer steps; the run ends at whichever of `epochs` and `max_steps` comes first."""
    global_batch_size: PositiveInt | None = None
    """Images per optimizer step: micro batch × accumulation × processes. Give this, the micro batch, or either with the
    accumulation; the rest follows."""
    micro_batch_size: Literal["auto"] | PositiveInt | None = None
    """Images per forward pass of a process; `auto`: the largest number that fits `recompute.device_memory` or
    `recompute.budget`."""
    accumulation: PositiveInt | None = None
    """Micro batches per optimizer step, in each process."""
    eval_batch_size: PositiveInt | None = None
    """Images per forward pass of a process in evaluation; by default the micro batch."""
    eval_every: PositiveInt = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    """Seed of the parameters, the order of images, augmentation and dropout."""
    deterministic: bool = False
    """Use only algorithms that give the same results in every run."""
    initial_weights: HostPath | None = None
    """Begin with these weights of the same net instead of random ones: a run's folder, a checkpoint or a file. If they
    are known to be for other classes, the classifier begins randomly all the same."""
    output: HostPath = Path("runs")
    """Runs are written to `output/<name of the config>-<date>`."""
    run_dir: HostPath | None = None
    """Write the run to this folder instead."""
    overwrite: bool = False
    """Remove an earlier run from `run_dir`."""
    resume: Literal["auto", "never"] | HostPath = "never"
    """Resume from a checkpoint: `auto`, the newest intact one in `run_dir` (begin if there is none), or a given one."""
    save_every: (
        Annotated[str, Field(pattern=r"^[1-9]\d{0,8} (steps?|epochs?|minutes?)$", coerce_numbers_to_str=True)]
        | None
    ) = "30 minutes"
    """Steps, epochs or minutes between checkpoints; null: none at all, not even at the end."""
    save_in_background: Literal["auto", "always", "never"] = "auto"
    """Train on while a checkpoint is written; `auto`: if waiting would take more than 2 % of the time."""
    keep_checkpoints: PositiveInt = 2
    """How many checkpoints to keep: the newest ones."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("give epochs or max_steps")
        if self.resume == "auto" and self.run_dir is None:
            raise ValueError("resume=auto needs run_dir, the folder of the run to go on with")
        if self.overwrite and (self.run_dir is None or self.resume != "never"):
            raise ValueError("overwrite needs run_dir, and resume=never")
        return self

    def num_steps(self, steps_per_epoch: int) -> int:
        """The run's number of optimizer steps."""
        limits = [self.max_steps, (self.epochs or 0) * steps_per_epoch or None]
        return min(limit for limit in limits if limit is not None)
