"""The nets and steps that these benchmarks measure."""

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
    """PyTorch's batch norm in place of deepres': what the peers are made for."""

    def forward(self, x: Tensor, memo: Memo | None = None) -> Tensor:
        """Normalise `x`; without deepres' executor there is never a memo."""
        assert memo is None
        return super().forward(x)


def make_net(
    depth: int, *, torch_norms: bool = False, device: str = "cpu", channels_last: bool = False
) -> ResNet:
    """A CIFAR net of bottleneck units, with the same parameters in every call and gradients allocated (zero).

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
    """Images and labels, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 32, 32, generator=generator).contiguous(
        memory_format=_format(channels_last)
    )
    labels = torch.randint(10, (batch,), generator=generator)
    return images.to(device), labels.to(device)


@dataclass(frozen=True)
class Job:
    """A net, the way it is run, and a batch.

    Args:
        net: the net, whose gradients and buffers a step changes.
        forward: images to logits.
        images, labels: the batch.
    """

    net: ResNet
    forward: Forward
    images: Tensor
    labels: Tensor

    def step(self) -> float:
        """Forward and backward pass, which accumulates gradients; returns the loss."""
        loss = F.cross_entropy(self.forward(self.images), self.labels)
        loss.backward()
        return float(loss.detach())

    def peak_bytes(self) -> int:
        """A step's peak of allocated memory, above what is allocated before it."""
        meter = AllocatedBytes(self.images.device)
        with self._buffers_put_back(), meter:
            self.step()
        return meter.peak_bytes

    def outcome(self) -> Outcome:
        """What a step leaves: parameters' gradients, buffers, loss; buffers are restored afterwards."""
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
        """Whether loss and gradients are bitwise equal."""
        return self.loss == other.loss and all(map(torch.equal, self.gradients, other.gradients))

    def has_buffers_of(self, other: Outcome) -> bool:
        """Whether running statistics and batch counts are bitwise equal."""
        return all(map(torch.equal, self.buffers, other.buffers))


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
