"""Types shared by all data sources: batches, facts about a data set, and `DataError`."""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepres.known_sets import KNOWN_SETS
from deepres.metrics import IGNORED_LABEL as IGNORED_LABEL  # re-exported for all of `deepres.data`


class DataError(ValueError):
    """A data set is missing, incomplete, broken or unfit for what was asked; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a file name may contain newlines


@dataclass(frozen=True)
class DataInfo:
    """Facts about a data set that are known before any image is read.

    Attributes:
        name: as given to `find_data`.
        num_classes: labels are 0 … `num_classes` − 1.
        image_size: height and width of the training images that the model sees, in pixels.
        num_train: training images.
        num_test: test (or validation) images.
        class_names: one name per label, in the order of the labels; empty if the set has none.
        files_sha256: checksum of the image files' names, in their order; empty for other sets.
    """

    name: str
    num_classes: int
    image_size: int
    num_train: int
    num_test: int
    class_names: tuple[str, ...] = field(default=(), repr=False)
    files_sha256: str = field(default="", repr=False)

    @property
    def classes_sha256(self) -> str:
        """A checksum of the class names of image files, whose order decides the labels; empty for other sets."""
        if not KNOWN_SETS[self.name].is_files:
            return ""
        return hashlib.sha256("/".join(self.class_names).encode("utf-8", "surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True)
class Batch:
    """One rank's micro batch.

    A row whose label is `IGNORED_LABEL` holds no image (it is all zeros): either its file could not be read, or it pads
    the last evaluation batch, so that all ranks run batches of the same size. Sum the loss and divide it explicitly:
    the mean of `cross_entropy` over a batch of only such rows is NaN.

    Attributes:
        images: (N, 3, H, W) float32, normalised, on the device; N ≥ 1.
        labels: (N,) int64, on the device.
        indices: (N,) int64, on the CPU: each row's sample number in its split, −1 for padding.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        num_rows = self.images.shape[0]
        assert self.images.dtype == torch.float32
        assert self.labels.shape == self.indices.shape == (num_rows,)
