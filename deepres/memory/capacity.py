"""The largest batch that a card trains, for so much extra time at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from deepres.bytesize import format_bytes
from deepres.memory.scaling import largest_batch
from deepres.memory.subject import Subject
from deepres.recompute import InfeasibleBudgetError, keep_all_plan, simulate
from deepres.recompute.frontier import Frontier

CARD_BYTES = (8 * 2**30, 12 * 2**30, 24 * 2**30)
EXTRA_SHARES = (0.10, 0.20, 0.35)


@dataclass(frozen=True)
class CapacityRow:
    """What a card of some memory trains.

    Attributes:
        memory_bytes: of the card, model states included.
        keep_all_batch: the largest batch with everything kept.
        plan_batches: the largest batch with a plan, for each of the extra times.
    """

    memory_bytes: int
    keep_all_batch: int
    plan_batches: tuple[int, ...]


def capacity(
    subject: Subject,
    cards_bytes: Sequence[int] = CARD_BYTES,
    extra_shares: Sequence[float] = EXTRA_SHARES,
) -> tuple[CapacityRow, ...]:
    """The largest batches of a net on cards of some memory.

    Args:
        subject: the net; its target's memory does not matter.
        cards_bytes: the cards' memory.
        extra_shares: the extra time that a plan may take, as shares of a step with everything kept; ascending.
    """
    return tuple(_capacity_row(subject.within(num_bytes), extra_shares) for num_bytes in cards_bytes)


def capacity_table(
    rows: Sequence[CapacityRow], extra_shares: Sequence[float] = EXTRA_SHARES
) -> list[list[str]]:
    """Cells, the heading first."""
    heading = [
        "largest batch on",
        "keep all",
        *(f"plan, ≤ {100 * share:g} % extra" for share in extra_shares),
    ]
    return [
        heading,
        *(
            [
                format_bytes(row.memory_bytes),
                *(f"{batch:,}" if batch else "none" for batch in (row.keep_all_batch, *row.plan_batches)),
            ]
            for row in rows
        ),
    ]


def _capacity_row(subject: Subject, extra_shares: Sequence[float]) -> CapacityRow:
    plan = keep_all_plan(len(subject.net.units))

    def keeps_all(batch: int) -> bool:
        return simulate(subject.scaling.at(batch), plan).peak_bytes <= subject.room(batch)

    batches = [largest_batch(keeps_all, guess=subject.batch)]
    for share in extra_shares:
        batches.append(largest_batch(partial(_trains, subject, share), guess=max(1, batches[-1])))
    return CapacityRow(subject.target.memory_bytes, batches[0], tuple(batches[1:]))


def _trains(subject: Subject, max_extra_share: float, batch: int) -> bool:
    """Whether a plan fits that takes no more extra."""
    if subject.room(batch) < 1:
        return False
    frontier = Frontier(subject.scaling.at(batch), max_groups=40, slots=120)
    try:
        plan = frontier.plan(subject.room(batch))
    except InfeasibleBudgetError:
        return False
    return frontier.extra_share(plan) <= max_extra_share
