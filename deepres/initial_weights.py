"""Begin a run with trained weights rather than random ones (fine-tuning)."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from deepres.config import Config, ConfigError
from deepres.data import DataInfo
from deepres.evaluating import net_with
from deepres.models import ResNet
from deepres.pretrained.checks import PretrainedError, check_numbers
from deepres.trained_net import trained_on
from deepres.weights import load_weights

_CLASSIFIER = "head.linear"


class InitialWeights(NamedTuple):
    """What a run begins with: the SHA-256 of the trained net's tensors, and lines for the user."""

    sha256: str
    told: str


@torch.no_grad()
def set_initial_weights(net: ResNet, config: Config, info: DataInfo) -> InitialWeights | None:
    """Set a net's parameters and buffers to those of `train.initial_weights`.

    The classifier stays as it is, random, if the weights are known to be for other classes: another number of them, or
    image folders of other names.

    Args:
        net: the run's.
        config: the run's.
        info: the run's data set.

    Returns:
        None if the run has no initial weights.

    Raises:
        ConfigError: there are no such weights, they are another net's, or their numbers are unusable (such as NaN).
    """
    path = config.train.initial_weights
    if path is None:
        return None
    try:
        file = load_weights(path)
        weights = net_with(file, config).state_dict()
        check_numbers(file.path, file.tensors, weights)
    except (ConfigError, PretrainedError) as error:
        raise ConfigError(f"train.initial_weights: {error}") from None
    before = trained_on(file)
    classes = before.classes_sha256 or info.classes_sha256
    is_same = (len(weights[f"{_CLASSIFIER}.weight"]), classes) == (info.num_classes, info.classes_sha256)
    for name, tensor in net.state_dict().items():
        if is_same or not name.startswith(_CLASSIFIER):
            tensor.copy_(weights[name])
    but = "" if is_same else ", except for the classifier, which was trained for other classes"
    told = f"begins with the weights of {path}{but}"
    if before.normalize not in (None, config.data.chosen_normalize):
        told += (
            f"\nWARNING: they were trained with data.normalize={before.normalize}, this run has "
            f"{config.data.chosen_normalize}"
        )
    return InitialWeights(_sha256(weights), told)


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]
