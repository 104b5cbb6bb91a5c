"""How far a run is; its net and optimizer are the engine's."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from deepres.metrics import Metrics


@dataclass
class TrainingState:
    """How far a run is, in one process.

    Attributes:
        step: optimizer steps done.
        sums: this process's `metric_sums` since the last line of metrics, (4,) float64.
        is_evaluated: whether the evaluation that is due after this step is done.
        test: the last evaluation; of no images before the first.
    """

    step: int
    sums: Tensor
    is_evaluated: bool = False
    test: Metrics = field(default_factory=Metrics.of_nothing)
