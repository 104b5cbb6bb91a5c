"""The fewest bytes that any plan needs, exactly, for a chain and each part of it."""

from functools import lru_cache
from typing import Any

import numpy as np

from deepres.recompute.chain import Chain
from deepres.recompute.cost_arrays import ABSENT, Ints, costs_of
from deepres.recompute.moves import Move, traced_plan
from deepres.recompute.plan import Plan


@lru_cache(maxsize=4)
def needs_of(chain: Chain) -> Ints:
    """The least peak of each range of parts: at [a, b], what [a, b) needs beside x_a and fixed bytes.

    NOTE [ The least peak ]
    A plan of [a, b) begins in one of two ways: part a is kept, or a segment [a, j) is discarded. In the
    second a < j < b will do: a segment that nothing follows (not even the head) is discarded only to be
    replayed at once, so without it each of the remaining steps holds the same or less. The peak of a plan
    is the largest of its steps' bytes, so that the ranges' least peaks make the whole's:

        need(a, b) = min( min over r: max(keep_run(a, r) + g(b), kept(a, r) + need(a+1, b), backward(a, r)),
                          min over j: max(discard(a, j) + g(b), x_j + need(j, b), need(a, j)) )

    with g(b) the gradient that is held meanwhile. Segments within segments that all begin at unit 0
    (no replay shared by two units) mostly attain it, but not always: they run a unit forward under the
    gradient of every later x, which may be larger than what keeping a few units takes.
    """
    costs = costs_of(chain)
    num_parts = len(costs.forward_ms)
    needs = np.full((num_parts + 1, num_parts + 1), ABSENT, dtype=np.int64)
    by_start = np.full_like(needs, ABSENT)  # at [a, k]: need(a, a + k)
    by_stop = np.full_like(needs, ABSENT)  # at [b, k]: need(b − k, b)
    x = np.lib.stride_tricks.sliding_window_view(np.append(costs.state_bytes, needs[0]), num_parts)
    for length in range(1, num_parts + 1):  # all ranges of that length at once: rows a, columns j − a
        num = num_parts - length + 1
        a, b = np.arange(num), np.arange(length, num_parts + 1)
        keep = costs.keep_bytes(a, b)
        if length > 1:
            keep = np.maximum(keep, costs.kept_bytes[:, :num] + needs[a + 1, b])
        least = keep.min(axis=0)
        if length > 1:
            peaks = costs.discard_bytes(slice(num), slice(1, length), b[:, None])
            np.maximum(peaks, x[:num, 1:length] + by_stop[length:, length - 1 : 0 : -1], out=peaks)
            np.maximum(peaks, by_start[:num, 1:length], out=peaks)
            least = np.minimum(least, peaks.min(axis=1))
        needs[a, b] = by_start[:num, length] = by_stop[length:, length] = least
    return needs


def smallest_plan(chain: Chain) -> Plan:
    """A plan whose peak no plan is below."""
    costs, needs = costs_of(chain), needs_of(chain)

    def choose(a: int, b: int, _: Any) -> Move:
        keep = costs.keep_bytes(a, b)
        if b - a == 1:
            return Move(int(keep.argmin()), b, None, None)
        keep = np.maximum(keep, costs.kept_bytes[:, a] + needs[a + 1, b])
        stops = np.arange(a + 1, b)
        peaks = np.maximum(costs.discard_bytes(a, slice(1, b - a), b), needs[a, stops])
        peaks = np.maximum(peaks, costs.state_bytes[stops] + needs[stops, b])
        if keep.min() <= peaks.min():
            return Move(int(keep.argmin()), a + 1, None, None)
        return Move(None, a + 1 + int(peaks.argmin()), None, None)

    return traced_plan(chain, choose, None)
