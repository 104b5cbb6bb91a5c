"""Plots the frontier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from deepres.palette import BLACK, BLUE, GREEN, ORANGE


def draw_frontier(document: Mapping[str, Any], path: Path) -> None:
    """Plot the frontier of measured costs: memory per image against extra time.

    Args:
        document: what a `frontier_report` wrote: `depth`, `batch`, `machine`, `points`, `uniform`
            and the rows.
        path: of the PNG.
    """
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots()
    uniform = [(point["mib"], point["extra_percent"]) for point in document["uniform"]]
    curves = (
        (
            uniform,
            ORANGE,
            (0, (4, 2)),
            "uniform segments, as of torch.utils.checkpoint: predicted",
            ("steps-post", 2.4),
        ),
        (
            _curve(document, "measured_all"),
            BLUE,
            "-",
            "plans that keep or discard whole units: predicted",
            ("default", 2.8),
        ),
        (
            _curve(document, "measured_both"),
            GREEN,
            "-",
            "plans that may keep outputs of convolutions alone: predicted",
            ("default", 3.6),
        ),
    )
    for curve, colour, style, label, (draw, width) in curves:
        x, y = zip(*curve, strict=True)
        axes.plot(x, y, color=colour, linestyle=style, linewidth=width, drawstyle=draw, label=label, zorder=3)
    axes.plot(*uniform[0], "o", color=ORANGE, markersize=9, zorder=4)
    axes.annotate(
        "least memory of\nuniform segments", uniform[0], xytext=(0, 14), textcoords="offset points",
        fontsize=13, ha="left", va="bottom", color="#7A5200",
    )  # fmt: skip
    axes.annotate(
        "everything kept", (uniform[-1][0], 0), xytext=(8, 6), textcoords="offset points",
        fontsize=13, ha="left", va="bottom", rotation=90,
    )  # fmt: skip
    points = document["points"]
    if points:
        axes.plot(
            [point["mib"] for point in points],
            [point["extra_percent"] for point in points],
            "D",
            color=BLACK,
            markersize=8,
            label="steps under these: measured",
            zorder=5,
        )
    axes.set_xscale("log", base=2)
    axes.set_xlim(1.5, 200)
    ticks = [2, 4, 8, 16, 32, 64, 128]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("activations, MiB per image (log scale)", fontsize=15)
    axes.set_ylabel("extra time, % of a step", fontsize=15)
    axes.set_ylim(0, 80)
    axes.tick_params(labelsize=14)
    axes.grid(visible=True, color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=14, frameon=False, loc="upper right")
    axes.set_title(
        f"ResNet-{document['depth']}: what a byte budget costs, every bit of training the same\n"
        f"batch {document['batch']}, fp32, {document['machine']}",
        fontsize=16,
        loc="left",
    )
    figure.savefig(path, dpi=110)


def _curve(document: Mapping[str, Any], key: str) -> list[tuple[float, float]]:
    return sorted((row["budget_mib"], row[key]) for row in document["rows"] if row[key] is not None)
