"""The fewest bytes that any plan needs, exactly, for a chain and each part of it."""

from functools import lru_cache
from typing import Any

import numpy as np

from deepres.recompute.chain import Chain
from deepres.recompute.cost_arrays import ABSENT, Ints, costs_of
from deepres.recompute.moves import Move, backtrack
from deepres.recompute.plan import Plan


@lru_cache(maxsize=4)
def least_needs(chain: Chain) -> Ints:
    """The least peak of each range of parts: at [k, a, b], what [a, b) needs besides an x_a of kind k and fixed bytes.

    NOTE [ The least peak ]
    A plan of [a, b) begins in one of two ways: part a is kept, or a segment [a, j) is discarded. In the
    second case a < j < b suffices: a segment that nothing follows (not even the head) is discarded only to be
    replayed at once, so without it no remaining step holds more. The peak of a plan is the largest of its
    steps' bytes, so the least peaks of ranges combine into that of the whole:

        need(a, b) = min( min over r: max(keep_run(a, r) + g(b), added(a, r) + need(a+1, b), backward(a, r)),
                          min over j: max(discard(a, j) + g(b), x_j + need(j, b), need(a, j)) )

    with g(b) the gradient that is held meanwhile. There is one need for each kind of x_a (`Costs`): keeping part a
    determines the kind of x_{a+1}, and x_j is droppable. Nested segments that all begin at unit 0 (no replay shared
    by two units) mostly attain the least peak, but not always: they run a unit forward while holding the gradient of
    every later x in turn, which may be larger than what keeping a few units takes.
    """
    costs = costs_of(chain)
    num_parts, droppable = len(costs.forward_ms), costs.num_kinds - 1
    needs = np.full((costs.num_kinds, num_parts + 1, num_parts + 1), ABSENT, dtype=np.int64)
    by_start = np.full_like(needs, ABSENT)  # at [k, a, n]: need(a, a + n)
    by_stop = np.full_like(needs[0], ABSENT)  # at [b, n]: need(b − n, b) with a droppable x
    x = np.lib.stride_tricks.sliding_window_view(np.append(costs.state_bytes, needs[0, 0]), num_parts)
    for length in range(1, num_parts + 1):  # all ranges of that length at once: rows a, columns j − a
        num = num_parts - length + 1
        a, b = np.arange(num), np.arange(length, num_parts + 1)
        if length > 1:
            after_keep = needs[costs.next_kind[:, :num], a + 1, b]
            segment = costs.discard_bytes(slice(num), slice(1, length), b[:, None])
            np.maximum(segment, x[:num, 1:length] + by_stop[length:, length - 1 : 0 : -1], out=segment)
        for kind in range(costs.num_kinds):
            keep = costs.keep_bytes(kind, a, b)
            if length > 1:
                keep = np.maximum(keep, costs.added_bytes[kind][:, :num] + after_keep)
            least = keep.min(axis=0)
            if length > 1:
                least = np.minimum(least, np.maximum(segment, by_start[kind, :num, 1:length]).min(axis=1))
            needs[kind, a, b] = by_start[kind, :num, length] = least
        by_stop[length:, length] = needs[droppable, a, b]
    return needs


def smallest_plan(chain: Chain) -> Plan:
    """A plan with the least peak of all."""
    costs, needs = costs_of(chain), least_needs(chain)
    droppable = costs.num_kinds - 1

    def choose(a: int, b: int, kind: Any) -> Move:
        keep = costs.keep_bytes(kind, a, b)
        if b - a == 1:
            return Move(int(keep.argmin()), b, None, None)
        keep = np.maximum(keep, costs.added_bytes[kind][:, a] + needs[costs.next_kind[:, a], a + 1, b])
        stops = np.arange(a + 1, b)
        peaks = np.maximum(costs.discard_bytes(a, slice(1, b - a), b), needs[kind, a, stops])
        peaks = np.maximum(peaks, costs.state_bytes[stops] + needs[droppable, stops, b])
        if keep.min() <= peaks.min():
            r = int(keep.argmin())
            return Move(r, a + 1, None, int(costs.next_kind[r, a]))
        return Move(None, a + 1 + int(peaks.argmin()), kind, droppable)

    return backtrack(chain, choose, 0)
