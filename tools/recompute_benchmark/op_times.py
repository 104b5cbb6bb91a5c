"""How long the parts of a bottleneck unit's forward pass take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepres import ResidualUnit
from deepres.models.batch_norm import normalise
from recompute_benchmark.nets import make_net

_WIDTHS = (16, 32, 64)
_CACHES_BYTES = 2**26


@dataclass(frozen=True)
class OpTimes:
    """Milliseconds of one stage's units: three convolutions, and each one's BN and ReLU as a replay runs them.

    Args:
        convolutions_ms: of the 1×1, the 3×3 and the last 1×1.
        activations_ms: of BN and ReLU before each of them.
    """

    convolutions_ms: tuple[float, float, float]
    activations_ms: tuple[float, float, float]


def op_times(depth: int, batch: int, repeats: int) -> list[dict[str, list[float]]]:
    """The times of each stage's second unit, as `OpTimes` by name; to be called where the allocator is steady."""
    net = make_net(depth)
    stages, first = [], 0
    for stage, num_units in enumerate(net.units_per_stage):
        unit = net.units[first + min(1, num_units - 1)]
        side = 32 >> stage
        assert isinstance(unit, ResidualUnit)
        convs = [conv for conv in unit.convs if isinstance(conv, nn.Conv2d)]
        inputs = [torch.randn(batch, conv.in_channels, side, side) for conv in convs]
        times: list[list[float]] = [[], []]
        with torch.no_grad():
            for x, conv in zip(inputs, convs, strict=True):
                channels = x.shape[1]
                one, zero = torch.ones(channels), torch.zeros(channels)

                def activate(x: Tensor, one: Tensor = one, zero: Tensor = zero) -> Tensor:
                    return torch.relu_(normalise(x, one, zero, zero, one))

                times[0].append(_time_ms(conv, x, repeats))
                times[1].append(_time_ms(activate, x, repeats))
        stages.append({"convolutions_ms": times[0], "activations_ms": times[1]})
        first += num_units
    return stages


def _time_ms(run: Callable[[Tensor], Tensor], x: Tensor, repeats: int) -> float:
    """The median over rounds, on inputs that the caches no longer hold."""
    num = max(2, _CACHES_BYTES // (x.numel() * x.element_size()))
    inputs = [x.clone() for _ in range(num)]
    run(x)
    rounds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for each in inputs:
            run(each)
        rounds.append((time.perf_counter() - start) * 1000 / num)
    return statistics.median(rounds)
