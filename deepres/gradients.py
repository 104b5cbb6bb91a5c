"""Pre-allocating `.grad`, and running the backward pass in the calling thread."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn


def allocate_gradients(module: nn.Module) -> None:
    """Allocate each trained parameter's gradient, of zeros, before the first backward pass."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def backward_in_this_thread() -> AbstractContextManager[object]:
    """Run backward passes in the calling thread, on a GPU, too, where PyTorch uses threads of its own for them.

    With `torch.backends.cudnn.benchmark` each thread benchmarks and chooses cuDNN's algorithms for itself: a replay,
    which runs in the backward pass, must use those of the forward pass.
    """
    return torch.autograd.set_multithreading_enabled(False)
