"""Resuming: find an intact checkpoint, and check that it is of this run; `restoring` restores it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from deepres.batch_sizes import BatchSizes
from deepres.checkpoints.identity import Identity, batch_norm_size
from deepres.checkpoints.saving import PREFIX, checkpoints_in
from deepres.checkpoints.snapshot import FILES, FORMAT, TRAINING, VERSION, Progress
from deepres.commit import MANIFEST, DamagedError, NewerError, file_sha256, verify_folder
from deepres.config import Config, ConfigError
from deepres.distributed import Process, from_any_process
from deepres.recompute.document import NewerDocumentError, read_document
from deepres.run_folder import CHECKPOINTS, FINISHED, WEIGHTS


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder, its run's progress, and the SHA-256 of its manifest."""

    path: Path
    progress: Progress
    sha256: str

    def is_in(self, run_dir: Path) -> bool:
        """Whether a run in that folder would find it."""
        return self.path.parent.resolve() == (run_dir / CHECKPOINTS).resolve()


def read_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """Read a checkpoint's progress.

    Args:
        path: its folder.
        verify: compare every file's size and SHA-256 with the manifest first.

    Raises:
        DamagedError: it is not a checkpoint, not intact, or written by a newer deepres; the message names the file.
        OSError: it cannot be read at the moment, although it may be intact.
    """
    if not path.is_dir():
        raise DamagedError(f"there is no checkpoint {path}")
    if verify:
        verify_folder(path, FILES)
    text = (path / TRAINING).read_bytes()
    try:
        content = read_document(text.decode(), FORMAT, VERSION)
        known = {field.name: content[field.name] for field in fields(Progress)}
        known["sums"] = tuple(tuple(row) for row in known["sums"])
        known["identity"] = Identity(**known["identity"])
        known["test"] = tuple(known["test"]) if known["test"] is not None else None
        return Checkpoint(path, Progress(**known), file_sha256(path / MANIFEST))
    except NewerDocumentError as error:
        raise NewerError(f"{path / TRAINING}: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path / TRAINING} cannot be read: {error}") from None


def choose_start(config: Config, identity: Identity, say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint that `train.resume` asks for, checked to be intact and of this run; None to begin at step 0.

    Args:
        config: the run's configuration.
        identity: the run's.
        say: called with what is skipped, and what the run resumes from.

    Raises:
        ConfigError: there is none although one was named or the folder's run is finished; or it is of another run, or
            past this run's end.
    """
    resume, run_dir = config.train.resume, config.train.run_dir
    if resume == "never":
        return None
    try:
        found = newest_checkpoint(run_dir, say) if run_dir is not None and resume == "auto" else None
        if isinstance(resume, Path):
            found = find_checkpoint(resume, say)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
    if found is None:
        if run_dir is not None and (run_dir / FINISHED).exists():
            raise ConfigError(
                f"{run_dir} holds a finished run and no checkpoint to go on from: train.resume=never with "
                "train.overwrite=true replaces it, or choose another train.run_dir"
            )
        say(f"{run_dir} holds no checkpoint: begins at step 0")
        return None
    check_same_run(found, identity)
    step = found.progress.step
    num_steps = config.train.num_steps(found.progress.steps_per_epoch)
    if step > num_steps:
        raise ConfigError(
            f"{found.path} is of step {step}, and train.max_steps and train.epochs end the run at step {num_steps}: "
            f"let them end it at step {step} or later (at step {step} it is tested and finished)"
        )
    if run_dir is not None:
        newer = [p for p in checkpoints_in(run_dir / CHECKPOINTS) if int(p.name.removeprefix(PREFIX)) > step]
        if newer and resume != "auto":
            raise ConfigError(
                f"{run_dir} holds checkpoints after step {step}, such as {newer[0].name}: go on from the newest with "
                "train.resume=auto, or choose another train.run_dir"
            )
        for damaged in newer:
            _put_aside(damaged)
    say(f"resumes from {found.path}: step {step}, epoch {step / found.progress.steps_per_epoch:.2f}")
    return found


def _put_aside(damaged: Path) -> None:
    """Rename a checkpoint, so that the run can save at its step again."""
    aside = damaged.with_name(f"{damaged.name}.damaged")
    try:
        if aside.exists():
            shutil.rmtree(aside)
        damaged.rename(aside)
    except OSError as error:
        raise ConfigError(f"{damaged} is damaged and cannot be renamed: {error.strerror}") from None


def is_finished(config: Config, run_dir: Path, identity: Identity) -> bool:
    """Whether a folder holds this very run, trained to its end and tested.

    Args:
        config: the run's.
        run_dir: the folder.
        identity: the run's.
    """
    try:
        outcome = json.loads((run_dir / FINISHED).read_text(encoding="utf-8"))
        num_steps = config.train.num_steps(outcome["steps_per_epoch"])
        return (
            outcome["step"] == num_steps
            and Identity(**outcome["identity"]) == identity
            and math.isfinite(outcome["top1"])
            and (run_dir / WEIGHTS).is_file()
        )
    except (OSError, ValueError, KeyError, TypeError):  # an older or edited file: the run is resumed
        return False


def share_start(found: Checkpoint | None, config: Config, process: Process) -> Checkpoint | None:
    """What rank 0 chose, in every process; collective.

    Raises:
        ConfigError: this process does not see it.
    """
    chosen = from_any_process((found.progress.step, found.sha256) if found is not None else None)
    if chosen is None or process.is_first:
        return found
    step, sha256 = chosen
    resume, run_dir = config.train.resume, config.train.run_dir
    path = run_dir if resume == "auto" else resume
    if not isinstance(path, Path):
        raise ConfigError(
            f"process {process.rank} was started with train.resume={resume}, process 0 resumes from step {step}: start "
            "all processes with the same command"
        )
    path = _folder_of_run(path)
    if (path / CHECKPOINTS).is_dir():
        path = path / CHECKPOINTS / f"{PREFIX}{step:08d}"
    try:
        # Verify once per host: the host's other processes read the same files.
        own = read_checkpoint(path, verify=process.local_rank == 0)
    except (DamagedError, OSError) as error:
        raise ConfigError(f"process {process.rank} does not see the run's folder: {error}") from None
    if own.sha256 != sha256:
        raise ConfigError(
            f"process {process.rank} sees another checkpoint at {path} than process 0: share the folder"
        )
    return own


def find_checkpoint(resume: Path, say: Callable[[str], None]) -> Checkpoint:
    """The checkpoint at `resume`, or the newest intact one if that is the folder of a run or of its checkpoints.

    Raises:
        ConfigError: there is none that is intact; the message says why.
    """
    resume = _folder_of_run(resume)
    if (resume / CHECKPOINTS).is_dir():
        found = newest_checkpoint(resume, say)
        if found is None:
            raise ConfigError(f"train.resume: {resume} holds no checkpoint")
        return found
    try:
        return read_checkpoint(resume)
    except DamagedError as error:
        raise ConfigError(f"train.resume: {error}") from None


def _folder_of_run(resume: Path) -> Path:
    """The run's folder, if its folder of checkpoints is given; any other path unchanged."""
    is_theirs = resume.name == CHECKPOINTS and not (resume / CHECKPOINTS).is_dir()
    return resume.parent if is_theirs else resume


def newest_checkpoint(run_dir: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """A run's newest intact checkpoint; None if it has none at all.

    Args:
        run_dir: the run's folder.
        say: called with the checkpoints that are skipped, and why.

    Raises:
        ConfigError: there are checkpoints, but none is intact, or the newest that is not damaged is of a newer deepres,
            or their folder is a dangling link: whether to begin anew then is for a person to decide.
        OSError: one cannot be read at the moment.
    """
    folder = run_dir / CHECKPOINTS
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(
            f"{folder} is a link to {folder.readlink()}, which is not there: mount it, or remove the link"
        )
    skipped = []
    for path in checkpoints_in(folder):
        try:
            return read_checkpoint(path)
        except NewerError as error:
            raise ConfigError(f"{path} is not skipped: {error}") from None
        except DamagedError as error:
            skipped.append(str(error))
            say(f"WARNING: skipped checkpoint {path.name}: {error}")
    if skipped:
        raise ConfigError(
            f"none of the {len(skipped)} checkpoints in {folder} is intact (the newest: {skipped[0]}): "
            "put a good copy back, or start over with train.resume=never train.overwrite=true"
        )
    return None


def check_same_run(checkpoint: Checkpoint, identity: Identity) -> None:
    """Refuse a checkpoint of another net, data set or order of samples.

    Raises:
        ConfigError: the message lists every difference.
    """
    saved = checkpoint.progress.identity.of_run
    differences = [
        f"{name} is {identity.of_run.get(name)} here, {value} in the checkpoint"
        for name, value in saved.items()
        if identity.of_run.get(name) != value
    ]
    if differences:
        raise ConfigError(f"{checkpoint.path} is a checkpoint of another run: {'; '.join(differences)}")


def warn_of_changes(
    checkpoint: Checkpoint, config: Config, process: Process, sizes: BatchSizes, say: Callable[[str], None]
) -> None:
    """Say by what a run that goes on from a checkpoint differs from one that was never stopped."""
    progress = checkpoint.progress
    before, now = progress.num_threads, process.num_threads
    if before is not None and now is not None and before != now:
        say(
            f"WARNING: the checkpoint's run computed with OMP_NUM_THREADS={before}, this one with {now}: from here on "
            "sums are rounded in another order"
        )
    if progress.batch_norm_size != batch_norm_size(config, sizes):
        say(
            f"WARNING: batch norm saw {progress.batch_norm_size} images at once in the checkpoint's run and sees "
            f"{batch_norm_size(config, sizes)} in this one, which changes the training from here on: "
            "train.micro_batch_size and engine.sync_batch_norm decide"
        )
