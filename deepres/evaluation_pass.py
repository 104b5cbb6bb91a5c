"""The pass over the test images during a run; its failures are those of all processes together."""

from __future__ import annotations

import torch

from deepres.data import DataError, DataSource
from deepres.distributed import any_process, from_any_process
from deepres.engines import Engine
from deepres.exit_status import ExitStatus, RunError
from deepres.metrics import Metrics, metric_sums
from deepres.out_of_memory import UntilOutOfMemory
from deepres.stopping import StopRequest


def run_evaluation(engine: Engine, data: DataSource, stop: StopRequest, batch_size: int) -> Metrics | None:
    """Test the engine's net on all processes' test images; collective.

    Args:
        engine: has the net.
        data: this process's batches.
        stop: a request to stop ends the pass early.
        batch_size: images at once, for messages.

    Returns:
        The metrics, or None if a process was asked to stop.

    Raises:
        RunError: in all processes: memory ran out in one, or too many of its images cannot be read.
    """
    device = engine.process.device
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    batches, failure = data.test_batches(), None
    for _ in range(data.num_test_batches):
        try:
            with UntilOutOfMemory() as attempt:
                batch = next(batches)
                sums += metric_sums(engine.predict(batch.images), batch.labels)
            if attempt.ran_out:
                what = f"out of memory in the evaluation, with {batch_size} images at once: lower train.eval_batch_size"
                failure = what, ExitStatus.OUT_OF_MEMORY
        except DataError as error:
            failure = str(error), ExitStatus.REFUSED
        is_stopped, has_failed = any_process([stop.reason is not None, failure is not None], device)
        if has_failed:
            failure = from_any_process(failure)
            assert failure is not None
            raise RunError(*failure)
        if is_stopped:
            return None
    return Metrics.over_processes(sums)
