"""The dynamic programme: the fastest plan for every part of a chain and every amount of memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepres.recompute.chain import Chain
from deepres.recompute.levels import Grid
from deepres.recompute.needs import Ints, Move, costs_of, needs_of, traced_plan
from deepres.recompute.plan import Plan

_EXACT_TABLE_BYTES = 2**26


class Optimum:
    """The least extra time of each range [a, b) of a chain's parts at each of some levels of memory.

    The parts are the units and, last, the head (see `Costs`).

    NOTE [ The dynamic programme ]
    E(a, b, m) is the least time that [a, b) takes beyond its forwards and backwards once, from x_a and
    the gradient of x_b to the gradient of x_a, within m bytes beside x_a and what is held around it.
    Rotor's recurrence (Beaumont, Eyraud-Dubois, Shilova and Hermann, Optimal checkpointing for
    heterogeneous chains, 2019), with a choice of retention for each unit (Rockmate, ICML 2023):

        E(a, b, m) = min( min over r: replay(a, r) + E(a+1, b, m − kept(a, r)),
                          min over j: forward(a … j−1) + E(j, b, m − x_j) + E(a, j, m) )

    where a move is allowed if its own steps fit into m, in exact bytes.

    1. What a move leaves is rounded down to the next level. With the sizes of the grid unrounded, a plan
       thus never holds more than its level says.
    2. A part that fits in full needs no search, nor does one below its need; see `needs_of`.
    3. One table is held, of E(a, ·, ·); for the b at hand, E(j, b, m − x_j) + forward(0 … j−1) is laid
       out by j, so that the minimum over j is that of the sum of two arrays as they lie in memory.
    4. No choice is stored: tracing a plan works out again the choices that it meets.
    5. A table of more than 64 MiB is in single precision: each sum is then off by 6e-8 of itself and of
       the time of all forwards, and a plan's total by about 1e-6. Plans are priced in doubles.

    Args:
        chain: the chain.
        grid: the levels, and what each move takes off them.
    """

    def __init__(self, chain: Chain, grid: Grid) -> None:
        self._chain, self._costs, self._grid = chain, costs_of(chain), grid
        levels = self._levels = grid.levels
        self._needs = needs_of(chain)
        num_parts, num_levels = len(self._costs.forward_ms), len(levels)
        size = (num_parts + 1) * num_parts * num_levels * 8
        dtype: Any = np.float64 if size <= _EXACT_TABLE_BYTES else np.float32
        self._table: NDArray[Any] = np.empty((num_parts, num_parts + 1, num_levels), dtype=dtype)
        self._sums: NDArray[Any] = np.empty(num_parts * num_levels, dtype=dtype)
        self._elapsed_ms = np.append(0.0, np.cumsum(self._costs.forward_ms)).astype(dtype)
        self._replay_ms = self._costs.replay_ms.astype(dtype)
        self._lefts: dict[int, tuple[int, NDArray[np.intp]]] = {}
        self._quickest = np.array([*quickest_retentions(chain), 0])
        self._full_needs = self._needs_of_keeping_all()
        self._fill()

    @property
    def num_levels(self) -> int:
        """How many levels there are."""
        return len(self._levels)

    def plan(self, level: int) -> Plan | None:
        """The fastest plan within a level (an index into the levels), not priced; None if none fits."""
        if self._table[0, -1, level] == np.inf:
            return None
        return traced_plan(self._chain, self._choose, level)

    def _left(self, size_bytes: int) -> tuple[int, NDArray[np.intp]]:
        """The first level that can spare so many bytes, and the level that is left of it and each higher one."""
        if size_bytes not in self._lefts:
            left = np.searchsorted(self._levels, self._levels - size_bytes, side="right") - 1
            first = int(np.searchsorted(left, 0))
            self._lefts[size_bytes] = first, left[first:]
        return self._lefts[size_bytes]

    def _needs_of_keeping_all(self) -> Ints:
        """At [a, b], what [a, b) needs beside x_a if every unit is kept in the way that is quickest."""
        costs = self._costs
        parts = np.arange(len(costs.forward_ms))
        kept = costs.kept_bytes[self._quickest, parts]
        run = costs.keep_run_bytes[self._quickest, parts]
        backward = costs.backward_bytes[self._quickest, parts]
        needs = np.zeros_like(self._needs)
        for a in reversed(parts):
            own = np.maximum(run[a] + costs.forward_gradient_bytes[a + 1 :], backward[a])
            needs[a, a + 1 :] = np.maximum(own, kept[a] + needs[a + 1, a + 1 :])
        return needs

    def _fill(self) -> None:
        costs, table, levels = self._costs, self._table, self._levels
        num_parts, _, num_levels = table.shape
        first = np.searchsorted(levels, self._needs)
        full = np.searchsorted(levels, self._full_needs)
        replay_ms = costs.replay_ms[self._quickest, np.arange(num_parts)]
        replays = np.append(0.0, np.cumsum(replay_ms))
        shifted = np.empty((num_parts, num_levels), dtype=table.dtype)  # for the b at hand, by rule 3
        for b in range(1, num_parts + 1):
            own_bytes = np.maximum(
                costs.keep_run_bytes + costs.forward_gradient_bytes[b], costs.backward_bytes
            )
            first_to_keep = np.searchsorted(levels, own_bytes)
            for a in range(b - 1, -1, -1):
                row, lo, hi = table[a, b], first[a, b], full[a, b]
                row[:lo] = np.inf
                row[hi:] = replays[b] - replays[a]
                if lo < hi:
                    self._segment_first(a, b, lo, hi, shifted)
                    for r in range(len(self._replay_ms)):
                        self._keep_first(a, b, max(lo, first_to_keep[r, a]), hi, r)
                start, left = self._left(int(self._grid.state_bytes[a]))
                shifted[a, :start] = np.inf
                np.take(row, left, out=shifted[a, start:], mode="clip")
                shifted[a, start:] += self._elapsed_ms[a]

    def _segment_first(self, a: int, b: int, lo: int, hi: int, shifted: NDArray[Any]) -> None:
        """Set [a, b)'s row from level `lo` to `hi` to the best that begins with a segment."""
        num, row = b - a - 1, self._table[a, b, lo:hi]
        if not num:
            row.fill(np.inf)
            return
        sums = self._sums[: num * (hi - lo)].reshape(num, hi - lo)
        np.add(shifted[a + 1 : b, lo:hi], self._table[a, a + 1 : b, lo:hi], out=sums)
        discard_bytes = self._costs.discard_bytes[a, 1 : num + 1] + self._costs.forward_gradient_bytes[b]
        if discard_bytes[-1] > self._levels[lo]:
            sums[self._levels[lo:hi] < discard_bytes[:, None]] = np.inf
        np.minimum.reduce(sums, axis=0, out=row)
        row -= self._elapsed_ms[a]

    def _keep_first(self, a: int, b: int, lo: int, hi: int, r: int) -> None:
        """Improve [a, b)'s row from level `lo` to `hi` where it is better to keep unit a by retention r."""
        if b - a == 1:
            np.minimum(self._table[a, b, lo:hi], self._replay_ms[r, a], out=self._table[a, b, lo:hi])
            return
        start, left = self._left(int(self._grid.kept_bytes[r, a]))
        lo = max(lo, start)
        if lo < hi:
            extra = self._table[a + 1, b].take(left[lo - start : hi - start])
            extra += self._replay_ms[r, a]
            np.minimum(self._table[a, b, lo:hi], extra, out=self._table[a, b, lo:hi])

    def _choose(self, a: int, b: int, level: int | None) -> Move:
        """The first move of [a, b) at a level, or in full if the level is None."""
        costs, num_bytes = self._costs, self._full_needs[a, b] if level is None else self._levels[level]
        if num_bytes >= self._full_needs[a, b]:
            return Move(int(self._quickest[a]), a + 1, None, None)
        gradient = costs.forward_gradient_bytes[b]
        best, move = np.inf, Move(None, b, None, None)
        for r in range(len(self._replay_ms)):
            if max(costs.keep_run_bytes[r, a] + gradient, costs.backward_bytes[r, a]) > num_bytes:
                continue
            rest = self._level_within(num_bytes - self._grid.kept_bytes[r, a]) if b - a > 1 else 0
            if rest >= 0:
                extra = self._replay_ms[r, a] + (self._table[a + 1, b, rest] if b - a > 1 else 0)
                if extra < best:
                    best, move = extra, Move(r, a + 1, None, rest)
        stops = np.arange(a + 1, b)
        rests = self._level_within(num_bytes - self._grid.state_bytes[stops])
        fits = (costs.discard_bytes[a, 1 : b - a] + gradient <= num_bytes) & (rests >= 0)
        stops, rests = stops[fits], rests[fits]
        if len(stops):
            extras = self._table[stops, b, rests] + self._elapsed_ms[stops] + self._table[a, stops, level]
            extras -= self._elapsed_ms[a]
            i = int(extras.argmin())
            if extras[i] < best:
                best, move = extras[i], Move(None, int(stops[i]), level, int(rests[i]))
        assert best < np.inf, f"no plan for units {a} to {b - 1} at level {level}"
        return move

    def _level_within(self, num_bytes: Any) -> Any:
        """The highest level of at most so many bytes, −1 if there is none; of each, if there are several."""
        return np.searchsorted(self._levels, num_bytes, side="right") - 1


def quickest_retentions(chain: Chain) -> list[int]:
    """Which retention of each unit replays least; of those, which keeps least."""
    quickest = list[int]()
    for unit in chain.units:
        order = [
            (retention.replay_ms, retention.kept_bytes, r) for r, retention in enumerate(unit.retentions)
        ]
        quickest.append(min(order)[2])
    return quickest
