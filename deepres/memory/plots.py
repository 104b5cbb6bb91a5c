"""Plots of a report: time against memory, a step's bytes over time, and which units hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from deepres.bytesize import format_bytes
from deepres.memory.depths import OVERHEAD, DepthRow
from deepres.memory.end_of_forward import held_after_forward
from deepres.memory.profiled_net import ProfiledNet
from deepres.memory.report_rows import Report, StrategyRow
from deepres.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from deepres.recompute import PricedPlan, keep_all_plan, price, uniform_plan
from deepres.recompute.frontier import Frontier
from deepres.recompute.simulate import timeline

_SIZE, _DPI = (8.0, 4.5), 160
_HIGHEST_EXTRA = 1.0
"""Plans that take more than a whole step extra are left out of pictures."""


def frontier_figure(profiled: ProfiledNet, report: Report, num_budgets: int = 12) -> Figure:
    """Extra time over memory: plans, uniform segments, keeping all, and the card.

    Args:
        profiled: the net.
        report: of it.
        num_budgets: how many more plans to make, for a smooth curve.
    """
    chain, frontier = profiled.chain, Frontier(profiled.chain)
    figure, axes = _axes()
    least, most = frontier.floor_bytes, report.row("keep all").peak_bytes
    budgets = [round(least * (most / least) ** (k / num_budgets)) for k in range(num_budgets + 1)]
    plans = [frontier.plan(max(least, num_bytes)) for num_bytes in budgets]
    plans += [row.plan for row in report.rows if row.plan is not None and row.is_planned]
    _curve(axes, plans, BLUE, "plans (fastest for a budget)", "o-")
    nums = sorted({round(len(chain.units) ** (k / 30)) for k in range(31)})
    uniform = [price(chain, uniform_plan(len(chain.units), num)) for num in nums]
    _curve(axes, uniform, ORANGE, "uniform segments", "s--")
    bounds = [(num_bytes, frontier.least_extra_share(num_bytes)) for num_bytes in budgets]
    axes.plot(*zip(*bounds, strict=True), ":", color=GREY, label="no plan takes less")
    for row, marker, colour in (
        (report.row("keep all"), "D", "black"),
        (report.row("per unit"), "^", VERMILION),
        (report.row("sqrt"), "v", PURPLE),
    ):
        label = row.strategy.split(",")[0]
        axes.plot(row.peak_bytes, row.extra_share, marker, color=colour, markersize=9, label=label, zorder=5)
    room = max(0, report.device_bytes - report.other_bytes)
    label = f"{report.device}:\n{format_bytes(room)} for\nactivations"
    x: tuple[float, str] = (room, "data")
    if least / 4 < room < 4 * most:
        axes.axvline(room, color=GREEN, linewidth=2)
    else:  # far from all that is drawn
        x, label = (1.0, "axes fraction"), f"{label} {'→' if room else '(none)'}"
    axes.annotate(
        label, (x[0], 1.0), xytext=(-6, -6), xycoords=(x[1], "axes fraction"), textcoords="offset points",
        ha="right", va="top", color=GREEN,
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    _byte_ticks(axes.xaxis)
    axes.set_xlabel("peak of activations (log)")
    axes.set_ylabel("extra time (% of a step)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f}"))
    shown = [plan.extra_share for plan in plans if plan.extra_share <= _HIGHEST_EXTRA]
    axes.set_ylim(-0.02, max(0.3, 1.1 * max(shown, default=0.0)))
    axes.set_title(f"{_title(report)}: time against memory")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def timeline_figure(profiled: ProfiledNet, report: Report, row: StrategyRow) -> Figure:
    """The bytes of a step under a row's plan, over time, by kind."""
    assert row.plan is not None
    moments = timeline(profiled.chain, row.plan)
    times, kinds = [0.0], [list[float]() for _ in range(5)]
    for moment in moments:
        times.append(times[-1] + moment.duration_ms)
        values = (
            report.other_bytes + moment.fixed_bytes,
            moment.kept_input_bytes,
            moment.kept_bytes,
            moment.gradient_bytes,
            moment.transient_bytes,
        )
        for kind, value in zip(kinds, values, strict=True):
            kind.append(float(value))
    figure, axes = _axes()
    # Thousands of steps, each a jump: drawn as a step function, its last value repeated at the end.
    axes.stackplot(
        times,
        [[*kind, kind[-1]] for kind in kinds],
        labels=["states, images, reserve", "kept inputs", "kept activations", "gradients", "transient"],
        colors=[GREY, SKY, BLUE, ORANGE, VERMILION],
        step="post",
        linewidth=0,
    )
    turn = next(i for i, moment in enumerate(moments) if moment.action.value == "head")
    axes.axvline(times[turn], color="black", linewidth=1, linestyle="--")
    axes.annotate(
        "backward begins", (times[turn], 1.0), xytext=(4, -4), xycoords=("data", "axes fraction"),
        textcoords="offset points", va="top",
    )  # fmt: skip
    axes.set_xlim(0, times[-1])
    axes.set_ylim(0, 1.25 * (report.other_bytes + row.peak_bytes))
    _linear_bytes(axes)
    axes.set_xlabel("time in the step (ms, predicted)")
    axes.set_ylabel("bytes on the device")
    everything = format_bytes(report.row("keep all").total_bytes)
    axes.set_title(
        f"{_title(report)}: a step under the {row.strategy}\npeak {format_bytes(row.total_bytes)}, "
        f"{100 * row.extra_share:.0f} % extra time; everything kept: {everything}"
    )
    axes.legend(*_reversed_legend(axes), frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def units_figure(profiled: ProfiledNet, report: Report, row: StrategyRow) -> Figure:
    """What each unit holds at the end of the forward phase: with everything kept, and under a row's plan."""
    assert row.plan is not None
    figure, axes = _axes()
    num_units = len(profiled.chain.units)
    edges = list(range(num_units + 1))
    _, everything = held_after_forward(profiled.chain, keep_all_plan(num_units))
    inputs, kept = held_after_forward(profiled.chain, row.plan)
    axes.stairs(everything, edges, color=GREY, linewidth=1.5, label="everything kept")
    both = [a + b for a, b in zip(inputs, kept, strict=True)]
    axes.stairs(both, edges, fill=True, color=BLUE, label=f"{row.strategy}: kept activations")
    axes.stairs(inputs, edges, fill=True, color=SKY, label=f"{row.strategy}: kept inputs")
    start = 0
    for stage, size in enumerate(report.model.units_per_stage, start=1):
        if start:
            axes.axvline(start, color="black", linewidth=0.8, linestyle=":")
        label = f"stage {stage}" if size * 12 >= num_units else str(stage)
        axes.annotate(
            label, (start + size / 2, 1.0), xytext=(0, -4), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="top",
        )  # fmt: skip
        start += size
    axes.set_xlim(0, num_units)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.2 * max(everything))
    _linear_bytes(axes)
    axes.set_xlabel("unit")
    axes.set_ylabel("bytes held when backward begins")
    total = sum(inputs) + sum(kept)
    axes.set_title(
        f"{_title(report)}: where activations sit\n"
        f"{format_bytes(total)} under the {row.strategy}; everything kept: {format_bytes(sum(everything))}"
    )
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return figure


def depths_figure(rows: Sequence[DepthRow]) -> Figure:
    """Peaks and extra times over the number of units."""
    figure = Figure(figsize=(10.0, 4.5), dpi=_DPI, layout="constrained")
    peaks, times = figure.subplots(1, 2)
    kinds = list(dict.fromkeys(row.block for row in rows))
    for kind in kinds:
        _depths_curves(peaks, times, [row for row in rows if row.block == kind], is_first=kind == kinds[0])
    peaks.set_xscale("log", base=2)
    peaks.set_yscale("log", base=2)
    _byte_ticks(peaks.yaxis)
    peaks.set_ylabel("peak of activations (log)")
    times.set_xscale("log", base=2)
    times.set_ylim(bottom=0)
    times.set_ylabel("extra time (% of a step)")
    for axes in (peaks, times):
        fainter = f"; fainter: {' and '.join(kinds[1:])} units" if kinds[1:] else ""
        axes.set_xlabel(f"units (depth){fainter}")
        axes.set_xticks(*_depth_ticks(rows))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def _depths_curves(peaks: Axes, times: Axes, rows: Sequence[DepthRow], *, is_first: bool) -> None:
    """Draw the nets of one kind of unit; kinds after the first are fainter, and not in the legend again."""
    units = [row.num_units for row in rows]
    alpha = 1.0 if is_first else 0.4
    for values, colour, style, label in (
        ([row.keep_all_bytes for row in rows], "black", "D-", "keep all"),
        ([row.sqrt_bytes for row in rows], ORANGE, "s--", "√units segments"),
        ([row.overhead_bytes for row in rows], BLUE, "o-", f"plan, ≤ {100 * OVERHEAD:g} % extra time"),
        ([row.memory_bytes for row in rows], GREEN, ":", "the card's room"),
    ):
        peaks.plot(units, values, style, color=colour, label=label if is_first else None, alpha=alpha)
    for shares, colour, style, label in (
        ([row.sqrt_extra_share for row in rows], ORANGE, "s--", "√units segments"),
        ([row.overhead_extra_share for row in rows], BLUE, "o-", f"plan, ≤ {100 * OVERHEAD:g} % extra time"),
    ):
        times.plot(
            units,
            [100 * share for share in shares],
            style,
            color=colour,
            label=label if is_first else None,
            alpha=alpha,
        )
    fitting = [(r.num_units, 100 * r.memory_extra_share) for r in rows if r.memory_extra_share is not None]
    if fitting:
        label = "plan in the card's room"
        times.plot(
            *zip(*fitting, strict=True), "^-", color=GREEN, label=label if is_first else None, alpha=alpha
        )


def _depth_ticks(rows: Sequence[DepthRow]) -> tuple[list[int], list[str]]:
    """Numbers of units, each with the depths that have it."""
    depths = dict[int, list[str]]()
    for row in rows:
        depths.setdefault(row.num_units, []).append(str(row.depth))
    return list(depths), [f"{units}\n({', '.join(of)})" for units, of in depths.items()]


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curve(axes: Axes, plans: Sequence[PricedPlan], colour: str, label: str, style: str) -> None:
    """Draw those plans that no other beats in both peak and time."""
    points = list[tuple[int, float]]()
    for peak_bytes, share in sorted((plan.peak_bytes, plan.extra_share) for plan in plans):
        if share <= _HIGHEST_EXTRA and (not points or share < points[-1][1]):
            points.append((peak_bytes, share))
    if points:
        axes.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=4, linewidth=2)


def _title(report: Report) -> str:
    model = report.model
    return f"ResNet-{model.depth}, batch {model.batch}, {model.precision}"


def _byte_ticks(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(round(value))))
    axis.set_minor_formatter(NullFormatter())


def _linear_bytes(axes: Axes) -> None:
    """Round numbers of MiB or GiB on the y axis."""
    top = axes.get_ylim()[1]
    unit, name = (2**30, "GiB") if top >= 2 * 2**30 else (2**20, "MiB") if top >= 2**21 else (2**10, "KiB")
    step = next(
        s for s in (0.1, 0.25, 0.5, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500) if top / unit / s <= 8
    )
    axes.set_yticks([k * step * unit for k in range(int(top / unit / step) + 1)])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g} {name}"))


def _reversed_legend(axes: Axes) -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return handles[::-1], [str(label) for label in labels[::-1]]
