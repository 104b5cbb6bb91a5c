"""Comparable times of steps, on a machine that other processes use too.

NOTE [ Times that can be compared ]
1. Steps of one kind are run in blocks: one step to warm up caches and allocator, then those that are timed.
2. Blocks of all kinds take turns, and each block's time is divided by that of the reference in the same round,
   so that what slows the machine for a while slows both. The result is the median over rounds.
3. glibc returns large blocks to the system, and each step then pays for zeroing their pages again: noise larger than
   what is to be measured. A process that measures time keeps them, as training does on a CPU.
4. If other processes compute at the same time, even that is not enough: two threads that wait for each other make a
   step many times as long. Hence the CPU time of a single thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from measuring.child import call_in_child


@dataclass(frozen=True)
class Clock:
    """How to time.

    Args:
        processor_time: measure CPU time, of one thread, instead of wall-clock time.
    """

    processor_time: bool

    def call(
        self,
        function: Callable[..., Any],
        arguments: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        limit_s: float | None = None,
    ) -> Any:
        """Call a function in a new process that uses this clock; see `call_in_child`."""
        return call_in_child(function, arguments, environment, limit_s, processor_time=self.processor_time)

    def __str__(self) -> str:
        return "processor time of one thread" if self.processor_time else "time on the wall"


@dataclass(frozen=True)
class Times:
    """Times of one kind of steps.

    Args:
        median_ms: the median of the blocks' means.
        ratio: the median of the blocks' ratios to the reference's block in the same round.
        ratios: these ratios, one per round.
    """

    median_ms: float
    ratio: float
    ratios: tuple[float, ...]


def block_s(step: Callable[[], object], num_steps: int) -> float:
    """Seconds that `num_steps` steps take, after one untimed step; a device is synchronized only after the last."""
    step()
    _wait_for_device()
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    _wait_for_device()
    return time.perf_counter() - start


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def times_in_turns(
    steps: Mapping[str, Callable[[], object]], reference: str, rounds: int, steps_per_block: int
) -> dict[str, Times]:
    """Time several kinds of steps against one of them; see NOTE [ Times that can be compared ]."""
    blocks: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        names = list(steps)[:: -1 if turn % 2 else 1]  # no kind always follows the same one
        for name in names:
            blocks[name].append(block_s(steps[name], steps_per_block) * 1000 / steps_per_block)
    times = {}
    for name, block_ms in blocks.items():
        ratios = tuple(ms / ref for ms, ref in zip(block_ms, blocks[reference], strict=True))
        times[name] = Times(statistics.median(block_ms), statistics.median(ratios), ratios)
    return times
