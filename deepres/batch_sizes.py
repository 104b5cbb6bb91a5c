"""The arithmetic of batches: global batch = micro batch × accumulation × processes."""

from __future__ import annotations

from dataclasses import dataclass

from deepres.config import ConfigError, TrainConfig
from deepres.wording import listed


@dataclass(frozen=True)
class BatchSizes:
    """How a step's images are divided: `global_size == micro_size * accumulation * world_size`."""

    global_size: int
    micro_size: int
    accumulation: int
    world_size: int


def batch_sizes(train: TrainConfig, world_size: int) -> BatchSizes:
    """Derive the sizes that are not given from global batch = micro batch × accumulation × processes.

    With only the global or the micro batch given, the accumulation is 1; the accumulation alone is not enough. For
    `auto`, the micro batch is the largest possible; see `smaller_micro_batches`.

    Raises:
        ConfigError: they contradict each other, or too few are given; the message suggests values.
    """
    total, accumulation = train.global_batch_size, train.accumulation
    micro = None if train.micro_batch_size == "auto" else train.micro_batch_size
    if total is None:
        if micro is None:
            raise ConfigError("train: give global_batch_size or micro_batch_size")
        accumulation = accumulation or 1
        return BatchSizes(micro * accumulation * world_size, micro, accumulation, world_size)
    given = micro if micro is not None else accumulation or 1
    what = f"train.global_batch_size {total}"
    if total % world_size:
        near = sorted({max(1, total // world_size) * world_size, -(-total // world_size) * world_size})
        raise ConfigError(f"{what} does not divide by {world_size} processes; nearest: {listed(near)}")
    share = total // world_size
    if share % given:
        name = "micro_batch_size" if micro is not None else "accumulation"
        raise ConfigError(
            f"{what} over {world_size} processes is {share} images each, which train.{name} {given} does not "
            f"divide; nearest: {listed(_nearest_divisors(share, given))}"
        )
    if micro is not None and accumulation is not None and micro * accumulation != share:
        raise ConfigError(
            f"{what} is not train.micro_batch_size {micro} × train.accumulation {accumulation} × {world_size} "
            f"processes = {micro * accumulation * world_size}; with this micro batch, accumulation is {share // micro}"
        )
    if micro is None:
        micro = share // given
    return BatchSizes(total, micro, share // micro, world_size)


def smaller_micro_batches(sizes: BatchSizes) -> list[BatchSizes]:
    """The same global batch in ever smaller micro batches, with ever more accumulation."""
    share = sizes.micro_size * sizes.accumulation
    return [
        BatchSizes(sizes.global_size, micro, share // micro, sizes.world_size)
        for micro in range(sizes.micro_size - 1, 0, -1)
        if share % micro == 0
    ]


def _nearest_divisors(number: int, wanted: int) -> list[int]:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return sorted(sorted(divisors, key=lambda d: abs(d - wanted))[:4])
