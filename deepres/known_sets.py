"""The data sets by name: what is known about each without looking for its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deepres.net_options import Family

SetName = Literal["cifar10", "cifar100", "imagenet", "image_folder", "digits", "synthetic"]
Augmentation = Literal["none", "crop", "crop_flip", "scale", "scale_and_aspect"]
"""Augmentation of training images, see `DataConfig`."""
Normalize = Literal["mean_std", "per_pixel_mean", "imagenet_mean_std", "half"]
"""Normalization of all images, see `DataConfig`."""


@dataclass(frozen=True)
class KnownSet:
    """Facts about a data set.

    Attributes:
        num_classes: for `synthetic`, the default; 0: given by the set's folders.
        image_size: default height and width in pixels of a net's input.
        augmentation: default augmentation of training images.
        num_train, num_test: images of sets of fixed size that are held on the device; 0 for others.
        has_root: whether its files are in a folder or archive that one must name.
        is_files: whether its images are files, decoded on demand.
    """

    num_classes: int
    image_size: int
    augmentation: Augmentation
    num_train: int = 0
    num_test: int = 0
    has_root: bool = True
    is_files: bool = False

    @property
    def normalize(self) -> Normalize:
        """Default normalization of its images."""
        return "imagenet_mean_std" if self.is_files else "mean_std"

    @property
    def has_one_size(self) -> bool:
        """Whether all images have `image_size` and are never resized (CIFAR)."""
        return self.has_root and not self.is_files

    def takes(self, normalize: Normalize) -> bool:
        """Whether its images can be normalised so: files are too many to take their statistics."""
        return not (self.is_files and normalize in ("mean_std", "per_pixel_mean"))


KNOWN_SETS: dict[str, KnownSet] = {
    "cifar10": KnownSet(10, 32, "crop_flip", 50_000, 10_000),
    "cifar100": KnownSet(100, 32, "crop_flip", 50_000, 10_000),
    "imagenet": KnownSet(1000, 224, "scale", is_files=True),
    "image_folder": KnownSet(0, 224, "scale", is_files=True),
    "digits": KnownSet(10, 32, "crop", 1437, 360, has_root=False),
    "synthetic": KnownSet(10, 32, "none", has_root=False),
}
"""The facts about each `SetName`."""

SET_OF: dict[Family, SetName] = {"cifar": "cifar10", "imagenet": "imagenet"}
"""The data set of the paper's nets of each kind."""
