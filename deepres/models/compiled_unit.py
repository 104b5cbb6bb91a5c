"""Residual units as compiled code (`torch.compile`): one graph for all units that are alike.

NOTE [ Compiled units ]
1. What is compiled is a pure function of a unit's input, parameters and running statistics, which returns its output
   and the new statistics. Units that differ only in their values share code, so that ResNet-1001 compiles the handful
   of graphs that ResNet-29 has.
2. Running statistics are written back outside, after a batch's first run only.
3. Every run of a unit in training, be it kept, discarded or replayed, uses this code with a graph for the backward
   pass: one variant, the same bits. They are not the eager unit's bits, as the compiler sums in another order.
4. What autograd keeps is the compiler's choice, about what the eager unit keeps under `all`. There is no other
   retention: code that keeps less recomputes the rest in the backward pass, in bf16 with other roundings.
Evaluation, and training with frozen or synchronised batch norms, stay eager.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from deepres.models.batch_norm import BatchNorm2d
from deepres.models.signature import signature

_COMPILER: dict[str, Any] = {"options": {"fallback_random": True}}  # dropout draws what the eager one does


class UnitCode:
    """The compiled training code of units that are alike.

    Args:
        unit: one of them; no reference to it is kept.
    """

    def __init__(self, unit: nn.Module) -> None:
        buffers = [name for name, _ in unit.named_buffers()]
        self._is_count = [name.endswith("num_batches_tracked") for name in buffers]
        template = copy.deepcopy(unit).to("meta").train()
        for index, (name, norm) in enumerate(_norms(template)):
            parent, _, own = name.rpartition(".")
            setattr(template.get_submodule(parent), own, _PureBatchNorm(norm, index))
        running = [name for name, is_count in zip(buffers, self._is_count, strict=True) if not is_count]
        names = [*(name for name, _ in unit.named_parameters()), *running]
        self._run = torch.compile(_pure(template, names), dynamic=False, fullgraph=True, **_COMPILER)

    def __deepcopy__(self, memo: dict[int, Any]) -> UnitCode:
        """Copies of a unit share its code."""
        return self

    def fits(self, unit: nn.Module) -> bool:
        """Whether `unit` is in a state that is compiled: in training, with norms over this process's batch alone.

        Cumulative averages (`momentum=None`) are not compiled either.
        """
        return unit.training and all(
            norm.training and norm.process_group is None and norm.momentum is not None
            for _, norm in _norms(unit)
        )

    def __call__(self, unit: nn.Module, x: Tensor, memo: dict[Any, Any] | None) -> Tensor:
        """Run `unit` on `x: (N, C, H, W)`; the first run of a batch (an empty memo, or none) counts it."""
        parameters = list(unit.parameters())
        counts, running = list[Tensor](), list[Tensor]()
        for buffer, is_count in zip(unit.buffers(), self._is_count, strict=True):
            (counts if is_count else running).append(buffer)
        is_trained = x.requires_grad or any(p.requires_grad for p in parameters)
        wants_graph = torch.is_grad_enabled() and is_trained
        leaf = x if x.requires_grad else x.detach().requires_grad_()  # always the same variant
        with torch.enable_grad(), _without_autocast_cache(x.device.type):
            y, *updated = self._run(leaf, *parameters, *running)
        if memo is None or self not in memo:
            with torch.no_grad():
                torch._foreach_copy_(running, updated)
                torch._foreach_add_(counts, 1)
        if memo is not None:
            memo[self] = ()  # the batch is counted
        return y if wants_graph else y.detach()


def compile_units(units: nn.Sequential) -> int:
    """Let the `ResidualUnit`s among `units` train as compiled code; nothing is compiled before they run.

    Their parameters, buffers and names stay as they are; their settings (a norm's momentum, a shortcut's dropout) are
    fixed now. Compiled convolutions work in the layout `channels_last`: tensors of a net and images in another one are
    copied to it and back in every unit.

    Returns:
        How many graphs are compiled: one for all units that differ only in their values.
    """
    codes: dict[object, UnitCode] = {}
    compiled: list[Any] = [unit for unit in units if hasattr(unit, "run_as") and _norms(unit)]
    for unit in compiled:
        unit.run_as(None)
    keys = [signature(unit) for unit in compiled]
    for unit, key in zip(compiled, keys, strict=True):
        if key not in codes:
            codes[key] = UnitCode(unit)
        unit.run_as(codes[key])
    return len(codes)


class _PureBatchNorm(nn.Module):
    """Training batch norm without side effects: the new running statistics go to the memo, under its index."""

    takes_memo = True
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: BatchNorm2d, index: int) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        assert norm.momentum is not None
        self._momentum, self._eps, self._index = norm.momentum, norm.eps, index

    def forward(self, x: Tensor, memo: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        """Normalise `x: (N, C, H, W)` by its own mean and variance."""
        mean, var = self.running_mean.clone(), self.running_var.clone()
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, self._momentum, self._eps)
        memo[self._index] = mean, var
        return y


def _pure(template: nn.Module, names: list[str]) -> Callable[..., tuple[Tensor, ...]]:
    """`template` as a function of its input and of the tensors of these names; also returns its new statistics."""

    def run_unit(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        memo: dict[int, tuple[Tensor, Tensor]] = {}
        y = functional_call(template, dict(zip(names, tensors, strict=True)), (x,), {"memo": memo})
        return y, *(tensor for index in range(len(memo)) for tensor in memo[index])

    # Compiled code is cached by code object, which closures share, and each one's cache is limited.
    return FunctionType(
        run_unit.__code__.replace(), run_unit.__globals__, run_unit.__name__, None, run_unit.__closure__
    )


def _without_autocast_cache(device_type: str) -> AbstractContextManager[Any]:
    """Autocast as it is, but always without its cache, as under plans: compiled code is looked up by that state."""
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, torch.get_autocast_dtype(device_type), cache_enabled=False)


def _norms(unit: nn.Module) -> list[tuple[str, BatchNorm2d]]:
    return [(name, module) for name, module in unit.named_modules() if isinstance(module, BatchNorm2d)]
