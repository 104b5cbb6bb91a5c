"""A gradient on its way from one backward pass to the next, held by nobody else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


class GradientHolder:
    """Holds the gradient of a graph's output until the backward pass of that graph takes it.

    Autograd holds the gradient that a node is given until the node has run, and so does whoever calls
    `torch.autograd.backward` with one. What it alone holds it frees early, and adds to in place.

    Attributes:
        gradient: the gradient; None once it is taken.
    """

    def __init__(self) -> None:
        self.gradient: Tensor | None = None

    def filled_by(self, y: Tensor) -> Tensor:
        """`y`, whose gradient ends here; what comes before it in the graph is given one number in its shape."""
        filled: Tensor = _TakeGradient.apply(y, self)  # type: ignore[no-untyped-call]
        return filled

    def take(self) -> Tensor | None:
        """The gradient, which is not held here any longer."""
        gradient, self.gradient = self.gradient, None
        return gradient

    def edge_of(self, y: Tensor) -> GradientEdge:
        """The end of y's graph, for `backward`."""
        with torch.enable_grad():
            return get_gradient_edge(_GiveGradient.apply(y, self))  # type: ignore[no-untyped-call]

    def backward(self, edge: GradientEdge) -> None:
        """The backward pass of a graph, from the gradient that is held."""
        assert self.gradient is not None
        torch.autograd.backward(edge, _stand_in(self.gradient))


class _TakeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, holder: GradientHolder) -> Tensor:
        ctx.holder = holder
        return y.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.holder.gradient = grads[0]
        return _stand_in(grads[0]), None


class _GiveGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, holder: GradientHolder) -> Tensor:
        ctx.holder = holder
        return y.detach()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.holder.take(), None


def _stand_in(gradient: Tensor) -> Tensor:
    """One number in the shape of a gradient that goes another way."""
    return gradient.new_zeros(()).expand_as(gradient)
