"""Memory-efficient training of very deep residual networks."""

from deepres.models import (
    ResidualUnit,
    ResNet,
    build_resnet,
    resnet101,
    resnet110,
    resnet152,
    resnet164,
    resnet200,
    resnet1001,
)
from deepres.recompute import apply_plan

__version__ = "0.1.0"

__all__ = [
    "ResNet",
    "ResidualUnit",
    "apply_plan",
    "build_resnet",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet164",
    "resnet200",
    "resnet1001",
]
