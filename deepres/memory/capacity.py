"""The largest batch that a card trains within a limit on extra time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepres.bytesize import format_bytes
from deepres.memory.profiled_net import ProfiledNet
from deepres.memory.report import largest_batch_of
from deepres.memory.tables import batch_text
from deepres.recompute import keep_all_plan
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
    profiled: ProfiledNet,
    cards_bytes: Sequence[int] = CARD_BYTES,
) -> tuple[CapacityRow, ...]:
    """The largest batches of a net on cards of some memory.

    Args:
        profiled: the net; its target's memory does not matter. Plans are made at its batch, with the least peak
            for each extra time, and then kept as the batch grows.
        cards_bytes: the cards' memory.
    """
    frontier = Frontier(profiled.chain)
    plans = [keep_all_plan(len(profiled.net.units)), *map(frontier.smallest_within, EXTRA_SHARES)]
    rows = []
    for num_bytes in cards_bytes:
        kept, *others = (largest_batch_of(profiled.within(num_bytes), plan) for plan in plans)
        rows.append(CapacityRow(num_bytes, kept, tuple(others)))
    return tuple(rows)


def capacity_table(rows: Sequence[CapacityRow]) -> list[list[str]]:
    """Cells of rows for `EXTRA_SHARES`, the heading first."""
    heading = [
        "largest batch on",
        "keep all",
        *(f"plan, ≤ {100 * share:g} % extra" for share in EXTRA_SHARES),
    ]
    return [
        heading,
        *(
            [
                format_bytes(row.memory_bytes),
                *map(batch_text, (row.keep_all_batch, *row.plan_batches)),
            ]
            for row in rows
        ),
    ]
