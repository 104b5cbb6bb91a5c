"""What a pass through a net takes, measured on the device at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.memory.tracking import TensorBytes


def measure_activation_peak(
    net: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
) -> int:
    """The most bytes of activations that a forward and backward pass over a micro batch holds at once.

    Everything that tensors occupy counts, but for parameters, buffers, parameters' gradients and the images.
    The net is left as it was: buffers, gradients (None) and random number generators.

    Args:
        net: the net whose parameters and buffers these are.
        run: computes its logits (under autocast, say).
        images: (N, 3, H, W).
        labels: (N,); -100 does not count.
    """
    tracker = TensorBytes([*net.parameters(), *net.buffers(), images, labels])

    def is_model_state_now(parameter: Tensor) -> None:
        assert parameter.grad is not None
        tracker.ignore(parameter.grad)

    with _as_if_not_run(net), ExitStack() as hooks, tracker:
        for parameter in net.parameters():
            if parameter.requires_grad:
                hooks.callback(parameter.register_post_accumulate_grad_hook(is_model_state_now).remove)
        F.cross_entropy(run(images), labels).backward()
    return tracker.peak_bytes


@contextmanager
def _as_if_not_run(net: nn.Module) -> Iterator[None]:
    devices = sorted({p.device.index for p in net.parameters() if p.device.type == "cuda"})
    buffers = [(b, b.detach().clone()) for b in net.buffers()]
    modes = [(module, module.training) for module in net.modules()]
    net.train()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:  # also where the pass did not fit the device
        for module, was_training in modes:
            module.training = was_training
        net.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
