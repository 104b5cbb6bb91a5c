"""Names, sizes and layouts of the official files of CIFAR-10 and CIFAR-100."""

from dataclasses import dataclass
from typing import Literal

from deepres.known_sets import KNOWN_SETS

IMAGE_SIZE = KNOWN_SETS["cifar10"].image_size
IMAGE_BYTES = 3 * IMAGE_SIZE * IMAGE_SIZE


@dataclass(frozen=True)
class Layout:
    """One layout of a set's files.

    Attributes:
        kind: `binary` records or `python` pickles.
        folder: the folder in the official archive.
        train: the files of training images, in order.
        test: the file of test images.
        names: the file of class names; optional.
        md5: checksums of the official files, as far as they are published.
    """

    kind: Literal["binary", "python"]
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    md5: dict[str, str]


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 or CIFAR-100.

    Attributes:
        labels_per_record: the leading bytes of a binary record; the last of them is the label used.
        label_key: key of the labels in a python batch.
        names_key: key of the class names in the python meta file.
        num_train_images, num_test_images: the whole set's.
        archive, archive_md5: the official archive of the binary files.
    """

    name: str
    title: str
    labels_per_record: int
    label_key: str
    names_key: str
    layouts: tuple[Layout, Layout]
    archive: str
    archive_md5: str
    num_train_images: int = KNOWN_SETS["cifar10"].num_train
    num_test_images: int = KNOWN_SETS["cifar10"].num_test

    @property
    def num_classes(self) -> int:
        """How many classes it has."""
        return KNOWN_SETS[self.name].num_classes

    @property
    def record_bytes(self) -> int:
        """Bytes of one image in a binary file."""
        return self.labels_per_record + IMAGE_BYTES


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    labels_per_record=1,
    label_key="labels",
    names_key="label_names",
    archive="cifar-10-binary.tar.gz",
    archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
    layouts=(
        Layout(
            kind="binary",
            folder="cifar-10-batches-bin",
            train=tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
            test="test_batch.bin",
            names="batches.meta.txt",
            md5={},
        ),
        Layout(
            kind="python",
            folder="cifar-10-batches-py",
            train=tuple(f"data_batch_{k}" for k in range(1, 6)),
            test="test_batch",
            names="batches.meta",
            md5={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
            },
        ),
    ),
)

CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    labels_per_record=2,
    label_key="fine_labels",
    names_key="fine_label_names",
    archive="cifar-100-binary.tar.gz",
    archive_md5="03b5dce01913d631647c71ecec9e9cb8",
    layouts=(
        Layout(
            kind="binary",
            folder="cifar-100-binary",
            train=("train.bin",),
            test="test.bin",
            names="fine_label_names.txt",
            md5={},
        ),
        Layout(
            kind="python",
            folder="cifar-100-python",
            train=("train",),
            test="test",
            names="meta",
            md5={
                "train": "16019d7e3df5f24257cddd939b257f8d",
                "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            },
        ),
    ),
)
