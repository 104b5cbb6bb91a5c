"""The levels of memory at which the dynamic programme solves a chain."""

from typing import NamedTuple

import numpy as np

from deepres.recompute.chain import Chain
from deepres.recompute.needs import Ints, costs_of, needs_of


class Grid(NamedTuple):
    """Levels of memory at which to solve a chain, and the bytes that are taken off them.

    Args:
        levels: ascending, beside x_0 and the chain's fixed bytes.
        state_bytes: (L + 1,), what a kept x_j takes.
        kept_bytes: (R, L), what a kept unit takes.
    """

    levels: Ints
    state_bytes: Ints
    kept_bytes: Ints


def exact_grid(chain: Chain, room_bytes: int, max_levels: int) -> Grid | None:
    """Every level that a plan can meet, so that nothing is rounded; None if there are too many.

    What is left for a part of the chain is the room less a sum of what the units before it hold. Chains
    that are short, or whose sizes are multiples of some size, have few such sums.

    Args:
        chain: the chain.
        room_bytes: the highest level.
        max_levels: how many levels are too many.
    """
    costs, needs = costs_of(chain), needs_of(chain)
    most_held = room_bytes - int(needs[:-2].min())  # beyond it no range with a unit in it can run
    held = np.zeros(1, dtype=np.int64)
    for unit in range(len(chain.units) - 1):
        for sizes in (costs.kept_bytes[:, unit], costs.state_bytes[unit + 1]):
            held = np.unique(held[:, None] + np.append(0, sizes))
            held = held[held <= most_held]
            if len(held) > max_levels:
                return None
    # Of what is left for the head, only whether it suffices matters.
    levels = np.union1d(room_bytes - held, min(chain.head_bytes, room_bytes))
    return Grid(levels, costs.state_bytes, costs.kept_bytes)


def rounded_grid(chain: Chain, room_bytes: int, num_slots: int) -> Grid:
    """Levels one slot apart, up to a sixteenth beyond the room, and sizes in whole slots.

    To round each kept unit up would cost a chain of hundreds of units much of its budget, so what units
    keep is rounded as along a ruler: the sum over any consecutive units is off by a slot at most. Kept
    x's, which are fewer, are rounded up, or the optimum would pick those that come out as nothing. The
    plan for a level may therefore need more or less than the level says: the caller must check. Slots are
    one of sixteen sizes or fewer an octave, so that budgets close to each other are rounded alike.

    Args:
        chain: the chain.
        room_bytes: the bytes beside x_0 and the chain's fixed bytes.
        num_slots: into how many slots the room is cut, at least.
    """
    costs = costs_of(chain)
    slot = max(1, room_bytes // num_slots)
    step = 2 ** max(0, slot.bit_length() - 4)
    slot = slot // step * step
    levels = slot * np.arange(room_bytes * 17 // 16 // slot + 2, dtype=np.int64)
    state_bytes = -(-costs.state_bytes // slot) * slot
    kept_until = (np.cumsum(costs.kept_bytes, axis=1) + slot // 2) // slot * slot
    return Grid(levels, state_bytes, np.diff(kept_until, axis=1, prepend=0))
