"""Convolutions with biases in nets whose convolutions have none; see NOTE [ Weights from elsewhere ]."""

from __future__ import annotations

import torch
from torch import Tensor


def fold_biases(weights: dict[str, Tensor], num_units: int) -> None:
    """Take the convolutions' biases out, and what they add out of the running means of the batch norms behind.

    A bias right before a batch norm is subtracted from its mean. A unit's last one is added to x_{l+1}: it, and
    those of the units before, are subtracted wherever x is read: in each unit's first norm and in the head's, and,
    times the weights, in that of a projection, which ends it.
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
