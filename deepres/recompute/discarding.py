"""Runs of which nothing but the output stays, though the unit sees what it would see without a plan.

Modules look whether gradients are recorded: without them PyTorch's LSTM, and its attention in evaluation mode, choose
other kernels, with other roundings. And what a hook or a closure takes out of a unit must not seem to need no gradient.
So a graph is recorded, which goes with the run. A `RetainingUnit` promises not to look, and is spared the time
unless it has forward hooks.
"""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

OTHER_WAYS = (
    "under a plan a gradient may enter a unit through its output alone and leave it through its input, but this loss "
    "also depends on a tensor that a hook, an attribute or a closure took out of a unit or into several (or a gradient "
    "was taken inside of one): compute the loss from the model's output alone, or take the plan off with "
    "deepres.apply_plan(model, None)"
)

CHANGES_INPUT = (
    "changes its input in place, so it cannot be replayed: make its first layer work out of place "
    "(inplace=False)"
)


def changes_leaf(error: RuntimeError) -> bool:
    """Whether PyTorch complains that a unit changes its input, which is a leaf, in place."""
    return "a leaf Variable that requires grad" in str(error)


def leaf_to_discard(x: Tensor, needs_grad: bool) -> Tensor:
    """`x` as the input of a discarding run.

    It requires a gradient, as the choice of kernels depends on that; one that arrives is an error.
    """
    x = x.detach()
    if needs_grad and can_need_grad(x):
        x.requires_grad_().register_hook(_refuse)
    return x


def can_need_grad(x: Tensor) -> bool:
    """Whether there are gradients of such numbers."""
    return x.is_floating_point() or x.is_complex()


def _refuse(_: object) -> NoReturn:
    raise RuntimeError(OTHER_WAYS)
