"""The fewest bytes that any plan needs, exactly, for a chain and each part of it."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepres.recompute.chain import Chain, Retention, UnitCost
from deepres.recompute.plan import Plan

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_ABSENT = 2**60
"""Stands for the bytes of a retention that a unit does not have: more than any plan holds."""


class Costs(NamedTuple):
    """A chain's costs as arrays over its P parts; of retentions, over (retention, part).

    The parts are the units and, last, the head. That is in no segment, so it is kept: in one way, which
    holds nothing, with a run (both of its passes) of `head_bytes`.

    Args:
        state_bytes: (P + 1,), x_0 … x_L and the head's output, which counts as nothing.
        forward_gradient_bytes: (P + 1,), what is held of gradients while [·, b) is run forward: x_b's
            gradient, but nothing for b = P, as that range is run forward once, in the first phase.
        forward_ms: (P,).
        discard_bytes: (P, P), at [a, k] the most that running a … a+k−1 discarding adds to x_a.
        kept_bytes: (R, P).
        keep_run_bytes: (R, P), what the run KEEP adds, transient included, gradients not.
        backward_bytes: (R, P), what the BACKWARD adds to the unit's input: kept bytes that are not freed, both
            gradients, transient.
        replay_ms: (R, P).
    """

    state_bytes: Ints
    forward_gradient_bytes: Ints
    forward_ms: Floats
    discard_bytes: Ints
    kept_bytes: Ints
    keep_run_bytes: Ints
    backward_bytes: Ints
    replay_ms: Floats


class Move(NamedTuple):
    """How a range [a, b) of a chain's parts begins.

    Args:
        retention: of part a, which is run KEEP; None if a segment comes first.
        stop: where that segment, [a, stop), ends; a + 1 if part a is kept.
        inner: the state of the segment's own plan, None if part a is kept.
        rest: the state of the plan of what follows.
    """

    retention: int | None
    stop: int
    inner: Any
    rest: Any


def costs_of(chain: Chain) -> Costs:
    """The chain's costs as arrays."""
    head = UnitCost(0.0, 0.0, 0, (Retention("all", 0, forward_temp_bytes=chain.head_bytes),))
    units = (*chain.units, head)
    num_parts, num_retentions = len(units), max(len(unit.retentions) for unit in units)
    x = np.array([*chain.state_bytes, 0], dtype=np.int64)
    absent = np.full((num_retentions, num_parts), _ABSENT, dtype=np.int64)
    kept, keep_temp, backward_temp = absent, np.zeros_like(absent), np.zeros_like(absent)
    replay_ms = np.full(absent.shape, np.inf)
    for i, unit in enumerate(units):
        for r, retention in enumerate(unit.retentions):
            kept[r, i] = retention.kept_bytes
            keep_temp[r, i] = retention.forward_temp_bytes
            backward_temp[r, i] = retention.backward_temp_bytes - retention.freed_bytes
            replay_ms[r, i] = retention.replay_ms
    run_bytes = x[1:] + np.array([unit.forward_temp_bytes for unit in units], dtype=np.int64)
    discard = np.zeros((num_parts, num_parts), dtype=np.int64)
    for a in range(num_parts):  # a segment's first run finds its input held, a later one brings its own
        runs = np.append(run_bytes[a], (x[:-1] + run_bytes)[a + 1 :])
        discard[a, 1 : num_parts - a] = np.maximum.accumulate(runs)[:-1]
    backward = kept + x[1:] + x[:-1] + backward_temp
    backward[0, -1] = 0  # the head's is part of its run
    return Costs(
        state_bytes=x,
        forward_gradient_bytes=np.append(x[:-1], 0),
        forward_ms=np.array([unit.forward_ms for unit in units]),
        discard_bytes=discard,
        kept_bytes=kept,
        keep_run_bytes=kept + keep_temp,
        backward_bytes=backward,
        replay_ms=replay_ms,
    )


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
    needs = np.full((num_parts + 1, num_parts + 1), _ABSENT, dtype=np.int64)
    by_start = np.full_like(needs, _ABSENT)  # at [a, k]: need(a, a + k)
    by_stop = np.full_like(needs, _ABSENT)  # at [b, k]: need(b − k, b)
    x = np.lib.stride_tricks.sliding_window_view(np.append(costs.state_bytes, needs[0]), num_parts)
    for length in range(1, num_parts + 1):  # all ranges of that length at once: rows a, columns j − a
        num = num_parts - length + 1
        a, b = np.arange(num), np.arange(length, num_parts + 1)
        gradient = costs.forward_gradient_bytes[b]
        keep = np.maximum(costs.keep_run_bytes[:, :num] + gradient, costs.backward_bytes[:, :num])
        if length > 1:
            keep = np.maximum(keep, costs.kept_bytes[:, :num] + needs[a + 1, b])
        least = keep.min(axis=0)
        if length > 1:
            peaks = costs.discard_bytes[:num, 1:length] + gradient[:, None]
            np.maximum(peaks, x[:num, 1:length] + by_stop[length:, length - 1 : 0 : -1], out=peaks)
            np.maximum(peaks, by_start[:num, 1:length], out=peaks)
            least = np.minimum(least, peaks.min(axis=1))
        needs[a, b] = by_start[:num, length] = by_stop[length:, length] = least
    return needs


def smallest_plan(chain: Chain) -> Plan:
    """A plan whose peak no plan is below."""
    costs, needs = costs_of(chain), needs_of(chain)

    def choose(a: int, b: int, _: Any) -> Move:
        gradient = costs.forward_gradient_bytes[b]
        keep = np.maximum(costs.keep_run_bytes[:, a] + gradient, costs.backward_bytes[:, a])
        if b - a == 1:
            return Move(int(keep.argmin()), b, None, None)
        keep = np.maximum(keep, costs.kept_bytes[:, a] + needs[a + 1, b])
        stops = np.arange(a + 1, b)
        peaks = np.maximum(costs.discard_bytes[a, 1 : b - a] + gradient, needs[a, stops])
        peaks = np.maximum(peaks, costs.state_bytes[stops] + needs[stops, b])
        if keep.min() <= peaks.min():
            return Move(int(keep.argmin()), a + 1, None, None)
        return Move(None, a + 1 + int(peaks.argmin()), None, None)

    return traced_plan(chain, choose, None)


def traced_plan(chain: Chain, choose: Callable[[int, int, Any], Move], state: Any) -> Plan:
    """The plan that follows from choosing how each range of parts begins.

    Args:
        chain: the chain.
        choose: for a range [a, b) and its state, its first move.
        state: the state of the whole.
    """
    num_units = len(chain.units)
    segments, retentions = list[tuple[int, int]](), [""] * num_units
    ranges = [(0, num_units + 1, state)]
    while ranges:
        a, b, state = ranges.pop()
        move = choose(a, b, state)
        if move.retention is None:
            segments.append((a, move.stop))
            ranges.append((a, move.stop, move.inner))
        elif a < num_units:
            retentions[a] = chain.units[a].retentions[move.retention].name
        if move.stop < b:
            ranges.append((move.stop, b, move.rest))
    return Plan(tuple(segments), tuple(retentions))
