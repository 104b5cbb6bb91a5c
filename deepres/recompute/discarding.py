"""Runs of which nothing but the output stays, though the unit sees what it would see without a plan.

Modules look whether gradients are recorded: without them PyTorch's LSTM, and its attention in evaluation mode, choose
other kernels, with other roundings. And what a hook or a closure takes out of a unit must not seem to need no gradient.
So a graph is recorded, which goes with the run. A `RetainingUnit` promises not to look, and is spared the time.
"""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

OTHER_WAYS = (
    "units under a plan may pass gradients on through their inputs and outputs alone, but one has come through another "
    "tensor (that a hook, an attribute or a closure took out of a unit or into several, or for a gradient inside of a "
    "unit): take the plan off with deepres.apply_plan(model, None)"
)


def leaf_to_discard(x: Tensor, needs_grad: bool) -> Tensor:
    """What such a run begins with: `x`, to which no gradient may come back."""
    x = x.detach()
    if needs_grad and can_need_grad(x):
        x.requires_grad_().register_hook(_refuse)
    return x


def can_need_grad(x: Tensor) -> bool:
    """Whether there are gradients of such numbers."""
    return x.is_floating_point() or x.is_complex()


def _refuse(_: object) -> NoReturn:
    raise RuntimeError(OTHER_WAYS)
