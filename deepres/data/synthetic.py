"""Synthetic images of any size and number, learnable and cheap, for benchmarks and tests."""

import numpy as np
import torch
from torch import Tensor

from deepres.data.augment import Normalization
from deepres.data.sampling import uniforms

_GRID = 4  # each class has a coarse picture of 4×4 colours
_NUM_WINDOWS = 2**16
_WINDOW_STRIDE = 7


class SyntheticImages:
    """Images made on request: half their class's picture, half noise.

    Image i is a function of (seed, i). Its label is i modulo the number of classes. A class's picture has 4×4 random
    colours; the noise is one of 65,536 windows of one row of random bytes, so that a batch of any size is made on the
    device by two look-ups, without random numbers. What is stored takes at most a few MB.

    Args:
        num_classes: classes.
        image_size: height and width.
        seed: of pictures and noise.
        device: where the images are made.
    """

    def __init__(self, num_classes: int, image_size: int, seed: int, device: torch.device) -> None:
        self._num_classes, self._image_size = num_classes, image_size
        self._num_bytes = 3 * image_size * image_size
        noise_bytes = self._num_bytes + _NUM_WINDOWS * _WINDOW_STRIDE
        # Epochs 2**32 and 2**32 + 1, which no training reaches, so that the augmentation's numbers are others.
        noise = uniforms(seed, 2**32, 0, -(-noise_bytes // 4), 4).reshape(-1) * 128
        pictures = uniforms(seed, 2**32 + 1, 0, num_classes * 3, _GRID * _GRID) * 128
        self._noise = torch.from_numpy(noise.astype(np.uint8)).to(device)
        self._pictures = torch.from_numpy(pictures.astype(np.uint8)).to(device).view(-1, 3, _GRID, _GRID)
        self._cell = (torch.arange(image_size) * _GRID // image_size).to(device)

    @staticmethod
    def normalization(*, divide_by_std: bool) -> Normalization:
        """The normalization of the distribution: a pixel is the sum of two numbers, each uniform in 0 … 127."""
        std = (2 * (128**2 - 1) / 12) ** 0.5 if divide_by_std else 255.0
        return Normalization.of_constants((127 / 255,) * 3, (std / 255,) * 3)

    def __call__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Makes images.

        Args:
            indices: (N,) int64 on the device.

        Returns:
            Images (N, 3, H, W) uint8 and labels (N,) int64, on the device.
        """
        labels = indices % self._num_classes
        windows = indices * 40503 % _NUM_WINDOWS  # an odd factor: neighbours get windows far apart
        views = self._noise.as_strided((_NUM_WINDOWS, self._num_bytes), (_WINDOW_STRIDE, 1))
        images = views.index_select(0, windows).view(-1, 3, self._image_size, self._image_size)
        images += self._pictures[labels].index_select(2, self._cell).index_select(3, self._cell)
        return images, labels
