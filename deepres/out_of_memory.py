"""Running out of memory: shrink the micro batch before a run; during one, say which would have fitted."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import torch

from deepres.batch_sizes import BatchSizes, smaller_micro_batches
from deepres.distributed import any_process
from deepres.exit_status import ExitStatus, RunError

# CPU allocators and libraries below PyTorch raise no dedicated exception. If no cuDNN algorithm could get its
# workspace, PyTorch says that it found no engine (pytorch#108645).
_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "could not create a memory object",
    "unable to find an engine to execute this computation",
)

_REPLAY_MORE = (
    "a plan that replays more takes less: set recompute.budget or recompute.device_memory, or lower it"
)
Measured = TypeVar("Measured")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES):
        return True
    # While a CUDA graph was recorded: the error then is that the recording could not be ended.
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return before is not None and is_out_of_memory(before)


class UntilOutOfMemory:
    """A context that suppresses out-of-memory errors, and releases with them what only the error's frames refer to.

    Attributes:
        ran_out: whether the block ran out of memory; known after it.
    """

    ran_out = False

    def __enter__(self) -> UntilOutOfMemory:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> bool:
        self.ran_out = error is not None and is_out_of_memory(error)
        return self.ran_out


def shrink_until_it_fits(
    sizes: BatchSizes, attempt: Callable[[int], Measured], device: torch.device
) -> tuple[BatchSizes, Measured]:
    """Try the micro batch, then ones at most half as large as the last, until one fits every process; collective.

    Each is the largest that divides a process's share of the global batch, which stays the same: the accumulation
    grows.

    Args:
        sizes: what is wanted.
        attempt: runs a micro batch of a given size. It must leave parameters, buffers and generators unchanged, even
            when it raises, and must not communicate: each process runs it by itself, and one that ran out of memory
            could not answer the others.
        device: where the processes' answers are exchanged.

    Returns:
        The sizes that fit, and what their attempt returned in this process.

    Raises:
        RunError: not even the smallest fits; in all processes.
    """
    while True:
        found: list[Measured] = []
        with UntilOutOfMemory() as trial:
            found.append(attempt(sizes.micro_size))
        if trial.ran_out:
            _release(device)
        if not any_process([trial.ran_out], device)[0]:
            return sizes, found[0]
        smaller = _at_most(sizes, sizes.micro_size // 2)
        if smaller is None:
            raise RunError(
                f"out of memory: not even a micro batch of 1 fits this device: {_REPLAY_MORE}",
                ExitStatus.OUT_OF_MEMORY,
            )
        sizes = smaller


def _at_most(sizes: BatchSizes, micro_size: int) -> BatchSizes | None:
    """The same global batch in the largest possible micro batches of at most that size; None if that is 0."""
    return next((each for each in smaller_micro_batches(sizes) if each.micro_size <= micro_size), None)


def out_of_memory(when: str, sizes: BatchSizes, peak_bytes: int, free_bytes: int | None) -> RunError:
    """The error of a micro batch that ran out of memory, with what would have fitted.

    Args:
        when: such as `in step 3`.
        sizes: how a step's images are divided.
        peak_bytes: the peak of a micro batch's activations.
        free_bytes: what is free without activations, if known.
    """
    fitting = sizes.micro_size // 2
    if free_bytes is not None:
        fitting = min(fitting, sizes.micro_size * free_bytes // max(1, peak_bytes))
    smaller = _at_most(sizes, fitting)
    advice = f"no smaller one would fit: {_REPLAY_MORE}"
    if smaller is not None:
        advice = (
            f"train.micro_batch_size={smaller.micro_size} train.accumulation={smaller.accumulation} "
            f"{'may' if free_bytes is None else 'should'} fit, and trains the same global batch of {sizes.global_size}"
        )
    return RunError(
        f"out of memory {when} with a micro batch of {sizes.micro_size}: {advice}", ExitStatus.OUT_OF_MEMORY
    )


def limit_device_memory(device: torch.device, limit_bytes: int) -> None:
    """Limit what PyTorch's allocator takes of a GPU in this process, as if that were the GPU's size.

    cuDNN then chooses among the algorithms whose workspaces fit.
    """
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total_bytes), device)


def free_device_bytes(device: torch.device) -> int | None:
    """What this process can still allocate on a GPU, within `limit_device_memory`; empties the cache. None on a CPU."""
    if device.type != "cuda":
        return None
    _release(device)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    limit_bytes = int(torch.cuda.get_per_process_memory_fraction(device) * total_bytes)
    return min(free_bytes, limit_bytes - torch.cuda.memory_reserved(device))


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
