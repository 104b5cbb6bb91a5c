"""The training loop: epochs or steps, evaluation, logging, saving, stopping."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from deepres.checkpoints.restoring import own_sums
from deepres.checkpoints.resuming import Checkpoint, batch_norm_size, identity_of_test
from deepres.checkpoints.saving import Saver, SaveSchedule
from deepres.checkpoints.snapshot import Progress, take_snapshot, weights_metadata
from deepres.config import Config
from deepres.data import Batch, DataError, DataSource, Prefetch
from deepres.distributed import Process, any_process, sum_over_processes, to_first_process
from deepres.engines import Engine, NonFiniteError
from deepres.evaluation_pass import run_evaluation
from deepres.exit_status import ExitStatus, LoneRunError, RunError
from deepres.memory.planned_run import PlannedRun
from deepres.metrics import Metrics
from deepres.non_finite import where_first
from deepres.optim import StepSchedule
from deepres.out_of_memory import UntilOutOfMemory, free_device_bytes, out_of_memory
from deepres.recompute.random_state import RandomState
from deepres.run_folder import CHECKPOINTS, RunFolder
from deepres.run_log import RunLog, Summary
from deepres.step_flags import StepFlags
from deepres.stopping import StopRequest
from deepres.throughput import Throughput


class Trainer:
    """Trains a net with an engine on a data source.

    Args:
        config: the run's configuration.
        process: this process.
        engine: runs the steps.
        data: this process's batches.
        folder: where rank 0 writes; None in the others.
        planned: the plan that the net runs by; logged at the start.
        stop: when to stop early.
        start: the checkpoint that net and engine have been restored from, if any.
        identity: what a run that resumes from one of this run's checkpoints must have in common with it.
    """

    def __init__(
        self,
        config: Config,
        process: Process,
        engine: Engine,
        data: DataSource,
        folder: RunFolder | None,
        planned: PlannedRun,
        *,
        stop: StopRequest,
        start: Checkpoint | None,
        identity: dict[str, Any],
    ) -> None:
        self._config = config
        self._process = process
        self._engine = engine
        self._data = data
        self._folder = folder
        self._planned = planned
        self._steps_per_epoch = data.num_train_batches // engine.sizes.accumulation
        self._num_steps = config.train.num_steps(self._steps_per_epoch)
        self._throughput = Throughput()
        self._stop = stop
        self._identity = identity
        self._saver = Saver(folder.path / CHECKPOINTS if folder else None, config.train.keep_checkpoints)
        self._save_schedule = SaveSchedule(config.train.save_every, self._steps_per_epoch)
        self._schedule = StepSchedule(config.optim, self._steps_per_epoch)
        self._step = start.progress.step if start else 0
        self._log = RunLog(config.log, process, folder, self._num_steps, self._steps_per_epoch, self._step)
        self._saved_step = self._step if start else None
        self._is_branch = start is not None and folder is not None and not start.is_in(folder.path)
        self._tested_on = identity_of_test(config, data.info)
        self._is_evaluated = False
        self._test: Metrics | None = None
        if start is not None and start.progress.tested_on == self._tested_on:
            self._is_evaluated = start.progress.is_evaluated
            self._test = Metrics(*start.progress.test) if start.progress.test else Metrics.of_nothing()
        self._batches: Prefetch | None = None
        self._sums = torch.zeros(4, dtype=torch.float64, device=process.device)
        if start is not None:
            self._sums += own_sums(start, process)

    def run(self) -> Summary:
        """Train to the end; collective.

        Raises:
            deepres.data.DataError: too many images cannot be read.
            RunError: a signal stopped the run, a number was not finite, or memory ran out.
            SaveError: a checkpoint could not be written.
        """
        try:
            self._log.begin(self._planned)
            unreached = self._schedule.unreached(self._num_steps)
            if unreached is not None:
                self._log.say(f"note: {unreached}")
            saves = self._config.train.save_every is not None
            if saves and any_process([self._is_branch], self._process.device)[0]:
                self._saved_step = None  # it is in another folder, where train.resume=auto would not look
                self._save()
            self._save_or_stop()
            if self._evaluation_is_due:
                self._evaluate()
                self._save_or_stop()
            while self._step < self._num_steps:
                self._run_epoch()
            assert self._test is not None
            extra_share = self._planned.plan.extra_share
            summary = Summary(
                self._test,
                self._throughput.per_s * self._process.world_size,
                self._planned.activations_bytes,
                self._planned.plan.peak_bytes,
                self._throughput.data_wait_share,
                extra_share / (1 + extra_share),
            )
            self._finish(summary)
        finally:
            self._saver.wait()
        return summary

    def _run_epoch(self) -> None:
        """Train to the end of an epoch, or of the run."""
        epoch, done = divmod(self._step, self._steps_per_epoch)
        batches = Prefetch(self._coming_batches(), self._process.device)
        self._batches = batches
        with UntilOutOfMemory() as attempt:
            batches.make_ahead()
        if attempt.ran_out:
            raise self._out_of_memory_error()
        self._save_or_stop()
        num_steps = min(self._steps_per_epoch - done, self._num_steps - self._step)
        with self._log.bar(epoch, num_steps) as bar:
            for _ in range(num_steps):
                flags: StepFlags | None = self._run_step(batches)
                bar.update()
                if self._evaluation_is_due:
                    self._throughput.pause()
                    self._evaluate()
                    flags = None
                self._save_or_stop(flags)
        self._throughput.pause()

    def _coming_batches(self) -> Iterator[Batch]:
        """This process's remaining micro batches of the epoch, from the next step on."""
        epoch, done = divmod(self._step, self._steps_per_epoch)
        return self._data.train_batches(epoch, start=done * self._engine.sizes.accumulation)

    def _run_step(self, batches: Prefetch) -> StepFlags:
        """Train one step; returns the flags that any process has set after it."""
        learning_rate = self._schedule(self._step)
        before = RandomState.read(self._process.device)
        sizes = self._engine.sizes
        try:
            with UntilOutOfMemory() as attempt:
                sums, flags = self._engine.step(
                    batches.take(sizes.accumulation), learning_rate, lambda: self._own_flags(self._step + 1)
                )
        except NonFiniteError as error:
            raise self._non_finite_error(error, before) from None
        if attempt.ran_out:
            raise self._out_of_memory_error()
        self._sums += sums
        self._step += 1
        self._is_evaluated = False
        self._throughput.count(sizes.micro_size * sizes.accumulation, batches.waited_s())
        self._log.memory(self._step)
        if self._step % self._config.log.every == 0 or self._step == self._num_steps:
            images_per_s = self._throughput.since_last_asked() * self._process.world_size
            self._log.training(self._step, learning_rate, Metrics.over_processes(self._sums), images_per_s)
            self._sums.zero_()
        return StepFlags(*flags)

    def _out_of_memory_error(self) -> RunError:
        self._log.out_of_memory()
        self._engine.run_eagerly()  # a recorded pass would keep its activations allocated
        return out_of_memory(
            f"in step {self._step + 1}",
            self._engine.sizes,
            self._planned.activations_bytes,
            free_device_bytes(self._process.device),
        )

    def _non_finite_error(self, error: NonFiniteError, before: RandomState) -> RunError:
        batches = list(islice(self._coming_batches(), self._engine.sizes.accumulation))
        where = where_first(self._engine, batches, before)
        self._log.not_finite(self._step + 1, error.what, where)
        return RunError(
            f"the {error.what} of step {self._step + 1} is not finite: {where}; nothing of it was saved",
            ExitStatus.NOT_FINITE,
        )

    def _own_flags(self, step: int) -> StepFlags:
        """This process's flags after `step` steps."""
        is_due = step > 0 and step != self._saved_step and self._save_schedule.is_due(step)
        mode = self._config.train.save_in_background
        in_background = mode == "always" or (
            mode == "auto" and self._save_schedule.costs_too_much(self._saver.commit_s)
        )
        lacks_data = self._data_error is not None and step < self._num_steps
        return StepFlags(
            self._stop.reason is not None, is_due, in_background, self._saver.has_failed, lacks_data
        )

    def _save_or_stop(self, flags: StepFlags | None = None) -> None:
        """Between steps: save if that is due, and end the run if any process was asked to stop; collective.

        Args:
            flags: the flags of all processes; None: exchange them now.
        """
        if flags is None:
            flags = StepFlags(*any_process(self._own_flags(self._step), self._process.device))
        self._saver.check(flags.has_failed)
        is_at_end = self._step == self._num_steps and not self._evaluation_is_due
        saves = self._config.train.save_every is not None
        is_last_save = flags.to_stop or flags.lacks_data or is_at_end
        if saves and (flags.to_save or is_last_save):
            self._save()
            if is_last_save or not flags.in_background:
                self._saver.finish(self._process.device)
        saved = (
            "train.resume=auto resumes from there"
            if saves
            else "nothing is saved, as train.save_every is null"
        )
        if flags.to_stop and not is_at_end:
            reason = self._stop.reason or "a signal to another process"
            raise RunError(f"stopped by {reason} after step {self._step}; {saved}", ExitStatus.STOPPED)
        if flags.lacks_data:
            reason = str(self._data_error or "another process cannot read its images: see what it printed")
            raise DataError(f"{reason}; the run stops after step {self._step}; {saved}") from self._data_error

    @property
    def _data_error(self) -> DataError | None:
        """Why the next batch could not be made, if that is known yet."""
        return self._batches.error if self._batches is not None else None

    def _save(self) -> None:
        if self._saved_step == self._step:
            return
        scaler = self._engine.loss_scaler
        test = self._test
        progress = Progress(
            step=self._step,
            steps_per_epoch=self._steps_per_epoch,
            is_evaluated=self._is_evaluated,
            test=(test.loss, test.top1, test.top5, test.num_images) if test and test.num_images else None,
            sums=tuple(tuple(sums.tolist()) for sums in to_first_process(self._sums)),
            metrics_bytes=self._folder.metrics.force_to_disk() if self._folder else 0,
            learning_rate=self._schedule(max(0, self._step - 1)),
            has_averaged_buffers=self._engine.has_averaged_buffers,
            num_processes=self._process.world_size,
            num_threads=self._process.num_threads,
            batch_norm_size=batch_norm_size(self._config, self._engine.sizes),
            loss_scaler=scaler.state_dict() if scaler is not None else None,
            num_skipped=self._engine.num_skipped,
            identity=self._identity,
            tested_on=self._tested_on,
        )
        snapshot = take_snapshot(self._engine, self._config, self._data.info, self._planned.plan, progress)
        self._saver.save(snapshot)
        self._saved_step = self._step
        self._save_schedule.restart()

    @property
    def _evaluation_is_due(self) -> bool:
        epoch, steps = divmod(self._step, self._steps_per_epoch)
        at_epoch = self._step > 0 and steps == 0 and epoch % self._config.train.eval_every == 0
        return (at_epoch or self._step == self._num_steps) and not self._is_evaluated

    def _evaluate(self) -> None:
        """Test the net; a request to stop ends the evaluation early and discards what it has so far."""
        self._engine.average_buffers()
        batch_size = self._config.train.eval_batch_size or self._engine.sizes.micro_size
        try:
            metrics = run_evaluation(self._engine, self._data, self._stop, batch_size)
        except RunError as error:  # raised in all processes: save, so that no training is lost
            if not isinstance(error, LoneRunError) and self._config.train.save_every is not None:
                self._save()
                self._saver.finish(self._process.device)
            raise
        if metrics is not None:
            self._log.test(self._step, metrics)
            self._test, self._is_evaluated = metrics, True

    def _finish(self, summary: Summary) -> None:
        # Several processes may have come across the same image, in different epochs: count it once.
        bad = sum_over_processes(self._data.bad_images.to(self._process.device))
        num_bad = int(bad.count_nonzero())
        state = self._engine.state()
        if self._folder is not None:
            self._folder.save_weights(state, weights_metadata(self._config, self._data.info, state))
        self._log.end(self._step, summary, num_bad)
