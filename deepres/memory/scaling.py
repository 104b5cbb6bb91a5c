"""A chain at any batch size, from its costs at two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deepres.recompute import Chain, Retention, UnitCost


@dataclass(frozen=True)
class ScalingChain:
    """What a net's chain costs as a function of the batch.

    Activations' bytes are affine in the batch, so two chains tell all: what is held for each image, and what is
    held once (batch statistics, workspaces). Kept bytes are thus exact at every size; so are transients but for
    batches of a few images. Times are affine as long as no operator goes from being bound by
    launches to being bound by work.

    Args:
        batches: two sizes.
        chains: the net's chain at each.
    """

    batches: tuple[int, int]
    chains: tuple[Chain, Chain]

    def at(self, batch: int) -> Chain:
        """The chain of a batch of so many images."""
        low, high = self.batches
        share = (batch - low) / (high - low)

        def num_bytes(a: int, b: int) -> int:
            return max(0, a + -((a - b) * (batch - low) // (high - low)))

        def ms(a: float, b: float) -> float:
            return max(0.0, a + (b - a) * share)

        known: dict[tuple[int, int], UnitCost] = {}
        first, second = self.chains
        units = list[UnitCost]()
        for a, b in zip(first.units, second.units, strict=True):
            if (id(a), id(b)) not in known:
                known[id(a), id(b)] = UnitCost(
                    forward_ms=ms(a.forward_ms, b.forward_ms),
                    backward_ms=ms(a.backward_ms, b.backward_ms),
                    output_bytes=num_bytes(a.output_bytes, b.output_bytes),
                    retentions=tuple(
                        Retention(
                            name=r.name,
                            kept_bytes=num_bytes(r.kept_bytes, s.kept_bytes),
                            replay_ms=ms(r.replay_ms, s.replay_ms),
                            forward_temp_bytes=num_bytes(r.forward_temp_bytes, s.forward_temp_bytes),
                            backward_temp_bytes=num_bytes(r.backward_temp_bytes, s.backward_temp_bytes),
                            freed_bytes=num_bytes(r.freed_bytes, s.freed_bytes),
                            reads_input=r.reads_input or s.reads_input,
                        )
                        for r, s in zip(a.retentions, b.retentions, strict=True)
                    ),
                    forward_temp_bytes=num_bytes(a.forward_temp_bytes, b.forward_temp_bytes),
                )
            units.append(known[id(a), id(b)])
        return Chain(
            input_bytes=num_bytes(first.input_bytes, second.input_bytes),
            units=tuple(units),
            fixed_bytes=num_bytes(first.fixed_bytes, second.fixed_bytes),
            head_bytes=num_bytes(first.head_bytes, second.head_bytes),
            fixed_ms=ms(first.fixed_ms, second.fixed_ms),
            stem_bytes=num_bytes(first.stem_bytes, second.stem_bytes),
        )


def largest_batch(fits: Callable[[int], bool], most: int = 2**20, guess: int = 1) -> int:
    """The largest batch of which `fits` says so, 0 if not even 1 fits; `most` if that still does.

    Args:
        fits: true of every size below one of which it is true.
        most: where to stop.
        guess: where to begin.
    """
    low, high = 0, most + 1  # fits, does not
    size, step = max(1, min(most, guess)), 1
    while high - low > 1:
        if fits(size):
            low, size = size, min(size + step, high - 1)
        else:
            high, size = size, max(size - step, low + 1)
        step *= 2
        if step > high - low:
            size, step = (low + high) // 2, max(1, (high - low) // 4)
    return low
