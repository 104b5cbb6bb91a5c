"""Hands a gradient from one backward pass to the next, with no other reference to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from deepres.recompute.discarding import OTHER_WAYS, can_need_grad


class GradientHolder:
    """Holds the gradient of a graph's output until the backward pass of that graph takes it.

    A gradient passed to `torch.autograd.backward` is held by the caller, and by autograd until its node has run. One
    that only autograd holds, it frees early and accumulates into in place.

    Attributes:
        gradient: the gradient; None once it is taken.
    """

    def __init__(self) -> None:
        self.gradient: Tensor | None = None
        self._is_passing = False
        self._anchor = torch.empty(0, requires_grad=True)  # a graph starts from it

    def filled_by(self, y: Tensor) -> Tensor:
        """`y`, whose gradient goes into this holder; the function that made `y` gets an expanded zero instead."""
        filled: Tensor = _TakeGradient.apply(y, self)  # type: ignore[no-untyped-call]
        return filled

    def leaf_of(self, x: Tensor, needs_grad: bool) -> Tensor:
        """`x` as the start of a graph that holds no reference to it.

        A plain leaf would be held by its AccumulateGrad node, and its `grad` would get the leaf's strides, which
        determine the kernels of the next backward pass and so its rounding.
        """
        if not (needs_grad and can_need_grad(x)):
            return x.detach()
        with torch.enable_grad():
            leaf: Tensor = _LeaveGradient.apply(x.detach(), self, self._anchor)  # type: ignore[no-untyped-call]
        return leaf

    def leave(self, gradient: Tensor | None) -> None:
        """Hold the gradient that has arrived at the start of a graph.

        Raises:
            RuntimeError: it did not come from the end of that graph.
        """
        if not self._is_passing:
            raise RuntimeError(OTHER_WAYS)
        self.gradient = gradient

    def take(self) -> Tensor | None:
        """Return the gradient, and hold it no longer."""
        gradient, self.gradient = self.gradient, None
        return gradient

    def edge_of(self, y: Tensor) -> GradientEdge:
        """The gradient edge at the end of y's graph, for `backward`."""
        with torch.enable_grad():
            return get_gradient_edge(_GiveGradient.apply(y, self))  # type: ignore[no-untyped-call]

    def backward(self, edge: GradientEdge) -> None:
        """Run a graph's backward pass, from the gradient held to that of the graph's leaf.

        Raises:
            RuntimeError: it has reached a graph that another backward pass has freed.
        """
        assert self.gradient is not None
        self._is_passing = True
        try:
            torch.autograd.backward(edge, _stand_in(self.gradient))
        except RuntimeError as error:
            if "through the graph a second time" not in str(error):
                raise
            raise RuntimeError(OTHER_WAYS) from error
        finally:
            self._is_passing = False


class _TakeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, holder: GradientHolder) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.holder = holder
        return y.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.holder.gradient = grads[0]
        return None if grads[0] is None else _stand_in(grads[0]), None


class _LeaveGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, holder: GradientHolder, anchor: Tensor) -> Tensor:  # noqa: ARG004
        ctx.set_materialize_grads(False)
        ctx.holder = holder
        return x.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        ctx.holder.leave(grads[0])
        return None, None, None


class _GiveGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, holder: GradientHolder) -> Tensor:
        ctx.holder = holder
        return y.detach()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.holder.take(), None


def _stand_in(gradient: Tensor) -> Tensor:
    """An expanded zero in the shape of a gradient that is passed on another way."""
    return gradient.new_zeros(()).expand_as(gradient)
