"""The room that parameters' gradients take, and the thread that computes them."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn


def allocate_gradients(module: nn.Module) -> None:
    """Make each trained parameter's gradient, of zeros, so that it is there before the first backward pass."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def backward_in_this_thread() -> AbstractContextManager[object]:
    """Let backward passes run in the thread that asks for them, on a card, too, where PyTorch has others for it.

    With `torch.backends.cudnn.benchmark` each thread times and chooses cuDNN's algorithms for itself: a replay, which a
    backward pass runs, must find those of the first pass.
    """
    return torch.autograd.set_multithreading_enabled(False)
