"""The dtype in which a net computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ComputeIn(nn.Module):
    """A net that runs under autocast with a given dtype (float32: without autocast); its logits are float32.

    Autocast is entered inside the module so that it applies under every engine and in every thread.
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
