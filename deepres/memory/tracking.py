"""The bytes of all tensors that are alive, counted as PyTorch makes and frees them, on any device or on none."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorBytes(TorchDispatchMode):
    """Counts the storages of tensors that are made inside the context, each once, until they are freed.

    Tensors from before do not count, nor do views of them.

    What kernels use internally is not in tensors, and counts only as far as `operator_peak_bytes` reports it.

    Args:
        operator_peak_bytes: from an operator and its arguments, the most that it allocates while it runs,
            including its results (0 if only those).

    Attributes:
        live_bytes: now.
        peak_bytes: the most since the context began or `reset_peak` was called.
    """

    def __init__(
        self,
        operator_peak_bytes: Callable[[Any, Sequence[Any]], int] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._live: dict[int, int] = {}
        self._operator_peak_bytes = operator_peak_bytes

    def reset_peak(self) -> None:
        """Start looking for a new peak."""
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own_bytes = 0 if self._operator_peak_bytes is None else self._operator_peak_bytes(func, args)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes + own_bytes)
        result = func(*args, **(kwargs or {}))
        there = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and _key(tensor) not in there:
                self._count(tensor.untyped_storage())
        # Autograd adds gradients up in place, except under a mode such as this one: the sum replaces its first summand.
        if func is not torch.ops.aten.add.Tensor or torch._C._current_graph_task_id() < 0:
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live or storage.nbytes() == 0:
            return
        self._live[key] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live_bytes -= self._live.pop(key, 0)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
