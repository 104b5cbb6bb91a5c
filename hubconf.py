"""Entry points of `torch.hub.load("OWNER/deepres", "resnet164")`: the paper's nets, and any that a run has left."""

dependencies = ["torch", "numpy", "safetensors"]

from deepres import (  # noqa: F401
    load_resnet,
    resnet101,
    resnet110,
    resnet152,
    resnet164,
    resnet200,
    resnet1001,
)
