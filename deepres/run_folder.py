"""The folder of a run: its resolved config, `metrics.jsonl`, curves, weights, and the marker of its end."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from deepres.commit import SaveError, replace_file, replace_text
from deepres.config import Config, ConfigError
from deepres.metrics import MetricsFile

METRICS, WEIGHTS, FINISHED = "metrics.jsonl", "model.safetensors", "finished.json"
_OF_A_RUN = ("config.yaml", METRICS, WEIGHTS, FINISHED, "curves.png")


def choose_run_folder(config: Config, config_path: Path, checkpoints: str) -> Path:
    """`train.run_dir`, or a new folder under `train.output` named after the config and the time.

    Args:
        config: the configuration.
        config_path: where it came from.
        checkpoints: the name of the folder's own folder of checkpoints.

    Raises:
        ConfigError: the folder holds a run already and is neither to be resumed nor overwritten, or it cannot be
            written.
    """
    folder = config.train.run_dir
    if folder is None:
        folder = config.train.output / f"{config_path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    resume = config.train.resume
    is_resumed = resume == "auto" or (isinstance(resume, Path) and _is_inside(resume, folder))
    try:
        holds_run = (folder / METRICS).exists() or (folder / checkpoints).exists()
        if holds_run and not is_resumed and not config.train.overwrite:
            raise ConfigError(
                f"{folder} holds another run: train.resume=auto goes on with it, train.overwrite=true replaces it, "
                "or choose another train.run_dir"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if holds_run and config.train.overwrite:
            _remove_run(folder, checkpoints)
        replace_text(folder / "config.yaml", config.to_yaml())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None
    except SaveError as error:
        raise ConfigError(str(error)) from None
    return folder


class RunFolder:
    """What rank 0 writes while it trains.

    Args:
        path: an existing folder.
        metrics_bytes: how much of a `metrics.jsonl` that is there to keep: what came before the checkpoint that the
            run goes on from.
    """

    def __init__(self, path: Path, metrics_bytes: int = 0) -> None:
        self.path = path
        (path / FINISHED).unlink(missing_ok=True)
        metrics = path / METRICS
        if metrics.exists() and metrics.stat().st_size > metrics_bytes:
            os.truncate(metrics, metrics_bytes)
        self.metrics = MetricsFile(metrics)

    def save_weights(self, state: dict[str, Tensor]) -> Path:
        """Write parameters and buffers to `model.safetensors`.

        Raises:
            SaveError: it cannot be written.
        """
        target = self.path / WEIGHTS
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        replace_file(target, lambda aside: save_file(tensors, aside))
        return target

    def mark_finished(self, **what: Any) -> None:
        """Write `finished.json`: the run reached its end, whatever status a launcher makes of it.

        Raises:
            SaveError: it cannot be written.
        """
        replace_text(self.path / FINISHED, json.dumps(what) + "\n")


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _remove_run(folder: Path, checkpoints: str) -> None:
    for name in _OF_A_RUN:
        (folder / name).unlink(missing_ok=True)
    if (folder / checkpoints).is_dir():
        shutil.rmtree(folder / checkpoints)
