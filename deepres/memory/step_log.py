"""What a training step takes on a CUDA device, and what to leave behind when it runs out of memory."""

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
        reserved_bytes: what the allocator has of the device.
        alloc_retries: how often, since the process began, it had to give back what it held to go on.
    """

    peak_bytes: int
    reserved_bytes: int
    alloc_retries: int


def read_step_memory(device: torch.device) -> StepMemory | None:
    """A device's memory since the last call, None for a CPU; looks for a new peak from now on."""
    if device.type != "cuda":
        return None
    stats = torch.cuda.memory_stats(device)
    torch.cuda.reset_peak_memory_stats(device)
    names = ("allocated_bytes.all.peak", "reserved_bytes.all.current", "num_alloc_retries")
    return StepMemory(*(stats.get(name, 0) for name in names))  # there are none before the first allocation


def start_memory_history(device: torch.device) -> None:
    """From now on note what is allocated, and by whom, for a snapshot; nothing on a CPU."""
    if device.type == "cuda":
        # Of C++ frames, which take longest to find, a snapshot of a training step has no need.
        torch.cuda.memory._record_memory_history(stacks="python", max_entries=_HISTORY_ENTRIES)


def write_memory_snapshot(path: Path, device: torch.device) -> None:
    """Write what was noted, for https://pytorch.org/memory_viz; nothing on a CPU."""
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
