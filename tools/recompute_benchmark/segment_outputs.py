"""A coarse programme for what the planner has not: segments that keep some of what they would discard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepres.recompute import Chain, Retention, UnitCost

_NUM_SLOTS = 400
_MOST_UNITS = 111


def extra_ms_by_budget(
    chain: Chain, inner_bytes: Sequence[int], last_ms: Sequence[float], budgets_bytes: Sequence[int]
) -> list[tuple[float | None, float | None]]:
    """The least extra time without and with segments that keep inner outputs; None where nothing fits.

    So that it takes seconds, neighbours of long chains are put together into at most `_MOST_UNITS` or so.

    Such a segment [a, j) keeps x_a and its units' inner outputs while [j, b) runs, and is then run again from
    these, each unit's last part alone, its units kept by `conv_outputs`.

    Args:
        chain: whose units have `all` and `conv_outputs`; transients and what is fixed are left out.
        inner_bytes: of each unit's inner outputs.
        last_ms: what a unit's output takes from its inner outputs.
        budgets_bytes: of units' activations.
    """
    chain, inner_bytes, last_ms = _merged(chain, inner_bytes, last_ms)
    return [
        (
            _least_extra_ms(chain, inner_bytes, last_ms, budget_bytes, with_inner=False),
            _least_extra_ms(chain, inner_bytes, last_ms, budget_bytes, with_inner=True),
        )
        for budget_bytes in budgets_bytes
    ]


def _merged(
    chain: Chain, inner_bytes: Sequence[int], last_ms: Sequence[float]
) -> tuple[Chain, list[int], list[float]]:
    """Each few neighbours as one unit, kept, discarded and replayed together."""
    size = -(-len(chain.units) // _MOST_UNITS)
    groups = [range(start, min(start + size, len(chain.units))) for start in range(0, len(chain.units), size)]
    units = []
    for group in groups:
        members = [chain.units[i] for i in group]
        retentions = tuple(
            Retention(
                name,
                sum(unit.retention(name).kept_bytes for unit in members),
                sum(unit.retention(name).replay_ms for unit in members),
            )
            for name in ("all", "conv_outputs")
        )
        forward_ms, backward_ms = (
            sum(getattr(unit, what) for unit in members) for what in ("forward_ms", "backward_ms")
        )
        units.append(UnitCost(forward_ms, backward_ms, members[-1].output_bytes, retentions))
    return (
        replace(chain, units=tuple(units)),
        [sum(inner_bytes[i] for i in group) for group in groups],
        [sum(last_ms[i] for i in group) for group in groups],
    )


def _least_extra_ms(
    chain: Chain, inner_bytes: Sequence[int], last_ms: Sequence[float], budget_bytes: int, *, with_inner: bool
) -> float | None:
    units, slots = chain.units, _NUM_SLOTS
    num = len(units)
    slot_bytes = budget_bytes / slots

    def slots_of(sizes: Sequence[float]) -> NDArray[Any]:
        return np.asarray(sizes) / slot_bytes

    output = slots_of(chain.state_bytes)
    forward = np.append(0.0, np.cumsum([unit.forward_ms for unit in units]))
    last = np.append(0.0, np.cumsum(last_ms))
    kept = {
        name: slots_of([unit.retention(name).kept_bytes for unit in units])
        for name in ("all", "conv_outputs")
    }
    replays = {name: [unit.retention(name).replay_ms for unit in units] for name in kept}
    by_outputs = np.append(0.0, np.cumsum(kept["conv_outputs"]))
    by_outputs_ms = np.append(0.0, np.cumsum(replays["conv_outputs"]))
    inner = np.append(0.0, np.cumsum(slots_of(inner_bytes)))
    levels = np.arange(slots + 1)
    # At [a, b, m], the extra time of units a to b − 1 within m slots beside x_a.
    table = np.full((num + 1, num + 1, slots + 1), np.inf, dtype=np.float32)
    for a in range(num + 1):
        table[a, a] = 0.0

    def shifted(row: NDArray[Any], by: float) -> NDArray[Any]:
        """Of each level, the row's value with `by` slots less."""
        step = int(np.ceil(by))
        out = np.full(slots + 1, np.inf, dtype=np.float32)
        if step <= slots:
            out[step:] = row[: slots + 1 - step]
        return out

    for length in range(1, num + 1):
        for a in range(num - length + 1):
            b = a + length
            row = table[a, b]
            for name in kept:
                # The gradients of a unit's input and output are there when it runs backward.
                rest = shifted(table[a + 1, b], kept[name][a]) + np.float32(replays[name][a])
                rest[levels < kept[name][a] + output[a] + output[a + 1]] = np.inf
                np.minimum(row, rest, out=row)
            for j in range(a + 1, b):
                rest = shifted(table[j, b], output[j])
                plain = rest + table[a, j] + np.float32(forward[j] - forward[a])
                np.minimum(row, plain, out=row)
                if with_inner:
                    held = inner[j] - inner[a]
                    rest = shifted(table[j, b], output[j] + held)
                    again = last[j] - last[a] + by_outputs_ms[j] - by_outputs_ms[a]
                    rest = rest + np.float32(again)
                    rest[levels < by_outputs[j] - by_outputs[a] + output[a] + output[j]] = np.inf
                    np.minimum(row, rest, out=row)
    least = float(table[0, num, slots])
    return least if np.isfinite(least) else None
