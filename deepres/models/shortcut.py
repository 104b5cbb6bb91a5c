"""The shortcuts of "Identity Mappings in Deep Residual Networks" (He et al. 2016), Section 3 and Table 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.models.batch_norm import BatchNorm2d, Memo, run_norm
from deepres.net_options import Matching, ShortcutName


class Shortcut(nn.Module):
    """Takes x_l to h(x_l) and combines it with the residual function's value.

    Where a unit changes the shape, x_l is first matched to the unit's output: by a 1×1 projection with the
    unit's stride, or by "option A" of ResNet v1 (subsample, append channels of zeros). The paper does not say
    what the variants do in those units, nor whether their 1×1 convolutions are normalised. Chosen here: the
    variant acts on the matched x_l, the gate's convolution has a bias and no batch norm, and the `conv1x1`
    shortcut, which is its own matching, is normalised exactly where projections are.

    Args:
        in_channels, out_channels, stride: the unit's.
        name: the variant; `h` and the sum, with g = sigmoid(W_g h + b_g) element-wise:
            identity h + F; constant_scaling `shortcut_scale` h + `residual_scale` F; exclusive_gating
            (1 - g) h + g F; shortcut_only_gating (1 - g) h + F; conv1x1 W_s h + F; dropout drop(h) + F.
        matching: how shapes are matched.
        normalise_projection: follow the projection with batch norm (nets with activations after addition).
        shortcut_scale, residual_scale: the lambdas of constant scaling (0 makes a plain net).
        gate_bias: initial b_g.
        dropout: probability that a value of h is dropped.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        name: ShortcutName = "identity",
        matching: Matching = "projection",
        normalise_projection: bool = False,
        shortcut_scale: float = 0.5,
        residual_scale: float = 0.5,
        gate_bias: float = -6.0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.name = name
        self.stride = stride
        self.padded_channels = out_channels - in_channels
        self.shortcut_scale = shortcut_scale
        self.residual_scale = residual_scale
        self.dropout = dropout
        changes_shape = stride != 1 or in_channels != out_channels
        self.conv: nn.Conv2d | None = None
        self.norm: BatchNorm2d | None = None
        if name == "conv1x1" or (changes_shape and matching == "projection"):
            self.conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if normalise_projection:
                self.norm = BatchNorm2d(out_channels)
        self.gate: nn.Conv2d | None = None
        if name in ("exclusive_gating", "shortcut_only_gating"):
            self.gate = nn.Conv2d(out_channels, out_channels, 1)
            nn.init.constant_(self.gate.bias, gate_bias)  # type: ignore[arg-type]  # this one has a bias

    def forward(self, x: Tensor, memo: Memo | None = None) -> Tensor:
        """Match `x: (N, in_channels, H, W)` to the unit's output, (N, out_channels, H/stride, W/stride)."""
        if self.conv is not None:
            x = self.conv(x)
            return x if self.norm is None else run_norm(self.norm, x, memo)
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.padded_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.padded_channels))
        return x

    def extra_repr(self) -> str:
        """The variant and what it takes to match shapes."""
        numbers = {
            "constant_scaling": f", shortcut_scale={self.shortcut_scale}, residual_scale={self.residual_scale}",
            "dropout": f", dropout={self.dropout}",
        }
        return f"{self.name}, stride={self.stride}{numbers.get(self.name, '')}"

    def terms(self, h: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """What is added (see `name`): the matched x_l and F(x_l), each with its factor."""
        if self.name == "constant_scaling":
            return self.shortcut_scale * h, self.residual_scale * residual
        if self.gate is not None:
            g = torch.sigmoid(self.gate(h))
            return (1 - g) * h, g * residual if self.name == "exclusive_gating" else residual
        if self.name == "dropout":
            h = F.dropout(h, self.dropout, self.training)
        return h, residual

    def combine(self, h: Tensor, residual: Tensor, *, in_place: bool) -> Tensor:
        """The sum of `terms`; `in_place` lets it overwrite `residual`."""
        h, residual = self.terms(h, residual)
        if self.name == "constant_scaling" or self.gate is not None:
            return h + residual
        return residual.add_(h) if in_place and residual.dtype == h.dtype else residual + h
