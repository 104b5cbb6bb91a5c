"""Begin a run with trained weights rather than random ones (fine-tuning)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deepres.checkpoints.snapshot import CLASSES
from deepres.config import Config, ConfigError
from deepres.data import DataInfo
from deepres.evaluating import net_with
from deepres.models import ResNet, build_resnet
from deepres.pretrained import PretrainedError, load_pretrained
from deepres.weights import load_weights

if TYPE_CHECKING:
    from deepres.pretrained.key_maps import Source

_OF_CLASSES = ("head.linear.weight", "head.linear.bias")
_IMAGENET_CLASSES = 1000


@torch.no_grad()
def set_initial_weights(net: ResNet, config: Config, info: DataInfo) -> str | None:
    """Set a net's parameters and buffers to those of `train.initial_weights`.

    The classifier stays as it is, random, if the weights are known to be for other classes: another number of them, or
    image folders of other names.

    Args:
        net: the run's.
        config: the run's.
        info: the run's data set.

    Returns:
        A line for the user; None if the run has no initial weights.

    Raises:
        ConfigError: there are no such weights, or they are another net's.
    """
    path, source = config.train.initial_weights, config.train.initial_source
    if path is None:
        return None
    classes = info.classes_sha256
    try:
        if source == "deepres":
            file = load_weights(path)
            classes = file.metadata.get(CLASSES, classes)
            trained = net_with(file, config)
        else:
            trained = _third_party(path, source, config)
    except ConfigError as error:
        raise ConfigError(f"train.initial_weights: {error}") from None
    weights = trained.state_dict()
    num_classes = len(weights["head.linear.weight"])
    is_same = num_classes == info.num_classes and classes == info.classes_sha256
    for name, tensor in net.state_dict().items():
        if is_same or name not in _OF_CLASSES:
            tensor.copy_(weights[name])
    if is_same:
        return f"begins with the weights of {path}"
    return (
        f"begins with the weights of {path}, except for the classifier, which was trained for other classes"
    )


def _third_party(path: Path, source: Source, config: Config) -> ResNet:
    net = build_resnet(**config.model.building(_IMAGENET_CLASSES))
    try:
        load_pretrained(net, path, source)
    except (PretrainedError, OSError) as error:
        raise ConfigError(str(error)) from None
    return net
