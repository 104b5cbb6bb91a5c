"""Scikit-learn's handwritten digits: 1,797 real images that need no download, for a first run and for tests."""

import numpy as np
import torch
from torch import Tensor

from deepres.data.batch import DataError
from deepres.data.sampling import shuffled

_PART = 200
_SPLIT_SEED = 1797
_TEST_EVERY = 5


def check_digits() -> None:
    """Raises `DataError` if scikit-learn is missing."""
    try:
        import sklearn.datasets  # noqa: F401  (lazily: an optional dependency)
    except ImportError as error:
        raise DataError(
            f"data set 'digits' needs scikit-learn ({error}): pip install 'deepres[quickstart]'"
        ) from error


def read_digits(image_size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Reads both splits: after a fixed shuffle and sorted by class, every fifth image is a test image.

    The 8×8 images of 17 grey levels are enlarged bilinearly and repeated over three channels.

    Args:
        image_size: height and width of the enlarged images.

    Returns:
        Train and test, each images (N, 3, `image_size`, `image_size`) uint8 and labels (N,) int64.

    Raises:
        DataError: scikit-learn is missing.
    """
    check_digits()
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = shuffled(len(bunch.target), _SPLIT_SEED, epoch=0)
    by_class = order[np.argsort(bunch.target[order], kind="stable")]
    is_test = np.zeros(len(order), bool)
    is_test[by_class[::_TEST_EVERY]] = True

    grey = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    size = (image_size, image_size)
    enlarged = [  # in parts: floats take four times the memory of uint8
        torch.nn.functional.interpolate(part, size, mode="bilinear", align_corners=False)
        .round()
        .to(torch.uint8)
        for part in grey.split(_PART)
    ]
    images = torch.cat(enlarged).repeat(1, 3, 1, 1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = torch.from_numpy(~is_test), torch.from_numpy(is_test)
    return (images[train], labels[train]), (images[test], labels[test])
