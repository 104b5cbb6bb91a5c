"""What a plan asks of a unit: how it may be kept, and how it is run."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all


@runtime_checkable
class RetainingUnit(Protocol):
    """A unit that can keep less than autograd would, and replays without help.

    One of its retentions is `all`, which discarding runs use too. Its `forward(x, retention, memo)` gives the same
    result and gradients, bit for bit, for each of its retentions. `memo` is a dict, empty at a batch's first run and
    passed again at each replay; a replay takes from it whatever must not be computed twice (batch statistics) and
    updates nothing. The result does not depend on whether gradients are recorded.
    """

    retentions: tuple[str, ...]


def retentions_of(unit: nn.Module) -> tuple[str, ...]:
    """The ways in which a unit can be kept: only `all` if it does not follow the protocol."""
    return unit.retentions if isinstance(unit, RetainingUnit) else ("all",)


def run_unit(
    unit: nn.Module, x: Tensor, *, is_retaining: bool, keep: str | None, memo: dict[Any, Any]
) -> object:
    """Run a unit as a plan does.

    Args:
        unit: the unit.
        x: its input, from `GradientHolder.leaf_of` or `leaf_to_discard`, or with the previous unit's graph.
        is_retaining: whether it follows the protocol; checking each time would take milliseconds a step.
        keep: the name of its retention; None to keep only the output.
        memo: of this unit and batch; unused if the unit does not follow the protocol.

    Returns:
        What the unit returns, which must be one tensor.
    """
    # A discarding run records a graph wherever its absence could be noticed, see `discarding`.
    records = keep is not None or not is_retaining or _has_forward_hooks(unit)
    with torch.set_grad_enabled(records):
        return unit(x, retention=keep or "all", memo=memo) if is_retaining else unit(x)


def _has_forward_hooks(module: nn.Module) -> bool:
    """Whether there are forward hooks or forward pre-hooks, of the module or of all modules."""
    own = module._forward_pre_hooks or module._forward_hooks
    return bool(own or of_all._global_forward_pre_hooks or of_all._global_forward_hooks)
