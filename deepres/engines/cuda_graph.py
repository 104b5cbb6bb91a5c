"""Passes as CUDA graphs: the launches of a forward and backward pass recorded once, and replayed as one.

NOTE [ Recorded passes ]
1. The first passes run as usual, though on another stream: libraries choose their algorithms, and gradients come to be.
   They are passes of the training like all others; nothing is run twice or undone.
2. Recording runs no kernel; the pass that was recorded happens when it is replayed. What it reads lies where it lay:
   parameters, buffers, the loss's scale, and one place for images and labels, which each batch is copied to. What it
   writes too: gradients are added to those that are there, so that they are set to zero and not to None.
3. A batch of another shape runs as usual.
4. Activations live in a pool of the graph's own, which other passes (evaluation) cannot use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Pass = Callable[[Tensor, Tensor], Tensor]
"""Takes images and labels, adds to the gradients, and gives logits."""

NUM_EAGER = 3
"""Passes before the one that is recorded."""


def record_on_cuda(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What replays `run` and gives its result, which lies in the same memory each time."""
    graph = torch.cuda.CUDAGraph()
    # Another thread may pin memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class RecordedPass:
    """A pass that is recorded once it has run a few times; see NOTE [ Recorded passes ].

    Args:
        run: the pass; its work on a batch depends on the shape alone, and it draws no random numbers.
        record: gives what replays a piece of work.
    """

    def __init__(
        self, run: Pass, record: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] = record_on_cuda
    ) -> None:
        self._run, self._record = run, record
        self._num_eager = 0
        self._replay: Callable[[], Tensor] | None = None
        self._images, self._labels = torch.empty(0), torch.empty(0)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run or replay the pass; the logits (N, num_classes) hold until the next one."""
        if self._replay is None and self._num_eager < NUM_EAGER:
            self._num_eager += 1
            return self._run_aside(images, labels)
        if self._replay is None:
            self._images, self._labels = images.clone(), labels.clone()
            self._replay = self._record(lambda: self._run(self._images, self._labels))
        if images.shape != self._images.shape:
            return self._run(images, labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        return self._replay()

    def _run_aside(self, images: Tensor, labels: Tensor) -> Tensor:
        """As usual, on a stream of its own: recording cannot be on the default one, nor reuse what belongs to it."""
        if images.device.type != "cuda":
            return self._run(images, labels)
        stream, current = torch.cuda.Stream(images.device), torch.cuda.current_stream(images.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            logits = self._run(images, labels)
        current.wait_stream(stream)
        return logits
