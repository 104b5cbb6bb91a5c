"""A picture of a run: losses and errors by epoch."""

from __future__ import annotations

import json
from pathlib import Path


def plot_curves(metrics: Path, picture: Path) -> bool:
    """Draw the curves of a `metrics.jsonl` as a PNG.

    Returns:
        Whether there was something to draw, and matplotlib to draw it with.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    tests = [row for row in rows if row["kind"] == "test"]
    trains = [row for row in rows if row["kind"] == "train" and row["loss"] is not None]
    if not tests or not trains:
        return False
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    blue, orange = "#0072B2", "#D55E00"  # apart for colour-blind readers, and in grey
    for axes, name, scale, label in (
        (loss_axes, "loss", 1.0, "cross entropy"),
        (error_axes, "top1", 100.0, "top-1 error (%)"),
    ):
        for series, colour, style, who in ((trains, blue, "-", "training"), (tests, orange, "o-", "test")):
            values = [scale * (row[name] if name == "loss" else 1 - row[name]) for row in series]
            axes.plot([row["epoch"] for row in series], values, style, color=colour, label=who, markersize=4)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, which="both", alpha=0.25)
    loss_axes.legend(frameon=False)
    final = 100 * (1 - tests[-1]["top1"])
    error_axes.annotate(
        f"{final:.2f} %", (tests[-1]["epoch"], max(final, 1e-3)), xytext=(-6, 10),
        textcoords="offset points", ha="right", color=orange,
    )  # fmt: skip
    figure.savefig(picture, dpi=120)
    return True
