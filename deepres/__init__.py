"""Memory-efficient training of very deep residual networks."""

from deepres.memory.measure import measure_chain
from deepres.memory.predict import predict_chain
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
from deepres.pretrained import PretrainedError, load_pretrained
from deepres.recompute import InfeasibleBudgetError, Plan, apply_plan, make_plan
from deepres.trained_net import TrainedNetError, load_resnet

__version__ = "0.1.0"

__all__ = [
    "InfeasibleBudgetError",
    "Plan",
    "PretrainedError",
    "ResNet",
    "ResidualUnit",
    "TrainedNetError",
    "apply_plan",
    "build_resnet",
    "load_pretrained",
    "load_resnet",
    "make_plan",
    "measure_chain",
    "predict_chain",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet164",
    "resnet200",
    "resnet1001",
]
