"""CIFAR-10 and CIFAR-100 from their official files (Krizhevsky, "Learning Multiple Layers of Features from Tiny
Images", 2009; formats: https://www.cs.toronto.edu/~kriz/cifar.html).

A record of a binary file is one image: its label (CIFAR-100: coarse label, fine label), then 1,024 bytes each of red,
green and blue, row by row. Python batches hold the same as a pickled dictionary.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepres.data.batch import DataError, DataInfo
from deepres.data.cifar_layout import IMAGE_BYTES, IMAGE_SIZE, Cifar, Layout
from deepres.data.download import download_and_unpack, file_md5
from deepres.data.unpickle import load_byte_arrays
from deepres.wording import listed

BASE_URL = "https://www.cs.toronto.edu/~kriz"


def find_cifar(
    cifar: Cifar, root: Path, *, download: bool = False, base_url: str = BASE_URL, verify: bool = False
) -> tuple[Layout, Path]:
    """Finds the set's complete files, binary ones first; downloads them if asked to and absent.

    Args:
        cifar: the set.
        root: an official folder (such as `cifar-10-batches-bin`), or the folder that holds it.
        download: download the official binary archive into `root` if no files are found there. Its checksum is always
            verified.
        base_url: where the archive is.
        verify: compare the checksums of the python files with the official ones. For single binary files none are
            published: with `download`, they are compared with those in the official archive.

    Returns:
        The layout, and the folder that holds its files.

    Raises:
        DataError: there are no files, some are missing or of the wrong length, a checksum differs, or the
            download fails.
    """
    try:
        return _find(cifar, root, verify)
    except FileNotFoundError as error:
        if not download:
            folders = " or ".join(layout.folder for layout in cifar.layouts)
            raise DataError(
                f"no {cifar.title} at {root}: {error}; set data.root to the folder that holds {folders}, "
                "or data.download=true"
            ) from None
    binary = cifar.layouts[0]
    url = f"{base_url.rstrip('/')}/{cifar.archive}"
    download_and_unpack(url, md5=cifar.archive_md5, root=root, folder=binary.folder, verify=verify)
    return _check(cifar, binary, root / binary.folder)


def _find(cifar: Cifar, root: Path, verify: bool) -> tuple[Layout, Path]:
    incomplete = None
    for layout in cifar.layouts:
        if verify and not layout.md5:
            continue
        for folder in (root / layout.folder, root):
            present = [name for name in (*layout.train, layout.test) if (folder / name).is_file()]
            if not present and folder.name != layout.folder:
                continue
            if not folder.is_dir():
                continue
            try:
                return _check(cifar, layout, folder, verify)
            except DataError as error:
                incomplete = incomplete or error
    if incomplete is not None:
        raise incomplete
    if not root.exists():
        raise FileNotFoundError("there is no such folder")
    if not root.is_dir():
        raise FileNotFoundError("it is a file")
    found = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    python_only = " of the python files, which alone have published checksums to verify" if verify else ""
    raise FileNotFoundError(f"found {listed(found, 4) or 'nothing'}{python_only}")


def _check(cifar: Cifar, layout: Layout, folder: Path, verify: bool = False) -> tuple[Layout, Path]:
    """Raises `DataError` unless all files are there and have the right length."""
    names = (*layout.train, layout.test)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{cifar.title} at {folder} is incomplete: {', '.join(missing)} missing; found "
            f"{len(names) - len(missing)} of {len(names)} files; remove the folder and set data.download=true, "
            "or copy it again"
        )
    for name in names:
        path, num_images = folder / name, _images_in(cifar, layout, name)
        found_bytes = path.stat().st_size
        expected_bytes = num_images * cifar.record_bytes
        if layout.kind == "binary" and found_bytes != expected_bytes:
            raise DataError(f"{path}: expected {expected_bytes} bytes, found {found_bytes}; fetch it again")
        if layout.kind == "python":
            if found_bytes < num_images * IMAGE_BYTES:
                raise DataError(
                    f"{path}: expected more than {num_images * IMAGE_BYTES} bytes, found {found_bytes}; "
                    "fetch it again"
                )
            if verify and file_md5(path) != layout.md5[name]:
                raise DataError(
                    f"{path}: wrong checksum: MD5 {file_md5(path)}, expected the official {layout.md5[name]}"
                )
            _read_python(cifar, path, num_images)
    return layout, folder


def _images_in(cifar: Cifar, layout: Layout, name: str) -> int:
    return cifar.num_test_images if name == layout.test else cifar.num_train_images // len(layout.train)


def inspect_cifar(cifar: Cifar, layout: Layout, folder: Path) -> DataInfo:
    """Facts about a set that `find_cifar` found, including class names if the folder has them."""
    names: tuple[str, ...] = ()
    path = folder / layout.names
    if path.is_file() and layout.kind == "binary":
        names = tuple(path.read_text(encoding="utf-8", errors="replace").split())
    elif path.is_file():
        entries = load_byte_arrays(path).get(cifar.names_key)
        if isinstance(entries, list):
            names = tuple(e.decode("ascii", "replace") if isinstance(e, bytes) else str(e) for e in entries)
    return DataInfo(
        name=cifar.name,
        num_classes=cifar.num_classes,
        image_size=IMAGE_SIZE,
        num_train=cifar.num_train_images,
        num_test=cifar.num_test_images,
        class_names=names if len(names) == cifar.num_classes else (),
    )


def read_cifar(
    cifar: Cifar, layout: Layout, folder: Path, split: Literal["train", "test"]
) -> tuple[Tensor, Tensor]:
    """Reads one split.

    Returns:
        Images (N, 3, 32, 32) uint8 and labels (N,) int64.

    Raises:
        DataError: a file cannot be read, is truncated, or holds invalid labels.
    """
    files = layout.train if split == "train" else (layout.test,)
    read = _read_binary if layout.kind == "binary" else _read_python
    parts = [read(cifar, folder / name, _images_in(cifar, layout, name)) for name in files]
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return torch.from_numpy(images.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)), torch.from_numpy(labels)


_Split = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def _read_binary(cifar: Cifar, path: Path, num_images: int) -> _Split:
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(content) != num_images * cifar.record_bytes:
        raise DataError(f"{path}: expected {num_images * cifar.record_bytes} bytes, found {len(content)}")
    records = content.reshape(num_images, cifar.record_bytes)
    labels = records[:, cifar.labels_per_record - 1]
    _check_labels(cifar, path, int(labels.min()), int(labels.max()))
    return records[:, cifar.labels_per_record :], labels.astype(np.int64)


def _read_python(cifar: Cifar, path: Path, num_images: int) -> _Split:
    batch = load_byte_arrays(path)
    images, labels = batch.get("data"), batch.get(cifar.label_key)
    if not isinstance(images, np.ndarray) or images.shape != (num_images, IMAGE_BYTES):
        found = f"shape {images.shape}" if isinstance(images, np.ndarray) else "none"
        raise DataError(f"{path}: expected images of shape ({num_images}, {IMAGE_BYTES}), found {found}")
    if not isinstance(labels, list) or len(labels) != num_images or not all(type(n) is int for n in labels):
        raise DataError(
            f"{path}: expected {num_images} integers under {cifar.label_key!r}, one for each image"
        )
    _check_labels(cifar, path, min(labels), max(labels))
    return images, np.array(labels, np.int64)


def _check_labels(cifar: Cifar, path: Path, lowest: int, highest: int) -> None:
    if lowest < 0 or highest >= cifar.num_classes:
        raise DataError(
            f"{path}: labels of {cifar.title} are 0 … {cifar.num_classes - 1}, found {lowest} … {highest}; "
            "the file is damaged"
        )
