"""What two runs must have in common: to resume from a checkpoint, and to keep its test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepres.batch_sizes import BatchSizes
from deepres.config import Config
from deepres.data import DataInfo


@dataclass(frozen=True)
class Identity:
    """What another run must have in common with this one.

    Attributes:
        of_run: to resume from its checkpoints.
        of_test: to keep its last test as well.
    """

    of_run: dict[str, Any]
    of_test: dict[str, Any]


def run_identity(
    config: Config, sizes: BatchSizes, info: DataInfo, initial_sha256: str | None = None
) -> Identity:
    """The identity of a run.

    Args:
        config: the run's.
        sizes: its batch sizes.
        info: its data set.
        initial_sha256: of the weights that it begins with; None: random ones.
    """
    of_run = {
        **{f"model.{name}": value for name, value in config.model.resolved().items()},
        "model.num_classes": info.num_classes,
        "data.name": config.data.name,
        "data.augmentation": config.data.chosen_augmentation,
        "data.lighting": config.data.lighting,
        "data.normalize": config.data.chosen_normalize,
        "data.image_size": info.image_size,
        "the number of training images": info.num_train,
        # Labels are positions among the sorted folder names: renaming one class can change the labels of all.
        "the SHA-256 of the classes' names": info.classes_sha256,
        "train.seed": config.train.seed,
        "the SHA-256 of train.initial_weights": initial_sha256,
        "the global batch size": sizes.global_size,
    }
    of_test = {
        "data.eval_image_size": config.data.eval_image_size,
        "data.eval_shorter_side": config.data.eval_shorter_side,
        "precision.compute": config.precision.compute,
        "the number of test images": info.num_test,
        "the SHA-256 of the images' names": info.files_sha256,
    }
    return Identity(of_run, of_test)


def batch_norm_size(config: Config, sizes: BatchSizes) -> int:
    """The number of images over which batch norm computes its statistics."""
    return sizes.micro_size * (sizes.world_size if config.engine.sync_batch_norm else 1)
