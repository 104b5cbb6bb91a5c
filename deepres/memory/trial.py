"""Plans run for real on the device at hand: what they hold and how long they take."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.memory.measure import measure_activation_peak, measure_chain
from deepres.memory.report_rows import StrategyRow
from deepres.memory.scaling import ScalingChain
from deepres.memory.subject import Subject
from deepres.recompute import Chain, Plan, UnitCost, apply_plan


def with_measured_times(subject: Subject, device: torch.device, repeats: int = 5) -> None:
    """Give a subject's chain the times that its units take on a device; bytes stay as predicted."""
    shape = (subject.batch, 3, subject.image_size, subject.image_size)
    channels_last = subject.config.precision.channels_last
    measured = measure_chain(
        subject.net, shape, device, subject.dtype, channels_last=channels_last, repeats=repeats
    )
    first, second = subject.scaling.chains
    ratio = subject.scaling.batches[1] / subject.scaling.batches[0]
    timed = (_timed(first, measured, 1.0), _timed(second, measured, ratio))
    subject.scaling = ScalingChain(subject.scaling.batches, timed)


def measured_row(subject: Subject, row: StrategyRow, device: torch.device, repeats: int = 5) -> StrategyRow:
    """A row with the peak and time of its plan as run on a device, or with a note that it does not fit there.

    Args:
        subject: the net.
        row: what was predicted.
        device: the device at hand.
        repeats: steps that are timed; their median counts, as of the units' times.
    """
    if row.plan is None:
        return row
    if device.type != "cuda" and row.peak_bytes > subject.room(subject.batch):
        return replace(row, measured_note="does not fit")  # a CPU would swap, or end this process
    try:
        peak_bytes, ms = run_plan(subject, row.plan, device, repeats)
    except torch.OutOfMemoryError:
        return replace(row, measured_note="does not fit")
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return replace(row, measured_peak_bytes=peak_bytes, measured_ms=ms)


def run_plan(
    subject: Subject, plan: Plan | None, device: torch.device, repeats: int = 5
) -> tuple[int, float | None]:
    """The peak of activations of a forward and backward pass under a plan, and its time in ms.

    Args:
        subject: the net.
        plan: None keeps everything, without a plan.
        device: where to run it.
        repeats: how many steps are timed; 0 measures bytes alone, and gives None.
    """
    net, size = subject.net.to(device), subject.image_size
    images = torch.randn(subject.batch, 3, size, size, device=device)
    if subject.config.precision.channels_last:
        images = images.to(memory_format=torch.channels_last)
    labels = torch.zeros(subject.batch, dtype=torch.long, device=device)
    compute = _Compute(net, subject.dtype, device.type)
    apply_plan(net, plan)
    try:
        peak_bytes = measure_activation_peak(net, compute, images, labels)
        times = [_step_ms(net, compute, images, labels) for _ in range(repeats)]
    finally:
        apply_plan(net, None)
        net.zero_grad(set_to_none=True)
        net.to("cpu")
    return peak_bytes, statistics.median(times) if times else None


class _Compute(nn.Module):
    """Logits of a net under autocast, fp32."""

    def __init__(self, net: nn.Module, dtype: torch.dtype, device_type: str) -> None:
        super().__init__()
        self._net, self._dtype, self._device_type = net, dtype, device_type

    def forward(self, images: Tensor) -> Tensor:
        is_on = self._dtype != torch.float32
        with torch.autocast(self._device_type, self._dtype, enabled=is_on, cache_enabled=False):
            logits: Tensor = self._net(images)
        return logits.float()


def _step_ms(net: nn.Module, compute: nn.Module, images: Tensor, labels: Tensor) -> float:
    net.zero_grad(set_to_none=False)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    F.cross_entropy(compute(images), labels).backward()
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return 1000 * (time.perf_counter() - start)


def _timed(chain: Chain, measured: Chain, factor: float) -> Chain:
    """A chain with times of another of the same net, times a factor."""
    known = dict[tuple[int, int], UnitCost]()
    units = []
    for unit, times in zip(chain.units, measured.units, strict=True):
        if (id(unit), id(times)) not in known:
            retentions = tuple(
                replace(r, replay_ms=factor * t.replay_ms)
                for r, t in zip(unit.retentions, times.retentions, strict=True)
            )
            known[id(unit), id(times)] = replace(
                unit,
                forward_ms=factor * times.forward_ms,
                backward_ms=factor * times.backward_ms,
                retentions=retentions,
            )
        units.append(known[id(unit), id(times)])
    return replace(chain, units=tuple(units), fixed_ms=factor * measured.fixed_ms)
