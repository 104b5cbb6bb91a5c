"""Sets of image files, one folder per class, and the workers that decode them."""

import errno
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from mimetypes import MimeTypes
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from deepres.data.batch import IGNORED_LABEL, DataError
from deepres.data.decode import BadImageError, Crop, decode_rgb
from deepres.data.image_files import ImageFiles
from deepres.data.image_search import find_image_files
from deepres.data.sampling import Request, uniforms
from deepres.data.supply import Failure, Fetched
from deepres.stopping import SIGNALS
from deepres.wording import listed


@dataclass(frozen=True)
class ImageFolder:
    """An image folder's files and labels.

    Attributes:
        files: those of both splits.
        class_names: sorted; a label is an index into this list.
        train, test: the numbers of the split's files, and their labels, both (N,) int64.
    """

    files: ImageFiles
    class_names: tuple[str, ...]
    train: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    test: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def find_image_folder(root: Path, num_classes: int | None = None) -> ImageFolder:
    """Lists a set of image files: `train/<class>/*`, and `val/<class>/*` or (if there is no `val`) `test/…`.

    Args:
        root: a directory, or an archive of one.
        num_classes: how many classes there must be.

    Raises:
        DataError: a file's suffix is not an image's, a split is missing, a class has no images or is in one split only,
            or the number of classes differs; or as for `find_image_files`.
    """
    files, entries = find_image_files(root)
    stray = next((entry for entry in entries if _has_other_kind(PurePosixPath(entry.file_name).suffix)), None)
    if stray is not None:
        raise DataError(f"{root}: {'/'.join(stray[:3])} is not an image, by its name: remove it")
    splits = np.array([entry.split for entry in entries], dtype=np.str_)
    found = set(splits.tolist())
    test_split = "val" if "val" in found else "test"
    if not {"train", test_split} <= found:
        raise DataError(
            f"no image folder at {root}: found {', '.join(sorted(found)) or 'no images'}; data.root must be a folder "
            "or an archive that holds train/<class>/… and val/<class>/… or test/<class>/…"
        )
    classes = {
        split: {entry.class_name for entry in entries if entry.split == split}
        for split in ("train", test_split)
    }
    if classes["train"] != classes[test_split]:
        differences = "; ".join(
            f"only in {split}: {listed(sorted(classes[split] - classes[other]), 3)}"
            for split, other in (("train", test_split), (test_split, "train"))
            if classes[split] - classes[other]
        )
        raise DataError(f"{root}: train and {test_split} have different classes; {differences}")
    class_names = tuple(sorted(classes["train"]))
    if num_classes is not None and len(class_names) != num_classes:
        raise DataError(
            f"{root}: expected {num_classes} classes, found {len(class_names)}; data.name=image_folder takes any number"
        )
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[entry.class_name] for entry in entries], dtype=np.int64)
    train, test = np.flatnonzero(splits == "train"), np.flatnonzero(splits == test_split)
    return ImageFolder(files, class_names, (train, labels[train]), (test, labels[test]))


@cache
def _has_other_kind(suffix: str) -> bool:
    """Whether that suffix is known not to be an image's; unknown ones may be."""
    kind, _ = MimeTypes().guess_type(f"file{suffix}")
    return kind is not None and not kind.startswith("image/")


_MAY_PASS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of network file systems that may be gone at the next attempt."""
_WAITS_S = (0.1, 1.0)
_Decoded = tuple[Request, Tensor, Tensor, tuple[Failure, ...]]


class _Decoder(Dataset[Any]):
    """Serves requests; runs in workers, and draws only the random numbers of the positions."""

    def __init__(
        self,
        files: ImageFiles,
        numbers: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        crop: Crop,
        seed: int,
    ) -> None:
        self._files, self._numbers, self._labels = files, numbers, labels
        self._crop, self._seed = crop, seed

    def __getitem__(self, request: Request) -> _Decoded:
        num_rows, size = len(request.indices), self._crop.size
        images = torch.zeros(num_rows, size, size, 3, dtype=torch.uint8)
        pixels = images.numpy()
        labels = torch.full((num_rows,), IGNORED_LABEL)
        draws = uniforms(self._seed, request.epoch, request.first_position, num_rows, self._crop.num_draws)
        failures = []
        for row, index in enumerate(request.indices.tolist()):
            if index < 0:
                continue
            number = int(self._numbers[index])
            try:
                pixels[row] = self._crop(decode_rgb(self._read(number)), draws[row])
                labels[row] = int(self._labels[index])
            except (BadImageError, OSError) as error:
                failures.append(Failure(index, self._files.path(number), str(error)))
        if get_worker_info() is not None:
            # Otherwise a thread of the worker does so later, and drops the batch silently if /dev/shm is full.
            images.share_memory_()
        return request, images, labels, tuple(failures)

    def _read(self, number: int) -> bytes:
        for wait_s in _WAITS_S:
            try:
                return self._files.read(number)
            except OSError as error:
                if error.errno not in _MAY_PASS:
                    raise
            time.sleep(wait_s)
        return self._files.read(number)


@dataclass
class _Queue:
    """What the loader is to serve next."""

    requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


def _as_is(decoded: Any) -> Any:
    return decoded


def _tell_unless_the_parent_is_gone(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _leave_signals_to_the_parent(_: int) -> None:
    # Launchers signal a process's children first; the parent needs them to finish its step.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    # When another worker has died, the parent may exit while it receives this one's batch.
    sys.excepthook = _tell_unless_the_parent_is_gone


class FileSupply:
    """Images decoded ahead by worker processes, which live from the first batch until `close`.

    Each worker decodes whole micro batches, two ahead. A row whose image cannot be decoded has no label.

    Args:
        files: the files.
        split: the numbers of the split's files, and their labels.
        crop: applied to each image.
        seed: of the crops.
        num_workers: worker processes; 0: decode in this process, on request.
        device: where batches are to be.
    """

    def __init__(
        self,
        files: ImageFiles,
        split: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
        crop: Crop,
        *,
        seed: int,
        num_workers: int,
        device: torch.device,
    ) -> None:
        self._files, self._device = files, device
        self._queue = _Queue()
        self._num_fetches = 0
        self._loader: DataLoader[Any] | None = DataLoader(
            _Decoder(files, *split, crop, seed),
            batch_size=None,  # a request is a batch already
            sampler=self._queue,
            num_workers=num_workers,
            collate_fn=_as_is,
            worker_init_fn=_leave_signals_to_the_parent if num_workers > 0 else None,
            pin_memory=device.type == "cuda",
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # without one, every iteration draws from torch's global generator
        )

    def fetch(self, requests: Iterable[Request]) -> Iterator[Fetched]:
        """Serves the requests in order, decoding ahead."""
        assert self._loader is not None, "the data source is closed"
        self._num_fetches += 1
        this_fetch = self._num_fetches
        self._queue.requests = requests
        with _dead_workers_named(self._loader.num_workers):
            batches = _iterate(self._loader)
        while True:
            assert this_fetch == self._num_fetches, "a later iteration has taken over the workers"
            with _dead_workers_named(self._loader.num_workers):
                batch = next(batches, None)
            if batch is None:
                return
            request, images, labels, failures = batch
            yield Fetched(
                request,
                images.to(self._device, non_blocking=True).permute(0, 3, 1, 2),
                labels.to(self._device, non_blocking=True),
                failures,
            )

    def close(self) -> None:
        """Stops the workers and closes the archive."""
        self._loader = None
        self._files.close()


def _iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """`iter(loader)`, without PyTorch's SIGCHLD handler, which raises wherever the main thread is if a worker dies.

    A dead worker is noticed anyway, within seconds, where a batch is waited for.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return batches


@contextmanager
def _dead_workers_named(num_workers: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, EOFError, OSError) as error:
        text = str(error)
        is_full = "torch_" in text and ("shm" in text or "No space left" in text)
        is_mistake = "Caught" in text  # an exception in a worker that is alive
        is_cut_off = not isinstance(error, RuntimeError)  # the worker died while it handed over a batch
        is_dead = num_workers > 0 and not is_mistake and (is_cut_off or "exited unexpectedly" in text)
        if not (is_full or is_dead):
            raise
        raise DataError(
            f"a process that decodes images has died (data.num_workers={num_workers}): it was killed, or /dev/shm or "
            f"memory is full: {(text.strip() or type(error).__name__).splitlines()[-1]}"
        ) from error
