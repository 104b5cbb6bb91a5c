"""Data sets by name: `find_data` finds and checks one, `FoundData.open` opens it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from deepres.config import DataConfig
from deepres.data import cifar, cifar_layout, digits
from deepres.data.augment import CONSTANTS, Normalization
from deepres.data.batch import DataError, DataInfo
from deepres.data.image_folder import FileSupply, ImageFolder, find_image_folder
from deepres.data.pipeline import Pipeline, make_pipeline
from deepres.data.sampling import Schedule
from deepres.data.source import DataSource
from deepres.data.supply import ResidentSupply, Supply
from deepres.data.synthetic import SyntheticImages
from deepres.known_sets import Normalize

_CIFARS = {"cifar10": cifar_layout.CIFAR10, "cifar100": cifar_layout.CIFAR100}
_CifarFiles = tuple[cifar_layout.Layout, Path]
_Found = _CifarFiles | ImageFolder | None


@dataclass(frozen=True)
class FoundData:
    """A data set that exists, is complete and fits the configuration; made by `find_data`, to be opened once.

    Attributes:
        info: facts about the set.
    """

    info: DataInfo
    _asked: DataConfig
    _found: _Found
    _pipeline: Pipeline

    def check_batch(self, global_batch_size: int) -> None:
        """Check that the set has enough images for one step.

        Args:
            global_batch_size: micro batch × accumulation × ranks.

        Raises:
            DataError: it has fewer.
        """
        if global_batch_size > self.info.num_train:
            raise DataError(
                f"{self.info.name} has {self.info.num_train} training images, fewer than the {global_batch_size} of "
                "one step (micro batch × accumulation × processes); make the batch smaller"
            )

    def open(
        self,
        *,
        micro_batch_size: int,
        accumulation: int = 1,
        eval_batch_size: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
    ) -> DataSource:
        """Open the set for one rank.

        CIFAR, the digits and the synthetic images are held on the device as uint8 and augmented there; image files are
        decoded by worker processes.

        Args:
            micro_batch_size: images of one forward pass of one rank.
            accumulation: micro batches of one rank in a step.
            eval_batch_size: images of one forward pass in evaluation; `micro_batch_size` if unset.
            seed: of the order, the augmentation and the synthetic images; 0 … 2⁶⁴ − 1.
            rank, world_size: of this process.
            device: where batches are to be.

        Raises:
            DataError: the set has fewer images than one step takes, or files that cannot be read.
        """
        device = torch.device(device)
        info, asked, found = self.info, self._asked, self._found
        normalize = asked.chosen_normalize
        schedule = Schedule(
            seed=seed,
            num_train=info.num_train,
            num_test=info.num_test,
            micro_batch_size=micro_batch_size,
            accumulation=accumulation,
            eval_batch_size=eval_batch_size or micro_batch_size,
            rank=rank,
            world_size=world_size,
        )
        self.check_batch(schedule.global_batch_size)
        train: Supply
        test: Supply
        if isinstance(found, ImageFolder):
            assert self._pipeline.crops is not None
            train, test = (
                FileSupply(found.files, split, crop, seed=seed, num_workers=asked.num_workers, device=device)
                for split, crop in zip((found.train, found.test), self._pipeline.crops, strict=True)
            )
            normalization = Normalization.of_constants(*CONSTANTS[normalize])
        else:
            train, test, normalization = _resident(info, found, normalize, seed, device)
        return DataSource(
            info,
            schedule,
            train=train,
            test=test,
            normalization=normalization.to(device),
            augmentation=self._pipeline.on_device,
            lighting=asked.lighting,
            max_bad_images=asked.max_bad_images,
        )


def find_data(asked: DataConfig) -> FoundData:
    """Checks that a data set exists, is complete and fits the configuration, without decoding its images.

    Call it before any process group or CUDA context exists: it finds whatever a user can get wrong.

    Args:
        asked: which set, where, and its preprocessing.

    Raises:
        DataError: the message is one line that says what was wrong, what was found, and what to do.
    """
    try:
        info, found = _locate(asked)
    except OSError as error:
        raise DataError(f"{asked.root}: cannot be read: {error}") from error
    return FoundData(info, asked, found, make_pipeline(asked))


def _locate(asked: DataConfig) -> tuple[DataInfo, _Found]:
    """Finds the files of a set, if it has any."""
    name, known, image_size = asked.name, asked.known, asked.chosen_image_size
    if name == "synthetic":
        num_images = asked.num_images or 50_000
        num_classes = asked.num_classes or known.num_classes
        return DataInfo(name, num_classes, image_size, num_images, max(1, num_images // 5)), None
    found: _Found = None
    if name == "digits":
        digits.check_digits()
        info = DataInfo(name, known.num_classes, image_size, known.num_train, known.num_test)
    elif name in _CIFARS:
        found = cifar.find_cifar(_CIFARS[name], asked.root, download=asked.download, verify=asked.verify)
        info = cifar.inspect_cifar(_CIFARS[name], *found)
    else:
        found = find_image_folder(asked.root, known.num_classes or None)
        info = DataInfo(
            name,
            num_classes=len(found.class_names),
            image_size=image_size,
            num_train=len(found.train[0]),
            num_test=len(found.test[0]),
            class_names=found.class_names,
            files_sha256=found.files.names_sha256(),
        )
    if asked.num_classes not in (None, info.num_classes):
        raise DataError(f"{name} has {info.num_classes} classes, got data.num_classes={asked.num_classes}")
    return info, found


def _resident(
    info: DataInfo, found: _CifarFiles | None, normalize: Normalize, seed: int, device: torch.device
) -> tuple[ResidentSupply, ResidentSupply, Normalization]:
    """The splits of a set that is held on the device, and its normalization."""
    if info.name == "synthetic":
        make = SyntheticImages(info.num_classes, info.image_size, seed, device)
        return (
            ResidentSupply(make, device),
            ResidentSupply(lambda indices: make(indices + info.num_train), device),
            _normalization(normalize, lambda: make.normalization(divide_by_std=normalize == "mean_std")),
        )
    if found is None:
        train, test = digits.read_digits(info.image_size)
    else:
        train = cifar.read_cifar(_CIFARS[info.name], *found, "train")
        test = cifar.read_cifar(_CIFARS[info.name], *found, "test")
    of_set = Normalization.per_pixel_mean if normalize == "per_pixel_mean" else Normalization.channel_mean_std
    return (
        ResidentSupply.of_tensors(*train, device),
        ResidentSupply.of_tensors(*test, device),
        _normalization(normalize, lambda: of_set(train[0])),
    )


def _normalization(normalize: Normalize, of_set: Callable[[], Normalization]) -> Normalization:
    """By constants, or by a set's own statistics."""
    constants = CONSTANTS.get(normalize)
    return of_set() if constants is None else Normalization.of_constants(*constants)
