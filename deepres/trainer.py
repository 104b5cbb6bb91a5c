"""The training loop: epochs or steps, evaluation, logging."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import islice

import torch
from tqdm import tqdm

from deepres.bytesize import format_bytes
from deepres.config import Config
from deepres.curves import plot_curves
from deepres.data import DataSource
from deepres.distributed import Process, sum_over_processes
from deepres.engines import Engine
from deepres.memory.planning import PlannedRun
from deepres.metrics import Metrics, answer_sums
from deepres.optim import StepSchedule
from deepres.run_folder import RunFolder


@dataclass(frozen=True)
class Summary:
    """A run in one line.

    Attributes:
        test: the last evaluation.
        images_per_s: of all processes, in training, without the first step, evaluation and set-up.
        activation_peak_bytes: of one process, measured on its first micro batch.
        predicted_peak_bytes: the same, known before.
        recompute_share: the predicted fraction of a step that goes into replays.
    """

    test: Metrics
    images_per_s: float
    activation_peak_bytes: int
    predicted_peak_bytes: int
    recompute_share: float

    def __str__(self) -> str:
        return (
            f"test accuracy {100 * self.test.top1:.2f} % (top-5 {100 * self.test.top5:.2f} %)   "
            f"peak activation memory {format_bytes(self.activation_peak_bytes)} "
            f"(predicted {format_bytes(self.predicted_peak_bytes)})   "
            f"{self.images_per_s:.1f} images/s   recomputation {100 * self.recompute_share:.1f} % of a step"
        )


class Trainer:
    """Trains a net with an engine on a data source.

    Args:
        config: the run's configuration.
        process: this process.
        engine: runs the steps.
        data: this process's batches.
        folder: where rank 0 writes; None in the others.
        planned: the plan that the net is under; told at the start.
        activation_peak_bytes: measured before; told in the summary.
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
        activation_peak_bytes: int,
    ) -> None:
        self._config = config
        self._process = process
        self._engine = engine
        self._data = data
        self._folder = folder
        self._planned = planned
        self._activation_peak_bytes = activation_peak_bytes
        self._steps_per_epoch = data.num_train_batches // engine.sizes.accumulation
        limits = [config.train.max_steps, (config.train.epochs or 0) * self._steps_per_epoch or None]
        self._num_steps = min(limit for limit in limits if limit is not None)
        self._rate = _Rate()
        self._tensorboard = None
        if folder is not None and config.log.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder.path))

    def run(self) -> Summary:
        """Train to the end; collective.

        Raises:
            deepres.data.DataError: too many images cannot be read.
        """
        self._tell_plan()
        step, epoch, test = 0, 0, None
        num_epochs = -(-self._num_steps // self._steps_per_epoch)
        while step < self._num_steps:
            step = self._run_epoch(epoch, step, num_epochs)
            epoch += 1
            if epoch % self._config.train.eval_every == 0 or step == self._num_steps:
                test = self._evaluate(epoch, step, num_epochs)
        assert test is not None
        summary = Summary(
            test,
            self._rate.per_s * self._process.world_size,
            self._activation_peak_bytes,
            self._planned.memory.activations_bytes,
            self._planned.extra_share / (1 + self._planned.extra_share),
        )
        self._finish(summary, step)
        return summary

    def _tell_plan(self) -> None:
        planned, plan = self._planned, self._planned.plan
        self._say(str(planned))
        if self._folder is not None:
            plan.save(self._folder.path / "plan.json")
            self._folder.metrics.write(
                "plan",
                budget_bytes=planned.budget_bytes,
                predicted_peak_bytes=plan.peak_bytes,
                predicted_extra=planned.extra_share,
                num_segments=plan.num_segments,
                nesting_depth=plan.nesting_depth,
                micro_batch_size=planned.sizes.micro_size,
                accumulation=planned.sizes.accumulation,
                predicted_total_bytes=planned.memory.total_bytes,
            )

    def _run_epoch(self, epoch: int, step: int, num_epochs: int) -> int:
        schedule = StepSchedule(self._config.optim, self._steps_per_epoch)
        batches = self._data.train_batches(epoch)
        num_steps = min(self._steps_per_epoch, self._num_steps - step)
        sums = torch.zeros(4, dtype=torch.float64, device=self._process.device)
        bar = tqdm(
            total=num_steps,
            desc=f"epoch {epoch + 1}/{num_epochs}",
            unit="step",
            leave=False,
            disable=not (self._process.is_first and sys.stderr.isatty()),
        )
        with bar:
            for _ in range(num_steps):
                learning_rate = schedule(step)
                result = self._engine.step(islice(batches, self._engine.sizes.accumulation), learning_rate)
                sums += result.sums
                step += 1
                self._rate.count(self._engine.sizes.micro_size * self._engine.sizes.accumulation)
                bar.update()
                if step % self._config.log.every == 0 or step == self._num_steps:
                    self._log_training(step, learning_rate, Metrics.over_processes(sums), num_epochs)
                    sums.zero_()
        self._rate.pause()
        return step

    def _log_training(self, step: int, learning_rate: float, metrics: Metrics, num_epochs: int) -> None:
        epoch = step / self._steps_per_epoch
        rate = self._rate.per_s * self._process.world_size
        self._say(
            f"epoch {epoch:.2f}/{num_epochs}  step {step}/{self._num_steps}  rate {learning_rate:g}  "
            f"loss {metrics.loss:.4f}  top-1 {100 * metrics.top1:.1f} %  {rate:.1f} images/s"
        )
        self._record("train", step, epoch, metrics, learning_rate=learning_rate, images_per_s=rate)

    def _evaluate(self, epoch: int, step: int, num_epochs: int) -> Metrics:
        self._engine.average_buffers()
        sums = torch.zeros(4, dtype=torch.float64, device=self._process.device)
        for batch in self._data.test_batches():
            sums += answer_sums(self._engine.predict(batch.images), batch.labels)
        metrics = Metrics.over_processes(sums)
        self._say(
            f"epoch {epoch}/{num_epochs}  test on {metrics.num_images} images: loss {metrics.loss:.4f}  "
            f"top-1 {100 * metrics.top1:.2f} %  top-5 {100 * metrics.top5:.2f} %"
        )
        self._record("test", step, step / self._steps_per_epoch, metrics, num_images=metrics.num_images)
        return metrics

    def _finish(self, summary: Summary, step: int) -> None:
        bad = torch.tensor(float(self._data.num_bad_images), device=self._process.device)
        num_bad = int(sum_over_processes(bad))
        state = self._engine.state()
        if self._folder is None:
            return
        self._folder.save_weights(state)
        self._folder.metrics.write(
            "summary",
            step=step,
            top1=summary.test.top1,
            top5=summary.test.top5,
            images_per_s=summary.images_per_s,
            activation_peak_bytes=summary.activation_peak_bytes,
            predicted_peak_bytes=summary.predicted_peak_bytes,
            recompute_share=summary.recompute_share,
            bad_images=num_bad,
        )
        self._folder.metrics.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._config.log.plots:
            plot_curves(self._folder.path / "metrics.jsonl", self._folder.path / "curves.png")
        if num_bad:
            self._say(f"{num_bad} images could not be read and were skipped")
        self._say(f"{summary}   run folder {self._folder.path}")

    def _say(self, line: str) -> None:
        if self._process.is_first:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def _record(self, kind: str, step: int, epoch: float, metrics: Metrics, **values: float) -> None:
        if self._folder is None:
            return
        measured = {"loss": metrics.loss, "top1": metrics.top1, "top5": metrics.top5}
        self._folder.metrics.write(kind, step=step, epoch=round(epoch, 4), **measured, **values)
        if self._tensorboard is not None:
            for name, value in measured.items():
                self._tensorboard.add_scalar(f"{kind}/{name}", value, step)


class _Rate:
    """Images a second while training: the first step (set-up) and pauses do not count."""

    def __init__(self) -> None:
        self._images = 0
        self._seconds = 0.0
        self._since: float | None = None
        self._is_warm = False

    def count(self, num_images: int) -> None:
        """A step is done."""
        now = time.perf_counter()
        if self._since is not None:
            self._seconds += now - self._since
            self._images += num_images
        self._since = now

    def pause(self) -> None:
        """What follows is no training; the next step begins a new stretch."""
        self._since = None

    @property
    def per_s(self) -> float:
        """So far; NaN before the second step."""
        return self._images / self._seconds if self._seconds else float("nan")
