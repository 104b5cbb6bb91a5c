"""The section `data` of a configuration: the images of a run, and their preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from deepres.config.fields import HostPath, ImageSize, NonNegativeFloat, NumClasses, Section
from deepres.known_sets import KNOWN_SETS, Augmentation, KnownSet, Normalize, SetName


class DataConfig(Section):
    """The images; `deepres.data.find_data` finds them."""

    name: SetName
    """The data set. `digits` comes with scikit-learn; `synthetic` is random numbers, to try things out."""
    root: HostPath = Path("data")
    """Where the files are. CIFAR: the official folder, or the folder that holds it. `imagenet` and `image_folder`: a
    folder or an archive with `train/` and `val/` or `test/`."""
    download: bool = False
    """Download CIFAR into `root` if it is not there."""
    verify: bool = False
    """Compare CIFAR's files with the official checksums."""
    image_size: ImageSize | None = None
    """Height and width of the net's input; by default the data set's own (32; image files 224)."""
    augmentation: Augmentation | None = None
    """Augmentation of training images. `none` (the default for `synthetic`); `crop`: pad by 4 and crop at random (the
    default for `digits`); `crop_flip`: also mirror with probability 1/2 (the default for CIFAR); for image files also
    `scale` (their default) and `scale_and_aspect`, see `deepres.data.decode.Crop`. Image files that are not scaled at
    random are first scaled to `image_size` and centre-cropped."""
    lighting: NonNegativeFloat = 0.0
    """Strength of random colour shifts of training images along ImageNet's principal components (0.1 in ResNet v1)."""
    eval_image_size: ImageSize | None = None
    """Size of the centre crop of test images (image files only); by default `image_size`."""
    eval_shorter_side: ImageSize | None = None
    """Length to which the shorter side of test images is scaled before that crop. If training scales at random and
    crops to the same size, by default 256 for a crop of 224, others in proportion; else the size of the crop."""
    normalize: Normalize | None = None
    """Normalization of images. By the training set's own statistics: `mean_std` of each channel (the default), or
    `per_pixel_mean`, as in the paper; not for image files. By constants: `imagenet_mean_std`, ImageNet's of each
    channel (the default for image files), or `half`, to the range from -1 to 1, as `timm`'s nets expect."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode image files, per training process (and as many again for the test split); 0: the training
    process itself."""
    max_bad_images: Annotated[int, Field(ge=0)] = 0
    """Unreadable images that each process skips; one more stops the run."""
    num_classes: NumClasses | None = None
    """The number of classes of `synthetic` (10 if unset); other data must have this many."""
    num_images: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """The number of training images of `synthetic` (50,000 if unset); it has a fifth as many test images."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        name, known = self.name, self.known
        mistakes = (
            (
                self.num_images is not None and name != "synthetic",
                f"num_images is for the synthetic set alone, got {self.num_images} for {name}",
            ),
            (
                self.download and not known.has_one_size,
                f"download is for cifar10 and cifar100 alone, got true for {name}",
            ),
            (
                self.verify and not known.has_one_size,
                f"verify is for cifar10 and cifar100 alone, got true for {name}",
            ),
            (
                known.has_one_size and self.chosen_image_size != known.image_size,
                (
                    f"images of {name} are {known.image_size}×{known.image_size}: leave data.image_size unset, "
                    f"got {self.image_size}"
                ),
            ),
            (
                not known.takes(self.chosen_normalize),
                f"normalize of image files must be imagenet_mean_std or half, got {self.normalize}",
            ),
            (
                not known.is_files and (self.eval_image_size, self.eval_shorter_side) != (None, None),
                f"eval_image_size and eval_shorter_side are for image files, not for {name}",
            ),
            (
                not known.is_files and self.augmentation in ("scale", "scale_and_aspect"),
                f"augmentation={self.augmentation} is for image files; {name} takes none, crop or crop_flip",
            ),
        )
        for is_so, text in mistakes:
            if is_so:
                raise ValueError(text)
        return self

    @property
    def known(self) -> KnownSet:
        """What is known about the data set without looking for its files."""
        return KNOWN_SETS[self.name]

    @property
    def chosen_augmentation(self) -> Augmentation:
        """`augmentation`, or the data set's default."""
        return self.augmentation or self.known.augmentation

    @property
    def chosen_normalize(self) -> Normalize:
        """`normalize`, or the data set's default."""
        return self.normalize or self.known.normalize

    @property
    def chosen_image_size(self) -> int:
        """`image_size`, or the data set's default."""
        return self.image_size or self.known.image_size
