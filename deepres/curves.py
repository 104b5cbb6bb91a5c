"""A plot of a run: losses and errors by epoch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from deepres.palette import BLUE, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_curves(metrics: Path, picture: Path) -> bool:
    """Draw the curves of a `metrics.jsonl` as a PNG.

    Returns:
        Whether there was something to draw, and matplotlib to draw it with.
    """
    try:
        figure = curves_figure(metrics)
    except ImportError:
        return False
    if figure is not None:
        figure.savefig(picture, dpi=120)
    return figure is not None


def curves_figure(metrics: Path) -> Figure | None:
    """The curves of a `metrics.jsonl`; None if it has no training or no evaluation.

    Raises:
        ImportError: there is no matplotlib.
    """
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    tests = [row for row in rows if row["kind"] == "test" and row["top1"] is not None]
    trains = [row for row in rows if row["kind"] == "train" and row["loss"] is not None]
    if not tests or not trains:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    for axes, name, scale, label in (
        (loss_axes, "loss", 1.0, "cross entropy"),
        (error_axes, "top1", 100.0, "top-1 error (%)"),
    ):
        for series, colour, style, who in ((trains, BLUE, "-", "training"), (tests, VERMILION, "o-", "test")):
            known = [row for row in series if row[name] is not None]
            values = [scale * (row[name] if name == "loss" else 1 - row[name]) for row in known]
            axes.plot([row["epoch"] for row in known], values, style, color=colour, label=who, markersize=4)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        _set_ticks(axes)
        axes.grid(visible=True, which="both", alpha=0.25)
    loss_axes.legend(frameon=False)
    final = f"test at the end {100 * (1 - tests[-1]['top1']):.2f} %"
    error_axes.annotate(final, (0.97, 0.95), xycoords="axes fraction", ha="right", va="top", color=VERMILION)
    return figure


def _set_ticks(axes: Axes) -> None:
    """Set ticks: epochs on x, integers from two epochs on; plain numbers on y, which is logarithmic unless all is 0."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=axes.dataLim.x1 >= 2))
    if not math.isfinite(axes.dataLim.minposy):
        return  # all is zero
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    for locator in (LogLocator(), LogLocator(subs=(1, 2, 5)), MaxNLocator(5)):
        ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
        if len(ticks) >= 3:
            break
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
