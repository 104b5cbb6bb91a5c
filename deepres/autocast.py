"""The number format that a net is computed in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ComputeIn(nn.Module):
    """A net run under autocast in a given format, float32 being none; its logits are fp32.

    Autocast is entered inside the module so that it is the same under every engine and in every thread.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype, device_type: str) -> None:
        super().__init__()
        self.net = net
        self._dtype, self._device_type = dtype, device_type

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes), float32."""
        if self._dtype == torch.float32:
            logits: Tensor = self.net(images)
            return logits
        with torch.autocast(self._device_type, self._dtype):
            logits = self.net(images)
        return logits.float()
