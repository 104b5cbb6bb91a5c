"""A lower bound on the extra time of every plan within a budget."""

import math
from itertools import groupby

from deepres.recompute.chain import Chain


def least_extra_ms(chain: Chain, budget_bytes: int) -> float:
    """A lower bound on any plan's time beyond each forward and backward once, within the budget.

    The larger of two bounds:

    1. After the forward phase, what the units outside segments keep is held all at once; every other unit is
       run forward at least once more. The cheapest choice, in fractions of units, is a fractional knapsack's.
    2. Of a run of n equal units at most s states fit at once, besides the first one's input. Providing each
       unit's input in reverse order then takes at least T(n, s) = r·n − C(s+r, s+1) forwards, with r the
       least integer for which C(s+r, s) >= n (Griewank and Walther 2000); n of these every plan takes anyway.
    """
    room = budget_bytes - chain.fixed_bytes
    return max(_knapsack_ms(chain, room - chain.input_bytes - chain.head_bytes), _reversal_ms(chain, room))


def _knapsack_ms(chain: Chain, room_bytes: int) -> float:
    """Bound 1 of `least_extra_ms`."""
    total_ms = 0.0
    steps = list[tuple[float, int]]()  # (ms saved per byte, bytes) of keeping more, along each unit's hull
    for (unit, added_bytes), run in groupby(zip(chain.units, _added_bytes(chain), strict=True)):
        num_units = len(list(run))
        options = sorted(zip(added_bytes, (r.replay_ms for r in unit.retentions), strict=True))
        num_bytes, ms = 0, min(unit.forward_ms, *(m if b == 0 else math.inf for b, m in options))
        total_ms += num_units * ms
        while True:
            better = [((ms - m) / (b - num_bytes), b, m) for b, m in options if b > num_bytes and m < ms]
            if not better:
                break
            rate, kept_bytes, replay_ms = max(better)
            steps.append((rate, num_units * (kept_bytes - num_bytes)))
            num_bytes, ms = kept_bytes, replay_ms
    for rate, num_bytes in sorted(steps, reverse=True):
        taken = min(num_bytes, max(0, room_bytes))
        total_ms -= rate * taken
        room_bytes -= taken
    return max(0.0, total_ms)


def _reversal_ms(chain: Chain, room_bytes: int) -> float:
    """Bound 2 of `least_extra_ms`."""
    total_ms = 0.0
    for (unit, added_bytes), run in groupby(zip(chain.units, _added_bytes(chain), strict=True)):
        num_units = len(list(run))
        size = min(unit.output_bytes, *added_bytes)
        if size == 0:
            continue
        num_states = max(1, room_bytes // size + 1)
        if num_states >= num_units:
            continue
        times = 1
        while math.comb(num_states + times, num_states) < num_units:
            times += 1
        forwards = times * num_units - math.comb(num_states + times, num_states + 1)
        total_ms += max(0, forwards - num_units) * unit.forward_ms
    return total_ms


def _added_bytes(chain: Chain) -> list[tuple[int, ...]]:
    """The least that each unit's KEEP adds to the bytes held, for each of its retentions."""
    return [
        tuple(retention.kept_bytes - retention.dropped_bytes(x_bytes) for retention in unit.retentions)
        for unit, x_bytes in zip(chain.units, chain.state_bytes[:-1], strict=True)
    ]
