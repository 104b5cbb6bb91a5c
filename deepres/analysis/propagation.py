"""Signals forward and gradients backward through a net's units, measured at every unit (He et al. 2016, Section 2).

NOTE [ What is measured ]
1. The walk is the net's own forward pass, `h, F = unit.terms(x)` and `x = unit.activate(h + F)`, with each unit's
   graph cut from the next, so that the backward pass can be taken unit by unit, twice: through all of the unit,
   which gives dE/dx_l, and through its shortcut alone, which gives what Equation 8 calls the shortcut's share.
2. Both begin with the same dE/dx at the last unit's output. Where a shortcut takes x_l as it is and f is the
   identity, the share shrinks by exactly lambda_l. Units that change the shape match x_l first (subsampling,
   padding, a projection, perhaps an activation before the split), and f = ReLU masks the gradient: both act on the
   share too. `is_direct` tells the former units apart.
3. Signals are compared as root mean squares, so that shapes do not matter. Gradients are compared as norms of the
   whole batch's tensor: a map of a quarter of the size and twice the channels has half as many values, but the
   norm is still the slope of the loss along the gradient. JSON has both.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.models import ResidualUnit, ResNet


@dataclass(frozen=True)
class Propagation:
    """What was measured of a net with units 1 … L.

    Values at x_1 … x_{L+1} come in tuples of L + 1, the last of them at the last unit's output; values of units in
    tuples of L.

    Attributes:
        units_per_stage: as in `ResNet`.
        loss: cross entropy of the batch.
        signal_rms: root mean square of x_l.
        gradient_norm: ‖dE/dx_l‖ over the whole batch.
        gradient_rms: the same per value.
        shortcut_gradient_norm: the norm of what reaches x_l through shortcuts alone, the residuals held constant.
        shortcut_term_norm, residual_term_norm: of the two summands of y_l, each with its factor.
        lambdas: the constants by which shortcuts multiply x_l; None if there are none, or an activation follows the
            addition.
        is_direct: whether the unit's shortcut takes x_l as it is: it keeps the shape, and nothing is activated
            before the split.
    """

    units_per_stage: tuple[int, ...]
    loss: float
    signal_rms: tuple[float, ...]
    gradient_norm: tuple[float, ...]
    gradient_rms: tuple[float, ...]
    shortcut_gradient_norm: tuple[float, ...]
    shortcut_term_norm: tuple[float, ...]
    residual_term_norm: tuple[float, ...]
    lambdas: tuple[float, ...] | None
    is_direct: tuple[bool, ...]

    @property
    def num_units(self) -> int:
        """L."""
        return len(self.is_direct)

    @property
    def term_ratio(self) -> tuple[float, ...]:
        """‖h(x_l)‖ / ‖F(x_l)‖ of each unit; infinite where the residual is zero."""
        return tuple(
            h / residual if residual else math.inf
            for h, residual in zip(self.shortcut_term_norm, self.residual_term_norm, strict=True)
        )

    @property
    def relative_gradient(self) -> tuple[float, ...]:
        """‖dE/dx_l‖ relative to that at the last unit's output."""
        return _relative(self.gradient_norm)

    @property
    def relative_shortcut_gradient(self) -> tuple[float, ...]:
        """The same for what arrives through shortcuts alone."""
        return _relative(self.shortcut_gradient_norm)

    @property
    def lambda_product(self) -> tuple[float, ...] | None:
        """The product of lambda_l … lambda_L at each x_l (Equation 8), 1 at the last unit's output."""
        if self.lambdas is None:
            return None
        products = [1.0]
        for factor in reversed(self.lambdas):
            products.append(factor * products[-1])
        return tuple(reversed(products))

    @property
    def direct_factor(self) -> float:
        """By how much the shortcuts' share shrinks over all direct units: the product of their quotients."""
        quotients = zip(self.shortcut_gradient_norm, self.shortcut_gradient_norm[1:], strict=False)
        return math.prod(
            before / after if after else 0.0
            for (before, after), kept in zip(quotients, self.is_direct, strict=True)
            if kept
        )

    @property
    def direct_lambdas(self) -> float | None:
        """The product of lambdas over the same units."""
        if self.lambdas is None:
            return None
        return math.prod(f for f, kept in zip(self.lambdas, self.is_direct, strict=True) if kept)


def measure_propagation(net: ResNet, images: Tensor, labels: Tensor, *, seed: int = 0) -> Propagation:
    """Run one step of training without its update, and measure signals and gradients at every unit.

    The net is copied: its parameters, buffers and mode stay as they are, and so do the random number generators.

    Args:
        net: at any point of its training; a recomputation plan applied to it is not followed.
        images: (N, 3, H, W), of the net's dtype and device.
        labels: (N,) int64.
        seed: of what units draw (dropout).
    """
    net = copy.deepcopy(net).train().requires_grad_(False)
    units = [unit for unit in net.units if isinstance(unit, ResidualUnit)]
    assert len(units) == len(net.units)
    devices = [images.device] if images.is_cuda else []  # by default all cards of the host, with a warning
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        walk = [_Step(units[0], net.stem(images))]
        for unit in units[1:]:
            walk.append(_Step(unit, walk[-1].output))
        last = walk[-1].output.detach().requires_grad_()
        loss = F.cross_entropy(net.head(last), labels)
    (gradient,) = torch.autograd.grad(loss, last)

    share, shares = gradient, [_norm(gradient)]
    gradient_norms, gradient_rms = [_norm(gradient)], [_rms(gradient)]
    for step in reversed(walk):
        share = step.through_shortcut(share)
        gradient = step.through_all(gradient)
        shares.append(_norm(share))
        gradient_norms.append(_norm(gradient))
        gradient_rms.append(_rms(gradient))
    return Propagation(
        units_per_stage=net.units_per_stage,
        loss=float(loss.detach()),
        signal_rms=(*(step.signal_rms for step in walk), _rms(last)),
        gradient_norm=tuple(reversed(gradient_norms)),
        gradient_rms=tuple(reversed(gradient_rms)),
        shortcut_gradient_norm=tuple(reversed(shares)),
        shortcut_term_norm=tuple(step.shortcut_term_norm for step in walk),
        residual_term_norm=tuple(step.residual_term_norm for step in walk),
        lambdas=_lambdas(units),
        is_direct=tuple(step.is_direct for step in walk),
    )


class _Step:
    """A unit's run on a batch, its graph cut off at the unit's input."""

    def __init__(self, unit: ResidualUnit, x: Tensor) -> None:
        self._x = x.detach().requires_grad_()
        h, residual = unit.terms(self._x)
        self._terms = (h, residual)
        self._sum = h + residual
        self.output = unit.activate(self._sum)
        self.is_direct = self.output.shape == x.shape and unit.preactivation != "shared"
        self.signal_rms = _rms(x)
        self.shortcut_term_norm, self.residual_term_norm = _norm(h), _norm(residual)

    def through_shortcut(self, gradient: Tensor) -> Tensor:
        """The gradient of the output, taken back to x_l through f and h."""
        (of_sum,) = torch.autograd.grad(self.output, self._sum, gradient, retain_graph=True)
        (of_x,) = torch.autograd.grad(self._terms[0], self._x, of_sum, retain_graph=True)
        return of_x

    def through_all(self, gradient: Tensor) -> Tensor:
        """The gradient of the output, taken back to x_l; to be called last, since it frees the graph."""
        (of_x,) = torch.autograd.grad(self.output, self._x, gradient)
        return of_x


def _lambdas(units: Sequence[ResidualUnit]) -> tuple[float, ...] | None:
    """Each unit's λ of Equation 8; None if that does not apply to the net's shortcuts, or f is not the identity."""
    is_scaled = all(unit.shortcut.name in ("identity", "constant_scaling") for unit in units)
    if not is_scaled or any(unit.acts_after_addition for unit in units):
        return None
    return tuple(
        float(unit.shortcut.shortcut_scale) if unit.shortcut.name == "constant_scaling" else 1.0
        for unit in units
    )


def _relative(norms: Sequence[float]) -> tuple[float, ...]:
    return tuple(norm / norms[-1] if norms[-1] else math.nan for norm in norms)


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.detach(), dtype=torch.float64))


def _rms(x: Tensor) -> float:
    return _norm(x) / math.sqrt(x.numel())
