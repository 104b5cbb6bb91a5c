"""Backtracking: build a plan from the first move chosen for each range of a chain."""

from collections.abc import Callable
from typing import Any, NamedTuple

from deepres.recompute.chain import Chain
from deepres.recompute.plan import Plan


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


def backtrack(chain: Chain, choose: Callable[[int, int, Any], Move], state: Any) -> Plan:
    """The plan that results from choosing how each range of parts begins.

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
