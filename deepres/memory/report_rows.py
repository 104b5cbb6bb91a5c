"""The rows of a report on a net: numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deepres.memory.states import ModelStates
from deepres.recompute import PricedPlan

Kind = Literal["keep all", "per unit", "sqrt", "uniform", "own", "budget", "floor"]
"""Of strategies: everything kept; a segment for each unit, √units, the best number of uniform ones; the plan that the
configuration asks for; plans for budgets, and with the least peak."""


@dataclass(frozen=True)
class ModelRow:
    """The net and its batch, of one process."""

    depth: int
    dataset: str
    block: str
    activation: str
    shortcut: str
    units_per_stage: tuple[int, ...]
    num_units: int
    num_parameters: int
    multiply_adds: int
    batch: int
    image_size: int
    precision: str
    world_size: int


@dataclass(frozen=True)
class StatesRow:
    """Model states of one process under an engine."""

    engine: str
    states: ModelStates


@dataclass(frozen=True)
class StageRow:
    """A stage's activations with everything kept."""

    stage: int
    num_units: int
    output_bytes: int
    kept_bytes: int
    share: float


@dataclass(frozen=True)
class StrategyRow:
    """What a strategy takes.

    Attributes:
        kind: what programs find it by.
        strategy: its name, for people.
        budget_share: the budget as a share of the peak with everything kept, None if it has none.
        budget_bytes: None if it has none.
        plan: None if none fits the budget.
        peak_bytes: of activations; of a budget for which there is no plan, what the smallest plan needs.
        total_bytes: with model states, images and reserve.
        extra_forwards: how often a unit is run forward again, on average.
        extra_share: the extra time as a share of a step with everything kept.
        least_extra_share: no plan within the budget takes less extra time; None if there is no budget.
        step_ms: a forward and backward pass over a micro batch.
        images_per_s: of one process.
        largest_batch: with which this plan fits the device.
        fits: whether it does with the batch at hand.
        measured_peak_bytes, measured_ms: on the device at hand, if they were measured.
        measured_note: why they were not.
    """

    kind: Kind
    strategy: str
    budget_share: float | None
    budget_bytes: int | None
    plan: PricedPlan | None
    peak_bytes: int
    total_bytes: int
    extra_forwards: float
    extra_share: float
    least_extra_share: float | None
    step_ms: float
    images_per_s: float
    largest_batch: int
    fits: bool
    measured_peak_bytes: int | None = None
    measured_ms: float | None = None
    measured_note: str = ""

    @property
    def is_planned(self) -> bool:
        """Whether its plan is made for its bytes."""
        return self.kind in ("budget", "floor")


@dataclass(frozen=True)
class Report:
    """All that is told of one net.

    Attributes:
        engine: under which the run is.
        device, device_bytes: what is to hold it.
        other_bytes: what a process holds beside activations: model states, and the two that follow.
        images_bytes: for a micro batch, and the images of data sets that live on the device.
        workspace_bytes: for what a card's libraries take while they compute.
        states, stages, rows: the tables.
        ends_bytes: of the peak with everything kept, what is not in the stages.
        units_per_group: how many units were planned as one, at most.
    """

    model: ModelRow
    engine: str
    device: str
    device_bytes: int
    other_bytes: int
    images_bytes: int
    workspace_bytes: int
    states: tuple[StatesRow, ...]
    stages: tuple[StageRow, ...]
    ends_bytes: int
    rows: tuple[StrategyRow, ...]
    units_per_group: int

    def row(self, kind: Kind) -> StrategyRow:
        """The first row of a kind."""
        return next(row for row in self.rows if row.kind == kind)
