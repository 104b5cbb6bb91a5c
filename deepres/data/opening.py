"""Data sets by name: `inspect_data` looks, `open_data` reads."""

from pathlib import Path
from typing import Literal

import torch

from deepres.data import cifar, digits
from deepres.data.augment import Normalization
from deepres.data.batch import DataError, DataInfo
from deepres.data.sampling import Schedule
from deepres.data.source import DataSource, DeviceAugmentation
from deepres.data.supply import ResidentSupply
from deepres.data.synthetic import SyntheticImages

DATASETS = ("cifar10", "cifar100", "imagenet", "image_folder", "digits", "synthetic")
Augmentation = Literal["none", "crop", "crop_flip", "scale", "scale_and_aspect"]
Normalize = Literal["mean_std", "per_pixel_mean"]

_CIFARS = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}
_CifarFiles = tuple[cifar.Layout, Path]


def inspect_data(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    base_url: str = cifar.BASE_URL,
    verify: bool = False,
    image_size: int | None = None,
    num_classes: int | None = None,
    num_images: int | None = None,
    global_batch_size: int | None = None,
) -> DataInfo:
    """Checks that a data set is there, whole and fit for what is asked, without reading all of its pixels.

    Call it before any process group or CUDA context exists: whatever a user can get wrong is found here.

    Args:
        name: one of `DATASETS`.
        root: where the files are. CIFAR: the folder that holds the official folder, or that folder itself.
            `imagenet`, `image_folder`: a folder or an archive with `train/` and `val/` or `test/`.
        download: fetch CIFAR if it is not there.
        base_url: where CIFAR's archives lie.
        verify: compare the checksums of CIFAR's python files with the official ones.
        image_size: height and width; needed by nobody, settable for all but CIFAR.
        num_classes: of the synthetic set; for others, what the model expects, to be compared.
        num_images: training images of the synthetic set; it has a fifth as many test images.
        global_batch_size: images a step (micro batch × accumulation × ranks), to be compared.

    Raises:
        DataError: with one line that says what was wrong, what was found, and what to do.
    """
    info, _ = _locate(
        name,
        root=root,
        download=download,
        base_url=base_url,
        verify=verify,
        image_size=image_size,
        num_classes=num_classes,
        num_images=num_images,
    )
    if global_batch_size is not None:
        _check_global_batch(info, global_batch_size, "")
    return info


def open_data(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    base_url: str = cifar.BASE_URL,
    verify: bool = False,
    image_size: int | None = None,
    num_classes: int | None = None,
    num_images: int | None = None,
    micro_batch_size: int,
    accumulation: int = 1,
    eval_batch_size: int | None = None,
    augmentation: Augmentation | None = None,
    normalize: Normalize = "mean_std",
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: str | torch.device = "cpu",
    max_bad_images: int = 10,
) -> DataSource:
    """Opens a data set for one rank.

    CIFAR, the digits and the synthetic images live on the device as uint8 and are augmented there; image files
    are decoded by worker processes.

    Args:
        name, root, download, base_url, verify, image_size, num_classes, num_images: as in `inspect_data`.
        micro_batch_size: images of one forward pass of one rank.
        accumulation: micro batches of one rank in a step.
        eval_batch_size: images of one forward pass in evaluation; `micro_batch_size` if unset.
        augmentation: of training images. `crop`: pad 4, crop at random (the default for digits); `crop_flip`:
            and mirror every other one (for CIFAR); `none` (for the synthetic set).
        normalize: `mean_std` by channel, or `per_pixel_mean` as in the paper; both of the training set.
        seed: of the order, the augmentation and the synthetic images; 0 … 2⁶⁴ − 1.
        num_workers: processes that decode image files; 0: this one.
        rank, world_size: of this process.
        device: where batches are wanted.
        max_bad_images: unreadable images that this rank leaves out before it gives up.

    Raises:
        DataError: as in `inspect_data`, and if the set has fewer images than one step takes.
    """
    device = torch.device(device)
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
    factors = f" (micro batch {micro_batch_size} × accumulation {accumulation} × {world_size} processes)"
    _check_global_batch(info, schedule.global_batch_size, factors)
    train, test, normalization = _resident(info, found, normalize, seed, device)
    return DataSource(
        info,
        schedule,
        train=train,
        test=test,
        normalization=normalization.to(device),
        augmentation=_device_augmentation(name, augmentation),
        max_bad_images=max_bad_images,
    )


def _check_global_batch(info: DataInfo, global_batch_size: int, factors: str) -> None:
    if global_batch_size > info.num_train:
        raise DataError(
            f"{info.name} has {info.num_train} training images, fewer than one step takes: "
            f"{global_batch_size}{factors}"
        )


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
) -> tuple[DataInfo, _CifarFiles | None]:
    """Finds the files of a set, if it has any."""
    if name not in DATASETS:
        raise DataError(f"data.name must be one of {', '.join(DATASETS)}, got {name!r}")
    if num_images is not None and name != "synthetic":
        raise DataError(f"data.num_images is for the synthetic set alone, got {num_images} for {name}")
    if name == "synthetic":
        num_images = 50_000 if num_images is None else num_images
        return DataInfo(name, num_classes or 10, image_size or 32, num_images, max(1, num_images // 5)), None
    found: _CifarFiles | None = None
    if name == "digits":
        digits.check_digits()
        info = DataInfo(
            name, digits.NUM_CLASSES, image_size or digits.IMAGE_SIZE, digits.NUM_TRAIN, digits.NUM_TEST
        )
    elif root is None:
        raise DataError(f"data set {name!r} needs data.root, the place of its files")
    elif name in _CIFARS:
        if image_size not in (None, cifar.IMAGE_SIZE):
            raise DataError(f"images of {name} are 32×32: leave data.image_size unset, got {image_size}")
        found = cifar.find_cifar(
            _CIFARS[name], Path(root), download=download, base_url=base_url, verify=verify
        )
        info = cifar.inspect_cifar(_CIFARS[name], *found)
    else:
        raise NotImplementedError
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
            ResidentSupply(make, device, make.device_bytes),
            ResidentSupply(lambda indices: make(indices + info.num_train), device, 0),
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


def _device_augmentation(name: str, augmentation: Augmentation | None) -> DeviceAugmentation:
    if augmentation is None:
        return "crop_flip" if name in _CIFARS else "crop" if name == "digits" else "none"
    if augmentation in ("scale", "scale_and_aspect"):
        raise DataError(
            f"data.augmentation={augmentation} is for image files; {name} takes none, crop or crop_flip"
        )
    return augmentation  # type: ignore[return-value]
