"""The preprocessing of an image between its file and the network."""

from dataclasses import dataclass

from deepres.config import DataConfig
from deepres.data.batch import DataError
from deepres.data.decode import Crop
from deepres.data.source import DeviceAugmentation


@dataclass(frozen=True)
class Pipeline:
    """The preprocessing of a set's images.

    Attributes:
        crops: applied to training and test images when they are decoded; None for sets that are held on the device.
        on_device: applied to whole batches of training images.
    """

    crops: tuple[Crop, Crop] | None
    on_device: DeviceAugmentation


def make_pipeline(asked: DataConfig) -> Pipeline:
    """The preprocessing that a configuration asks for, with its defaults filled in.

    Raises:
        DataError: scaled test images would be smaller than their crop.
    """
    size, augmentation = asked.chosen_image_size, asked.chosen_augmentation
    on_device: DeviceAugmentation
    if augmentation == "scale" or augmentation == "scale_and_aspect":
        train, on_device = Crop(augmentation, size), "none"
    else:
        train, on_device = Crop("centre", size, size), augmentation
    if not asked.known.is_files:
        return Pipeline(None, on_device)
    test_size = asked.eval_image_size or size
    is_as_in_training = train.kind != "centre" and test_size == size
    shorter_side = asked.eval_shorter_side or (round(size * 256 / 224) if is_as_in_training else test_size)
    if shorter_side < test_size:
        raise DataError(
            f"data.eval_shorter_side must be at least the test crop's {test_size}, got {shorter_side}"
        )
    return Pipeline((train, Crop("centre", test_size, shorter_side)), on_device)
