"""Entry points of `torch.hub.load("OWNER/deepres", "resnet164", weights="run/model.safetensors")`.

These are the paper's nets; `deepres.load_resnet` loads any other that a run has left.
"""

from __future__ import annotations

dependencies = ["torch", "numpy", "safetensors"]

import deepres as _deepres
from deepres.models.difference import first_difference as _first_difference


def _net(meant: _deepres.ResNet, weights: str | None) -> _deepres.ResNet:
    if weights is None:
        return meant
    net = _deepres.load_resnet(weights)
    difference = _first_difference(net, meant)
    if difference is not None:
        raise ValueError(f"{weights} is of another net, which deepres.load_resnet loads: its {difference}")
    return net


def resnet110(num_classes: int = 10, weights: str | None = None) -> _deepres.ResNet:
    """The paper's CIFAR ResNet-110; `weights`: a file that a run left as `model.safetensors`;
    with it the net is in evaluation mode."""
    return _net(_deepres.resnet110(num_classes), weights)


def resnet164(num_classes: int = 10, weights: str | None = None) -> _deepres.ResNet:
    """The paper's CIFAR ResNet-164; `weights` as for `resnet110`."""
    return _net(_deepres.resnet164(num_classes), weights)


def resnet1001(num_classes: int = 10, weights: str | None = None) -> _deepres.ResNet:
    """The paper's CIFAR ResNet-1001; `weights` as for `resnet110`."""
    return _net(_deepres.resnet1001(num_classes), weights)


def resnet101(num_classes: int = 1000, weights: str | None = None) -> _deepres.ResNet:
    """The paper's ImageNet ResNet-101; `weights` as for `resnet110`."""
    return _net(_deepres.resnet101(num_classes), weights)


def resnet152(num_classes: int = 1000, weights: str | None = None) -> _deepres.ResNet:
    """The paper's ImageNet ResNet-152; `weights` as for `resnet110`."""
    return _net(_deepres.resnet152(num_classes), weights)


def resnet200(num_classes: int = 1000, weights: str | None = None) -> _deepres.ResNet:
    """The paper's ImageNet ResNet-200; `weights` as for `resnet110`."""
    return _net(_deepres.resnet200(num_classes), weights)
