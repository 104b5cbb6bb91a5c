"""A run's log: lines on the screen, metrics.jsonl, TensorBoard, curves."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Never

from tqdm import tqdm

from deepres.bytesize import format_bytes
from deepres.commit import replace_text
from deepres.config import LogConfig
from deepres.curves import plot_curves
from deepres.distributed import Process
from deepres.memory.planned_run import PlannedRun
from deepres.memory.step_log import read_step_memory, start_memory_history, write_memory_snapshot
from deepres.metrics import Metrics
from deepres.provenance import provenance
from deepres.run_folder import CURVES, MADE_BY, METRICS, NOT_FINITE, OUT_OF_MEMORY, PLAN, RunFolder
from deepres.screen import say

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter  # of an extra

_TOLERANCE = 1.02


@dataclass(frozen=True)
class Summary:
    """A run in short.

    Attributes:
        test: the last evaluation.
        images_per_s: training throughput of all processes, without set-up, evaluations and the first step after each.
        activation_peak_bytes: of one process, measured on its first micro batch.
        predicted_peak_bytes: the same, as predicted by the plan.
        data_wait_share: the fraction of the training time in which the first process waited for a batch.
        recompute_share: the predicted fraction of a step that is spent on replays.
    """

    test: Metrics
    images_per_s: float
    activation_peak_bytes: int
    predicted_peak_bytes: int
    data_wait_share: float
    recompute_share: float

    def __str__(self) -> str:
        speed = "too short for images/s"
        if not math.isnan(self.images_per_s):
            speed = f"{self.images_per_s:.1f} images/s   waiting for data {100 * self.data_wait_share:.1f} %"
        return (
            f"test accuracy {100 * self.test.top1:.2f} % (top-5 {100 * self.test.top5:.2f} %)   "
            f"peak activation memory {format_bytes(self.activation_peak_bytes)} "
            f"(predicted {format_bytes(self.predicted_peak_bytes)})\n"
            f"    {speed}   "
            f"recomputation {100 * self.recompute_share:.1f} % of a step (predicted)"
        )


class RunLog:
    """Logs what a run does, in the first process; the others are silent.

    Args:
        config: what to log.
        process: this process.
        folder: where the first process writes; None in the others.
        num_steps: the run's number of steps.
        steps_per_epoch: optimizer steps.
        first_step: the step, from 0, with which the run begins or resumes.
    """

    def __init__(
        self,
        config: LogConfig,
        process: Process,
        folder: RunFolder | None,
        num_steps: int,
        steps_per_epoch: int,
        first_step: int,
    ) -> None:
        self._config, self._process, self._folder = config, process, folder
        self._num_steps, self._steps_per_epoch = num_steps, steps_per_epoch
        self._num_epochs = -(-num_steps // steps_per_epoch)
        self._tensorboard: SummaryWriter | None = None
        if folder is not None and config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with self._losing_tensorboard():
                self._tensorboard = SummaryWriter(str(folder.path), purge_step=first_step + 1)

    def bar(self, epoch: int, num_steps: int) -> tqdm[Never]:
        """A progress bar for the steps of an epoch, on a terminal only."""
        return tqdm(
            total=num_steps,
            desc=f"epoch {epoch + 1}/{self._num_epochs}",
            unit="step",
            leave=False,
            disable=not (self._process.is_first and sys.stderr is not None and sys.stderr.isatty()),
        )

    def begin(self, planned: PlannedRun) -> None:
        """Log the plan, with a warning if a micro batch takes more, and write plan and provenance to the folder."""
        plan, peak_bytes = planned.plan, planned.activations_bytes
        if self._config.memory_history and self._folder is not None:
            start_memory_history(self._process.device)
        self.say(str(planned))
        if planned.budget_bytes is not None and peak_bytes > _TOLERANCE * planned.budget_bytes:
            self.say(
                f"WARNING: a micro batch was measured to take {format_bytes(peak_bytes)} of activations, more than the "
                f"budget of {format_bytes(planned.budget_bytes)}: the prediction is wrong here; lower the budget"
            )
        if self._folder is not None:
            replace_text(self._folder.path / PLAN, plan.to_json() + "\n")
            made_by = provenance(self._process.device.type)
            self._folder.metrics.write(MADE_BY, note=self._config.note, **made_by)
            self._folder.metrics.write(
                "plan",
                budget_bytes=planned.budget_bytes,
                predicted_peak_bytes=plan.peak_bytes,
                predicted_extra=plan.extra_share,
                num_segments=plan.num_segments,
                nesting_depth=plan.nesting_depth,
                micro_batch_size=planned.sizes.micro_size,
                accumulation=planned.sizes.accumulation,
                predicted_total_bytes=planned.predicted_total_bytes,
            )

    def training(self, step: int, learning_rate: float, metrics: Metrics, images_per_s: float) -> None:
        """Log the training since the last such line; `images_per_s` is NaN while it is not known yet."""
        epoch = step / self._steps_per_epoch
        speed = "" if math.isnan(images_per_s) else f"  {images_per_s:.1f} images/s"
        self.say(
            f"epoch {epoch:.2f}/{self._num_epochs}  step {step}/{self._num_steps}  lr {learning_rate:g}  "
            f"loss {metrics.loss:.4f}  top-1 {100 * metrics.top1:.1f} %{speed}"
        )
        self._record("train", step, metrics, learning_rate=learning_rate, images_per_s=images_per_s)

    def memory(self, step: int) -> None:
        """Record the device's memory since the last call, if `log.memory` asks for it."""
        if self._config.memory and self._folder is not None:
            memory = read_step_memory(self._process.device)
            if memory is not None:
                self._folder.metrics.write("memory", step=step, **memory._asdict())

    def out_of_memory(self) -> None:
        """Write the memory history, if `log.memory_history` asks for it."""
        if self._config.memory_history and self._folder is not None:
            write_memory_snapshot(self._folder.path / OUT_OF_MEMORY, self._process.device)

    def not_finite(self, step: int, what: str, where: str) -> None:
        """Record what was not finite, and where it first shows."""
        if self._folder is not None:
            self._folder.metrics.write(NOT_FINITE, step=step, what=what, where=where)

    def test(self, step: int, metrics: Metrics) -> None:
        """Log an evaluation."""
        epoch, rest = divmod(step, self._steps_per_epoch)
        done = f"{step / self._steps_per_epoch:.2f}" if rest else f"{epoch}"
        self.say(
            f"epoch {done}/{self._num_epochs}  test on {metrics.num_images} images: loss {metrics.loss:.4f}  "
            f"top-1 {100 * metrics.top1:.2f} %  top-5 {100 * metrics.top5:.2f} %"
        )
        self._record("test", step, metrics, num_images=metrics.num_images)

    def end(self, step: int, summary: Summary, num_bad_images: int, of_run: dict[str, Any]) -> None:
        """Log the summary and mark the run's folder as finished, by a file that also has `of_run`."""
        if self._folder is None:
            return
        self._folder.metrics.write(
            "summary",
            step=step,
            top1=summary.test.top1,
            top5=summary.test.top5,
            images_per_s=summary.images_per_s,
            activation_peak_bytes=summary.activation_peak_bytes,
            predicted_peak_bytes=summary.predicted_peak_bytes,
            data_wait_share=summary.data_wait_share,
            recompute_share=summary.recompute_share,
            bad_images=num_bad_images,
        )
        self._folder.metrics.close()
        if self._tensorboard is not None:
            with self._losing_tensorboard():
                self._tensorboard.close()
        self._folder.mark_finished(step=step, top1=summary.test.top1, top5=summary.test.top5, **of_run)
        if self._config.plots:
            try:
                plot_curves(self._folder.path / METRICS, self._folder.path / CURVES)
            except (OSError, ValueError) as error:  # ValueError: the metrics file has been edited
                self.say(f"{CURVES} could not be drawn: {getattr(error, 'strerror', None) or error}")
        if num_bad_images:
            self.say(f"{num_bad_images} images could not be read and were skipped")
        self.say(f"{summary}   run folder {self._folder.path}")

    def say(self, line: str) -> None:
        """Print a line, above the progress bar."""
        if self._process.is_first:
            say(line)

    def _record(self, kind: str, step: int, metrics: Metrics, **values: float) -> None:
        if self._folder is None:
            return
        measured = {"loss": metrics.loss, "top1": metrics.top1, "top5": metrics.top5}
        epoch = round(step / self._steps_per_epoch, 4)
        self._folder.metrics.write(kind, step=step, epoch=epoch, **measured, **values)
        if self._tensorboard is not None:
            with self._losing_tensorboard():
                for name, value in measured.items():
                    self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    @contextmanager
    def _losing_tensorboard(self) -> Iterator[None]:
        """Give up TensorBoard for the rest of the run if it cannot be written; `metrics.jsonl` has all of it, too."""
        try:
            yield
        except OSError as error:
            self._tensorboard = None
            self.say(
                f"WARNING: TensorBoard's file cannot be written: {error.strerror}; it gets no more of this run"
            )
