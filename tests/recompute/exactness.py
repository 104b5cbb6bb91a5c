"""What tests of the executor share: any plan, and two trainings compared bit for bit."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from deepres import ResNet, apply_plan, build_resnet
from deepres.recompute import (
    Plan,
)

Loss = Callable[[nn.Module], Tensor]


@st.composite
def plans(draw: st.DrawFn, num_units: int, retentions: tuple[str, ...] = ("all",)) -> Plan:
    """Any plan: nested segments and a retention for each unit."""
    segments: list[tuple[int, int]] = []

    def fill(start: int, stop: int, around: tuple[int, int] | None) -> None:
        while start < stop:
            end = draw(st.integers(start + 1, stop))
            if (start, end) != around and draw(st.booleans()):
                segments.append((start, end))
                fill(start, end, (start, end))
            start = end

    fill(0, num_units, None)
    names = draw(st.lists(st.sampled_from(retentions), min_size=num_units, max_size=num_units))
    return Plan(tuple(segments), tuple(names))


def nested_plan(num_units: int) -> Plan:
    """Three levels of segments, units outside of them, and both retentions of residual units."""
    n = num_units
    segments = ((0, n - 1), (1, n - 1), (1, 2), (2, n - 2))
    return Plan(segments, tuple(("all", "conv_outputs")[i % 2] for i in range(n)))


BOTH = ("all", "conv_outputs")


@cache
def small_net(depth: int = 20, **variant: Any) -> ResNet:
    """Never run: tests run copies of it."""
    torch.manual_seed(0)
    return build_resnet(depth, **variant)


def images(batch: int = 2, side: int = 8) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def cross_entropy(model: nn.Module, batch: int = 2, side: int = 8) -> Tensor:
    return F.cross_entropy(model(images(batch, side)), torch.arange(batch) % 10)


def outcome(
    model: nn.Module,
    plan: Plan | None,
    *,
    loss: Loss = cross_entropy,
    dtype: torch.dtype | None = None,
    num_steps: int = 2,
) -> list[Tensor | None]:
    """Train a copy of the model for some steps of SGD: losses, gradients, buffers, and the generator's state."""
    model = copy.deepcopy(model)
    apply_plan(model, plan)
    torch.manual_seed(2)
    found: list[Tensor | None] = []
    for _ in range(num_steps):
        with torch.autocast("cpu", dtype) if dtype is not None else contextlib.nullcontext():
            value = loss(model)
        value.backward()
        found += [value.detach(), *(None if p.grad is None else p.grad.clone() for p in model.parameters())]
        found += [b.clone() for b in model.buffers()]
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.05 * p.grad
        model.zero_grad()
    return [*found, torch.get_rng_state()]


def assert_same_bits(left: list[Tensor | None], right: list[Tensor | None]) -> None:
    for a, b in zip(left, right, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def assert_exact(model: nn.Module, plan: Plan, **how: Any) -> None:
    assert_same_bits(outcome(model, plan, **how), outcome(model, None, **how))


def count_runs(model: nn.Module) -> list[int]:
    """Forward runs of each unit from now on."""
    units = model if isinstance(model, nn.Sequential) else model.units
    runs = [0] * len(units)
    for i, unit in enumerate(units):

        def count(*_: object, i: int = i) -> None:
            runs[i] += 1

        unit.register_forward_hook(count)
    return runs
