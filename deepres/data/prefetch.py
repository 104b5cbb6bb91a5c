"""Prefetching: the next batch is made while the device computes on the current one."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from deepres.data.batch import Batch, DataError


class Prefetch:
    """Makes one batch ahead, as soon as a step has launched its work on the device.

    By then the step's activations are freed, so the batch takes no memory that the step needs.

    Args:
        batches: the source.
        device: where the steps are computed.

    Attributes:
        error: why the next batch could not be made.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._next: Batch | None = None
        self.error: DataError | None = None
        self._waited_s = 0.0

    def take(self, num: int) -> Iterator[Batch]:
        """Yield the next `num` batches; the one after them is made when the iterator is exhausted.

        Raises:
            DataError: one of these batches cannot be made; never raised for the one made ahead.
        """
        for _ in range(num):
            self.make_ahead()
            if self.error is not None:
                raise self.error
            batch, self._next = self._next, None
            assert batch is not None
            yield batch
            del batch
        self.make_ahead()

    def make_ahead(self) -> None:
        """Make the next batch, unless that has been done."""
        if self._next is not None or self.error is not None:
            return
        begin = time.perf_counter()
        # Marks the work queued so far: making the batch launches more.
        before = (
            None if self._device.type == "cpu" else torch.cuda.current_stream(self._device).record_event()
        )
        try:
            self._next = next(self._batches, None)
        except DataError as error:
            self.error = error
        # If earlier work is still queued, the device was not idle meanwhile.
        if before is None or before.query():
            self._waited_s += time.perf_counter() - begin

    def waited_s(self) -> float:
        """Seconds, since the last call, that the device was idle while a batch was made."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited
