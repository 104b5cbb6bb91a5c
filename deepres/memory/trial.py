"""Runs plans on the device at hand, and measures their memory and time."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from deepres.autocast import ComputeIn
from deepres.memory.gpus import GPUS
from deepres.memory.measure import measure_activation_peak, measure_chain, run_pass
from deepres.memory.profiled_net import ProfiledNet, Target
from deepres.memory.report_rows import StrategyRow
from deepres.memory.scaling import ScalingChain
from deepres.out_of_memory import UntilOutOfMemory
from deepres.recompute import Chain, Plan, apply_plan
from deepres.recompute.chain import combine


def card_at_hand(device: torch.device, memory_bytes: int | None = None) -> Target:
    """A GPU as a target of plans; `with_measured_costs` must replace the times, which are another card's.

    Args:
        device: the GPU.
        memory_bytes: how much of its memory to use; None for what is free.
    """
    properties = torch.cuda.get_device_properties(device)
    gpu = replace(GPUS[0], name=properties.name, memory_bytes=properties.total_memory)
    return Target(gpu.name, memory_bytes or torch.cuda.mem_get_info(device)[0], gpu)


def with_measured_costs(profiled: ProfiledNet, device: torch.device, repeats: int = 5) -> None:
    """Give a net's chain the times that its units take on a device, and on a card their transient bytes.

    Kept bytes stay as predicted, which is exact; so do all bytes on a CPU. What a card's libraries take temporarily
    cannot be predicted: it depends on the algorithms that they choose there.

    Args:
        profiled: the net; its chain is replaced. For other batches both are assumed proportional to the batch, though
            algorithms need not scale so.
        device: where to measure.
        repeats: how often each time is taken; with 0 all times are 0.

    Raises:
        ValueError: the device has too little memory to run even a single unit.
    """
    shape = (profiled.batch, 3, profiled.image_size, profiled.image_size)
    precision = profiled.config.precision
    with UntilOutOfMemory() as attempt:
        measured = measure_chain(
            profiled.net,
            shape,
            device,
            precision.dtype,
            channels_last=precision.channels_last,
            repeats=repeats,
        )
    if attempt.ran_out:
        raise ValueError(
            f"this device has no memory to measure a single unit at batch {profiled.batch}: lower the batch"
        )
    first, second = profiled.scaling.chains
    ratio = profiled.scaling.batches[1] / profiled.scaling.batches[0]
    as_measured = partial(_as_measured, first=first, measured=measured, with_bytes=device.type == "cuda")
    chains = as_measured(first, factor=1.0), as_measured(second, factor=ratio)
    profiled.scaling = ScalingChain(profiled.scaling.batches, chains)


def measured_row(
    profiled: ProfiledNet, row: StrategyRow, device: torch.device, repeats: int = 5
) -> StrategyRow:
    """A row with the peak and time of its plan as run on a device, or with a note that it does not fit there.

    Args:
        profiled: the net.
        row: what was predicted.
        device: the device at hand.
        repeats: how many steps are timed; their median counts, as for the units' times.
    """
    if row.plan is None:
        return row
    if device.type != "cuda" and row.peak_bytes > profiled.room(profiled.batch):
        return replace(row, measured_note="does not fit")  # the host would swap, or kill this process
    with UntilOutOfMemory() as attempt:
        peak_bytes, ms = run_plan(profiled, row.plan, device, repeats)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if attempt.ran_out:
        return replace(row, measured_note="does not fit")
    return replace(row, measured_peak_bytes=peak_bytes, measured_ms=ms)


def run_plan(
    profiled: ProfiledNet, plan: Plan | None, device: torch.device, repeats: int = 5
) -> tuple[int, float | None]:
    """The peak of activations of a forward and backward pass under a plan, and its time in ms.

    Args:
        profiled: the net.
        plan: None keeps everything, without a plan.
        device: where to run it.
        repeats: how many steps are timed; 0 measures bytes alone, and gives None.
    """
    net, size, precision = profiled.net.to(device), profiled.image_size, profiled.config.precision
    images = torch.randn(profiled.batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=precision.memory_format)
    labels = torch.zeros(profiled.batch, dtype=torch.long, device=device)
    compute = ComputeIn(net, precision.dtype, device.type)
    apply_plan(net, plan)
    try:
        peak_bytes = measure_activation_peak(net, compute, images, labels)
        times = [_step_ms(net, compute, images, labels) for _ in range(repeats)]
    finally:
        apply_plan(net, None)
        net.zero_grad(set_to_none=True)
        net.to("cpu")
    return peak_bytes, statistics.median(times) if times else None


def _step_ms(net: nn.Module, compute: nn.Module, images: Tensor, labels: Tensor) -> float:
    net.zero_grad(set_to_none=False)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    run_pass(compute, images, labels)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return 1000 * (time.perf_counter() - start)


def _as_measured(chain: Chain, first: Chain, measured: Chain, factor: float, *, with_bytes: bool) -> Chain:
    """`chain` with what was `measured` for `first`, the same net's chain at a smaller batch, times a factor.

    Times are replaced; what kernels take beyond the prediction is added to transient bytes.
    """

    def cost(name: str, own: float, base: float, found: float) -> float:
        if name.endswith("_ms"):
            return factor * found
        is_transient = name.endswith("_temp_bytes") or name in ("stem_bytes", "head_bytes")
        return max(0, own + round(factor * (found - base))) if is_transient and with_bytes else own

    return combine((chain, first, measured), cost)
