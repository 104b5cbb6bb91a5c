"""When checkpoints are due, and how they are written; for their content see `deepres.checkpoints.snapshot`."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deepres.checkpoints.snapshot import MODEL, Snapshot
from deepres.commit import UNFINISHED, SaveError, commit_folder, replace_text
from deepres.distributed import any_process

LATEST, PREFIX = "latest", "step-"
_MAX_WAITING_SHARE = 0.02


class SaveSchedule:
    """When a checkpoint is due.

    Args:
        save_every: `N steps`, `N epochs` or `N minutes`; None: never.
        steps_per_epoch: optimizer steps of an epoch.
    """

    def __init__(self, save_every: str | None, steps_per_epoch: int) -> None:
        number, unit = save_every.split() if save_every is not None else ("0", "never")
        self._number, self._unit = int(number), unit.rstrip("s")
        self._steps_per_epoch = steps_per_epoch
        self._since = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether one is due after this step; minutes are by this process's clock."""
        if self._unit == "minute":
            return time.monotonic() - self._since >= 60 * self._number
        period = {"step": 1, "epoch": self._steps_per_epoch}.get(self._unit, 0) * self._number
        return period > 0 and step % period == 0

    def costs_too_much(self, commit_s: float) -> bool:
        """Whether waiting so long for a commit would take more than 2 % of the time since the last checkpoint."""
        return commit_s > _MAX_WAITING_SHARE * (time.monotonic() - self._since)

    def restart(self) -> None:
        """Count from now: a checkpoint has just been taken."""
        self._since = time.monotonic()


class Saver:
    """Commits snapshots to `folder/step-N`, keeps the newest ones, and writes the last one's name to `folder/latest`.

    Args:
        folder: the run's checkpoints; None in processes other than rank 0, which write nothing.
        keep: how many checkpoints to keep.

    Attributes:
        commit_s: how long the last commit took.
    """

    def __init__(self, folder: Path | None, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._error: SaveError | None = None
        self.commit_s = 0.0
        if folder is not None and folder.is_dir():
            for leftover in folder.glob(f"*{UNFINISHED}"):
                shutil.rmtree(leftover, ignore_errors=True)
                with suppress(OSError):  # gone already, or not to be removed: then it is only in the way
                    leftover.unlink()

    @property
    def has_failed(self) -> bool:
        """Whether a checkpoint could not be written; all processes must know before they go on."""
        return self._error is not None

    def save(self, snapshot: Snapshot | None) -> None:
        """Begin to commit a snapshot, once the previous one is done."""
        self.wait()
        if snapshot is not None and self._folder is not None and self._error is None:
            arguments = (snapshot, self._folder)
            self._thread = threading.Thread(target=self._commit, args=arguments, name="saver")
            self._thread.start()

    def finish(self, device: torch.device) -> None:
        """Wait until what was saved is on disk; collective.

        Raises:
            SaveError: in all processes, if it could not be written.
        """
        self.wait()
        self.check(any_process([self.has_failed], device)[0])

    def check(self, some_failed: bool) -> None:
        """Raise this process's error or, in the others, one that says that rank 0 failed.

        Raises:
            SaveError: `some_failed` is true.
        """
        if some_failed:
            raise self._error or SaveError("rank 0 could not write a checkpoint")

    def wait(self) -> None:
        """Wait until this process has finished writing."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _commit(self, snapshot: Snapshot, folder: Path) -> None:
        begin = time.monotonic()
        try:
            commit_snapshot(snapshot, folder, self._keep)
        except SaveError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  # raised in a thread, it would go unnoticed
            self._error = SaveError(f"a checkpoint could not be written to {folder}: {error!r}")
            self._error.__cause__ = error
        self.commit_s = time.monotonic() - begin


def commit_snapshot(snapshot: Snapshot, folder: Path, keep: int) -> Path:
    """Write `folder/step-N`, then `folder/latest`, then remove all but the newest `keep` checkpoints.

    Raises:
        SaveError: it cannot be written; existing checkpoints are kept.
    """
    target = folder / f"{PREFIX}{snapshot.step:08d}"
    tensors = {
        name: partial(save_file, content, metadata=snapshot.metadata if name == MODEL else None)
        for name, content in snapshot.tensors.items()
    }
    documents = {name: _text_writer(text) for name, text in snapshot.documents.items()}
    commit_folder(target, {**tensors, **documents}, snapshot.num_bytes)
    replace_text(folder / LATEST, target.name + "\n")
    for old in checkpoints_in(folder)[keep:]:
        if old != target:
            # Renamed first: a name without UNFINISHED never stands for half a checkpoint.
            disposable = old.with_name(old.name + UNFINISHED)
            try:
                old.rename(disposable)
            except OSError as error:
                raise SaveError(f"{old} cannot be removed: {error.strerror}") from error
            shutil.rmtree(disposable, ignore_errors=True)
    return target


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, intact or damaged, newest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.name.startswith(PREFIX) and p.name[len(PREFIX) :].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[len(PREFIX) :]), reverse=True)


def _text_writer(text: str) -> Any:
    return lambda path: path.write_text(text + "\n", encoding="utf-8")
