"""Measured propagation as a table for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deepres.analysis.propagation import Propagation
from deepres.text_table import aligned

FORMAT, VERSION = "deepres.propagation", 1
NOTES = """\
signal: root mean square of the first unit's input and of the last one's output
h/F: norm of the shortcut's term over that of the residual's, of all units
gradient: its norm at the first unit over that at the last one's output; the largest over the smallest of all
shortcuts alone: the same of what comes through no residual; direct units: over those whose shortcut takes x as it is
lambdas: what Equation 8 predicts for the number to the left, where it speaks of the net"""
"""What a reader must know to read the table."""

_MOST_UNITS = 12
_HEADER = (
    ("", "net"),
    ("signal", "first"), ("", "last"),
    ("h/F", "least"), ("", "most"),
    ("gradient", "first/last"), ("", "most/least"),
    ("shortcuts alone", "first/last"), ("", "lambdas"),
    ("direct units", "first/last"), ("", "lambdas"),
)  # fmt: skip


def summary(found: Propagation) -> dict[str, float | None]:
    """A net's curves in a few numbers.

    Returns:
        `gradient_first_to_last`, and `gradient_widest`: the largest over the smallest norm of all units;
        `shortcut_gradient_first_to_last`, which includes what units that change the shape do, and `direct_factor`,
        which does not; `lambda_product` and `direct_lambdas`: what Equation 8 predicts for both, None if it
        does not apply to the net.
    """
    smallest = min(found.gradient_norm)
    products = found.lambda_product
    return {
        "gradient_first_to_last": found.relative_gradient[0],
        "gradient_widest": max(found.gradient_norm) / smallest if smallest else math.inf,
        "shortcut_gradient_first_to_last": found.relative_shortcut_gradient[0],
        "lambda_product": None if products is None else products[0],
        "direct_factor": found.direct_factor,
        "direct_lambdas": found.direct_lambdas,
    }


def propagation_text(nets: Mapping[str, Propagation]) -> str:
    """A table with a line for each net; see `NOTES`."""
    rows = [[group for group, _ in _HEADER], [title for _, title in _HEADER]]
    for name, found in nets.items():
        of_net, ratios = summary(found), found.term_ratio
        numbers = [found.signal_rms[0], found.signal_rms[-1], min(ratios), max(ratios), *of_net.values()]
        rows.append([name, *("" if number is None else f"{number:.3g}" for number in numbers)])
    return "\n".join(aligned(rows))


def units_text(found: Propagation) -> str:
    """A table of one net with a line for each unit, or for some of them if there are many."""
    step = max(1, math.ceil(found.num_units / _MOST_UNITS))
    numbers = [*range(0, found.num_units, step), found.num_units]
    rows = [["unit", "signal rms", "gradient norm", "shortcuts alone", "h/F"]]
    for k in numbers:
        is_unit = k < found.num_units
        rows.append(
            [
                f"{k + 1}" if is_unit else "output",
                f"{found.signal_rms[k]:.3g}",
                f"{found.gradient_norm[k]:.3g}",
                f"{found.shortcut_gradient_norm[k]:.3g}",
                f"{found.term_ratio[k]:.3g}" if is_unit else "",
            ]
        )
    return "\n".join(aligned(rows, left=()))


def propagation_json(nets: Mapping[str, Propagation], about: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers; null if not finite.

    Args:
        nets: by name.
        about: what was measured, and with what.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "nets": [
            {
                "name": name,
                "units_per_stage": list(found.units_per_stage),
                "loss": _finite([found.loss])[0],
                "summary": {key: None if v is None else _finite([v])[0] for key, v in summary(found).items()},
                "signal_rms": _finite(found.signal_rms),
                "gradient_norm": _finite(found.gradient_norm),
                "gradient_rms": _finite(found.gradient_rms),
                "shortcut_gradient_norm": _finite(found.shortcut_gradient_norm),
                "lambda_product": None if found.lambda_product is None else _finite(found.lambda_product),
                "term_ratio": _finite(found.term_ratio),
                "is_direct": list(found.is_direct),
            }
            for name, found in nets.items()
        ],
    }


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
