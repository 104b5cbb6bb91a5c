"""The pass over the test images during a run; if one process fails, all raise."""

from __future__ import annotations

import torch

from deepres.data import Batch, DataError, DataSource
from deepres.distributed import any_process, from_any_process
from deepres.engines import Engine
from deepres.exit_status import ExitStatus, LoneRunError, RunError
from deepres.metrics import Metrics, metric_sums
from deepres.out_of_memory import UntilOutOfMemory
from deepres.stopping import StopRequest


def run_evaluation(engine: Engine, data: DataSource, stop: StopRequest, batch_size: int) -> Metrics | None:
    """Test the engine's net on all processes' test images; collective.

    Args:
        engine: the engine.
        data: this process's batches.
        stop: a request to stop ends the pass early.
        batch_size: images per forward pass, for messages.

    Returns:
        The metrics, or None if a process was asked to stop.

    Raises:
        RunError: in all processes: memory ran out in one, or it cannot read too many of its images.
        LoneRunError: memory ran out in this process, and parameters are sharded.
    """
    device = engine.process.device
    too_much = (
        f"out of memory in the evaluation, with {batch_size} images at once: lower train.eval_batch_size",
        ExitStatus.OUT_OF_MEMORY,
    )
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    batches, failure = data.test_batches(), None
    for _ in range(data.num_test_batches):
        batch: Batch | None = None
        try:
            with UntilOutOfMemory() as attempt:
                batch = next(batches)
        except DataError as error:
            failure = str(error), ExitStatus.REFUSED
        failure = too_much if attempt.ran_out else failure
        # Before the forward pass: with sharded parameters, processes in it wait for those that are not.
        if _are_stopped(stop, failure, device):
            return None
        assert batch is not None
        with UntilOutOfMemory() as attempt:
            sums += metric_sums(engine.predict(batch.images), batch.labels)
        if attempt.ran_out:
            failure = too_much
            if engine.shards_parameters:  # the others are still in the forward pass
                raise LoneRunError(*failure)
    if _are_stopped(stop, failure, device):
        return None
    return Metrics.over_processes(sums)


def _are_stopped(stop: StopRequest, failure: tuple[str, ExitStatus] | None, device: torch.device) -> bool:
    """Whether a process was asked to stop; collective.

    Raises:
        RunError: in all processes, if one has failed.
    """
    is_stopped, has_failed = any_process([stop.reason is not None, failure is not None], device)
    if has_failed:
        failure = from_any_process(failure)
        assert failure is not None
        raise RunError(*failure)
    return is_stopped
