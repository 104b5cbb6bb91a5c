"""Entry points of `torch.hub.load("OWNER/deepres", "resnet164", weights="run/model.safetensors")`.

These are the paper's nets. A run whose shortcuts were scaled or dropped, or whose strides were elsewhere, left weights
of the same names and shapes, which are not told apart here: `tools/export.py --format torchscript` writes such a net.
"""

from __future__ import annotations

dependencies = ["torch", "numpy", "safetensors"]

import deepres as _deepres


def _load(net: _deepres.ResNet, weights: str | None) -> _deepres.ResNet:
    if weights is not None:
        from safetensors.torch import load_file

        net.load_state_dict(load_file(weights))
    return net


def resnet110(num_classes: int = 10, weights: str | None = None) -> _deepres.ResNet:
    """The paper's CIFAR ResNet-110; `weights`: a file that a run left as `model.safetensors`."""
    return _load(_deepres.resnet110(num_classes), weights)


def resnet164(num_classes: int = 10, weights: str | None = None) -> _deepres.ResNet:
    """The paper's CIFAR ResNet-164; `weights` as for `resnet110`."""
    return _load(_deepres.resnet164(num_classes), weights)


def resnet1001(num_classes: int = 10, weights: str | None = None) -> _deepres.ResNet:
    """The paper's CIFAR ResNet-1001; `weights` as for `resnet110`."""
    return _load(_deepres.resnet1001(num_classes), weights)


def resnet101(num_classes: int = 1000, weights: str | None = None) -> _deepres.ResNet:
    """The paper's ImageNet ResNet-101; `weights` as for `resnet110`."""
    return _load(_deepres.resnet101(num_classes), weights)


def resnet152(num_classes: int = 1000, weights: str | None = None) -> _deepres.ResNet:
    """The paper's ImageNet ResNet-152; `weights` as for `resnet110`."""
    return _load(_deepres.resnet152(num_classes), weights)


def resnet200(num_classes: int = 1000, weights: str | None = None) -> _deepres.ResNet:
    """The paper's ImageNet ResNet-200; `weights` as for `resnet110`."""
    return _load(_deepres.resnet200(num_classes), weights)
