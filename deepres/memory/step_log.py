"""A training step's memory on a CUDA device, and the snapshot to leave when it runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

_HISTORY_ENTRIES = 100_000


class StepMemory(NamedTuple):
    """A device's memory over a step.

    Args:
        peak_bytes: the most that tensors took.
        reserved_bytes: what the allocator holds of the device's memory.
        alloc_retries: how often, since the process began, it had to free its cache to satisfy a request.
    """

    peak_bytes: int
    reserved_bytes: int
    alloc_retries: int


def read_step_memory(device: torch.device) -> StepMemory | None:
    """A device's memory since the last call, None for a CPU; resets the peak."""
    if device.type != "cuda":
        return None
    stats = torch.cuda.memory_stats(device)
    torch.cuda.reset_peak_memory_stats(device)
    names = ("allocated_bytes.all.peak", "reserved_bytes.all.current", "num_alloc_retries")
    return StepMemory(*(stats.get(name, 0) for name in names))  # there are none before the first allocation


def start_memory_history(device: torch.device) -> None:
    """Start to record allocations and where they come from, for a snapshot; does nothing on a CPU."""
    if device.type == "cuda":
        # Without C++ frames, which take longest to collect: a training step's snapshot does not need them.
        torch.cuda.memory._record_memory_history(stacks="python", max_entries=_HISTORY_ENTRIES)


def write_memory_snapshot(path: Path, device: torch.device) -> None:
    """Write what was recorded, for https://pytorch.org/memory_viz; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.memory._dump_snapshot(str(path))


@contextmanager
def recorded_memory(path: Path, device: torch.device) -> Iterator[None]:
    """Record what is allocated in the context, and write it for https://pytorch.org/memory_viz; CUDA alone.

    Raises:
        ValueError: the device is not a CUDA one.
    """
    if device.type != "cuda":
        raise ValueError(f"a memory snapshot needs CUDA, got {device}")
    start_memory_history(device)
    try:
        yield
    finally:
        write_memory_snapshot(path, device)
        torch.cuda.memory._record_memory_history(enabled=None)
