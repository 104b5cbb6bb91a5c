"""A run's net, from its configuration alone: how it is built and laid out, and what it is to tell apart."""

from __future__ import annotations

from torch import nn

from deepres.config import Config
from deepres.models import ResNet, build_resnet


def expected_num_classes(config: Config) -> int:
    """How many classes a run's net tells apart, as far as that is known without its data."""
    return config.model.num_classes or config.data.num_classes or config.data.known.num_classes or 10


def net_of(config: Config, num_classes: int | None = None) -> ResNet:
    """A run's net, laid out as in training.

    Args:
        config: of the run.
        num_classes: by default `expected_num_classes`.

    Raises:
        ValueError: there is no such net.
    """
    net = build_resnet(**config.model.building(num_classes or expected_num_classes(config)))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            # As `Module.to`, which would not take tensors without values, and unlike `contiguous`, which leaves 1x1
            # weights with strides of their own, for which units would be compiled anew.
            module.weight.data = module.weight.data.to(memory_format=config.parameters_format)
    return net
