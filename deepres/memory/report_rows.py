"""The rows of a report on a net, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deepres.memory.states import ModelStates
from deepres.recompute import PricedPlan

Kind = Literal["keep all", "per unit", "sqrt", "uniform", "own", "budget", "floor"]
"""Kinds of strategies: everything kept; uniform segments, one a unit, √units, or the best number; the plan that the
configuration asks for; plans for budgets; the plan with the least peak."""


@dataclass(frozen=True)
class ModelRow:
    """The net and its batch in one process."""

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
        kind: by which programs find it.
        strategy: its name, for people.
        budget_share: the budget as a share of the peak with everything kept; None if there is no budget.
        budget_bytes: None if there is no budget.
        plan: None if none fits the budget.
        peak_bytes: of activations; if no plan fits the budget, what the smallest plan needs.
        total_bytes: with model states, images and reserve.
        extra_forwards: how often a unit is run forward again, on average.
        extra_share: the extra time as a share of a step with everything kept.
        least_extra_share: no plan within the budget takes less extra time; None if there is no budget.
        step_ms: the time of a forward and backward pass over a micro batch.
        images_per_s: of one process.
        largest_batch: the largest with which this plan fits the device.
        fits: whether it fits with the batch at hand.
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
        """Whether its plan was made for a number of bytes."""
        return self.kind in ("budget", "floor")


@dataclass(frozen=True)
class Report:
    """The report on one net.

    Attributes:
        engine: the run's engine.
        device, device_bytes: the device that is to hold it, and its memory.
        other_bytes: what a process holds besides activations: model states, and the two that follow.
        images_bytes: for a micro batch, and the images of data sets that live on the device.
        workspace_bytes: the reserve for workspaces of a card's libraries.
        states, stages, rows: the tables.
        ends_bytes: the part of the peak with everything kept that is not in the stages.
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
