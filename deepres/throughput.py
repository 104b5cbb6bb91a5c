"""Images per second while training, and the share of time spent waiting for data."""

from __future__ import annotations

import time


class Throughput:
    """Training throughput, and the time spent waiting for data; pauses, and the first step after each, do not count.

    Waiting for a checkpoint does count.
    """

    def __init__(self) -> None:
        self._images = 0
        self._seconds = 0.0
        self._waited = 0.0
        self._since: float | None = None
        self._told = (0, 0.0)

    def count(self, num_images: int, waited_s: float) -> None:
        """Count a finished step, in which the device waited that long for data."""
        now = time.perf_counter()
        if self._since is not None:
            self._seconds += now - self._since
            self._images += num_images
            self._waited += waited_s
        self._since = now

    def pause(self) -> None:
        """Stop the clock until the next step: what follows is not training."""
        self._since = None

    @property
    def per_s(self) -> float:
        """Images per second so far; NaN before the second step."""
        return self._images / self._seconds if self._seconds else float("nan")

    def since_last_asked(self) -> float:
        """Images per second since the last call; NaN if no step has counted since."""
        images, seconds = self._images - self._told[0], self._seconds - self._told[1]
        self._told = self._images, self._seconds
        return images / seconds if seconds else float("nan")

    @property
    def data_wait_share(self) -> float:
        """The fraction of the time spent waiting for a batch; NaN before the second step."""
        return self._waited / self._seconds if self._seconds else float("nan")
