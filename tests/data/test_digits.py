import sys

import pytest
import torch

from deepres.config import DataConfig
from deepres.data import DataError, find_data
from deepres.data.digits import check_digits, read_digits
from deepres.known_sets import KNOWN_SETS


def test_the_split_is_fixed_whole_and_balanced():
    pytest.importorskip("sklearn")
    (train, train_labels), (test, test_labels) = read_digits(32)
    known = KNOWN_SETS["digits"]
    assert train.shape == (known.num_train, 3, 32, 32)
    assert test.shape == (known.num_test, 3, 32, 32)
    assert (train.dtype, train_labels.dtype) == (torch.uint8, torch.int64)
    counts, test_counts = train_labels.bincount(), test_labels.bincount()
    assert (test_counts - (counts + test_counts) / 5).abs().max() <= 1
    again, _ = read_digits(32)
    assert torch.equal(again[0], train)


def test_digits_are_enlarged_over_the_full_range_of_grey():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    (images, labels), _ = read_digits(image_size=8)
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert torch.equal(images[:, 0], images[:, 2])
    originals = {(image * (255 / 16)).round().astype("uint8").tobytes() for image in load_digits().images}
    assert {image[0].numpy().tobytes() for image in images} <= originals
    assert labels.max() == 9


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    for look in (check_digits, lambda: find_data(DataConfig(name="digits"))):
        with pytest.raises(DataError, match=r"needs scikit-learn .*: pip install 'deepres\[quickstart\]'"):
            look()
