"""The room that parameters' gradients take."""

from __future__ import annotations

import torch
from torch import nn


def allocate_gradients(module: nn.Module) -> None:
    """Make each trained parameter's gradient, of zeros, so that it is there before the first backward pass."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
