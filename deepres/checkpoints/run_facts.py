"""What stays the same during a run and goes into each of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from deepres.checkpoints.identity import Identity
from deepres.recompute import Plan


@dataclass(frozen=True)
class RunFacts:
    """What stays the same during a run, besides its configuration.

    Attributes:
        identity: the run's.
        classes_sha256: of the names of its data set's classes; empty if they have none.
        steps_per_epoch: optimizer steps.
        plan: the plan that the net runs by.
    """

    identity: Identity
    classes_sha256: str
    steps_per_epoch: int
    plan: Plan
