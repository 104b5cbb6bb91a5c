"""Sources of pixels: `Supply`, and the kind whose images are on the device."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from deepres.data.batch import IGNORED_LABEL
from deepres.data.host_to_device import on_device
from deepres.data.sampling import Request


class Failure(NamedTuple):
    """A sample of the split that could not be read: its number, its file's path, and why."""

    sample: int
    path: str
    reason: str


@dataclass(frozen=True)
class Fetched:
    """A supply's answer to one request.

    Attributes:
        request: the request.
        images: (N, 3, H, W) uint8 on the device, with any strides.
        labels: (N,) int64 on the device; `IGNORED_LABEL` where there is no image.
        failures: the images that could not be read.
    """

    request: Request
    images: Tensor
    labels: Tensor
    failures: tuple[Failure, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether every row holds an image; known without waiting for the device."""
        return not self.failures and self.request.is_whole


class Supply(Protocol):
    """One split's pixels and labels."""

    def fetch(self, requests: Iterable[Request]) -> Iterator[Fetched]:
        """Serves the requests in order, ahead of the caller where that helps."""

    def close(self) -> None:
        """Stops workers and closes files."""


class ResidentSupply:
    """Images that are looked up on the device, a whole batch at once.

    Args:
        look_up: takes indices (N,) int64 on the device; returns images (N, 3, H, W) uint8 and labels (N,) int64.
        device: the device.
    """

    def __init__(self, look_up: Callable[[Tensor], tuple[Tensor, Tensor]], device: torch.device) -> None:
        self._look_up, self._device = look_up, device

    @classmethod
    def of_tensors(cls, images: Tensor, labels: Tensor, device: torch.device) -> "ResidentSupply":
        """Holds `images` (N, 3, H, W) uint8 and `labels` (N,) int64 on the device."""
        table, labels = images.to(device), labels.to(device)
        return cls(
            lambda indices: (table.index_select(0, indices), labels.index_select(0, indices)),
            device,
        )

    def fetch(self, requests: Iterable[Request]) -> Iterator[Fetched]:
        """Serves the requests in order."""
        for request in requests:
            indices = on_device(request.indices, self._device)
            if request.is_whole:
                yield Fetched(request, *self._look_up(indices))
                continue
            images, labels = self._look_up(indices.clamp_min(0))
            yield Fetched(request, images, labels.masked_fill(indices < 0, IGNORED_LABEL))

    def close(self) -> None:
        """Nothing to stop."""
