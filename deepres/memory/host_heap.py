"""The host's heap: freed memory is kept for the next step instead of being given back to the system."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)


def keep_freed_memory() -> None:
    """From now on, let this process keep what its heap has freed, as PyTorch's CUDA allocator does.

    glibc returns large blocks to the system as they are freed, which then clears their pages anew in each step: up to
    a sixth of a step's time on a CPU, depending on what was freed before. The most that the process ever holds stays
    about the same. Where the C library has no `mallopt` (macOS, musl), or the environment configures glibc's
    allocator (`MALLOC_…`), nothing changes.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, -1)  # never trim
        mallopt(_M_MMAP_MAX, 0)  # all from the heap
