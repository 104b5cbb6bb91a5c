"""The bytes that a device's allocator hands out, counted by the allocator itself: kernels' workspaces included."""

from __future__ import annotations

import gc
import os
from typing import Any, Self

import torch
from torch.autograd import profiler


class AllocatedBytes:
    """Counts what is allocated and freed on a device while the context is open, to the byte.

    It may be entered several times; what happens in between is not seen. On the CPU the figures are those of
    PyTorch's allocator as its profiler records them, so no other profiler may be active; on CUDA, those of
    `torch.cuda.memory_stats`, whose peaks are reset.

    Args:
        device: where to count.
        rounded: on CUDA, count blocks as the allocator cuts them, up to 1 MiB larger than what was asked for and
            depending on what it has cached, rather than what was asked for.

    Attributes:
        live_bytes: allocated in the context and not freed in it; as of the last exit.
        peak_bytes: the most since the beginning or the last `reset_peak`; as of the last exit.
    """

    def __init__(self, device: torch.device, *, rounded: bool = True) -> None:
        self.live_bytes = 0
        self.peak_bytes = 0
        self._device = device
        self._profile: Any = None
        self._cuda_bytes = 0
        self._rounded = rounded
        self._collects_garbage = True

    def reset_peak(self) -> None:
        """Start looking for a new peak."""
        self.peak_bytes = self.live_bytes

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._cuda_bytes = self._on_cuda("current")
        else:
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it logs start and stop to stderr
            self._collects_garbage = gc.isenabled()
            gc.disable()  # garbage from before must not be freed now
            self._profile = profiler.profile(profile_memory=True)
            self._profile.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak_bytes = self._on_cuda("peak") - self._cuda_bytes
            self.peak_bytes = max(self.peak_bytes, self.live_bytes + peak_bytes)
            self.live_bytes += self._on_cuda("current") - self._cuda_bytes
            return
        self._profile.__exit__(*exception)
        if self._collects_garbage:
            gc.enable()
        events = (e for e in self._profile.kineto_results.events() if e.name() == "[memory]")
        for event in sorted(events, key=lambda e: e.start_ns()):
            self.live_bytes += event.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self._profile = None

    def _on_cuda(self, which: str) -> int:
        # CUDA's own allocator does not report requested bytes (PYTORCH_ALLOC_CONF=backend:cudaMallocAsync).
        asked = not self._rounded and torch.cuda.get_allocator_backend() == "native"
        stat = f"{'requested' if asked else 'allocated'}_bytes.all.{which}"
        # There are no figures before the first allocation.
        return int(torch.cuda.memory_stats(self._device).get(stat, 0))
