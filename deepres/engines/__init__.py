"""Engines: the ways to run training steps; only the chosen one is imported."""

from __future__ import annotations

import os

from torch import nn

from deepres.batch_sizes import BatchSizes
from deepres.config import Config
from deepres.distributed import Process
from deepres.engines.base import Engine, NonFiniteError

__all__ = ["Engine", "NonFiniteError", "make_engine"]


def make_engine(net: nn.Module, config: Config, process: Process, sizes: BatchSizes) -> Engine:
    """The engine that `config.engine.name` names; see `Engine` for the arguments."""
    if config.engine.name == "deepspeed":
        if process.device.type == "cpu":  # otherwise DeepSpeed moves the net to a GPU, if there is one
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from deepres.engines.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(net, config, process, sizes)
    if config.engine.name == "fairscale":
        from deepres.engines.fairscale_engine import FairscaleEngine

        return FairscaleEngine(net, config, process, sizes)
    from deepres.engines.plain_engine import PlainEngine

    return PlainEngine(net, config, process, sizes)
