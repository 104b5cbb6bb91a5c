"""How long operators take on a card, by its roofline: predicted, without the card.

An operator takes as long as its arithmetic at the card's rate or its traffic at the memory's bandwidth, whichever
is longer (Williams, Waterman and Patterson 2009), plus a launch. How much of the maker's figures kernels attain is
assumed, not measured: 40 % of the arithmetic and 75 % of the bandwidth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from deepres.memory.gpus import Gpu

_ATTAINED_ARITHMETIC, _ATTAINED_BANDWIDTH, _LAUNCH_MS = 0.40, 0.75, 0.004


class Roofline(TorchDispatchMode):
    """Adds up how long the operators inside the context would take on a card.

    Args:
        gpu: the card.

    Attributes:
        total_ms: the sum so far.
    """

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total_ms = 0.0
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        computes = any(isinstance(t, Tensor) for t in tree_leaves(result))  # unlike a query (`prim.device`)
        if computes and not func.is_view and func not in _FREE:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            tensors += [args[k] for k in _read_twice(func, args)]
            traffic_ms = sum(t.numel() * t.element_size() for t in tensors) / (
                self._gpu.bandwidth_gb_s * 1e6 * _ATTAINED_BANDWIDTH
            )
            count = flop_registry.get(func._overloadpacket)
            flops = 0 if count is None else int(count(*args, **kwargs, out_val=result))
            rate = self._tflops(tensors[0].dtype) if tensors else 1.0
            self.total_ms += max(traffic_ms, flops / (rate * 1e9 * _ATTAINED_ARITHMETIC)) + _LAUNCH_MS
        return result

    def _tflops(self, dtype: torch.dtype) -> float:
        gpu = self._gpu
        if dtype in (torch.bfloat16, torch.float16):
            return gpu.bf16_tflops or gpu.fp32_tflops
        return gpu.tf32_tflops or gpu.fp32_tflops  # PyTorch's convolutions use tf32 unless told otherwise


def _read_twice(func: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
    """Which arguments are read in two passes: for sums over the batch first, or by two kernels."""
    if func is torch.ops.aten.native_batch_norm.default:
        return (0,) if args[5] else ()  # x, if its statistics are not given
    if func is torch.ops.aten.native_batch_norm_backward.default:
        return (0, 1)  # the gradient and x
    if func is torch.ops.aten.convolution_backward.default:
        return (0,)  # the gradient, for that of the input and that of the weight
    return ()


_FREE = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.detach.default,
}
