"""Data sets by name: `find_data` looks, and what it finds is opened."""

from dataclasses import dataclass
from pathlib import Path

import torch

from deepres.data import cifar, cifar_layout, digits
from deepres.data.augment import Normalization
from deepres.data.batch import DataError, DataInfo
from deepres.data.image_folder import FileSupply, ImageFolder, find_image_folder
from deepres.data.pipeline import Pipeline, make_pipeline
from deepres.data.sampling import Schedule
from deepres.data.source import DataSource
from deepres.data.supply import ResidentSupply, Supply
from deepres.data.synthetic import SyntheticImages
from deepres.known_sets import KNOWN_SETS, Augmentation, Normalize, size_mistake

_CIFARS = {"cifar10": cifar_layout.CIFAR10, "cifar100": cifar_layout.CIFAR100}
_CifarFiles = tuple[cifar_layout.Layout, Path]
_Found = _CifarFiles | ImageFolder | None


@dataclass(frozen=True)
class FoundData:
    """A data set that is there, whole and fit for what is asked; `find_data` makes it, and it is opened once.

    Attributes:
        info: facts about the set.
    """

    info: DataInfo
    _found: _Found
    _pipeline: Pipeline
    _normalize: Normalize

    def check_batch(self, global_batch_size: int) -> None:
        """See that the set has the images of one step.

        Args:
            global_batch_size: micro batch × accumulation × ranks.

        Raises:
            DataError: it has not.
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
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        max_bad_images: int = 0,
    ) -> DataSource:
        """Open the set for one rank.

        CIFAR, the digits and the synthetic images live on the device as uint8 and are augmented there; image files
        are decoded by worker processes.

        Args:
            micro_batch_size: images of one forward pass of one rank.
            accumulation: micro batches of one rank in a step.
            eval_batch_size: images of one forward pass in evaluation; `micro_batch_size` if unset.
            seed: of the order, the augmentation and the synthetic images; 0 … 2⁶⁴ − 1.
            num_workers: processes that decode image files, for training and as many for tests; 0: this one.
            rank, world_size: of this process.
            device: where batches are wanted.
            max_bad_images: unreadable images that this rank leaves out before it gives up.

        Raises:
            DataError: the set has fewer images than one step takes, or files that cannot be read.
        """
        device = torch.device(device)
        info, found, normalize = self.info, self._found, self._normalize
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
                FileSupply(found.files, split, crop, seed=seed, num_workers=num_workers, device=device)
                for split, crop in zip((found.train, found.test), self._pipeline.crops, strict=True)
            )
            normalization = Normalization.of_constants()
        else:
            train, test, normalization = _resident(info, found, normalize, seed, device)
        if normalize == "half":
            normalization = Normalization.of_constants((0.5,) * 3, (0.5,) * 3)
        return DataSource(
            info,
            schedule,
            train=train,
            test=test,
            normalization=normalization.to(device),
            augmentation=self._pipeline.on_device,
            lighting=self._pipeline.lighting,
            max_bad_images=max_bad_images,
        )


def find_data(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    base_url: str = cifar.BASE_URL,
    verify: bool = False,
    image_size: int | None = None,
    num_classes: int | None = None,
    num_images: int | None = None,
    augmentation: Augmentation | None = None,
    lighting: float = 0.0,
    normalize: Normalize = "mean_std",
    eval_image_size: int | None = None,
    eval_shorter_side: int | None = None,
) -> FoundData:
    """Checks that a data set is there, whole and fit for what is asked, without decoding its images.

    Call it before any process group or CUDA context exists: whatever a user can get wrong is found here.

    Args:
        name: of `KNOWN_SETS`.
        root: where the files are. CIFAR: the folder that holds the official folder, or that folder itself.
            `imagenet`, `image_folder`: a folder or an archive with `train/` and `val/` or `test/`.
        download: fetch CIFAR if it is not there.
        base_url: where CIFAR's archives lie.
        verify: compare the checksums of CIFAR's files with the official ones, see `find_cifar`.
        image_size: height and width that the model sees; 224 for image files if unset, else 32 (CIFAR's only).
        num_classes: of the synthetic set (10 if unset); for others, what is expected, to be compared.
        num_images: training images of the synthetic set (50,000 if unset); it has a fifth as many test images.
        augmentation: of training images. `none` (the default of the synthetic set); `crop`: pad 4, crop at random
            (of digits); `crop_flip`: and mirror every other one (of CIFAR); for image files also `scale` (their
            default) and `scale_and_aspect`, see `Crop`. Image files that are not scaled at random are scaled to
            `image_size` and cropped in the middle first.
        lighting: how much the colour of a training image varies, see `add_lighting`; 0.1 in ResNet v1.
        normalize: `mean_std` by channel, or `per_pixel_mean` as in the paper; both of the training set. Image
            files take ImageNet's mean and deviation. `half`, of all: from −1 to 1, as `timm`'s nets want it.
        eval_image_size: of image files, the centre crop in tests; `image_size` if unset.
        eval_shorter_side: of image files, what the shorter side is scaled to before that crop. If unset: 256 for
            224 (or in proportion) if the crop is as in training; the crop itself if it is another (320 for 320),
            or if training does not scale at random.

    Raises:
        DataError: with one line that says what was wrong, what was found, and what to do.
    """
    try:
        info, found = _locate(
            name,
            root=root,
            download=download,
            base_url=base_url,
            verify=verify,
            image_size=image_size,
            num_classes=num_classes,
            num_images=num_images,
        )
    except OSError as error:
        raise DataError(f"{root}: cannot be read: {error}") from error
    pipeline = make_pipeline(
        name,
        image_size=info.image_size,
        augmentation=augmentation,
        lighting=lighting,
        normalize=normalize,
        eval_image_size=eval_image_size,
        eval_shorter_side=eval_shorter_side,
    )
    return FoundData(info, found, pipeline, normalize)


def _locate(
    name: str,
    *,
    root: str | Path | None,
    download: bool,
    base_url: str,
    verify: bool,
    image_size: int | None,
    num_classes: int | None,
    num_images: int | None,
) -> tuple[DataInfo, _Found]:
    """Finds the files of a set, if it has any."""
    known = KNOWN_SETS.get(name)
    if known is None:
        raise DataError(f"data.name must be one of {', '.join(KNOWN_SETS)}, got {name!r}")
    if num_images is not None and name != "synthetic":
        raise DataError(f"data.num_images is for the synthetic set alone, got {num_images} for {name}")
    for key, is_asked in (("download", download), ("verify", verify)):
        if is_asked and name not in _CIFARS:
            raise DataError(f"data.{key} is for {' and '.join(_CIFARS)} alone, got true for {name}")
    if name == "synthetic":
        num_images = 50_000 if num_images is None else num_images
        num_classes = num_classes or known.num_classes
        image_size = image_size or known.image_size
        return DataInfo(name, num_classes, image_size, num_images, max(1, num_images // 5)), None
    found: _Found = None
    if name == "digits":
        digits.check_digits()
        info = DataInfo(
            name, known.num_classes, image_size or known.image_size, known.num_train, known.num_test
        )
    elif root is None:
        raise DataError(f"data set {name!r} needs data.root, the place of its files")
    elif name in _CIFARS:
        mistake = size_mistake(name, image_size)
        if mistake is not None:
            raise DataError(mistake)
        found = cifar.find_cifar(
            _CIFARS[name], Path(root), download=download, base_url=base_url, verify=verify
        )
        info = cifar.inspect_cifar(_CIFARS[name], *found)
    else:
        found = find_image_folder(Path(root), known.num_classes or None)
        info = DataInfo(
            name,
            num_classes=len(found.class_names),
            image_size=image_size or known.image_size,
            num_train=len(found.train[0]),
            num_test=len(found.test[0]),
            class_names=found.class_names,
            files_sha256=found.files.names_sha256(),
        )
    if num_classes not in (None, info.num_classes):
        raise DataError(f"{name} has {info.num_classes} classes, got data.num_classes={num_classes}")
    return info, found


def _resident(
    info: DataInfo, found: _CifarFiles | None, normalize: Normalize, seed: int, device: torch.device
) -> tuple[ResidentSupply, ResidentSupply, Normalization]:
    """The splits of a set that lives on the device, and its statistics."""
    if info.name == "synthetic":
        make = SyntheticImages(info.num_classes, info.image_size, seed, device)
        return (
            ResidentSupply(make, device),
            ResidentSupply(lambda indices: make(indices + info.num_train), device),
            make.normalization(divide_by_std=normalize == "mean_std"),
        )
    if found is None:
        train, test = digits.read_digits(info.image_size)
    else:
        train = cifar.read_cifar(_CIFARS[info.name], *found, "train")
        test = cifar.read_cifar(_CIFARS[info.name], *found, "test")
    statistics = (
        Normalization.per_pixel_mean if normalize == "per_pixel_mean" else Normalization.channel_mean_std
    )
    return (
        ResidentSupply.of_tensors(*train, device),
        ResidentSupply.of_tensors(*test, device),
        statistics(train[0]),
    )
