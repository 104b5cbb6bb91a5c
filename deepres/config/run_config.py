"""The configuration of a run: its schema, defaults and checks.

A run is configured by a YAML file with the sections below, plus `section.key=value` from the command line. Unknown keys
are errors. `load_config` returns it checked and frozen.

A file may begin with `base: FILE`, relative to itself: another such file, which has no base of its own. Their
sections are merged key by key. The file's own keys override the base's, the command line overrides both. A resolved
configuration, such as a run folder's `config.yaml`, has no base.
"""

from __future__ import annotations

from typing import Literal

import torch
import yaml
from pydantic import model_validator

from deepres.config.conflicts import first_conflict
from deepres.config.data_config import DataConfig
from deepres.config.engine_config import EngineConfig
from deepres.config.fields import PositiveInt, Section
from deepres.config.model_config import ModelConfig
from deepres.config.optim_config import OptimConfig
from deepres.config.recompute_config import RecomputeConfig
from deepres.config.train_config import TrainConfig


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line for the person who wrote it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class PrecisionConfig(Section):
    """Number formats; parameters and batch-norm statistics are always fp32."""

    compute: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 run under autocast, fp16 (CUDA only) with loss scaling."""
    channels_last: bool = False
    """Images and activations in NHWC."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `compute` names."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.compute]

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of images and activations."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class LogConfig(Section):
    """What a run logs."""

    every: PositiveInt = 50
    """Steps between log lines."""
    note: str = ""
    """A remark about the run, for `metrics.jsonl` and the tables of `tools/reproduce_paper.py`."""
    tensorboard: bool = False
    """Also write TensorBoard's event files (needs the extra `tensorboard`)."""
    plots: bool = True
    """Plot the curves at the end, if matplotlib is installed."""
    memory: bool = False
    """On a GPU: write each step's memory to `metrics.jsonl`."""
    memory_history: bool = False
    """On a GPU: record a history of allocations, which slows steps down, and write it to a file if memory runs out."""


class Config(Section):
    """A run."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    engine: EngineConfig = EngineConfig()
    recompute: RecomputeConfig = RecomputeConfig()
    precision: PrecisionConfig = PrecisionConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        conflict = first_conflict(self)
        if conflict is not None:
            raise ValueError(conflict)
        return self

    @property
    def parameters_format(self) -> torch.memory_format:
        """The layout of parameters: contiguous in sharding engines, which flatten them."""
        return self.precision.memory_format if self.engine.name == "plain" else torch.contiguous_format

    def to_yaml(self) -> str:
        """All settings, defaults included; `load_config` reads them back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
