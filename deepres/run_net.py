"""A run's net, from its configuration alone: architecture, memory format and number of classes."""

from __future__ import annotations

from torch import nn

from deepres.config import Config
from deepres.models import ResNet, build_resnet


def expected_num_classes(config: Config) -> int:
    """The number of classes of a run's net, as far as it is known without the data."""
    return config.model.num_classes or config.data.num_classes or config.data.known.num_classes or 10


def net_of(config: Config, num_classes: int | None = None) -> ResNet:
    """A run's net, with parameters in the memory format of training.

    Args:
        config: the run's.
        num_classes: by default `expected_num_classes`.

    Raises:
        ValueError: there is no such net.
    """
    net = build_resnet(**config.model.building(num_classes or expected_num_classes(config)))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            # Like `Module.to`, which does not accept tensors without values, and unlike `contiguous`, which leaves 1x1
            # weights with strides of their own, for which units would be compiled again.
            module.weight.data = module.weight.data.to(memory_format=config.parameters_format)
    return net
