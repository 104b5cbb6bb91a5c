"""The section `data` of a configuration: which images a run has, and what happens to them before the net."""

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
    """Where the files are. CIFAR: the folder that holds the official folder, or that folder itself. `imagenet` and
    `image_folder`: a folder or an archive with `train/` and `val/` or `test/`."""
    download: bool = False
    """Fetch CIFAR into `root` if it is not there."""
    verify: bool = False
    """Compare CIFAR's files with the official checksums."""
    image_size: ImageSize | None = None
    """Height and width that the net sees; by default the data set's own (32; image files 224)."""
    augmentation: Augmentation | None = None
    """Of training images. `none` (the default of `synthetic`); `crop`: pad 4, crop at random (of `digits`);
    `crop_flip`: and mirror every other one (of CIFAR); for image files also `scale` (their default) and
    `scale_and_aspect`, see `deepres.data.decode.Crop`. Image files that are not scaled at random are scaled to
    `image_size` and cropped in the middle first."""
    lighting: NonNegativeFloat = 0.0
    """How much a training image's colour varies along the principal components of ImageNet's (0.1 in ResNet v1)."""
    eval_image_size: ImageSize | None = None
    """Centre crop of test images (image files only); by default `image_size`."""
    eval_shorter_side: ImageSize | None = None
    """What their shorter side is scaled to before that crop. By default 256 for 224 (or in proportion) if the crop is
    as in training; the crop itself if it is another (320 for 320), or if training does not scale at random."""
    normalize: Normalize = "mean_std"
    """`mean_std` by channel, or `per_pixel_mean` as in the paper; both of the training set. Image files take
    ImageNet's mean and deviation. `half`, of all: from -1 to 1, as `timm`'s nets want it."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode image files for one training process, and as many for tests; 0: itself."""
    max_bad_images: Annotated[int, Field(ge=0)] = 0
    """How many images that cannot be decoded a process leaves out before the run stops."""
    num_classes: NumClasses | None = None
    """Of `synthetic` (10 if unset); of others, what the data must have."""
    num_images: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Training images of `synthetic` (50,000 if unset); it has a fifth as many test images."""

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
                known.is_files and self.normalize == "per_pixel_mean",
                "normalize of image files must be mean_std (ImageNet's) or half, got per_pixel_mean",
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
        """What is known of the set before any file of it is looked for."""
        return KNOWN_SETS[self.name]

    @property
    def chosen_augmentation(self) -> Augmentation:
        """`augmentation`, or the data set's usual one."""
        return self.augmentation or self.known.augmentation

    @property
    def chosen_image_size(self) -> int:
        """`image_size`, or the data set's own."""
        return self.image_size or self.known.image_size
