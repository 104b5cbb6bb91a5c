"""How memory and time grow with depth, under each strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

from deepres.bytesize import format_bytes
from deepres.memory.profiled_net import ProfiledNet
from deepres.memory.report_rows import Report
from deepres.recompute import InfeasibleBudgetError
from deepres.recompute.frontier import Frontier
from deepres.text_table import aligned

OVERHEAD = 0.20
"""The extra time of the plans at fixed overhead."""


@dataclass(frozen=True)
class DepthRow:
    """A net of one depth.

    Attributes:
        depth, num_units, batch: the net's.
        keep_all_bytes, sqrt_bytes: the peak of activations with everything kept, and of √units segments.
        sqrt_extra_share: the extra time of the latter.
        overhead_bytes: the least peak of plans that take at most `OVERHEAD` extra.
        memory_bytes: what the device has for activations.
        memory_extra_share: the extra time of the fastest plan within that; None if there is no plan.
    """

    depth: int
    block: str
    num_units: int
    batch: int
    keep_all_bytes: int
    sqrt_bytes: int
    sqrt_extra_share: float
    overhead_bytes: int
    overhead_extra_share: float
    memory_bytes: int
    memory_extra_share: float | None


@dataclass(frozen=True)
class Growth:
    """A fit over depths.

    Attributes:
        what: what was fitted.
        law: the law in words, with its numbers.
        exponent: of the units, in the least-squares fit of log bytes to log units; None for other laws.
        largest_error: of the law: for bytes, relative to them; for extra times, which can be 0, as a share of a step
            with everything kept.
        of_times: whether this is the law of extra times.
    """

    what: str
    law: str
    exponent: float | None
    largest_error: float
    of_times: bool = False


def depth_row(profiled: ProfiledNet, report: Report) -> DepthRow:
    """What the strategies take at one depth.

    Args:
        profiled: the net.
        report: of it.
    """
    frontier = Frontier(profiled.chain)
    keep_all, sqrt = report.row("keep all"), report.row("sqrt")
    overhead = frontier.smallest_within(OVERHEAD)
    room = max(1, profiled.room(profiled.batch))
    memory_extra_share: float | None
    try:
        memory_extra_share = frontier.plan(room).extra_share
    except InfeasibleBudgetError:
        memory_extra_share = None
    return DepthRow(
        depth=report.model.depth,
        block=report.model.block,
        num_units=report.model.num_units,
        batch=profiled.batch,
        keep_all_bytes=keep_all.peak_bytes,
        sqrt_bytes=sqrt.peak_bytes,
        sqrt_extra_share=sqrt.extra_share,
        overhead_bytes=overhead.peak_bytes,
        overhead_extra_share=overhead.extra_share,
        memory_bytes=room,
        memory_extra_share=memory_extra_share,
    )


def growth(rows: Sequence[DepthRow]) -> tuple[Growth, ...]:
    """The laws by which peaks and times grow with the number of units, over nets of the most frequent kind of unit.

    Args:
        rows: one for each depth; fewer than two of one kind give no laws.
    """
    rows = _of_one_kind(rows)
    if len({row.num_units for row in rows}) < 2:
        return ()
    units = [row.num_units for row in rows]
    laws = []
    for what, values in (
        ("keep all", [row.keep_all_bytes for row in rows]),
        ("√units", [row.sqrt_bytes for row in rows]),
        (f"plan, {100 * OVERHEAD:g} % extra", [row.overhead_bytes for row in rows]),
    ):
        exponent, factor = _power_law(units, values)
        error = max(abs(factor * n**exponent / v - 1) for n, v in zip(units, values, strict=True))
        law = f"{format_bytes(round(factor))} × units^{exponent:.2f}"
        laws.append(Growth(f"{what}, power law", law, exponent, error))
    slope, base = linear_regression(units, [row.keep_all_bytes for row in rows])
    error = max(abs((base + slope * row.num_units) / row.keep_all_bytes - 1) for row in rows)
    law = f"{_signed(base)} + {format_bytes(round(slope))} a unit"
    laws.insert(1, Growth("keep all, straight line", law, None, error))
    times = [(row.num_units, row.memory_extra_share) for row in rows if row.memory_extra_share is not None]
    if len({n for n, _ in times}) > 1:
        per_doubling, at_one = linear_regression(
            [math.log2(n) for n, _ in times], [share for _, share in times]
        )
        error = max(abs(at_one + per_doubling * math.log2(n) - share) for n, share in times)
        room = format_bytes(min(row.memory_bytes for row in rows))
        law = f"extra time {100 * per_doubling:+.1f} % of a step each time the units double"
        if not any(share for _, share in times):
            law = "everything fits at all depths: no extra time"
        laws.append(Growth(f"plan, {room}", law, None, error, of_times=True))
    return tuple(laws)


def depths_table(rows: Sequence[DepthRow]) -> list[list[str]]:
    """Cells, the heading first."""
    cells = [
        [
            "depth",
            "units",
            "of kind",
            "batch",
            "keep all",
            "√units",
            "extra",
            f"plan, ≤ {100 * OVERHEAD:g} % extra",
            "room",
            "extra in it",
        ]
    ]
    for row in rows:
        extra = "no plan" if row.memory_extra_share is None else f"{100 * row.memory_extra_share:.1f} %"
        cells.append(
            [
                str(row.depth),
                str(row.num_units),
                row.block,
                str(row.batch),
                format_bytes(row.keep_all_bytes),
                format_bytes(row.sqrt_bytes),
                f"{100 * row.sqrt_extra_share:.1f} %",
                format_bytes(row.overhead_bytes),
                format_bytes(row.memory_bytes),
                extra,
            ]
        )
    return cells


def depths_text(rows: Sequence[DepthRow], laws: Sequence[Growth]) -> str:
    """The table and the fitted laws, for people."""
    lines = [
        "Growth with depth: the peak of activations, the extra time of a step, and the room that there is for them",
        *("  " + line for line in aligned(depths_table(rows))),
        "",
        *("  " + line for line in aligned(laws_table(rows, laws), left=(0, 1))),
    ]
    return "\n".join(lines)


def laws_table(rows: Sequence[DepthRow], laws: Sequence[Growth]) -> list[list[str]]:
    """Cells of the fitted laws; the heading comes first and says for which nets."""
    fitted = _of_one_kind(rows)
    if not laws:
        return [["no two nets of one kind, basic or bottleneck: nothing is fitted", "", ""]]
    depths = ", ".join(str(row.depth) for row in fitted)
    of = f", {fitted[0].block} units alone ({depths})" if len(fitted) < len(rows) else ""
    cells = [["", f"fitted over the units{of}", "off by at most"]]
    is_fit = len({row.num_units for row in fitted}) > 2  # a line through two points is never off
    for law in laws:
        error = f"{100 * law.largest_error:.1f} %" + " of a step" * law.of_times
        cells.append([law.what, law.law, error if is_fit else "two nets"])
    return cells


def _of_one_kind(rows: Sequence[DepthRow]) -> list[DepthRow]:
    blocks = [row.block for row in rows]
    most = max(blocks, key=lambda block: (blocks.count(block), block == "bottleneck"))
    return [row for row in rows if row.block == most]


def _power_law(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Exponent and factor."""
    exponent, log_factor = linear_regression([math.log(v) for v in x], [math.log(v) for v in y])
    return exponent, math.exp(log_factor)


def _signed(num_bytes: float) -> str:
    return format_bytes(round(num_bytes)) if num_bytes >= 0 else f"−{format_bytes(round(-num_bytes))}"
