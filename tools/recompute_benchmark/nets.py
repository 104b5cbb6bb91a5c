"""The nets and steps that everything here measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres import ResNet, build_resnet
from deepres.gradients import allocate_gradients
from deepres.memory import AllocatedBytes
from deepres.models.batch_norm import BatchNorm2d, Memo

Forward = Callable[[Tensor], Tensor]


class TorchBatchNorm2d(nn.BatchNorm2d):
    """PyTorch's batch norm in the place of deepres': what the peers are made for."""

    def forward(self, x: Tensor, memo: Memo | None = None) -> Tensor:
        """Normalise `x`; without an executor of deepres there is never a memo."""
        assert memo is None
        return super().forward(x)


def make_net(
    depth: int, *, torch_norms: bool = False, device: str = "cpu", channels_last: bool = False
) -> ResNet:
    """A CIFAR net of bottleneck units with the same parameters at every call, gradients allocated (zero).

    Raises:
        ValueError: no such net has that depth.
    """
    torch.manual_seed(0)
    net = build_resnet(depth, block="bottleneck")
    if torch_norms:
        for module in net.modules():
            if isinstance(module, BatchNorm2d):
                module.__class__ = TorchBatchNorm2d  # type: ignore[assignment]  # same parameters and buffers
    net.to(device)
    net.to(memory_format=_format(channels_last))  # type: ignore[call-overload]  # the stubs lack it
    allocate_gradients(net)
    return net


def make_batch(batch: int, device: str = "cpu", *, channels_last: bool = False) -> tuple[Tensor, Tensor]:
    """Images and labels, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 32, 32, generator=generator).contiguous(
        memory_format=_format(channels_last)
    )
    labels = torch.randint(10, (batch,), generator=generator)
    return images.to(device), labels.to(device)


@dataclass(frozen=True)
class Job:
    """A net, the way in which it is run, and a batch.

    Args:
        net: whose gradients and buffers a step changes.
        forward: images to logits.
        images, labels: the batch.
    """

    net: ResNet
    forward: Forward
    images: Tensor
    labels: Tensor

    def step(self) -> float:
        """Forward and backward pass; gradients add up. Returns the loss."""
        loss = F.cross_entropy(self.forward(self.images), self.labels)
        loss.backward()
        return float(loss.detach())

    def peak_bytes(self) -> int:
        """The most that the allocator hands out in a step beside what is there before it."""
        meter = AllocatedBytes(self.images.device)
        with self._buffers_put_back(), meter:
            self.step()
        return meter.peak_bytes

    def outcome(self) -> Outcome:
        """What a step leaves: parameters' gradients, buffers, loss. Buffers are put back."""
        for parameter in self.net.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()
        with self._buffers_put_back():
            loss = self.step()
            gradients = [p.grad.clone() for p in self.net.parameters() if p.grad is not None]
            buffers = [buffer.clone() for buffer in self.net.buffers()]
        return Outcome(loss, gradients, buffers)

    @contextmanager
    def _buffers_put_back(self) -> Iterator[None]:
        before = [buffer.clone() for buffer in self.net.buffers()]
        yield
        for buffer, value in zip(self.net.buffers(), before, strict=True):
            buffer.copy_(value)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a step leaves."""

    loss: float
    gradients: list[Tensor]
    buffers: list[Tensor]

    def has_gradients_of(self, other: Outcome) -> bool:
        """Whether losses and all gradients agree in every bit."""
        return self.loss == other.loss and all(map(torch.equal, self.gradients, other.gradients))

    def has_buffers_of(self, other: Outcome) -> bool:
        """Whether running statistics and counts of batches agree in every bit."""
        return all(map(torch.equal, self.buffers, other.buffers))


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
