"""The retention `conv_outputs`: keep the outputs of convolutions, replay batch norm and ReLU in the backward pass.

A pre-activation unit is a sequence of BN-ReLU-conv, for which autograd keeps the input of the batch norm *and* the
output of the ReLU, which is the convolution's input: 12w values a pixel for a bottleneck of inner width w, including
its output. The second follows from the first by element-wise operations, so it can be dropped: 6w remain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class _Dropped:
    """A tensor that is recomputed when the backward pass asks for it, once for all its readers."""

    recompute: Callable[[], Tensor]
    num_readers: int = 0
    _value: Tensor | None = field(default=None, repr=False)

    def read(self) -> Tensor:
        value = self.recompute() if self._value is None else self._value
        self.num_readers -= 1
        # A second backward pass (retain_graph) has no readers left to count: from then on, each read recomputes.
        self._value = value if self.num_readers > 0 else None
        return value


class ConvOutputs(torch.autograd.graph.saved_tensors_hooks):
    """A context in which autograd does not keep the tensors marked by `drop`, but recomputes them."""

    def __init__(self) -> None:
        super().__init__(self._pack, self._unpack)
        self._marked: tuple[Tensor, _Dropped] | None = None

    def drop(self, x: Tensor, recompute: Callable[[], Tensor]) -> None:
        """Mark `x`, even if it is then changed in place: readers get what `recompute` returns instead."""
        self._marked = (x, _Dropped(recompute))

    def forget(self) -> None:
        """Remove the mark, once everything that reads the tensor has run."""
        self._marked = None

    def __exit__(self, *exception: object) -> None:
        self.forget()  # autograd's hooks refer to this object, and it to them: it may live on for a while
        super().__exit__(*exception)

    def _pack(self, x: Tensor) -> Tensor | _Dropped:
        if self._marked is None or not _is_same(x, self._marked[0]):
            # Avoids a cycle: an operator's output refers to the operator, which would then refer to the output.
            return x if x.is_leaf else x.detach()
        self._marked[1].num_readers += 1
        return self._marked[1]

    @staticmethod
    def _unpack(packed: Tensor | _Dropped) -> Tensor:
        return packed.read() if isinstance(packed, _Dropped) else packed


def _is_same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are views of the same memory in the same shape; also of tensors without memory."""
    return (
        x.shape == y.shape
        and x.storage_offset() == y.storage_offset()
        and x.untyped_storage()._cdata == y.untyped_storage()._cdata
    )
