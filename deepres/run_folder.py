"""A run's folder: its resolved config, `metrics.jsonl`, curves, weights, and the file that marks it as finished."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from deepres.commit import SaveError, replace_file, replace_text
from deepres.config import Config, ConfigError
from deepres.metrics import MetricsFile

CONFIG, METRICS, WEIGHTS, FINISHED = "config.yaml", "metrics.jsonl", "model.safetensors", "finished.json"
PLAN, CURVES, OUT_OF_MEMORY = "plan.json", "curves.png", "out_of_memory.pickle"
CHECKPOINTS, LOCK = "checkpoints", ".lock"
MADE_BY = "made_by"
"""Kind of the metrics line that records when, where and with which versions a run began or was resumed."""
NOT_FINITE = "not_finite"
"""Kind of the metrics line that records where the non-finite number that ended a run arose."""
_LOCK_WAIT_S = 15.0
_OF_A_RUN = (CONFIG, METRICS, WEIGHTS, FINISHED, PLAN, CURVES, OUT_OF_MEMORY, "events.out.tfevents.*")


def run_folder_path(config: Config, config_path: Path) -> Path:
    """`train.run_dir`, or a folder created under `train.output` and named after the config and the time."""
    if config.train.run_dir is not None:
        return config.train.run_dir
    first = config.train.output / f"{config_path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (first.with_name(f"{first.name}-{k}") for k in count(2))  # if runs begin in the same second
    for path in chain([first], others):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
        return path
    raise AssertionError("all numbers are taken")


@contextmanager
def lock_run_folder(folder: Path, wait_s: float = _LOCK_WAIT_S) -> Iterator[None]:
    """Create a folder and keep other runs out of it; remove it, and parents created for it, if it is empty afterwards.

    The lock is the system's (flock on a file in the folder): it is released once the process, in whatever way, and the
    processes that decode its images have ended. These notice a few seconds later; hence the wait. On a file system
    without flock nothing is locked.

    Raises:
        ConfigError: another run holds it, or it cannot be made.
    """
    made = [path for path in folder.parents if not path.exists()]
    try:
        descriptor = _hold(folder, wait_s)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None
    if descriptor is None:
        raise ConfigError(
            f"another process is writing a run to {folder}: wait for its end, stop it, or choose another train.run_dir"
        )
    try:
        yield
    finally:
        with suppress(OSError):
            if [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                for path in (folder, *made):
                    path.rmdir()
        os.close(descriptor)


def _hold(folder: Path, wait_s: float) -> int | None:
    """Create and lock a folder; returns the descriptor that holds the lock, or None if another process holds it."""
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT, 0o666
        )  # on NFS, a locked file must be open for writing
        if not _lock(descriptor, wait_s):
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # another run has found the folder empty and removed it


def is_locked(folder: Path) -> bool:
    """Whether a run is being written to a folder."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _lock(descriptor, wait_s=0)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)
        except OSError:
            return True
        else:
            return True


def check_run_folder(config: Config, folder: Path) -> None:
    """Check that an existing folder may take the run; changes nothing in it.

    Args:
        config: the configuration.
        folder: the run's folder.

    Raises:
        ConfigError: the folder already holds a run, which is neither to be resumed nor overwritten, or it cannot be
            written.
    """
    resume, initial = config.train.resume, config.train.initial_weights
    if config.train.overwrite and initial is not None and is_inside(initial, folder):
        raise ConfigError(
            f"train.overwrite would remove {folder}, which holds train.initial_weights: choose another train.run_dir"
        )
    is_resumed = resume == "auto" or (isinstance(resume, Path) and is_inside(resume, folder))
    try:
        if _holds_run(folder) and not is_resumed and not config.train.overwrite:
            raise ConfigError(
                f"{folder} holds another run: train.resume=auto goes on with it, train.overwrite=true replaces it, "
                "or choose another train.run_dir"
            )
        if (folder / METRICS).exists():
            (folder / METRICS).open("a").close()
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be written: {error.strerror}") from None


class RunFolder:
    """What rank 0 writes while it trains.

    Files of an earlier run are removed only now, after all other checks passed.

    Args:
        path: a folder that passed `check_run_folder`.
        config: written there.
        metrics_bytes: how much to keep of an existing `metrics.jsonl`: what precedes the checkpoint that the run
            resumes from.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: Path, config: Config, metrics_bytes: int = 0) -> None:
        self.path = path
        try:
            metrics = path / METRICS
            if metrics.exists():
                _cut_lines(metrics, metrics_bytes)
            if config.train.overwrite and _holds_run(path):
                _remove_run(path)
            for name in (FINISHED, WEIGHTS, CURVES):  # the run goes on, so it is not finished
                (path / name).unlink(missing_ok=True)
            replace_text(path / CONFIG, config.to_yaml())
            self.metrics = MetricsFile(metrics)
        except OSError as error:
            raise ConfigError(f"{error.filename or path} cannot be written: {error.strerror}") from None
        except SaveError as error:
            raise ConfigError(str(error)) from None

    def save_weights(self, state: dict[str, Tensor], metadata: dict[str, str]) -> Path:
        """Write parameters, buffers and metadata to `model.safetensors`.

        Raises:
            SaveError: it cannot be written.
        """
        target = self.path / WEIGHTS
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        replace_file(target, lambda aside: save_file(tensors, aside, metadata))
        return target

    def mark_finished(self, **what: Any) -> None:
        """Write `finished.json`: the run reached its end, whatever exit status a launcher reports.

        Raises:
            SaveError: it cannot be written.
        """
        replace_text(self.path / FINISHED, json.dumps(what) + "\n")


def _cut_lines(path: Path, num_bytes: int) -> None:
    """Keep the whole lines within the first `num_bytes`, which end in mid-line if the file was edited."""
    with path.open("r+b") as file:
        file.truncate(file.read(num_bytes).rfind(b"\n") + 1)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path` is a folder or inside it; links are followed."""
    return path.resolve().is_relative_to(folder.resolve())


def _holds_run(folder: Path) -> bool:
    return (folder / METRICS).exists() or (folder / CHECKPOINTS).exists()


def _remove_run(folder: Path) -> None:
    for path in (path for pattern in _OF_A_RUN for path in folder.glob(pattern)):
        path.unlink()
    if (folder / CHECKPOINTS).is_dir():
        shutil.rmtree(folder / CHECKPOINTS)
