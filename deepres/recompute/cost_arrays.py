"""A chain's costs as arrays, and the bytes that a plan's steps take."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepres.recompute.chain import Chain, Retention, UnitCost

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ABSENT = 2**60
"""The bytes of a retention that a unit does not have: more than any plan holds."""


class Costs(NamedTuple):
    """A chain's costs as arrays over its P parts; those of the R retentions have axes (R, P) or (K, R, P).

    The parts are the units and, last, the head. The head is in no segment, so it is kept, by its only retention, which
    holds nothing and whose run (forward and backward together) takes `head_bytes`.

    The input x_a of part a is of one of K kinds: kind 0 if something else holds it too (as x_0), kind K − 1 if only
    part a does, so that it is freed when part a drops it (as one that a discarding run has made). If no unit of the
    chain drops its input, the two kinds are one.

    Args:
        state_bytes: (P + 1,), x_0 … x_L and the head's output, which counts as 0.
        forward_gradient_bytes: (P + 1,), the gradient held while [·, b) is run forward: that of x_b, but
            none for b = P, as that range is run forward only once, in the first phase.
        forward_ms: (P,).
        discard_run_bytes: (P, P), at [a, k] the most that discarding runs of a … a+k−1 add to x_a, without gradients.
        added_bytes: (K, R, P), kept bytes, less x_a where it is freed.
        next_kind: (R, P), the kind of x_{a+1} after part a was run KEEP.
        keep_run_bytes: (R, P), what a keeping run adds, including transient bytes but not gradients.
        backward_bytes: (K, R, P), what the BACKWARD adds to x_a: added bytes that are not freed, both gradients,
            transient bytes.
        replay_ms: (R, P).
    """

    state_bytes: Ints
    forward_gradient_bytes: Ints
    forward_ms: Floats
    discard_run_bytes: Ints
    added_bytes: Ints
    next_kind: Ints
    keep_run_bytes: Ints
    backward_bytes: Ints
    replay_ms: Floats

    @property
    def num_kinds(self) -> int:
        """K."""
        return len(self.added_bytes)

    def keep_bytes(self, kind: int, a: Any, b: Any) -> Ints:
        """The most that part a's own steps add to its input x_a if part a is kept, in a range that ends at b.

        Args:
            kind: of x_a.
            a, b: NumPy indices of broadcastable shapes.

        Returns:
            (R, …), where … is their common shape.
        """
        run_bytes = self.keep_run_bytes[:, a] + self.forward_gradient_bytes[b]
        most: Ints = np.maximum(run_bytes, self.backward_bytes[kind][:, a])
        return most

    def discard_bytes(self, a: Any, num_runs: Any, b: Any) -> Ints:
        """The most that discarding runs of `num_runs` parts from a on add to x_a, in a range that ends at b.

        Args:
            a, num_runs, b: NumPy indices of broadcastable shapes.

        Returns:
            (…), their common shape.
        """
        most: Ints = self.discard_run_bytes[a, num_runs] + self.forward_gradient_bytes[b]
        return most


def costs_of(chain: Chain) -> Costs:
    """The chain's costs as arrays."""
    head = UnitCost(0.0, 0.0, 0, (Retention("all", 0, forward_temp_bytes=chain.head_bytes),))
    units = (*chain.units, head)
    num_parts, num_retentions = len(units), max(len(unit.retentions) for unit in units)
    x = np.array([*chain.state_bytes, 0], dtype=np.int64)
    absent = np.full((num_retentions, num_parts), ABSENT, dtype=np.int64)
    kept, keep_temp, backward_temp = absent, np.zeros_like(absent), np.zeros_like(absent)
    dropped, next_kind = np.zeros_like(absent), np.zeros_like(absent)
    replay_ms = np.full(absent.shape, np.inf)
    for i, unit in enumerate(units):
        for r, retention in enumerate(unit.retentions):
            kept[r, i] = retention.kept_bytes
            keep_temp[r, i] = retention.forward_temp_bytes
            backward_temp[r, i] = retention.backward_temp_bytes - retention.freed_bytes
            dropped[r, i] = retention.dropped_bytes(int(x[i]))
            next_kind[r, i] = unit.leaves_output(retention)
            replay_ms[r, i] = retention.replay_ms
    run_bytes = x[1:] + np.array([unit.forward_temp_bytes for unit in units], dtype=np.int64)
    discard = np.zeros((num_parts, num_parts), dtype=np.int64)
    for a in range(num_parts):  # a segment's first input is held already, later ones are added
        runs = np.append(run_bytes[a], (x[:-1] + run_bytes)[a + 1 :])
        discard[a, 1 : num_parts - a] = np.maximum.accumulate(runs)[:-1]
    drops = bool(dropped[:, 1:-1].any())
    added = np.stack([kept, kept - dropped]) if drops else kept[None]
    backward = added + x[1:] + x[:-1] + backward_temp
    backward[:, 0, -1] = 0  # the head's backward is part of its run
    return Costs(
        state_bytes=x,
        forward_gradient_bytes=np.append(x[:-1], 0),
        forward_ms=np.array([unit.forward_ms for unit in units]),
        discard_run_bytes=discard,
        added_bytes=added,
        next_kind=next_kind if drops else np.zeros_like(absent),
        keep_run_bytes=kept + keep_temp,
        backward_bytes=backward,
        replay_ms=replay_ms,
    )
