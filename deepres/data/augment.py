"""Normalisation, and random crops and flips of a whole batch at once, on the device.

The CIFAR recipe of the paper (and of ResNet v1, section 4.2): subtract the mean, pad 4 pixels of zeros on each
side, crop at random to the original size, flip with probability 1/2.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepres.data.host_to_device import on_device
from deepres.known_sets import Normalize

PADDING = 4
NUM_CROP_DRAWS = 3
_PART = 1000

CONSTANTS: dict[Normalize, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet_mean_std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of each channel, for pixels in 0 … 1, of the normalizations that no set determines."""
# Principal components of RGB in 0 … 1, one per column, and standard deviations along them, as in fb.resnet.torch.
_COLOUR_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
_COLOUR_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045])


@dataclass(frozen=True)
class Normalization:
    """x ↦ (x − mean) · scale, for pixels x in 0 … 255.

    Attributes:
        mean: (1, 3, 1, 1), or (1, 3, H, W) for a mean of each pixel; float32.
        scale: (1, 3, 1, 1) float32.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of_constants(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> "Normalization":
        """From the channels' means and standard deviations, for pixels in 0 … 1."""
        means = torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1) * 255
        stds = torch.tensor(std, dtype=torch.float64).view(1, 3, 1, 1) * 255
        return cls(means.float(), (1 / stds).float())

    @classmethod
    def channel_mean_std(cls, images: Tensor) -> "Normalization":
        """Mean and standard deviation of each channel over a set, exact as they come from a histogram.

        Args:
            images: (N, 3, H, W) uint8, on the CPU.
        """
        values = torch.arange(256, dtype=torch.float64)
        counts = torch.stack([torch.bincount(images[:, c].reshape(-1), minlength=256) for c in range(3)])
        share = counts.double() / counts[0].sum()
        mean = share @ values
        std = (share @ values**2 - mean**2).clamp_min(1e-6).sqrt()
        return cls(mean.float().view(1, 3, 1, 1), (1 / std).float().view(1, 3, 1, 1))

    @classmethod
    def per_pixel_mean(cls, images: Tensor) -> "Normalization":
        """The paper's: subtract the mean image and scale pixels to a range of 1, not by a standard deviation.

        Args:
            images: (N, 3, H, W) uint8, on the CPU.
        """
        # In parts: summing bytes as int64 takes eight times their memory.
        total = sum(part.sum(0, dtype=torch.int64) for part in images.split(_PART))
        mean = torch.as_tensor(total).double() / len(images)
        return cls(mean.float()[None], torch.full((1, 3, 1, 1), 1 / 255))

    def to(self, device: torch.device) -> "Normalization":
        """The same on another device."""
        return Normalization(self.mean.to(device), self.scale.to(device))

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8, any strides → (N, 3, H, W) float32, contiguous."""
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.sub_(self.mean).mul_(self.scale)


def add_lighting(
    images: Tensor, normals: npt.NDArray[np.float64], deviation: float, normalization: Normalization
) -> Tensor:
    """Adds to each image a random colour along the principal components of ImageNet's colours, in place.

    The "standard color augmentation" of ResNet v1, from Krizhevsky et al. 2012, section 4.1.

    Args:
        images: (N, 3, H, W), normalised.
        normals: (N, 3) of the standard normal distribution.
        deviation: standard deviation of the components' factors; 0.1 in both papers.
        normalization: the one that was applied to the images.
    """
    colours = deviation * 255 * (normals * _COLOUR_DEVIATIONS) @ _COLOUR_COMPONENTS.T
    shifts = on_device(colours.astype(np.float32), images.device).view(-1, 3, 1, 1)
    return images.add_(shifts * normalization.scale)


def crop_and_flip(images: Tensor, draws: npt.NDArray[np.float64], *, flip: bool) -> Tensor:
    """Pads with zeros, crops at a random place, and mirrors with probability 1/2; one gather, no loop.

    Args:
        images: (N, C, H, W), normalised, so that the padding has the mean's colour.
        draws: (N, 3) in [0, 1): row, column, flip.
        flip: whether to mirror at all (a mirrored digit is not a digit).
    """
    num_images, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    offsets = (draws[:, :2] * (2 * PADDING + 1)).astype(np.int64)
    columns = np.arange(width)[None]
    if flip:
        columns = np.where(draws[:, 2:3] < 0.5, columns[:, ::-1], columns)
    row_starts = (offsets[:, :1] + np.arange(height)) * padded.shape[3]
    # Copied to the device at once: next to a narrow net's steps, each copy takes noticeable time.
    places = np.concatenate([row_starts, offsets[:, 1:2] + columns], axis=1)
    starts, shifts = on_device(places, images.device).split([height, width], dim=1)
    pixels = (starts[:, :, None] + shifts[:, None, :]).view(num_images, 1, -1)
    return padded.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view_as(images)
