"""Passes as CUDA graphs: the launches of a forward and backward pass recorded once, and replayed as one.

NOTE [ Recorded passes ]
1. The first passes run as usual, though on another stream, where the recorded one runs too: libraries choose their
   algorithms. They are passes of the training like all others; nothing is run twice or undone.
2. Recording runs no kernel; the pass that was recorded happens when it is replayed. What it reads lies where it lay:
   parameters, buffers, the loss's scale, and one place for images and labels, which each batch is copied to. What it
   writes too: gradients are added to those that are there, so that they are set to zero and not to None.
3. A batch of another shape runs as usual.
4. Activations live in a pool of the graph's own, which other passes (evaluation) cannot use.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

Pass = Callable[[Tensor, Tensor], Tensor]
"""Takes images and labels, adds to the gradients, and gives the batch's sums."""

NUM_EAGER = 3
"""Passes before the one that is recorded."""


class OnCuda:
    """Runs work on a stream of its own, and records it there."""

    def __init__(self) -> None:
        torch.cuda.empty_cache()  # what the cache holds is another stream's, and of no use on this one
        self._stream = torch.cuda.Stream()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run what is inside on this stream, between what comes before and after it."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """What replays `run` and gives its result, which lies in the same memory each time."""
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # a graph that is given up may not go while another is recorded
        # Another thread may pin memory meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = run()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class Recorder(Protocol):
    """Where work is run and recorded; see `OnCuda`."""

    def aside(self) -> AbstractContextManager[object]:
        """Run what is inside where it will be recorded."""

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """What does the work again and gives its result."""


class RecordedPass:
    """A pass that is recorded once it has run a few times; see NOTE [ Recorded passes ].

    Args:
        run: the pass; its work on a batch depends on the shape alone, and it draws no random numbers. The gradients
            that it adds to are there.
        recorder: where it runs.
    """

    def __init__(self, run: Pass, recorder: Recorder) -> None:
        self._run, self._recorder = run, recorder
        self._num_eager = 0
        self._replay: Callable[[], Tensor] | None = None
        self._images, self._labels = torch.empty(0), torch.empty(0)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run or replay the pass; its result holds until the next one."""
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
