"""What convolutions on a CPU allocate besides their results: oneDNN's copies and scratch, or columns without oneDNN.

NOTE [ oneDNN's copies ]
For tensors in PyTorch's usual layout, oneDNN copies a convolution's input X and weight W into its own layout, computes
Y in it, frees the copies, and then copies Y into the result y. The backward pass does the same for the gradient of the
input (G, W -> DX -> dx), then for that of the weight (G, X -> DW). With each letter for a tensor's bytes, and K for
the kernel's scratch:

    forward   max(X + W + Y + K, Y + y)
    backward  max(G + W + DX + K, DX + dx, dx + G + X + DW + K, dx + dw + DW)

OneDNN's layout has blocks of channels; images (3 channels) are not copied into it. With AMX and 16-bit values, and in
the backward pass of a strided convolution, channels are innermost instead, and one more copy is made of y or dx.

Images, results and gradients that are channels_last are not copied. The weight is copied into oneDNN's layout, by way
of channels_last unless it is that or 1 x 1 already; its gradient is copied back. With V for the copies, W or 2 W:

    forward   y + V + K
    backward  max(dx + V + K, dx + dw + V + DW + K), in bf16 dx + V + K for dw too

NOTE [ without oneDNN ]
In fp32, PyTorch does not use oneDNN for 1 x 1 kernels on fewer than 16 images with one thread, nor, with any number of
threads, for kernels of up to 3 x 3 on a single image of at most 20,480 values (`use_mkldnn` in Convolution.cpp). What
a kernel sees at each pixel of the result is then copied into a column, for the result and for the weight's gradient,
unless the columns are the image itself (1 x 1 without a stride). If the image is channels_last, the weight is copied to
that layout.

NOTE [ oneDNN's scratch ]
What a kernel reserves for T threads, by the files of src/cpu/x64 in oneDNN 3.12. X, Y, G and DX are now those of one
image, X+ and G+ those with padding, X/s what is left of X where a stride s skips pixels; bf16 is any 16-bit format:

    Y, or DX (G for X)
      1 x 1, s > 1             T times X/s                       jit_uni_1x1_conv_utils.hpp
      1 x 1, bf16, no AMX      T times Y, or DX, in fp32         jit_avx512_core_bf16_1x1_conv_kernel.cpp
      k x k, bf16, AMX         T (1 + s) times X+, or G+         jit_brgemm_conv_utils.cpp
    DW
      fp32                     P - 1 times W                     jit_avx512_common_conv_kernel.cpp
      bf16                     P times W in fp32                 all
      k x k, bf16, no AMX      P times X+ and G                  jit_avx512_core_bf16_conv_kernel.cpp
      k x k and 1 x 1, AMX     P times X+ and G                  jit_brgemm_conv_utils.cpp
      1 x 1, no AMX, s > 1     T times 128 channels of X/s       jit_uni_1x1_conv_utils.hpp
      1 x 1, bf16, no AMX, to  T times 128 channels of X/s and
        14 pixels a side       256 of G                          jit_avx512_core_bf16_1x1_conv_kernel.cpp

For channels_last without AMX, Y takes none, strided DX takes T times G+, and DW of 1 x 1 in bf16 takes the last line's
for any number of pixels.

The weight's gradient is summed in P parts: T if threads split the images, 1 if they split the channels; `balance` in
each of these files chooses what should read less memory. AMX kernels pad rows of X+ to a multiple of 32 pixels in DW,
and copy no more of an image than fits the L2 cache (the bounds below).

This agrees with the allocations of PyTorch 2.13 for the convolutions of ResNets in one and two threads: to some 100 KiB
a thread without AMX (as with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16; for 7 x 7 pixels, threads take half of Y), and with
AMX it is up to 0.5 MiB a thread too high (channels_last with AMX was not checked). Not covered are groups, and other
shapes for which oneDNN is not used.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_CONVOLUTION = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default
_L2_BYTES = 2**21  # of a core that has AMX


def convolution_peak_bytes(func: Any, args: Sequence[Any]) -> int:
    """The most that a convolution or its backward pass allocates, including results; 0 for any other operator.

    It depends on PyTorch's number of threads in this process, and on this processor.

    Args:
        func: the ATen operator.
        args: its arguments, on the CPU.
    """
    if func is _CONVOLUTION:
        x, weight, _, stride, padding, dilation = args[:6]
        shape = _output_shape(x, weight, stride, padding, dilation)
        y_bytes = int(x.element_size()) * math.prod(shape)
        if not _is_onednns(x, weight, stride, dilation):
            return y_bytes + _columns(x, weight, shape, stride, padding)
        scratch = _scratch(x, weight, shape, stride, padding)
        if _is_channels_last(x):
            return y_bytes + _weight_copies(weight) + (scratch if _has_channels_innermost(x) else 0)
        num_ys = 3 if _has_channels_innermost(x) else 2
        return max(_copied(x) + _bytes(weight) + y_bytes + scratch, num_ys * y_bytes)
    if func is _BACKWARD:
        gradient, x, weight, _, stride, padding, dilation = args[:7]
        needs_dx, needs_dw = args[10][:2]
        dx, dw = _bytes(x) * needs_dx, _bytes(weight) * needs_dw
        if not _is_onednns(x, weight, stride, dilation):
            return int(dx + dw + needs_dw * _columns(x, weight, gradient.shape, stride, padding))
        is_strided = max(stride) > 1
        peaks = [dx + dw]
        if _is_channels_last(x) or _is_channels_last(gradient):
            copies = _weight_copies(weight)
            if needs_dx:
                scratch = torch.get_num_threads() * _padded_bytes(gradient, padding) if is_strided else 0
                if _has_channels_innermost(x):
                    scratch = _scratch(gradient, weight, x.shape, stride, padding)
                peaks.append(dx + copies + scratch)
            if needs_dw:
                scratch = _weight_scratch(gradient, x, weight, stride, padding, is_channels_last=True)
                copies += dw if x.element_size() == 4 else -dw
                peaks.append(dx + dw + copies + scratch)
            return int(max(peaks))
        if needs_dx:
            scratch = 0 if is_strided else _scratch(gradient, weight, x.shape, stride, padding)
            num_dxs = 3 if is_strided or _has_channels_innermost(x) else 2
            peaks += [_bytes(gradient) + _bytes(weight) + dx + scratch, num_dxs * dx]
        if needs_dw:
            scratch = _weight_scratch(gradient, x, weight, stride, padding)
            peaks += [dx + _bytes(gradient) + _copied(x) + dw + scratch, dx + 2 * dw]
        return int(max(peaks))
    return 0


def _scratch(
    x: Tensor, weight: Tensor, shape: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> int:
    """The scratch of the kernel that makes a result of this shape from x."""
    num_pixels, num_bytes = math.prod(shape[2:]), 0
    if not _is_pointwise(weight):
        if _has_channels_innermost(x) and x.shape[1] > 64:  # with fewer channels, only some rows
            most = max(stride) * 3 * _L2_BYTES // 16
            num_bytes = (1 + max(stride)) * min(_padded_bytes(x, padding), most)
    else:
        if max(stride) > 1:
            num_bytes += num_pixels * x.shape[1] * x.element_size()
        if x.element_size() == 2 and not _has_channels_innermost(x):
            num_bytes += num_pixels * shape[1] * 4
    return torch.get_num_threads() * num_bytes


def _weight_copies(weight: Tensor) -> int:
    """The bytes of a weight's copies, where images are channels_last."""
    is_as_they_are = _is_pointwise(weight) or _is_channels_last(weight)
    return _bytes(weight) * (1 if is_as_they_are else 2)


def _weight_scratch(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    is_channels_last: bool = False,
) -> int:
    """The scratch of the kernel that makes the weight's gradient."""
    num_threads = torch.get_num_threads()
    num_parts = num_threads if _images_are_shared_out(gradient, x, weight, stride, padding) else 1
    sums, gradient_bytes = weight.numel() * 4, _bytes(gradient) // x.shape[0]
    if _has_channels_innermost(x):
        copies = _padded_bytes(x, padding, 32 * stride[-1]) + gradient_bytes
        return num_parts * (sums + min(copies, _L2_BYTES // 2))
    scratch = sums * (num_parts - 1 if x.element_size() == 4 else num_parts)
    if _is_pointwise(weight):
        num_x, num_gradient = min(x.shape[1], 128), min(gradient.shape[1], 256)
        if max(stride) > 1:
            scratch += num_threads * math.prod(gradient.shape[2:]) * num_x * x.element_size()
        if x.element_size() == 2 and (is_channels_last or min(gradient.shape[2:]) <= 14):
            scratch += num_threads * math.prod(gradient.shape[2:]) * (num_x + num_gradient) * 2
    elif x.element_size() == 2:
        scratch += num_parts * (_padded_bytes(x, padding) + gradient_bytes)
    return scratch


def _images_are_shared_out(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> bool:
    """Whether threads that compute a weight's gradient split the images, as oneDNN decides for two threads."""
    num_x, num_gradient, num_weight = x.numel(), gradient.numel(), weight.numel()
    if _has_channels_innermost(x):
        num_x = x.shape[0] * _padded_bytes(x, padding, 32 * stride[-1]) // 2
        widening = max(1, gradient.shape[1] / x.shape[1])
        most = max(2 * num_weight, (num_x + num_gradient) / 2)
        return x.shape[1] <= 32 or widening * num_gradient > most
    read = min(num_x // math.prod(stride), num_gradient)
    if x.element_size() == 4 or _is_pointwise(weight):
        return read > 4 * num_weight
    return read > max(num_weight, (num_x + num_gradient) / 4)


def _columns(
    x: Tensor, weight: Tensor, shape: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> int:
    """The bytes copied without oneDNN to make a result of this shape, or the weight's gradient."""
    if _is_pointwise(weight) and max(stride) == 1 and max(padding) == 0:
        return 0
    values = weight.numel() // weight.shape[0] * shape[0] * math.prod(shape[2:])
    is_copied = _is_channels_last(x) and not (_is_pointwise(weight) or _is_channels_last(weight))
    return values * x.element_size() + (_bytes(weight) if is_copied else 0)


def _is_onednns(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether PyTorch leaves the convolution to oneDNN; see NOTE [ without oneDNN ]."""
    if x.element_size() == 2:
        return True
    is_worth_it = (
        x.shape[0] >= 16
        or not _is_pointwise(weight)
        or max(*stride, *dilation) > 1
        or torch.get_num_threads() > 1
    )
    return is_worth_it and (x.shape[0] > 1 or min(weight.shape[2:]) > 3 or x.numel() > 20_480)


def _has_channels_innermost(x: Tensor) -> bool:
    """Whether oneDNN's own layout has channels innermost, rather than blocks of channels."""
    return x.element_size() == 2 and _has_amx()


@functools.cache
def _has_amx() -> bool:
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    return ("AMX" in limit or limit in ("ALL", "DEFAULT")) and torch.cpu._is_amx_tile_supported()


def _is_pointwise(weight: Tensor) -> bool:
    return math.prod(weight.shape[2:]) == 1


def _output_shape(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    sides = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return [x.shape[0], weight.shape[0], *sides]


def _padded_bytes(x: Tensor, padding: Sequence[int], multiple: int = 1) -> int:
    """The bytes of one image with its padding, rows padded to a multiple."""
    sides = [side + 2 * p for side, p in zip(x.shape[2:], padding, strict=True)]
    sides[-1] = math.ceil(sides[-1] / multiple) * multiple
    return x.shape[1] * math.prod(sides) * x.element_size()


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _copied(x: Tensor) -> int:
    return 0 if x.shape[1] == 3 and not _has_channels_innermost(x) else _bytes(x)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
