"""A data set as the trainer sees it: one rank's batches, in an order that can be resumed anywhere."""

import logging
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from deepres.data.augment import NUM_CROP_DRAWS, Normalization, add_lighting, crop_and_flip
from deepres.data.batch import IGNORED_LABEL, Batch, DataError, DataInfo
from deepres.data.sampling import Schedule, normals, uniforms
from deepres.data.supply import Failure, Fetched, Supply

DeviceAugmentation = Literal["none", "crop", "crop_flip"]

_logger = logging.getLogger(__name__)


class DataSource:
    """One rank's batches of a data set; made by `FoundData.open`.

    Which images a batch has, and how they are augmented, depends only on the seed, the epoch and their positions: not
    on workers, processes or earlier requests (NOTE [ Positions ] in sampling.py). The global random number generators
    of torch, NumPy and Python are not used.

    Args:
        info: facts about the set.
        schedule: which rank gets which images.
        train: the training split.
        test: the test split.
        normalization: on the same device as the pixels.
        augmentation: of training images, on the device.
        lighting: see `add_lighting`; 0 for none.
        max_bad_images: how many unreadable images this rank tolerates.
    """

    def __init__(
        self,
        info: DataInfo,
        schedule: Schedule,
        *,
        train: Supply,
        test: Supply,
        normalization: Normalization,
        augmentation: DeviceAugmentation,
        lighting: float,
        max_bad_images: int,
    ) -> None:
        self.info = info
        self._schedule = schedule
        self._train, self._test = train, test
        self._normalization = normalization
        self._augmentation, self._lighting = augmentation, lighting
        self._max_bad_images = max_bad_images
        self._bad_images: set[int] = set()

    @property
    def num_train_batches(self) -> int:
        """This rank's micro batches per epoch: whole steps only, the last images of an epoch are dropped."""
        return self._schedule.num_train_batches

    @property
    def num_test_batches(self) -> int:
        """Evaluation batches, the same number on every rank."""
        return self._schedule.num_test_batches

    @property
    def bad_images(self) -> Tensor:
        """1 for each image that this rank has failed to read, else 0: (num_train + num_test,) float32, on the CPU."""
        bad = torch.zeros(self.info.num_train + self.info.num_test)
        bad[list(self._bad_images)] = 1
        return bad

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's micro batches of an epoch, shuffled and augmented.

        Args:
            epoch: from 0; decides the order and the augmentation.
            start: the micro batch to begin with; the rest are the same as when beginning with 0.

        Only one iteration can be in progress; a new one ends it.

        Raises:
            DataError: more than `max_bad_images` images cannot be read.
        """
        for fetched in self._train.fetch(self._schedule.train(epoch, start)):
            yield self._finish(fetched, augment=True)

    def test_batches(self) -> Iterator[Batch]:
        """This rank's share of the test images, in order, without augmentation; each image is on exactly one rank.

        Raises:
            DataError: more than `max_bad_images` images cannot be read.
        """
        for fetched in self._test.fetch(self._schedule.test()):
            yield self._finish(fetched, augment=False)

    def close(self) -> None:
        """Stops workers and closes files; the source cannot be used afterwards."""
        self._train.close()
        self._test.close()

    def _finish(self, fetched: Fetched, *, augment: bool) -> Batch:
        for failure in fetched.failures:
            first = 0 if augment else self.info.num_train
            self._count_bad(first + failure.sample, failure)
        request, labels = fetched.request, fetched.labels
        images = self._normalization(fetched.images)
        if augment and self._lighting:
            colours = normals(self._schedule.seed, request.epoch, request.first_position, len(labels))
            images = add_lighting(images, colours, self._lighting, self._normalization)
        if augment and self._augmentation != "none":
            draws = uniforms(
                self._schedule.seed, request.epoch, request.first_position, len(labels), NUM_CROP_DRAWS
            )
            images = crop_and_flip(images, draws, flip=self._augmentation == "crop_flip")
        if not fetched.is_whole:
            images = images.masked_fill_((labels == IGNORED_LABEL).view(-1, 1, 1, 1), 0)
        return Batch(images, labels, torch.from_numpy(request.indices))

    def _count_bad(self, number: int, failure: Failure) -> None:
        if number in self._bad_images:
            return
        self._bad_images.add(number)
        path, reason = (" ".join(text.splitlines()) for text in (failure.path, failure.reason))
        _logger.warning("%s cannot be read and is left out: %s", path, reason)
        if len(self._bad_images) > self._max_bad_images:
            raise DataError(
                f"{len(self._bad_images)} images cannot be read, of which data.max_bad_images allows "
                f"{self._max_bad_images}; the last: {path} ({reason})"
            )
