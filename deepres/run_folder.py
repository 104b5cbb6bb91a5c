"""The folder of a run: its resolved config, `metrics.jsonl`, curves and weights."""

from __future__ import annotations

import time
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from deepres.config import Config, ConfigError
from deepres.metrics import MetricsFile


def choose_run_folder(config: Config, config_path: Path) -> Path:
    """`train.run_dir`, or a new folder under `train.output` named after the config and the time.

    Raises:
        ConfigError: the folder holds a run already, or cannot be written.
    """
    folder = config.train.run_dir
    if folder is None:
        folder = config.train.output / f"{config_path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (folder / "metrics.jsonl").exists():
        raise ConfigError(f"{folder} holds another run: choose another train.run_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None
    return folder


class RunFolder:
    """What rank 0 writes while it trains.

    Args:
        path: an existing folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = MetricsFile(path / "metrics.jsonl")

    def save_weights(self, state: dict[str, Tensor]) -> Path:
        """Write parameters and buffers to `model.safetensors`."""
        target = self.path / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, target)
        return target
