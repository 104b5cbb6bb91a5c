"""The dynamic programme: the fastest plan for every range of a chain and every amount of memory."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepres.recompute.chain import Chain
from deepres.recompute.cost_arrays import Ints, costs_of
from deepres.recompute.least_peak import least_needs
from deepres.recompute.moves import Move, backtrack
from deepres.recompute.plan import Plan

_EXACT_TABLE_BYTES = 2**26
_LAST_CHOICE_MS = 1e30


class _Shift(NamedTuple):
    """How to read a row at `level − size_bytes` for each level from index `start` on.

    Args:
        start: the index of the first such level.
        lower, upper: the entries to read.
        lower_weight, upper_weight: their weights in the interpolation.
    """

    start: int
    lower: NDArray[Any]
    upper: NDArray[Any]
    lower_weight: NDArray[Any]
    upper_weight: NDArray[Any]


class _State(NamedTuple):
    """The state that a range [a, b) is planned for: the bytes available besides x_a, and the kind of x_a."""

    num_bytes: int
    kind: int


class DynamicProgram:
    """The least extra time of each range [a, b) of a chain's parts at each of a set of memory levels.

    The parts are the units and, last, the head (see `Costs`).

    NOTE [ The dynamic programme ]
    E(a, b, m) is the least time that [a, b) takes beyond one forward and one backward of each part, from x_a
    and the gradient of x_b to the gradient of x_a, within m bytes besides x_a and what is held outside [a, b).
    Rotor's recurrence (Beaumont, Eyraud-Dubois, Shilova and Hermann, Optimal checkpointing for
    heterogeneous chains, 2019), with a choice of retention for each unit (Rockmate, ICML 2023):

        E(a, b, m) = min( min over r: replay(a, r) + E(a+1, b, m − added(a, r)),
                          min over j: forward(a … j−1) + E(j, b, m − x_j) + E(a, j, m) )

    where a move is allowed only if its own steps fit into m, in exact bytes. There is one E for each kind of x_a
    (`Costs`): keeping part a determines the kind of x_{a+1}, and x_j is droppable.

    1. The bytes that a move leaves may lie between two levels: E is then interpolated. Levels that include every m
       a plan can reach (`exact_levels`) make E exact; others make it an estimate.
    2. Plans are backtracked in exact bytes. A move is taken only if the bytes it leaves suffice (`least_needs`), so
       that each plan keeps its budget, whatever the levels; the table only decides which move is the fastest.
    3. A range that fits with everything kept needs no search, nor does one with fewer bytes than it needs.
    4. Only the table of E by (a, b, m) is stored; for the current b, E(j, b, m − x_j) + forward(0 … j−1) is laid
       out by j, so that the minimum over j is that of the sum of two contiguous arrays.
    5. No choices are stored: backtracking recomputes those that it needs.
    6. Tables of more than 64 MiB are in single precision: each sum is then off by 6e-8 of itself and of
       the time of all forwards, and a plan's total by about 1e-6. Plans are priced in double precision.

    Args:
        chain: the chain.
        levels: memory levels, in bytes besides x_0 and the chain's fixed bytes; ascending.
        is_optimistic: between an infeasible and a feasible level, assume the feasible level's time wherever a plan
            exists, instead of infinity. Which of the two leads to the faster plan differs from chain to chain.
    """

    def __init__(self, chain: Chain, levels: Ints, *, is_optimistic: bool = False) -> None:
        self._chain, self._costs, self._levels = chain, costs_of(chain), levels
        self._is_optimistic = is_optimistic
        self._needs = least_needs(chain)
        self._first = np.searchsorted(levels, self._needs)
        num_kinds, num_parts, num_levels = self._costs.num_kinds, len(self._costs.forward_ms), len(levels)
        size = num_kinds * (num_parts + 1) * num_parts * num_levels * 8
        dtype: Any = np.float64 if size <= _EXACT_TABLE_BYTES else np.float32
        self._table: NDArray[Any] = np.empty((num_kinds, num_parts, num_parts + 1, num_levels), dtype=dtype)
        self._sums: NDArray[Any] = np.empty(num_parts * num_levels, dtype=dtype)
        self._elapsed_ms = np.append(0.0, np.cumsum(self._costs.forward_ms)).astype(dtype)
        self._replay_ms = self._costs.replay_ms.astype(dtype)
        self._shifts: dict[int, _Shift] = {}
        self._quickest = np.array([*quickest_retentions(chain), 0])
        self._full_needs = self._needs_of_keeping_all()
        self._fill()
        self._lowest = np.minimum(np.isinf(self._table).sum(axis=-1), len(levels) - 1)

    def plan(self, num_bytes: int) -> Plan:
        """A plan within `num_bytes` besides x_0 and fixed bytes; the fastest one if the levels are exact.

        The bytes must be at least what the chain needs.
        """
        return self._traced(num_bytes, looked_up_bytes=0)

    def candidates(self, num_bytes: int, distance_bytes: int) -> Iterator[Plan]:
        """Plans within `num_bytes`, from which to choose the fastest if the levels are not exact.

        Interpolated times are off by up to the distance between two levels: these plans are backtracked with times
        looked up 0, ½ and 1 times `distance_bytes` above the bytes that are left.
        """
        for half in range(3):
            yield self._traced(num_bytes, distance_bytes * half // 2)

    def _traced(self, num_bytes: int, looked_up_bytes: int) -> Plan:
        return backtrack(self._chain, partial(self._choose, looked_up_bytes), _State(num_bytes, 0))

    def _after(self, kind: int, a: int, b: int, size_bytes: int) -> tuple[int, NDArray[Any]]:
        """The first level that can spare `size_bytes`, and [a, b)'s row at what is left of it and each higher one."""
        row = self._table[kind, a, b]
        if size_bytes not in self._shifts:
            start = int(np.searchsorted(self._levels, size_bytes + self._levels[0]))
            lower, upper, share = self._between(self._levels[start:] - size_bytes)
            upper_weight = np.maximum(share, np.finfo(row.dtype).tiny)  # infinity times 0 is NaN
            weights = (1 - share).astype(row.dtype), upper_weight.astype(row.dtype)
            self._shifts[size_bytes] = _Shift(start, lower, np.where(share == 0, lower, upper), *weights)
        start, lower, upper, lower_weight, upper_weight = self._shifts[size_bytes]
        after = row.take(lower)
        after *= lower_weight
        rest = row.take(upper)
        rest *= upper_weight
        after += rest
        first = self._first[kind, a, b]
        if self._is_optimistic and 0 < first < len(row):
            enough = int(np.searchsorted(self._levels, self._needs[kind, a, b] + size_bytes)) - start
            begin, end = np.searchsorted(lower, (first - 1, first))
            after[max(enough, begin) : end] = row[first]
        return start, after

    def _between(self, num_bytes: Any) -> tuple[Any, Any, Any]:
        """The indices of the levels around each number of bytes, and its position between them, from 0 to 1."""
        levels = self._levels
        lower = np.maximum(np.searchsorted(levels, num_bytes, side="right") - 1, 0)
        upper = np.minimum(lower + 1, len(levels) - 1)
        share = (num_bytes - levels[lower]) / np.maximum(levels[upper] - levels[lower], 1)
        return lower, upper, np.clip(share, 0.0, 1.0)

    def _needs_of_keeping_all(self) -> Ints:
        """At [k, a, b], what [a, b) needs besides x_a if every unit is kept by its quickest retention."""
        costs, needs = self._costs, np.zeros_like(self._needs)
        for a in reversed(range(len(costs.forward_ms))):
            r = self._quickest[a]
            after = needs[costs.next_kind[r, a], a + 1, a + 1 :]
            for kind in range(costs.num_kinds):
                own = costs.keep_bytes(kind, [a], slice(a + 1, None))[r]
                needs[kind, a, a + 1 :] = np.maximum(own, costs.added_bytes[kind, r, a] + after)
        return needs

    def _fill(self) -> None:
        costs, table, levels = self._costs, self._table, self._levels
        num_kinds, num_parts, _, num_levels = table.shape
        first = self._first
        full = np.searchsorted(levels, self._full_needs)
        replay_ms = costs.replay_ms[self._quickest, np.arange(num_parts)]
        replays = np.append(0.0, np.cumsum(replay_ms))
        shifted = np.empty((num_parts, num_levels), dtype=table.dtype)  # for the current b, by rule 4
        for b in range(1, num_parts + 1):
            first_to_keep = [
                np.searchsorted(levels, costs.keep_bytes(kind, slice(None), b)) for kind in range(num_kinds)
            ]
            for a in range(b - 1, -1, -1):
                for kind in range(num_kinds):
                    row, lo, hi = table[kind, a, b], first[kind, a, b], full[kind, a, b]
                    row[:lo] = np.inf
                    row[hi:] = replays[b] - replays[a]
                    if lo < hi:
                        self._segment_first(kind, a, b, lo, hi, shifted)
                        for r in range(len(self._replay_ms)):
                            self._keep_first(kind, a, b, max(lo, first_to_keep[kind][r, a]), hi, r)
                start, after = self._after(num_kinds - 1, a, b, int(costs.state_bytes[a]))
                shifted[a, :start] = np.inf
                np.add(after, self._elapsed_ms[a], out=shifted[a, start:])

    def _segment_first(self, kind: int, a: int, b: int, lo: int, hi: int, shifted: NDArray[Any]) -> None:
        """Set [a, b)'s row from level `lo` to `hi` to the least time if it begins with a segment."""
        num, row = b - a - 1, self._table[kind, a, b, lo:hi]
        if not num:
            row.fill(np.inf)
            return
        sums = self._sums[: num * (hi - lo)].reshape(num, hi - lo)
        np.add(shifted[a + 1 : b, lo:hi], self._table[kind, a, a + 1 : b, lo:hi], out=sums)
        discard_bytes = self._costs.discard_bytes(a, slice(1, num + 1), b)
        if discard_bytes[-1] > self._levels[lo]:
            sums[self._levels[lo:hi] < discard_bytes[:, None]] = np.inf
        np.minimum.reduce(sums, axis=0, out=row)
        row -= self._elapsed_ms[a]

    def _keep_first(self, kind: int, a: int, b: int, lo: int, hi: int, r: int) -> None:
        """Lower [a, b)'s row from level `lo` to `hi` where keeping part a by retention r is faster."""
        costs, row = self._costs, self._table[kind, a, b]
        if b - a == 1:
            np.minimum(row[lo:hi], self._replay_ms[r, a], out=row[lo:hi])
            return
        start, after = self._after(costs.next_kind[r, a], a + 1, b, int(costs.added_bytes[kind, r, a]))
        lo = max(lo, start)
        if lo < hi:
            extra = after[lo - start : hi - start]
            extra += self._replay_ms[r, a]
            np.minimum(row[lo:hi], extra, out=row[lo:hi])

    def _choose(self, looked_up_bytes: int, a: int, b: int, state: _State) -> Move:
        """The first move of [a, b) within the bytes of `state`, by rule 2."""
        costs, needs, (num_bytes, kind) = self._costs, self._needs, state
        droppable = costs.num_kinds - 1

        def extra_ms(kind: int, a: Any, b: Any, num_bytes: Any) -> Any:
            lower, upper, share = self._between(num_bytes + looked_up_bytes)
            # Interpolates only between levels that have a plan; a range without any is the last choice.
            lowest = self._lowest[kind, a, b]
            at_lower = np.minimum(self._table[kind, a, b, np.maximum(lower, lowest)], _LAST_CHOICE_MS)
            at_upper = np.minimum(self._table[kind, a, b, np.maximum(upper, lowest)], _LAST_CHOICE_MS)
            return at_lower + share * (at_upper - at_lower)

        def after_keeping(r: int) -> _State:
            return _State(num_bytes - int(costs.added_bytes[kind, r, a]), int(costs.next_kind[r, a]))

        if num_bytes >= self._full_needs[kind, a, b]:
            r = int(self._quickest[a])
            return Move(r, a + 1, None, after_keeping(r))
        keep_bytes = costs.keep_bytes(kind, a, b)
        best, move = np.inf, Move(None, b, None, None)
        for r in range(len(self._replay_ms)):
            rest = after_keeping(r)
            if keep_bytes[r] <= num_bytes and (b - a == 1 or needs[rest.kind, a + 1, b] <= rest.num_bytes):
                extra = self._replay_ms[r, a]
                extra += extra_ms(rest.kind, a + 1, b, rest.num_bytes) if b - a > 1 else 0
                if extra < best:
                    best, move = extra, Move(r, a + 1, None, rest)
        stops = np.arange(a + 1, b)
        rests = num_bytes - costs.state_bytes[stops]
        own = np.maximum(costs.discard_bytes(a, slice(1, b - a), b), needs[kind, a, stops])
        fits = (own <= num_bytes) & (needs[droppable, stops, b] <= rests)
        stops, rests = stops[fits], rests[fits]
        if len(stops):
            extras = extra_ms(droppable, stops, b, rests) + extra_ms(kind, a, stops, num_bytes)
            extras += self._elapsed_ms[stops] - self._elapsed_ms[a]
            i = int(extras.argmin())
            if extras[i] < best:
                best, move = extras[i], Move(None, int(stops[i]), state, _State(int(rests[i]), droppable))
        assert best < np.inf, f"no plan for units {a} to {b - 1} within {num_bytes} bytes"
        return move


def quickest_retentions(chain: Chain) -> list[int]:
    """The index of each unit's retention that replays least; on a tie, the one that keeps least."""
    quickest = list[int]()
    for unit in chain.units:
        order = [
            (retention.replay_ms, retention.kept_bytes, r) for r, retention in enumerate(unit.retentions)
        ]
        quickest.append(min(order)[2])
    return quickest
