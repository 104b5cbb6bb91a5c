"""Configurations of runs: their sections, and how they are read."""

from deepres.config.data_config import DataConfig
from deepres.config.engine_config import FP32_BYTES, EngineConfig
from deepres.config.fields import MOST_PIXELS
from deepres.config.load_config import load_config
from deepres.config.model_config import MOST_LAYERS, ModelConfig
from deepres.config.optim_config import OptimConfig
from deepres.config.recompute_config import RecomputeConfig
from deepres.config.run_config import Config, ConfigError, LogConfig, PrecisionConfig
from deepres.config.train_config import TrainConfig

__all__ = [
    "FP32_BYTES",
    "MOST_LAYERS",
    "MOST_PIXELS",
    "Config",
    "ConfigError",
    "DataConfig",
    "EngineConfig",
    "LogConfig",
    "ModelConfig",
    "OptimConfig",
    "PrecisionConfig",
    "RecomputeConfig",
    "TrainConfig",
    "load_config",
]
