"""What the data floor hands upwards: batches, facts about a data set, and its one kind of error."""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepres.known_sets import KNOWN_SETS
from deepres.metrics import IGNORED_LABEL as IGNORED_LABEL  # whoever reads data has it from here


class DataError(ValueError):
    """A data set is missing, incomplete, broken or unfit for what was asked; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a file's name may have several


@dataclass(frozen=True)
class DataInfo:
    """Facts about a data set that are known before any image is read.

    Attributes:
        name: as given to `find_data`.
        num_classes: labels are 0 … `num_classes` − 1.
        image_size: height and width of the training images that the model sees, in pixels.
        num_train: training images.
        num_test: test (or validation) images.
        class_names: one name a label, in the order of the labels; empty where the set has none.
        files_sha256: of the names of a set of image files, in their order; empty for other sets.
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
        """A checksum of the names of image files' classes, whose order decides the labels; empty for other sets."""
        if not KNOWN_SETS[self.name].is_files:
            return ""
        return hashlib.sha256("/".join(self.class_names).encode("utf-8", "surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True)
class Batch:
    """One rank's micro batch.

    A row whose label is `IGNORED_LABEL` holds no image (it is all zeros): either its file could not be read, or
    it fills up the last evaluation batch, so that every rank runs equally many. Take the *sum* of the loss and
    divide by what you mean to divide by: the mean of `cross_entropy` over a batch with nothing but such rows is
    NaN.

    Attributes:
        images: (N, 3, H, W) float32, normalised, on the device; N ≥ 1.
        labels: (N,) int64, on the device.
        indices: (N,) int64, on the CPU: each row's sample in its set, −1 for a filler.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        num_rows = self.images.shape[0]
        assert self.images.dtype == torch.float32
        assert self.labels.shape == self.indices.shape == (num_rows,)
