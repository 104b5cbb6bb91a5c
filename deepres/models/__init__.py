"""Residual networks: their units, shortcuts and builders."""

from deepres.models.batch_norm import BatchNorm2d, synchronize_batch_norm
from deepres.models.compiled_unit import compile_units
from deepres.models.residual_unit import ResidualUnit
from deepres.models.resnet import (
    ResNet,
    build_resnet,
    resnet101,
    resnet110,
    resnet152,
    resnet164,
    resnet200,
    resnet1001,
)

__all__ = [
    "BatchNorm2d",
    "ResNet",
    "ResidualUnit",
    "build_resnet",
    "compile_units",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet164",
    "resnet200",
    "resnet1001",
    "synchronize_batch_norm",
]
