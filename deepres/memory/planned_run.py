"""What a run was planned to do."""

from __future__ import annotations

from dataclasses import dataclass

from deepres.batch_sizes import BatchSizes
from deepres.bytesize import format_bytes
from deepres.memory.run_memory import RunMemory
from deepres.recompute import PricedPlan


@dataclass(frozen=True)
class PlannedRun:
    """What a run was planned to do.

    Attributes:
        plan: with its costs on the run's chain.
        sizes: the batch sizes that it was made for.
        memory: of one process.
        budget_bytes: what activations may take; None if there is no budget.
    """

    plan: PricedPlan
    sizes: BatchSizes
    memory: RunMemory
    budget_bytes: int | None

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
            f"{format_bytes(self.memory.total_bytes)} in all"
        )
