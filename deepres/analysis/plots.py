"""Plots of measured propagation: signals and gradients by depth, a curve for each net."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepres.analysis.propagation import Propagation
from deepres.palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

# Line styles tell the curves apart in greyscale.
_STYLES = (
    (VERMILION, "-"), (GREEN, "--"), (ORANGE, "-."), (PURPLE, "-"), (SKY, "--"), (BLACK, ":"), (GREY, "-."),
)  # fmt: skip
_SIZE, _DPI = (11.0, 5.0), 150
_FONT = 13
_NAMES_SHARE = 0.1
"""Of an axis' height, above the curves, for the stages' names."""
_PREDICTED = "product of λ (Equation 8)"
_LEAST = 1e-20
"""The axis' lower end; smaller values are drawn there, with a note."""


def gradient_figure(nets: Mapping[str, Propagation], title: str) -> Figure:
    """Gradients by unit, relative to the last unit's output: through shortcuts alone, and whole.

    Args:
        nets: by name.
        title: what was measured.
    """
    figure, (alone, whole) = _figure(f"Gradient at each unit: {title}")
    found = list(nets.values())
    for (name, net), (colour, style, width) in zip(nets.items(), _styles(nets), strict=True):
        _curve(alone, net.relative_shortcut_gradient, colour, style, name, width)
        _curve(whole, net.relative_gradient, colour, style, name, width)
        products = net.lambda_product
        if products is not None and products[0] != 1.0:
            alone.plot(
                range(1, len(products) + 1), products, linestyle=(0, (1, 2)), color="black", linewidth=2,
                label=_PREDICTED, zorder=4,
            )  # fmt: skip
    alone.set_title("through the shortcuts alone", fontsize=_FONT)
    whole.set_title("through everything", fontsize=_FONT)
    alone.set_ylabel("norm of dE/dx at unit l over that\nat the last unit's output (log)", fontsize=_FONT)
    for axes in (alone, whole):
        _finish(axes, found[0])
    _limits(alone, [net.relative_shortcut_gradient for net in found])
    _limits(whole, [net.relative_gradient for net in found])
    _legend(figure, alone)
    return figure


def signal_figure(nets: Mapping[str, Propagation], title: str) -> Figure:
    """Signals by unit, and what the shortcut adds against what the residual adds."""
    figure, (signal, ratio) = _figure(f"Signal at each unit: {title}")
    found = list(nets.values())
    for (name, net), (colour, style, width) in zip(nets.items(), _styles(nets), strict=True):
        _curve(signal, net.signal_rms, colour, style, name, width)
        _curve(ratio, net.term_ratio, colour, style, name, width)
    signal.set_title("size of the signal", fontsize=_FONT)
    signal.set_ylabel("root mean square of x at unit l (log)", fontsize=_FONT)
    ratio.set_title("shortcut against residual", fontsize=_FONT)
    ratio.set_ylabel("‖h(x)‖ / ‖F(x)‖ at unit l (log)", fontsize=_FONT)
    for axes in (signal, ratio):
        _finish(axes, found[0])
    _limits(signal, [net.signal_rms for net in found])
    _limits(ratio, [net.term_ratio for net in found])
    _legend(figure, signal)
    return figure


def _figure(title: str) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    figure.suptitle(title, fontsize=_FONT + 1)
    left, right = figure.subplots(1, 2)
    return figure, (left, right)


def _styles(names: Iterable[str]) -> list[tuple[str, str, float]]:
    """Colour, style and width of each; what the paper proposes stands out."""
    names = list(names)
    proposed = [name for name in names if name.startswith("identity") or "full_preactivation" in name]
    others = itertools.cycle(_STYLES)
    return [(BLUE, "-", 3.5) if name in (proposed or names)[:1] else (*next(others), 2.0) for name in names]


def _curve(axes: Axes, values: Sequence[float], colour: str, style: str, name: str, width: float) -> None:
    drawn = [max(value, _LEAST) if math.isfinite(value) else math.nan for value in values]
    axes.plot(range(1, len(values) + 1), drawn, style, color=colour, linewidth=width, label=name)


def _limits(axes: Axes, curves: Sequence[Sequence[float]]) -> None:
    values = [value for curve in curves for value in curve if math.isfinite(value)]
    least = min((value for value in values if value > 0), default=1.0)
    most = max(values, default=1.0)
    has_zeros = min(values, default=1.0) < least or least < _LEAST
    bottom = _LEAST if has_zeros else least / 2
    axes.set_ylim(bottom, bottom * max(most / bottom, 2) ** (1 / (1 - _NAMES_SHARE)))
    if has_zeros:
        axes.annotate(
            "0, or less than $10^{-20}$",
            (0.0, 0.0),
            xytext=(4, 3),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=_FONT,
        )


def _finish(axes: Axes, net: Propagation) -> None:
    axes.set_yscale("log")
    axes.set_xlabel("unit l", fontsize=_FONT)
    axes.set_xlim(1, net.num_units + 1)
    axes.grid(visible=True, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_FONT - 2)
    start = 1
    for stage, size in enumerate(net.units_per_stage, start=1):
        if stage > 1:
            axes.axvline(start, color="black", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"stage {stage}", (start + size / 2, 1.0), xytext=(0, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="top", color="#444444", fontsize=_FONT - 3,
        )  # fmt: skip
        start += size


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if _PREDICTED in unique:
        unique[_PREDICTED] = unique.pop(_PREDICTED)  # last
    for columns in (4, 3, 2, 1):
        legend = figure.legend(
            list(unique.values()), [str(label).replace("_", " ") for label in unique],
            loc="outside lower center", ncols=columns, frameon=False, fontsize=_FONT - 1,
        )  # fmt: skip
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
