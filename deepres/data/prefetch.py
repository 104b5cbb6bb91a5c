"""The next batch, made while the device computes on the one before."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from deepres.data.batch import Batch, DataError


class Prefetch:
    """Batches of which one is made ahead: when a step has launched its work on the device, not when it needs one.

    At that time the step's activations are gone, so the batch takes no memory that the step would need.

    Args:
        batches: where they come from.
        device: where the steps are computed.

    Attributes:
        error: why the batch that is due next cannot be made.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._next: Batch | None = None
        self.error: DataError | None = None
        self._waited_s = 0.0

    def take(self, num: int) -> Iterator[Batch]:
        """The next `num` batches; the one after them is made when more than these are asked for.

        Raises:
            DataError: of the batch that is due, never of one made ahead.
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
        """Make the batch that is due next, unless it is there."""
        if self._next is not None or self.error is not None:
            return
        begin = time.perf_counter()
        # Of the work that is there by now: making the batch launches more.
        before = (
            None if self._device.type == "cpu" else torch.cuda.current_stream(self._device).record_event()
        )
        try:
            self._next = next(self._batches, None)
        except DataError as error:
            self.error = error
        # If there is still work from before, the device has not noticed.
        if before is None or before.query():
            self._waited_s += time.perf_counter() - begin

    def waited_s(self) -> float:
        """Seconds since the last call in which a batch was made and the device had nothing to do."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited
