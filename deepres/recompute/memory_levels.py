"""The levels of memory at which the dynamic programme solves a chain."""

import numpy as np

from deepres.recompute.chain import Chain
from deepres.recompute.cost_arrays import Ints, costs_of
from deepres.recompute.least_peak import least_needs


def exact_levels(chain: Chain, room_bytes: int, max_levels: int) -> Ints | None:
    """Every level that a plan can reach; None if there are too many.

    What is left for a part of the chain is the room less a sum of what the units before it hold. Chains
    that are short, or whose sizes are multiples of some size, have few such sums.

    Args:
        chain: the chain.
        room_bytes: the highest level.
        max_levels: return None if there are more.
    """
    costs, needs = costs_of(chain), least_needs(chain)
    most_held = room_bytes - int(needs[:, :-2].min())  # beyond it no range with a unit in it can run
    held = np.zeros(1, dtype=np.int64)
    for unit in range(len(chain.units) - 1):
        for sizes in (costs.added_bytes[:, :, unit], costs.state_bytes[unit + 1]):
            held = np.unique(held[:, None] + np.append(0, sizes))
            held = held[held <= most_held]
            if len(held) > max_levels:
                return None
    # Of what is left for the head, only whether it suffices matters.
    levels: Ints = np.union1d(room_bytes - held, min(chain.head_bytes, room_bytes))
    return levels


def even_levels(room_bytes: int, num_slots: int) -> Ints:
    """Levels one slot apart, from 0 to one above the room, where `DynamicProgram.candidates` looks times up.

    Slots are rounded to at most eight sizes an octave, so that budgets close to each other share one.

    Args:
        room_bytes: the bytes besides x_0 and the chain's fixed bytes.
        num_slots: the least number of slots in the room.
    """
    slot = max(1, room_bytes // num_slots)
    step = 2 ** max(0, slot.bit_length() - 4)
    slot = slot // step * step
    levels: Ints = slot * np.arange(room_bytes // slot + 2, dtype=np.int64)
    return levels


def geometric_levels(least_bytes: int, most_bytes: int, num_levels: int) -> Ints:
    """0 and geometrically spaced levels from the least bytes to the most, rounded to integers, without duplicates."""
    levels: Ints = np.unique(np.append(0, np.geomspace(least_bytes, most_bytes, num_levels).round())).astype(
        np.int64
    )
    return levels
