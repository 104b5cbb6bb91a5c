"""The Residual Unit, with the paper's placements of activations (Table 2) and its shortcuts (Table 1)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.models.batch_norm import BatchNorm2d, Memo, is_as_computed, normalise, run_norm
from deepres.models.compiled_unit import UnitCode
from deepres.models.conv_outputs import ConvOutputs
from deepres.models.shortcut import Shortcut
from deepres.net_options import Activation, Block, Matching, Preactivation, ShortcutName, StrideOn

UnitPreactivation = Literal[Preactivation, "none"]
Steps = tuple[tuple[str, int], ...]

# Around each convolution (W) but the last, around the last, after the addition; B batch norm, R ReLU (Table 2).
_ORDERS: dict[Activation, tuple[str, str, str]] = {
    "original": ("WBR", "WB", "R"),
    "bn_after_addition": ("WBR", "W", "BR"),
    "relu_before_addition": ("WBR", "WBR", ""),
    "relu_only_preactivation": ("RWB", "RWB", ""),
    "full_preactivation": ("BRW", "BRW", ""),
}


def leading_activation(activation: Activation) -> str:
    """What precedes a unit's first convolution: "" (post-activation), "R" or "BR"."""
    return _ORDERS[activation][0].partition("W")[0]


class ResidualUnit(nn.Module):
    """`x_{l+1} = f(h(x_l) + F(x_l))` (Equations 1 and 2 of the paper).

    Args:
        in_channels: channels of x_l.
        width: channels between the convolutions of a bottleneck; those of the output in other blocks.
        out_channels: channels of x_{l+1}.
        block: `basic` (3×3, 3×3), `bottleneck` (1×1, 3×3, 1×1) or `single` (one 3×3).
        stride: 2 in the units that halve the map, else 1.
        activation: the placement of BN and ReLU.
        shortcut: the variant of h; its numbers are `Shortcut`'s.
        matching: how a unit that changes the shape matches x_l to x_{l+1}.
        stride_on: the bottleneck's convolution that has the stride (others: always the first).
        preactivation: where a pre-activation unit has its first activation: in its `own` residual branch;
            `shared` by branch and shortcut, before the split; or `none`, as the stem has it. The paper's
            appendix shares it in the first unit; its authors' code also in those that change the shape.
        normalise_projection: follow the projection with batch norm; by default under `original` and
            `relu_before_addition`, not under `relu_only_preactivation`, for which the paper shows only the branch.
        shortcut_scale, residual_scale, gate_bias, dropout: see `Shortcut`.

    Attributes:
        preactivation: as given.
        retentions: what `forward` can keep for the backward pass (see `forward`).
        code: the compiled code that it trains as, if any (`compile_units`).
    """

    retentions: tuple[str, ...] = ("all", "conv_outputs")

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        block: Block = "bottleneck",
        stride: int = 1,
        activation: Activation = "full_preactivation",
        shortcut: ShortcutName = "identity",
        matching: Matching = "projection",
        stride_on: StrideOn = "1x1",
        preactivation: UnitPreactivation = "own",
        normalise_projection: bool | None = None,
        shortcut_scale: float = 0.5,
        residual_scale: float = 0.5,
        gate_bias: float = -6.0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.code: UnitCode | None = None
        kernels = {"single": (3,), "basic": (3, 3), "bottleneck": (1, 3, 1)}[block]
        channels = (in_channels, *[width] * (len(kernels) - 1), out_channels)
        strided = 1 if block == "bottleneck" and stride_on == "3x3" else 0
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[j], channels[j + 1], k, stride if j == strided else 1, k // 2, bias=False)
            for j, k in enumerate(kernels)
        )

        self.preactivation = preactivation
        around, around_last, after_addition = _ORDERS[activation]
        leading = leading_activation(activation)
        branch = around * (len(kernels) - 1) + around_last
        before_split = leading if preactivation == "shared" else ""
        branch = branch if preactivation == "own" else branch.removeprefix(leading)
        norms = [
            BatchNorm2d(channels[order.count("W")])
            for order in _prefixes_to("B", before_split + branch + after_addition)
        ]
        self.norms = nn.ModuleList(norms)
        counts = itertools.count(), itertools.count()
        self._before_split, self._branch, self._after_addition = (
            _numbered(order, *counts) for order in (before_split, branch, after_addition)
        )
        self._adds_in_place = not branch.endswith("R")  # the ReLU's backward reads its output
        if normalise_projection is None:
            normalise_projection = activation in ("original", "relu_before_addition")
        self.shortcut = Shortcut(
            in_channels,
            out_channels,
            stride,
            name=shortcut,
            matching=matching,
            normalise_projection=normalise_projection,
            shortcut_scale=shortcut_scale,
            residual_scale=residual_scale,
            gate_bias=gate_bias,
            dropout=dropout,
        )

    def forward(self, x: Tensor, retention: str = "all", memo: Memo | None = None) -> Tensor:
        """Run the unit on `x: (N, in_channels, H, W)`.

        Args:
            x: the unit's input, which is never changed in place.
            retention: what autograd keeps: `all`, or `conv_outputs` (outputs of the convolutions; what BN and
                ReLU make of them is replayed). The result and its gradients are the same, bit for bit.
            memo: a dict, empty at the first pass over a batch and passed again at each replay of that pass: batch
                norms store their statistics there, and find them there (see `BatchNorm2d`).

        Returns:
            x_{l+1}: (N, out_channels, H / stride, W / stride), rounded up.

        Raises:
            ValueError: there is no such retention, or batch norm would see one value a channel.
        """
        if self.code is not None and self.code.fits(self):
            return self.code(self, x, memo)
        if retention not in self.retentions:
            raise ValueError(f"retention must be one of {', '.join(self.retentions)}, got {retention!r}")
        if retention == "all" or not torch.is_grad_enabled() or not self.training:
            return self._run(x, memo, None)
        keep = ConvOutputs()
        with keep:
            return self._run(x, {} if memo is None else memo, keep)

    def run_as(self, code: UnitCode | None) -> None:
        """Train as compiled code, which has one retention, or again as written (None)."""
        self.code = code
        self.retentions = type(self).retentions if code is None else ("all",)

    def residual(self, x: Tensor) -> Tensor:
        """F(x_l), for the analysis of a net; `x` is after the shared activation, if the unit has one."""
        return self._walk(self._branch, x, None, None)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The summands of y_l in Equation 1, h(x_l) and F(x_l), each with its factor (see `Shortcut`)."""
        x = self._walk(self._before_split, x, None, None)
        return self.shortcut.terms(self.shortcut(x), self.residual(x))

    def activate(self, y: Tensor) -> Tensor:
        """f(y_l) of Equation 2; `unit.activate(h + residual)` of its `terms` is what the unit computes."""
        return self._walk(self._after_addition, y, None, None)

    @property
    def acts_after_addition(self) -> bool:
        """Whether f of Equation 2 is not the identity."""
        return bool(self._after_addition)

    def extra_repr(self) -> str:
        """The order of convolutions, batch norms and ReLUs: before the split, in the branch, after the addition."""
        return ", ".join(
            f"{where}={''.join(kind for kind, _ in steps) or None}"
            for where, steps in (
                ("before_split", self._before_split),
                ("branch", self._branch),
                ("after_addition", self._after_addition),
            )
        )

    def _run(self, x: Tensor, memo: Memo | None, keep: ConvOutputs | None) -> Tensor:
        if memo is not None and not memo and len(set(self.norms)) < len(self.norms):
            raise RuntimeError(
                "a batch norm that stands twice in a unit cannot be replayed: give each place its own, or train "
                "without a plan"
            )
        x = self._walk(self._before_split, x, memo, keep)
        h = self.shortcut(x, memo)
        y = self._walk(self._branch, x, memo, keep)
        y = self.shortcut.combine(h, y, in_place=self._adds_in_place)
        return self._walk(self._after_addition, y, memo, None, owned=True)

    def _walk(
        self, steps: Steps, x: Tensor, memo: Memo | None, keep: ConvOutputs | None, *, owned: bool = False
    ) -> Tensor:
        """Run `steps` on `x`, which may be overwritten if it is `owned`."""
        for kind, index in steps:
            before = x
            if kind == "W":
                x = self.convs[index](x)
                if keep is not None:
                    keep.forget()
            elif kind == "R":
                x = F.relu(x, inplace=owned)
            else:
                norm = self.norms[index]
                x = run_norm(norm, x, memo)
                if kind == "BR":
                    if keep is not None and memo is not None and is_as_computed(norm, before, x, memo):
                        keep.drop(x, _replay_of_norm_relu(before, norm, memo))
                    x = F.relu(x, inplace=owned or x is not before)
            owned = owned or x is not before  # a layer such as nn.Identity returns its input
        return x


def _replay_of_norm_relu(x: Tensor, norm: nn.Module, memo: Memo) -> Callable[[], Tensor]:
    """A function that recomputes ReLU(norm(x)) from the statistics in `memo`, even if parameters were released."""
    assert isinstance(norm, BatchNorm2d)
    mean, invstd = memo[norm]
    x, weight, bias = x.detach(), norm.weight.detach(), norm.bias.detach()
    return lambda: torch.relu_(normalise(x, weight, bias, mean, invstd))


def _prefixes_to(step: str, order: str) -> Iterator[str]:
    """The prefix of `order` before each `step`."""
    return (order[:j] for j, letter in enumerate(order) if letter == step)


def _numbered(order: str, convs: Iterator[int], norms: Iterator[int]) -> Steps:
    """The steps of `order`, each with the index of its convolution or batch norm; BR is one step."""
    return tuple(
        (kind, next(convs) if kind == "W" else next(norms) if "B" in kind else 0)
        for kind in re.findall("BR|B|R|W", order)
    )
