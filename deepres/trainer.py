"""The training loop: epochs or steps, evaluation, logging, saving, stopping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice

from deepres.checkpoints.checkpointer import Checkpointer
from deepres.checkpoints.identity import Identity
from deepres.checkpoints.restoring import restore_training
from deepres.checkpoints.resuming import Checkpoint
from deepres.checkpoints.run_facts import RunFacts
from deepres.checkpoints.snapshot import weights_metadata
from deepres.data import Batch, DataError, DataSource, Prefetch
from deepres.distributed import any_process, sum_over_processes
from deepres.engines import Engine, NonFiniteError
from deepres.evaluation_pass import run_evaluation
from deepres.exit_status import ExitStatus, LoneRunError, RunError
from deepres.memory.planned_run import PlannedRun
from deepres.metrics import Metrics
from deepres.non_finite import where_first
from deepres.optim import StepSchedule
from deepres.out_of_memory import UntilOutOfMemory, free_device_bytes, out_of_memory
from deepres.recompute.random_state import RandomState
from deepres.run_folder import RunFolder
from deepres.run_log import RunLog, Summary
from deepres.step_flags import StepFlags
from deepres.stopping import StopRequest
from deepres.throughput import Throughput


class Trainer:
    """Trains a net with an engine on a data source.

    Args:
        engine: runs the steps, by its configuration.
        data: this process's batches.
        folder: where rank 0 writes; None in the others.
        planned: the plan that the net runs by; logged at the start.
        stop: when to stop early.
        start: the checkpoint that net and engine have been restored from, if any.
        identity: the run's.
    """

    def __init__(
        self,
        engine: Engine,
        data: DataSource,
        folder: RunFolder | None,
        planned: PlannedRun,
        *,
        stop: StopRequest,
        start: Checkpoint | None,
        identity: Identity,
    ) -> None:
        config = self._config = engine.config
        self._process = engine.process
        self._engine = engine
        self._data = data
        self._folder = folder
        self._planned = planned
        self._stop = stop
        steps_per_epoch = data.num_train_batches // engine.sizes.accumulation
        self._num_steps = config.train.num_steps(steps_per_epoch)
        self._schedule = StepSchedule(config.optim, steps_per_epoch)
        self._facts = RunFacts(identity, data.info.classes_sha256, steps_per_epoch, planned.plan)
        self._state = restore_training(start, self._process, identity)
        self._checkpointer = Checkpointer(engine, self._facts, folder, start)
        self._log = RunLog(
            config.log, self._process, folder, self._num_steps, steps_per_epoch, self._state.step
        )
        self._throughput = Throughput()
        self._batches: Prefetch | None = None

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
            self._checkpointer.save_branch(self._state)
            self._save_or_stop()
            if self._evaluation_is_due:
                self._evaluate()
                self._save_or_stop()
            while self._state.step < self._num_steps:
                self._run_epoch()
            summary = self._summary()
            self._finish(summary)
        finally:
            self._checkpointer.wait()
        return summary

    def _run_epoch(self) -> None:
        """Train to the end of an epoch, or of the run."""
        epoch, done = divmod(self._state.step, self._facts.steps_per_epoch)
        batches = Prefetch(self._coming_batches(), self._process.device)
        self._batches = batches
        with UntilOutOfMemory() as attempt:
            batches.make_ahead()
        if attempt.ran_out:
            raise self._out_of_memory_error()
        self._save_or_stop()
        num_steps = min(self._facts.steps_per_epoch - done, self._num_steps - self._state.step)
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
        epoch, done = divmod(self._state.step, self._facts.steps_per_epoch)
        return self._data.train_batches(epoch, start=done * self._engine.sizes.accumulation)

    def _run_step(self, batches: Prefetch) -> StepFlags:
        """Train one step; returns the flags that any process has set after it."""
        state, sizes = self._state, self._engine.sizes
        learning_rate = self._schedule(state.step)
        before = RandomState.read(self._process.device)
        try:
            with UntilOutOfMemory() as attempt:
                sums, flags = self._engine.step(
                    batches.take(sizes.accumulation), learning_rate, lambda: self._own_flags(state.step + 1)
                )
        except NonFiniteError as error:
            raise self._non_finite_error(error, before) from None
        if attempt.ran_out:
            raise self._out_of_memory_error()
        state.sums += sums
        state.step += 1
        state.is_evaluated = False
        self._throughput.count(sizes.micro_size * sizes.accumulation, batches.waited_s())
        self._log.memory(state.step)
        if state.step % self._config.log.every == 0 or state.step == self._num_steps:
            images_per_s = self._throughput.since_last_asked() * self._process.world_size
            metrics = Metrics.over_processes(state.sums)
            self._log.training(state.step, learning_rate, metrics, images_per_s)
            state.sums.zero_()
        return StepFlags(*flags)

    def _out_of_memory_error(self) -> RunError:
        self._log.out_of_memory()
        self._engine.run_eagerly()  # a recorded pass would keep its activations allocated
        return out_of_memory(
            f"in step {self._state.step + 1}",
            self._engine.sizes,
            self._planned.activations_bytes,
            free_device_bytes(self._process.device),
        )

    def _non_finite_error(self, error: NonFiniteError, before: RandomState) -> RunError:
        batches = list(islice(self._coming_batches(), self._engine.sizes.accumulation))
        where = where_first(self._engine, batches, before)
        self._log.not_finite(self._state.step + 1, error.what, where)
        return RunError(
            f"the {error.what} of step {self._state.step + 1} is not finite: {where}; nothing of it was saved",
            ExitStatus.NOT_FINITE,
        )

    def _own_flags(self, step: int) -> StepFlags:
        """This process's flags after `step` steps."""
        return StepFlags(
            to_stop=self._stop.reason is not None,
            to_save=self._checkpointer.is_due(step),
            in_background=self._checkpointer.goes_on_meanwhile,
            has_failed=self._checkpointer.has_failed,
            lacks_data=self._data_error is not None and step < self._num_steps,
        )

    def _save_or_stop(self, flags: StepFlags | None = None) -> None:
        """Between steps: save if that is due, and end the run if any process was asked to stop; collective.

        Args:
            flags: the flags of all processes; None: exchange them now.
        """
        step = self._state.step
        if flags is None:
            flags = StepFlags(*any_process(self._own_flags(step), self._process.device))
        self._checkpointer.check(has_failed=flags.has_failed)
        is_at_end = step == self._num_steps and not self._evaluation_is_due
        is_last_save = flags.to_stop or flags.lacks_data or is_at_end
        if flags.to_save or is_last_save:
            self._checkpointer.save(self._state, waits=is_last_save or not flags.in_background)
        saved = "nothing is saved, as train.save_every is null"
        if self._checkpointer.is_enabled:
            saved = "train.resume=auto resumes from there"
        if flags.to_stop and not is_at_end:
            reason = self._stop.reason or "a signal to another process"
            raise RunError(f"stopped by {reason} after step {step}; {saved}", ExitStatus.STOPPED)
        if flags.lacks_data:
            reason = str(self._data_error or "another process cannot read its images: see what it printed")
            raise DataError(f"{reason}; the run stops after step {step}; {saved}") from self._data_error

    @property
    def _data_error(self) -> DataError | None:
        """Why the next batch could not be made, if that is known yet."""
        return self._batches.error if self._batches is not None else None

    @property
    def _evaluation_is_due(self) -> bool:
        step = self._state.step
        epoch, steps = divmod(step, self._facts.steps_per_epoch)
        at_epoch = step > 0 and steps == 0 and epoch % self._config.train.eval_every == 0
        return (at_epoch or step == self._num_steps) and not self._state.is_evaluated

    def _evaluate(self) -> None:
        """Test the net; a request to stop ends the evaluation early and discards what it has so far."""
        self._engine.average_buffers()
        batch_size = self._config.train.eval_batch_size or self._engine.sizes.micro_size
        try:
            metrics = run_evaluation(self._engine, self._data, self._stop, batch_size)
        except RunError as error:
            if not isinstance(error, LoneRunError):  # all processes raise it: save what they have trained
                self._checkpointer.save(self._state, waits=True)
            raise
        if metrics is not None:
            self._log.test(self._state.step, metrics)
            self._state.test, self._state.is_evaluated = metrics, True

    def _summary(self) -> Summary:
        plan = self._planned.plan
        return Summary(
            test=self._state.test,
            images_per_s=self._throughput.per_s * self._process.world_size,
            activation_peak_bytes=self._planned.activations_bytes,
            predicted_peak_bytes=plan.peak_bytes,
            data_wait_share=self._throughput.data_wait_share,
            recompute_share=plan.extra_share / (1 + plan.extra_share),
        )

    def _finish(self, summary: Summary) -> None:
        # Several processes may have come across the same image, in different epochs: count it once.
        bad = sum_over_processes(self._data.bad_images.to(self._process.device))
        num_bad = int(bad.count_nonzero())
        state = self._engine.state()
        if self._folder is not None:
            self._folder.save_weights(
                state, weights_metadata(self._config, self._facts.classes_sha256, state)
            )
        facts = self._facts
        of_run = {"steps_per_epoch": facts.steps_per_epoch, "identity": asdict(facts.identity)}
        self._log.end(self._state.step, summary, num_bad, of_run)
