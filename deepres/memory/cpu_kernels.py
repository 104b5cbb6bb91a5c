"""What operators on a CPU allocate besides their results, where that is more than some KiB.

For convolutions, see `deepres.memory.onednn`. Batch norm's backward pass allocates the gradient of its input twice,
unless that input and the gradient of its output are laid out differently (by PyTorch 2.13's allocator events).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepres.memory.onednn import convolution_peak_bytes

_NORM_BACKWARD = torch.ops.aten.native_batch_norm_backward.default


def operator_peak_bytes(func: Any, args: Sequence[Any]) -> int:
    """The most that an operator allocates, including its results; 0 if only those.

    Args:
        func: the ATen operator.
        args: its arguments, on the CPU.
    """
    if func is _NORM_BACKWARD:
        gradient, x, weight = args[:3]
        needs_dx, *needs_others = args[9]
        others = sum(needs_others) * x.shape[1] * (weight if weight is not None else x).element_size()
        return int((1 + _are_laid_out_alike(gradient, x)) * needs_dx * x.numel() * x.element_size() + others)
    return convolution_peak_bytes(func, args)


def _are_laid_out_alike(a: Tensor, b: Tensor) -> bool:
    formats = [torch.contiguous_format, *([torch.channels_last] if b.dim() == 4 else [])]
    return any(all(t.is_contiguous(memory_format=each) for t in (a, b)) for each in formats)
