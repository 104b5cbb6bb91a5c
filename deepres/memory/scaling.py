"""A chain at any batch size, from its costs at two."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from deepres.recompute.chain import Chain, combine

MOST_IMAGES = 2**20
"""The most images in a batch that are considered."""


@dataclass(frozen=True)
class ScalingChain:
    """What a net's chain costs as a function of the batch.

    Activations' bytes are affine in the batch, so two chains determine both what is held for each image and what
    is held once (batch statistics, workspaces). Kept bytes are thus exact at every size; so are transient bytes,
    except for batches of a few images. Times are affine as long as no operator goes from being launch-bound to
    being bound by its work.

    Args:
        batches: two sizes.
        chains: the net's chain at each.
    """

    batches: tuple[int, int]
    chains: tuple[Chain, Chain]

    def at(self, batch: int) -> Chain:
        """The chain for a batch of this many images."""
        low, high = self.batches
        share = (batch - low) / (high - low)

        def num_bytes(a: int, b: int) -> int:
            return max(0, a + -((a - b) * (batch - low) // (high - low)))

        def ms(a: float, b: float) -> float:
            return max(0.0, a + (b - a) * share)

        def cost(name: str, a: float, b: float) -> float:
            if name == "reads_input":
                return a or b
            return ms(a, b) if name.endswith("_ms") else num_bytes(int(a), int(b))

        return combine(self.chains, cost)


def largest_batch(fits: Callable[[int], bool], most: int = MOST_IMAGES) -> int:
    """The largest batch that `fits`; 0 if not even 1 does, `most` if that still does.

    Args:
        fits: whether a batch size fits; true for every size below one for which it is true.
        most: where to stop.
    """
    return bisect_left(range(1, most + 1), True, key=lambda size: not fits(size))
