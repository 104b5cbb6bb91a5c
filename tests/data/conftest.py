"""Small real files: pickles as Python 2 wrote them, tiny CIFAR sets, image folders and archives."""

import dataclasses
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepres.data.cifar_layout import CIFAR10, CIFAR100, Cifar


def _python2_string(text: str | bytes) -> bytes:
    raw = text.encode("ascii") if isinstance(text, str) else text
    return b"T" + struct.pack("<i", len(raw)) + raw


def _python2_value(value: Any) -> bytes:
    """The value as Python 2's cPickle wrote it in protocol 2, opcode for opcode but for the memo."""
    match value:
        case str() | bytes():
            return _python2_string(value)
        case int():
            return b"J" + struct.pack("<i", value)
        case list():
            return b"](" + b"".join(map(_python2_value, value)) + b"e"
        case dict():
            items = b"".join(_python2_value(key) + _python2_value(item) for key, item in value.items())
            return b"}(" + items + b"u"
        case np.ndarray():
            empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            code = value.dtype.str[1:].encode()
            number = b"J\xff\xff\xff\xff"
            dtype = (
                b"cnumpy\ndtype\nU\x02" + code + b"K\x00K\x01\x87R(K\x03U\x01|NNN" + number * 2 + b"K\x00tb"
            )
            shape = b"(" + b"".join(map(_python2_value, value.shape)) + b"t"
            return empty + b"(K\x01" + shape + dtype + b"\x89" + _python2_string(value.tobytes()) + b"tb"
    raise TypeError(value)


@pytest.fixture(scope="session")
def python2_pickle() -> Callable[[Any], bytes]:
    """Pickles strings, integers, lists, dictionaries and arrays as the official batches are pickled."""
    return lambda value: b"\x80\x02" + _python2_value(value) + b"."


@dataclasses.dataclass(frozen=True)
class TinyCifar:
    """CIFAR in both layouts under `root`, with 20 training and 10 test images of known content."""

    cifar: Cifar
    root: Path
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


@pytest.fixture(params=[CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def tiny_cifar(
    request: pytest.FixtureRequest, tmp_path: Path, python2_pickle: Callable[[Any], bytes]
) -> TinyCifar:
    cifar = dataclasses.replace(request.param, num_train_images=20, num_test_images=10)
    random = np.random.default_rng(0)
    counts = {"train": 20, "test": 10}
    images = {split: random.integers(0, 256, (n, 3072), dtype=np.uint8) for split, n in counts.items()}
    labels = {split: random.integers(0, cifar.num_classes, n) for split, n in counts.items()}
    binary, python = cifar.layouts
    for layout in cifar.layouts:
        folder = tmp_path / layout.folder
        folder.mkdir()
        for split, names in {"train": layout.train, "test": (layout.test,)}.items():
            rows = np.split(np.arange(counts[split]), len(names))
            for name, mine in zip(names, rows, strict=True):
                if layout is binary:
                    coarse = np.full((len(mine), cifar.labels_per_record - 1), 7, np.uint8)
                    fine = labels[split][mine, None].astype(np.uint8)
                    content = np.concatenate([coarse, fine, images[split][mine]], axis=1).tobytes()
                else:
                    content = python2_pickle(
                        {
                            "batch_label": name,
                            cifar.label_key: labels[split][mine].tolist(),
                            "data": images[split][mine],
                            "filenames": [f"{i}.png" for i in mine],
                        }
                    )
                (folder / name).write_bytes(content)
    names = [f"class_{label}" for label in range(cifar.num_classes)]
    (tmp_path / binary.folder / binary.names).write_text("\n".join(names) + "\n\n")
    (tmp_path / python.folder / python.names).write_bytes(python2_pickle({cifar.names_key: names}))
    shaped = {split: array.reshape(-1, 3, 32, 32) for split, array in images.items()}
    return TinyCifar(cifar, tmp_path, shaped, labels)


def _encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """`train/` with 7 and `test/` with 3 images of each of cat, dog and eel, of several shapes."""
    random = np.random.default_rng(1)
    for split, count in {"train": 7, "test": 3}.items():
        for name in ("eel", "cat", "dog"):
            folder = tmp_path / "folder" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = random.integers(30, 60, 2)
                (folder / f"{i}.png").write_bytes(
                    _encoded(random.integers(0, 256, (height, width, 3), np.uint8))
                )
    return tmp_path / "folder"


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    """Packs a folder's files as `name`, an archive of the kind that the suffix says, below `prefix`."""

    def packed(folder: Path, name: str, prefix: str = "") -> Path:
        archive = tmp_path / name
        # Not in order: an archive promises none.
        files = sorted(folder.rglob("*"), reverse=True)
        if name.endswith(".zip"):
            with zipfile.ZipFile(archive, "w") as out:
                for i, path in enumerate(files):
                    method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[i % 2]
                    out.write(path, prefix + str(path.relative_to(folder)), compress_type=method)
        else:
            mode = {"tar": "w", "xz": "w:xz", "gz": "w:gz", "bz2": "w:bz2"}[name.rsplit(".", 1)[-1]]
            with tarfile.open(archive, mode) as out:  # type: ignore[call-overload]
                for path in files:
                    out.add(path, prefix + str(path.relative_to(folder)), recursive=False)
        return archive

    return packed
