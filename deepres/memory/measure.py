"""A net's memory and time, measured on the device at hand."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.gradients import allocate_gradients, backward_in_this_thread
from deepres.memory.allocated import AllocatedBytes
from deepres.memory.bench import (
    Loss,
    Meter,
    Spec,
    as_in_training,
    checked_input,
    default_loss,
)
from deepres.memory.host_heap import keep_freed_memory
from deepres.memory.passes import read_chain
from deepres.recompute import Chain
from deepres.recompute.discarding import can_need_grad


def measure_chain(
    model: nn.Module,
    input_shape: tuple[int, ...],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    loss: Loss = default_loss,
    channels_last: bool = False,
    input_dtype: torch.dtype = torch.float32,
    repeats: int = 5,
) -> Chain:
    """The costs of each unit of a model, of its stem and its head, measured on a device.

    Units that are alike are measured once, so that a net of a thousand layers takes seconds; see NOTE
    [ Reading costs ]. Bytes are what the allocator is asked for, workspaces included; on CUDA its blocks are larger, by
    1 MiB at most. The caller's autocast, `no_grad` or `inference_mode` makes no difference. The model may be on any
    device, and is left as it is. Timing a CPU makes the process keep freed memory from then on (`keep_freed_memory`).

    Args:
        model: a net `head(units(stem(x)))` or an `nn.Sequential` of units, each one tensor to one tensor.
        input_shape: of the model's input, batch first.
        device: where to measure.
        dtype: what to compute in: float32, or bfloat16 or float16 under autocast.
        loss: of the model's output; by default the cross entropy of logits (N, C), the mean of anything else.
        channels_last: whether inputs are in that memory format.
        input_dtype: of the input, such as `torch.long` for tokens (which are then all 0).
        repeats: timings are medians of so many; with 0 all times are 0, and only bytes are measured.

    Raises:
        TypeError: the model has no sequence of units that it calls once, or one of them does not return one tensor
            or cannot be copied.
        ValueError: the input is empty, `repeats` is negative, or the model cannot be run in that dtype.
    """
    if repeats < 0:
        raise ValueError(f"repeats must be 0 or more, got {repeats}")
    images = checked_input(model, input_shape, input_dtype, dtype, channels_last=channels_last)
    bench = _DeviceBench(torch.device(device), dtype, repeats)
    if repeats and bench.device.type == "cpu":
        keep_freed_memory()
    with (
        as_in_training(bench.device.type),
        _without_garbage_collection(),
        torch.random.fork_rng(devices=[bench.device] if bench.device.type == "cuda" else []),
    ):
        if bench.device.type == "cuda":
            # Libraries choose their algorithms here; those that they try take more memory than the chosen ones.
            read_chain(model, images, _DeviceBench(bench.device, dtype, repeats=0), loss)
        return read_chain(model, images, bench, loss)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """No collection, even between passes: garbage of one pass would be freed, and counted, in the middle of another."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _DeviceBench:
    """See `deepres.memory.bench.Bench`."""

    cache_bytes = 2**26

    def __init__(self, device: torch.device, dtype: torch.dtype, repeats: int) -> None:
        self.device = device
        self._dtype = dtype
        self._repeats = repeats

    def copy(self, module: nn.Module, instead: dict[int, nn.Module]) -> nn.Module:
        """Parameters, buffers and mode are copied, gradients and plans are not."""
        return copy.deepcopy(module, dict(instead)).to(self.device)

    def tensor(self, spec: Spec) -> Tensor:
        """Normally distributed values; of integers, zeros."""
        x = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=self.device)
        size = x.untyped_storage().nbytes() // x.itemsize
        values = x.as_strided((size,), (1,))  # with stride 0, several elements share one
        _ = values.normal_() if can_need_grad(x) else values.zero_()
        return x

    def meter(self) -> Meter:
        """Counts what the device's allocator hands out."""
        return AllocatedBytes(self.device, rounded=False)

    def compute(self) -> AbstractContextManager[Any]:
        """Autocast without its cache, as units are run under a plan."""
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self._dtype, cache_enabled=False)

    def rounds_ms(self, runs: Sequence[Callable[[], object]]) -> list[list[float]]:
        """Rounds in which each run has its turn, repeated until it is long enough for the clock."""
        if not self._repeats:
            return [[0.0] * len(runs)]
        for run in runs:
            run()  # warm-up: libraries choose their algorithms now
        nums = [max(1, min(50, round(10 / max(0.2, self._time_ms(run, 1))))) for run in runs]
        return [
            [self._time_ms(run, num) for run, num in zip(runs, nums, strict=True)]
            for _ in range(self._repeats)
        ]

    def _time_ms(self, run: Callable[[], object], num_runs: int) -> float:
        self._synchronize()
        start = time.perf_counter()
        for _ in range(num_runs):
            run()
        self._synchronize()
        return (time.perf_counter() - start) * 1000 / num_runs

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_activation_peak(
    net: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
) -> int:
    """The most bytes that a forward and backward pass over a micro batch allocates at once.

    Parameters, their gradients, buffers and the images are allocated before, so they do not count; workspaces do.
    Buffers, modes and random number generators are left as they were; gradients are set to None.

    Args:
        net: the net whose parameters and buffers these are.
        run: computes its logits (under autocast, say).
        images: (N, 3, H, W).
        labels: (N,); -100 does not count.
    """
    meter = AllocatedBytes(images.device)
    with _as_if_not_run(net):
        allocate_gradients(net)
        if images.device.type == "cuda":
            run_pass(
                run, images, labels
            )  # libraries try algorithms, which takes more memory than the chosen one
        with meter:
            run_pass(run, images, labels)
    return meter.peak_bytes


def run_pass(run: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> None:
    """Run a forward and backward pass that holds the logits meanwhile, as a training step does."""
    with backward_in_this_thread():
        logits = run(images)
        F.cross_entropy(logits, labels).backward()


@contextmanager
def _as_if_not_run(net: nn.Module) -> Iterator[None]:
    devices = sorted({p.device.index for p in net.parameters() if p.device.type == "cuda"})
    buffers = [(b, b.detach().clone()) for b in net.buffers()]
    modes = [(module, module.training) for module in net.modules()]
    net.train()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:  # also if the pass ran out of memory
        for module, was_training in modes:
            module.training = was_training
        net.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
