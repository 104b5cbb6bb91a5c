"""Trained nets: rebuilt from a run's files, and tested."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from deepres.autocast import ComputeIn
from deepres.checkpoints.snapshot import CONFIG
from deepres.config import Config, ConfigError, load_config
from deepres.data import find_data
from deepres.known_sets import KNOWN_SETS, SET_OF
from deepres.metrics import Metrics, metric_sums
from deepres.models import ResNet, build_resnet
from deepres.run_folder import CONFIG as RUN_CONFIG
from deepres.tensor_files import TensorFile
from deepres.trained_net import TrainedNetError, recorded_arguments, set_weights, trained_on
from deepres.weights import config_file_of, load_weights, num_classes_of

Crop = Literal["config", "224", "320", "ten"]
_TEN_CROP_SIDE, _TEN_CROP_SIZE = 256, 224


def find_config(weights: Path, given: Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """The configuration of the net whose weights are at a path.

    A file that records its net, but belongs to no run, gets the paper's data set for such nets and the normalization
    that it records, unless overridden.

    Args:
        weights: a run's folder, a checkpoint, or a file of weights.
        given: the configuration's file; by default that of the run or checkpoint that holds the weights.
        overrides: `section.key=value`.

    Raises:
        ConfigError: there is none, or it is invalid.
    """
    if given is not None:
        return load_config(given, overrides)
    path = config_file_of(weights)
    if path is not None:
        return load_config(path, overrides)
    file = load_weights(weights) if weights.is_file() else None
    try:
        arguments = None if file is None else recorded_arguments(file)
    except TrainedNetError as error:
        raise ConfigError(str(error)) from None
    if file is None or arguments is None:
        folder = weights if weights.is_dir() else weights.parent
        raise ConfigError(
            f"the architecture of {weights} is recorded nowhere: {folder} has no {RUN_CONFIG} of a run and no "
            f"{CONFIG} of a checkpoint; name one with --config FILE (weights of other libraries: tools/export.py FILE "
            "--source …)"
        )
    of_net = [f"model.{key}={json.dumps(value)}" for key, value in arguments.items()]
    name = SET_OF[arguments["dataset"]]
    of_net += [f"data.name={name}", "train.max_steps=1", "train.global_batch_size=32"]
    normalize = trained_on(file).normalize
    if normalize is not None and KNOWN_SETS[name].takes(normalize):
        of_net.append(f"data.normalize={normalize}")
    return load_config(None, [*of_net, *overrides])


def net_with(weights: TensorFile, config: Config) -> ResNet:
    """The net of a configuration with the weights of a file, in evaluation mode.

    Raises:
        ConfigError: they are another net's.
    """
    num_classes = num_classes_of(weights)
    try:
        net = build_resnet(**config.model.building(num_classes))
        set_weights(net, weights)
    except ValueError as error:
        raise ConfigError(
            f"the weights at {weights.path} are not of the configuration's net: {error}"
        ) from None
    return net.eval()


@torch.no_grad()
def evaluate(path: Path, config: Config, crop: Crop, device: torch.device) -> Metrics:
    """Test the net whose weights are at `path` on the test images of its configuration's data set.

    Args:
        path: a run's folder, a checkpoint, or a file of weights.
        config: names the net, the data and the precision.
        crop: `config`: as in the run's own evaluation. Of image files also `224` (of 256), `320` (of 320) and `ten`:
            the centre, the corners, and the mirror images of all five, of 224² in the central 256² (Krizhevsky et
            al. 2012, Section 4.1); probabilities are averaged.
        device: where to compute.

    Raises:
        ConfigError: there are no such weights, or the crop is for image files only, or the data has other classes or
            another normalization than the net was trained with.
        deepres.data.DataError: the data cannot be used.
    """
    weights = load_weights(path)
    net, trained = net_with(weights, config), trained_on(weights)
    asked = config.data
    if trained.normalize not in (None, asked.chosen_normalize):
        raise ConfigError(
            f"{weights.path} was trained on images normalised by data.normalize={trained.normalize}, not by "
            f"{asked.chosen_normalize}"
        )
    if crop != "config":
        if not asked.known.is_files:
            raise ConfigError(f"crop {crop} is for image files, not for {config.data.name}: use config")
        size, side = {"224": (224, 256), "320": (320, 320), "ten": (_TEN_CROP_SIDE, _TEN_CROP_SIDE)}[crop]
        asked = asked.model_copy(update={"eval_image_size": size, "eval_shorter_side": side})
    micro_size = config.train.micro_batch_size
    batch_size = config.train.eval_batch_size or (micro_size if isinstance(micro_size, int) else 32)
    data = find_data(asked).open(
        micro_batch_size=1,
        eval_batch_size=batch_size,
        seed=config.train.seed,
        device=device,
    )
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    try:
        num_classes = len(net.get_parameter("head.linear.weight"))
        if data.info.num_classes != num_classes:
            raise ConfigError(
                f"{config.data.name} has {data.info.num_classes} classes, the net was built for {num_classes}"
            )
        if trained.classes_sha256 and data.info.classes_sha256 not in ("", trained.classes_sha256):
            raise ConfigError(
                f"the classes of {config.data.root} have other names than those that {weights.path} was trained on, "
                "and names decide labels: test it on the same classes"
            )
        precision = config.precision
        module = ComputeIn(net.to(device), precision.dtype, device.type)
        for batch in tqdm(data.test_batches(), "testing", unit=" batches", leave=False, disable=None):
            images = batch.images.contiguous(memory_format=precision.memory_format)
            logits = ten_crop_logits(module, images) if crop == "ten" else module(images)
            sums += metric_sums(logits, batch.labels)
    finally:
        data.close()
    return Metrics.over_processes(sums)


def ten_crop_logits(net: nn.Module, images: Tensor, size: int = _TEN_CROP_SIZE) -> Tensor:
    """Logarithms of the probabilities averaged over ten views of `images: (N, 3, H, W)`."""
    height, width = images.shape[-2:]
    bottom, right = height - size, width - size
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    views = [images[..., top : top + size, left : left + size] for top, left in corners]
    logs = [F.log_softmax(net(each.contiguous()), dim=1) for view in views for each in (view, view.flip(-1))]
    # Logarithms are finite where a probability is 0 in fp32.
    return torch.logsumexp(torch.stack(logs), dim=0) - math.log(len(logs))
