"""What convolutions on a CPU allocate beside their results: oneDNN's copies in its own layout.

NOTE [ oneDNN's copies ]
For tensors in PyTorch's usual layout, oneDNN copies a convolution's input X and weight W into blocks of channels,
computes into a blocked Y, frees the copies, and then copies Y into the result y. The backward pass does the same
for the gradient of the input (G, W -> DX -> dx), then for that of the weight (G, X -> DW). Not copied are images (3
channels) and tensors that are channels_last. So, each letter a tensor's bytes:

    forward   max(X + W + Y, Y + y)
    backward  max(G + W + DX, DX + dx, dx + G + X + DW + S, dx + dw + DW)

with S what threads sum weights' gradients in (in bf16: DW in fp32), and with one more copy of dx where there is a
stride. Read off PyTorch 2.13's allocations; what kernels need per thread (some 100 KiB) is left
out, and so are the rare shapes for which PyTorch computes without oneDNN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_CONVOLUTION = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default


def convolution_peak_bytes(func: Any, args: Sequence[Any]) -> int:
    """The most that a convolution or its backward pass allocates, its results included; 0 for any other operator.

    Args:
        func: the ATen operator.
        args: its arguments, on the CPU.
    """
    if func is _CONVOLUTION:
        x, weight, _, stride, padding, dilation = args[:6]
        y_bytes = int(x.element_size()) * math.prod(_output_shape(x, weight, stride, padding, dilation))
        if _is_channels_last(x):
            return y_bytes
        return y_bytes + max(_blocked(x) + _bytes(weight), y_bytes)
    if func is _BACKWARD:
        gradient, x, weight, _, stride = args[:5]
        needs_dx, needs_dw = args[10][:2]
        dx, dw = _bytes(x) * needs_dx, _bytes(weight) * needs_dw
        if _is_channels_last(x) or _is_channels_last(gradient):
            return int(dx + dw)
        peaks = [dx + dw]
        if needs_dx:
            peaks += [_bytes(gradient) + _bytes(weight) + dx, 2 * dx]
            if max(stride) > 1:
                peaks.append(3 * dx)
        if needs_dw:
            sums = weight.numel() * 4 if weight.element_size() == 2 else 0
            peaks += [dx + _bytes(gradient) + _blocked(x) + dw + sums, dx + 2 * dw]
        return int(max(peaks))
    return 0


def _output_shape(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    sides = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return [x.shape[0], weight.shape[0], *sides]


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _blocked(x: Tensor) -> int:
    return 0 if x.shape[1] == 3 else _bytes(x)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
