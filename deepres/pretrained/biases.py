"""Weights with convolution biases, in nets whose convolutions have none; see NOTE [ Weights from elsewhere ]."""

from __future__ import annotations

import torch
from torch import Tensor


def fold_biases(weights: dict[str, Tensor], num_units: int) -> None:
    """Remove the convolutions' biases, and subtract what they add from the running means of later batch norms.

    A bias right before a batch norm is subtracted from its mean. A unit's last bias is added to x_{l+1}: the sum of
    these is subtracted wherever x is read: in each unit's first norm, in the head's and, multiplied by the weights, in
    a projection's, behind which the sum begins anew.
    """

    def bias(conv: str) -> Tensor:
        return weights.pop(f"{conv}.bias", torch.zeros(weights[f"{conv}.weight"].shape[0])).double()

    def subtract(constant: Tensor, norm: str) -> None:
        weights[f"{norm}.running_mean"] = weights[f"{norm}.running_mean"].double() - constant

    subtract(bias("stem.conv"), "stem.norm")
    offset = torch.zeros(()).double()
    for unit in (f"units.{i}" for i in range(num_units)):
        subtract(offset, f"{unit}.norms.0")
        subtract(bias(f"{unit}.convs.0"), f"{unit}.norms.1")
        subtract(bias(f"{unit}.convs.1"), f"{unit}.norms.2")
        projection = f"{unit}.shortcut.conv"
        if f"{projection}.weight" in weights:
            projected = (weights[f"{projection}.weight"].double().flatten(1) * offset).sum(1)
            subtract(projected + bias(projection), f"{unit}.shortcut.norm")
            offset = torch.zeros(()).double()
        offset = offset + bias(f"{unit}.convs.2")
    subtract(offset, "head.norm")
