"""What happens to an image between its file and the network, and what does not go together."""

from dataclasses import dataclass

from deepres.data.batch import DataError
from deepres.data.decode import Crop
from deepres.data.source import DeviceAugmentation
from deepres.known_sets import KNOWN_SETS, Augmentation, Normalize


@dataclass(frozen=True)
class Pipeline:
    """The way of a set's images.

    Attributes:
        crops: for training and test images, when they are decoded; None for sets that live on the device.
        on_device: for whole batches of training images.
        lighting: for training images, too.
    """

    crops: tuple[Crop, Crop] | None
    on_device: DeviceAugmentation
    lighting: float


def make_pipeline(
    name: str,
    *,
    image_size: int,
    augmentation: Augmentation | None,
    lighting: float,
    normalize: Normalize,
    eval_image_size: int | None,
    eval_shorter_side: int | None,
) -> Pipeline:
    """Fills in the defaults; the arguments are those of `find_data`.

    Raises:
        DataError: the options do not fit the kind of set, or one another.
    """
    known = KNOWN_SETS[name]
    augmentation = augmentation or known.augmentation
    if known.is_files:
        if normalize == "per_pixel_mean":
            raise DataError(
                "data.normalize of image files must be mean_std (ImageNet's) or half, got per_pixel_mean"
            )
        return _for_files(image_size, augmentation, lighting, eval_image_size, eval_shorter_side)
    if eval_image_size is not None or eval_shorter_side is not None:
        raise DataError(
            f"data.eval_image_size and data.eval_shorter_side are for image files, not for {name}"
        )
    if augmentation == "scale" or augmentation == "scale_and_aspect":
        raise DataError(
            f"data.augmentation={augmentation} is for image files; {name} takes none, crop or crop_flip"
        )
    return Pipeline(None, augmentation, lighting)


def _for_files(
    image_size: int,
    augmentation: Augmentation,
    lighting: float,
    eval_image_size: int | None,
    eval_shorter_side: int | None,
) -> Pipeline:
    on_device: DeviceAugmentation
    test_size = eval_image_size or image_size
    if augmentation == "scale" or augmentation == "scale_and_aspect":
        train, on_device = Crop(augmentation, image_size), "none"
        default_side = round(image_size * 256 / 224) if test_size == image_size else test_size
    else:
        train, on_device = Crop("centre", image_size, image_size), augmentation
        default_side = test_size
    shorter_side = eval_shorter_side or default_side
    if shorter_side < test_size:
        raise DataError(
            f"data.eval_shorter_side must be at least the test crop's {test_size}, got {shorter_side}"
        )
    return Pipeline((train, Crop("centre", test_size, shorter_side)), on_device, lighting)
