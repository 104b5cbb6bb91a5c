"""Run a unit and keep only its output, with gradient recording left on, because units may choose kernels by it.

Without recording, PyTorch's LSTM, and its attention in evaluation mode, choose other kernels, which round differently;
and a tensor that a hook or closure takes out of a unit would seem to need no gradient. So a graph is recorded, and
freed after the run. A `RetainingUnit` promises not to depend on recording, and is spared the time unless it has
forward hooks.
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

    It requires a gradient, as kernels are chosen by that; a gradient that arrives is an error.
    """
    x = x.detach()
    if needs_grad and can_need_grad(x):
        x.requires_grad_().register_hook(_refuse)
    return x


def can_need_grad(x: Tensor) -> bool:
    """Whether tensors of this dtype can have gradients."""
    return x.is_floating_point() or x.is_complex()


def _refuse(_: object) -> NoReturn:
    raise RuntimeError(OTHER_WAYS)
