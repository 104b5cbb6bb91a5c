"""Begin a run with trained weights rather than random ones (fine-tuning)."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from deepres.checkpoints.snapshot import CLASSES
from deepres.config import Config, ConfigError
from deepres.data import DataInfo
from deepres.evaluating import net_with
from deepres.models import ResNet, build_resnet
from deepres.pretrained.checks import PretrainedError, check_model, check_numbers
from deepres.pretrained.key_maps import SOURCES, Source
from deepres.pretrained.loading import set_pretrained
from deepres.tensor_files import TensorFile
from deepres.weights import load_weights

_IMAGENET_CLASSES = 1000
_CLASSIFIER = "head.linear"


class InitialWeights(NamedTuple):
    """What a run begins with: the SHA-256 of the trained net's tensors, and a line for the user."""

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
    path, source = config.train.initial_weights, config.train.initial_source
    if path is None:
        return None
    try:
        file = load_weights(path)
        if source == "deepres":
            trained = net_with(file, config)
            check_numbers(file.path, file.tensors, trained.state_dict())
        else:
            trained = _third_party(file, source, config)
    except (ConfigError, PretrainedError) as error:
        raise ConfigError(f"train.initial_weights (initial_source={source}): {error}") from None
    weights = trained.state_dict()
    classes = file.metadata.get(CLASSES, info.classes_sha256)
    is_same = (len(weights[f"{_CLASSIFIER}.weight"]), classes) == (info.num_classes, info.classes_sha256)
    for name, tensor in net.state_dict().items():
        if is_same or not name.startswith(_CLASSIFIER):
            tensor.copy_(weights[name])
    but = "" if is_same else ", except for the classifier, which was trained for other classes"
    return InitialWeights(_sha256(weights), f"begins with the weights of {path}{but}")


def _third_party(file: TensorFile, source: Source, config: Config) -> ResNet:
    theirs = next(theirs for theirs, ours in SOURCES[source].net if ours == _CLASSIFIER)
    classifier = file.tensors.get(f"{theirs}.weight")
    num_classes = _IMAGENET_CLASSES if classifier is None or classifier.dim() == 0 else len(classifier)
    net = build_resnet(**config.model.building(num_classes))
    check_model(net, SOURCES[source], source)
    set_pretrained(net, file, source)
    return net


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]
