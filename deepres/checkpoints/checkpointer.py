"""Saves a run's checkpoints while it trains."""

from __future__ import annotations

from deepres.checkpoints.resuming import Checkpoint
from deepres.checkpoints.run_facts import RunFacts
from deepres.checkpoints.saving import Saver, SaveSchedule
from deepres.checkpoints.snapshot import take_snapshot
from deepres.checkpoints.training_state import TrainingState
from deepres.distributed import any_process
from deepres.engines import Engine
from deepres.run_folder import CHECKPOINTS, RunFolder


class Checkpointer:
    """Saves a run's checkpoints by `train.save_every`, which may be never.

    Args:
        engine: holds the net and its optimizer.
        facts: the run's.
        folder: the run's, in rank 0; None in the others.
        start: the checkpoint that the run resumes from, if any.

    Attributes:
        is_enabled: whether checkpoints are saved at all.
    """

    def __init__(
        self, engine: Engine, facts: RunFacts, folder: RunFolder | None, start: Checkpoint | None
    ) -> None:
        train = engine.config.train
        self.is_enabled = train.save_every is not None
        self._engine = engine
        self._facts = facts
        self._folder = folder
        self._mode = train.save_in_background
        self._saver = Saver(folder.path / CHECKPOINTS if folder else None, train.keep_checkpoints)
        self._schedule = SaveSchedule(train.save_every, facts.steps_per_epoch)
        self._saved = None if start is None else (start.progress.step, start.progress.is_evaluated)
        self._is_branch = start is not None and folder is not None and not start.is_in(folder.path)

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps, by this process's clock."""
        is_saved = self._saved is not None and self._saved[0] == step
        return step > 0 and not is_saved and self._schedule.is_due(step)

    @property
    def goes_on_meanwhile(self) -> bool:
        """Whether training should go on while the next checkpoint is written."""
        is_slow = self._schedule.costs_too_much(self._saver.commit_s)
        return self._mode == "always" or (self._mode == "auto" and is_slow)

    @property
    def has_failed(self) -> bool:
        """Whether this process could not write a checkpoint."""
        return self._saver.has_failed

    def check(self, *, has_failed: bool) -> None:
        """Raise if any process could not write a checkpoint.

        Raises:
            SaveError: `has_failed` is true.
        """
        self._saver.check(has_failed)

    def save_branch(self, state: TrainingState) -> None:
        """Save if the run resumes from another folder's checkpoint, where `train.resume=auto` would not look.

        Collective.
        """
        if self.is_enabled and any_process([self._is_branch], self._engine.process.device)[0]:
            self._saved = None
            self.save(state)

    def save(self, state: TrainingState, *, waits: bool = False) -> None:
        """Save the run's state, unless that is done already or disabled; collective.

        Args:
            state: how far the run is.
            waits: until all checkpoints are on disk.

        Raises:
            SaveError: in all processes, if one could not be written; without `waits`, `has_failed` tells.
        """
        if not self.is_enabled:
            return
        if self._saved != (state.step, state.is_evaluated):
            metrics_bytes = self._folder.metrics.force_to_disk() if self._folder else 0
            self._saver.save(take_snapshot(self._engine, self._facts, state, metrics_bytes))
            self._saved = state.step, state.is_evaluated
            self._schedule.restart()
        if waits:
            self._saver.finish(self._engine.process.device)

    def wait(self) -> None:
        """Wait until this process has finished writing."""
        self._saver.wait()
