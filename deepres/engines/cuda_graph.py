"""Passes as CUDA graphs: the kernels of a forward and backward pass, recorded once and replayed in one launch.

NOTE [ Recorded passes ]
1. The first passes run eagerly, on the stream that is recorded later, so that libraries choose their algorithms. They
   are ordinary passes of the training; nothing is run twice or undone.
2. Recording runs no kernel; the recorded pass takes effect when it is replayed. It reads from fixed addresses:
   parameters, buffers, the loss's scale, and one buffer each for images and labels, into which every batch is copied.
   It also writes to fixed addresses: gradients accumulate in existing tensors, so these are zeroed, not set to None.
3. A batch of another shape runs eagerly.
4. Activations live in the graph's own memory pool, which other passes (evaluation) cannot use.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

Pass = Callable[[Tensor, Tensor], Tensor]
"""Takes images and labels, accumulates gradients, and returns the batch's sums."""

NUM_EAGER = 3
"""Eager passes before the one that is recorded."""


class OnCuda:
    """Runs work on a stream of its own, and records it there."""

    def __init__(self) -> None:
        torch.cuda.empty_cache()  # cached blocks belong to another stream, and are of no use on this one
        self._stream = torch.cuda.Stream()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run the block on this stream, ordered between the work before and after it on the current one."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record `run`; returns a function that replays it and returns its result, in the same memory each time."""
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # no discarded graph may be destroyed while another is recorded
        # Another thread may pin memory meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = run()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class Recorder(Protocol):
    """Runs and records work; see `OnCuda`."""

    def aside(self) -> AbstractContextManager[object]:
        """Run the block where it will be recorded."""

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record the work; returns a function that repeats it and returns its result."""


class RecordedPass:
    """A pass that is recorded after it has run a few times; see NOTE [ Recorded passes ].

    Args:
        run: the pass; the work that it does depends on the batch's shape alone, and it draws no random numbers. The
            gradients that it adds to exist already.
        recorder: where it runs.
    """

    def __init__(self, run: Pass, recorder: Recorder) -> None:
        self._run, self._recorder = run, recorder
        self._num_eager = 0
        self._replay: Callable[[], Tensor] | None = None
        self._images, self._labels = torch.empty(0), torch.empty(0)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run or replay the pass; its result is valid until the next one."""
        if self._replay is None and self._num_eager < NUM_EAGER:
            self._num_eager += 1
            with self._recorder.aside():
                return self._run(images, labels)
        if self._replay is None:
            self._images, self._labels = images.clone(), labels.clone()
            self._replay = self._recorder.record(lambda: self._run(self._images, self._labels))
        if images.shape != self._images.shape:
            return self._run(images, labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        return self._replay()
