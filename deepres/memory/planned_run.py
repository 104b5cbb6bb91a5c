"""What a run was planned to do."""

from __future__ import annotations

from dataclasses import dataclass

from deepres.batch_sizes import BatchSizes
from deepres.bytesize import format_bytes
from deepres.memory.run_memory import OtherMemory
from deepres.recompute import PricedPlan


@dataclass(frozen=True)
class PlannedRun:
    """What a run was planned to do.

    Attributes:
        plan: with its costs on the run's chain.
        sizes: the batch sizes that it was made for.
        other: what one process holds besides activations.
        budget_bytes: what activations may take; None if there is no budget.
        measured_peak_bytes: activations of a first micro batch at their peak; None before it is run.
    """

    plan: PricedPlan
    sizes: BatchSizes
    other: OtherMemory
    budget_bytes: int | None
    measured_peak_bytes: int | None = None

    @property
    def activations_bytes(self) -> int:
        """The peak of activations: as measured, or before that as predicted."""
        return self.plan.peak_bytes if self.measured_peak_bytes is None else self.measured_peak_bytes

    @property
    def predicted_total_bytes(self) -> int:
        """What one process holds on its device at the peak of a step."""
        return self.plan.peak_bytes + self.other.total_bytes

    def __str__(self) -> str:
        plan, sizes = self.plan, self.sizes
        budget = "" if self.budget_bytes is None else f"budget {format_bytes(self.budget_bytes)}, "
        segments = f"{plan.num_segments} segment{'s' * (plan.num_segments != 1)} replayed"
        nested = f" nested {plan.nesting_depth} deep" if plan.nesting_depth > 1 else ""
        micro = f"micro batch {sizes.micro_size}"
        if sizes.accumulation > 1:
            micro += f" × {sizes.accumulation}"
        return (
            f"plan for {micro}: {budget}predicted peak of activations {format_bytes(plan.peak_bytes)}, "
            f"{segments}{nested}, {100 * plan.extra_share:.1f} % extra time predicted, "
            f"{format_bytes(self.predicted_total_bytes)} in all"
        )
