"""Checkpoints: all that a run needs to go on as if it had never stopped.

NOTE [ Checkpoints ]
1. A checkpoint is a folder `step-N`, committed by NOTE [ Committing a folder ]. Its tensors are safetensors, the rest
   is JSON; nothing in it can be executed.
2. It is the same for every engine, ZeRO stage and number of processes: parameters and momentum are whole, buffers
   are the mean of the processes'.
3. What each process has of its own (generator states, its buffers, its share of the metrics since the last line) is
   there too. A run that goes on with the same number of processes takes it over and is, bit for bit, the run that
   never stopped; so saving changes nothing in a run. With another number of processes every process begins with the
   mean of the buffers, and processes that were not there before keep the generator that their seed gave them.
4. Only rank 0 writes, in a thread of its own, from a copy in its memory; there is one such copy at a time. The
   processes wait for it, and so never lose more than one interval, unless that would take too much of their time.
"""

from __future__ import annotations

import json
import platform
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from deepres.commit import UNFINISHED, SaveError, commit_folder, replace_text
from deepres.config import Config
from deepres.distributed import any_process, to_first_process
from deepres.engines import Engine
from deepres.recompute import Plan
from deepres.recompute.document import write_document
from deepres.trained_net import net_metadata

MODEL, MOMENTUM, PROCESSES = "model.safetensors", "momentum.safetensors", "processes.safetensors"
TRAINING, CONFIG, PLAN = "training.json", "config.json", "plan.json"
FILES = frozenset({MODEL, MOMENTUM, PROCESSES, TRAINING, CONFIG, PLAN})
FORMAT, VERSION = "deepres.checkpoint", 1
LATEST, PREFIX = "latest", "step-"
_MAX_WAITING_SHARE = 0.02
_PACKAGES = ("deepres", "torch", "deepspeed", "fairscale", "numpy", "safetensors")


@dataclass(frozen=True)
class Progress:
    """How far a run is; what a checkpoint tells in `training.json`.

    Attributes:
        step: optimizer steps done.
        steps_per_epoch: so epoch and position within it follow from `step`.
        is_evaluated: whether the evaluation that is due after this step is done.
        test: the last evaluation's loss, top-1, top-5 and number of images, if there was one.
        sums: `answer_sums` since the last line of metrics, of each process.
        metrics_bytes: how long `metrics.jsonl` was.
        learning_rate: of the last step; the schedule is a function of `step`.
        has_averaged_buffers: whether the processes' buffers were the same.
        num_processes: how many there were.
        loss_scaler: state of fp16's loss scaler.
        identity: what must be the same in a run that goes on from here.
    """

    step: int
    steps_per_epoch: int
    is_evaluated: bool
    test: tuple[float, float, float, int] | None
    sums: tuple[tuple[float, ...], ...]
    metrics_bytes: int
    learning_rate: float
    has_averaged_buffers: bool
    num_processes: int
    loss_scaler: dict[str, float] | None
    identity: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, in rank 0.

    Attributes:
        step: after which it was taken.
        tensors: on the CPU, by file and name.
        documents: JSON, by file.
        metadata: what the file of the net tells beside its tensors.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    documents: dict[str, str]
    metadata: dict[str, str] | None = None

    @property
    def num_bytes(self) -> int:
        """About what it takes on the disk."""
        tensors = sum(t.nbytes + 128 for file in self.tensors.values() for t in file.values())
        return tensors + sum(len(text) for text in self.documents.values()) + 4096


def take_snapshot(engine: Engine, config: Config, plan: Plan, progress: Progress) -> Snapshot | None:
    """Copy all state, one tensor at a time, to rank 0's memory; None in the others. Collective."""
    is_first = engine.process.is_first
    averaged = engine.averaged_buffers()
    model: dict[str, Tensor] = {}
    momentum: dict[str, Tensor] = {}
    for target, tensors in ((model, engine.whole_parameters()), (momentum, engine.momentum())):
        for name, tensor in tensors:
            if is_first:
                target[name] = tensor
    processes = _of_each_process(engine)
    if not is_first:
        return None
    fields = {
        **asdict(progress),
        "epoch": progress.step // progress.steps_per_epoch,
        "step_in_epoch": progress.step % progress.steps_per_epoch,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
    }
    return Snapshot(
        progress.step,
        {MODEL: model | averaged, PROCESSES: processes, **({MOMENTUM: momentum} if momentum else {})},
        {
            TRAINING: write_document(FORMAT, VERSION, fields),
            CONFIG: json.dumps(config.model_dump(mode="json")),
            PLAN: plan.to_json(),
        },
        weights_metadata(config, model),
    )


def weights_metadata(config: Config, weights: dict[str, Tensor]) -> dict[str, str]:
    """What a file of a run's weights tells beside them."""
    return net_metadata(config.model.building(num_classes=len(weights["head.linear.weight"])))


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
        """After this step; minutes are by this process's clock."""
        if self._unit == "minute":
            return time.monotonic() - self._since >= 60 * self._number
        period = {"step": 1, "epoch": self._steps_per_epoch}.get(self._unit, 0) * self._number
        return period > 0 and step % period == 0

    def costs_too_much(self, commit_s: float) -> bool:
        """Whether waiting for a commit of that length would take more than 2 % of the time."""
        return commit_s > _MAX_WAITING_SHARE * (time.monotonic() - self._since)

    def restart(self) -> None:
        """A checkpoint has just been taken."""
        self._since = time.monotonic()


def _of_each_process(engine: Engine) -> dict[str, Tensor]:
    device = engine.process.device
    generators = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(device)
    tensors = {
        f"{rank}/generator/{name}": state
        for name, own in generators.items()
        for rank, state in enumerate(to_first_process(own.to(device)))
    }
    floats = [(name, b) for name, b in engine.net.named_buffers() if b.is_floating_point()]
    if engine.process.world_size > 1 and not engine.has_averaged_buffers and floats:
        flat = torch.cat([buffer.detach().reshape(-1) for _, buffer in floats])
        for rank, own in enumerate(to_first_process(flat)):
            parts = own.split([buffer.numel() for _, buffer in floats])
            for (name, buffer), part in zip(floats, parts, strict=True):
                tensors[f"{rank}/buffer/{name}"] = part.view(buffer.shape).clone()
    return tensors


class Saver:
    """Commits snapshots to `folder/step-N`, keeps the newest, and notes the newest's name in `folder/latest`.

    Args:
        folder: the run's checkpoints; None in processes other than rank 0, which write nothing.
        keep: how many checkpoints stay.

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
                leftover.unlink(missing_ok=True)

    @property
    def has_failed(self) -> bool:
        """Whether a checkpoint could not be written; for all processes to know before they go on."""
        return self._error is not None

    def save(self, snapshot: Snapshot | None) -> None:
        """Begin to commit a snapshot, after the one that is under way."""
        self.wait()
        if snapshot is not None and self._folder is not None and self._error is None:
            arguments = (snapshot, self._folder)
            self._thread = threading.Thread(target=self._commit, args=arguments, name="saver")
            self._thread.start()

    def finish(self, device: torch.device) -> None:
        """Wait until what was saved is on the disk; collective.

        Raises:
            SaveError: it is not, in all processes.
        """
        self.wait()
        self.check(any_process([self.has_failed], device)[0])

    def check(self, some_failed: bool) -> None:
        """Raise what went wrong in this process, or that something did in rank 0.

        Raises:
            SaveError: `some_failed`.
        """
        if some_failed:
            raise self._error or SaveError("rank 0 could not write a checkpoint")

    def wait(self) -> None:
        """Wait until this process writes nothing any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _commit(self, snapshot: Snapshot, folder: Path) -> None:
        begin = time.monotonic()
        try:
            commit_snapshot(snapshot, folder, self._keep)
        except SaveError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  # of a thread, which nobody would hear of
            self._error = SaveError(f"a checkpoint could not be written to {folder}: {error!r}")
            self._error.__cause__ = error
        self.commit_s = time.monotonic() - begin


def commit_snapshot(snapshot: Snapshot, folder: Path, keep: int) -> Path:
    """Write `folder/step-N`, then `folder/latest`, then remove all but the newest `keep` checkpoints.

    Raises:
        SaveError: it cannot be written; checkpoints that were there still are.
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
            # Never half a checkpoint under a whole one's name.
            disposable = old.with_name(old.name + UNFINISHED)
            try:
                old.rename(disposable)
            except OSError as error:
                raise SaveError(f"{old} cannot be removed: {error.strerror}") from error
            shutil.rmtree(disposable, ignore_errors=True)
    return target


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, whole or damaged, the newest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.name.startswith(PREFIX) and p.name[len(PREFIX) :].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[len(PREFIX) :]), reverse=True)


def _text_writer(text: str) -> Any:
    return lambda path: path.write_text(text + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
