"""A plain engine on a CPU that scales the loss."""

from deepres.batch_sizes import batch_sizes
from deepres.config import Config
from deepres.distributed import this_process
from deepres.engines import Engine, make_engine
from deepres.models import build_resnet


def fp16_engine() -> Engine:
    """Of a ResNet-8, before its first step; micro batches of 4."""
    config = Config.model_validate(
        {
            "model": {"depth": 8},
            "data": {"name": "synthetic"},
            "train": {"max_steps": 1, "micro_batch_size": 4},
            "engine": {"name": "plain"},
            "precision": {"compute": "fp16"},
        }
    )
    return make_engine(build_resnet(8), config, this_process("cpu"), batch_sizes(config.train, 1))
