"""Entry points of `torch.hub.load("OWNER/deepres", "resnet164", weights="run/model.safetensors")`.

These are the paper's nets; `deepres.load_resnet` loads any that a run has left.
"""

from __future__ import annotations

dependencies = ["torch", "numpy", "safetensors"]

from pathlib import Path as _Path

import deepres as _deepres
from deepres.tensor_files import read_tensor_file as _read_tensor_file
from deepres.trained_net import check_net as _check_net


def _with(weights: str | None, net: _deepres.ResNet) -> _deepres.ResNet:
    if weights is None:
        return net
    file = _read_tensor_file(_Path(weights))
    _check_net(net, file)
    net.load_state_dict(file.tensors)
    return net.eval()


def resnet110(num_classes: int = 10, weights: str | None = None) -> _deepres.ResNet:
    """The paper's CIFAR ResNet-110; `weights`: a file that a run left as `model.safetensors`;
    with it the net is in evaluation mode."""
    return _with(weights, _deepres.resnet110(num_classes))


def resnet164(num_classes: int = 10, weights: str | None = None) -> _deepres.ResNet:
    """The paper's CIFAR ResNet-164; `weights` as for `resnet110`."""
    return _with(weights, _deepres.resnet164(num_classes))


def resnet1001(num_classes: int = 10, weights: str | None = None) -> _deepres.ResNet:
    """The paper's CIFAR ResNet-1001; `weights` as for `resnet110`."""
    return _with(weights, _deepres.resnet1001(num_classes))


def resnet101(num_classes: int = 1000, weights: str | None = None) -> _deepres.ResNet:
    """The paper's ImageNet ResNet-101; `weights` as for `resnet110`."""
    return _with(weights, _deepres.resnet101(num_classes))


def resnet152(num_classes: int = 1000, weights: str | None = None) -> _deepres.ResNet:
    """The paper's ImageNet ResNet-152; `weights` as for `resnet110`."""
    return _with(weights, _deepres.resnet152(num_classes))


def resnet200(num_classes: int = 1000, weights: str | None = None) -> _deepres.ResNet:
    """The paper's ImageNet ResNet-200; `weights` as for `resnet110`."""
    return _with(weights, _deepres.resnet200(num_classes))
