"""A net's memory and time, predicted without running it on any device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode

from deepres.memory.bench import Loss, Meter, Spec, as_in_training, checked_input, default_loss
from deepres.memory.cpu_kernels import operator_peak_bytes
from deepres.memory.gpus import Gpu, find_gpu
from deepres.memory.passes import read_chain
from deepres.memory.roofline import Roofline
from deepres.memory.tracking import TensorBytes
from deepres.models import ResidualUnit
from deepres.recompute import Chain

_CANNOT = "what the model takes cannot be predicted where a part of it"
_MEASURE = "measure_chain runs it"

CPU = Gpu("CPU", 0, 15.0, 0.2, None, None, "two cores, nominal")


def predict_chain(
    model: nn.Module,
    input_shape: tuple[int, ...],
    gpu: Gpu | str | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    loss: Loss = default_loss,
    channels_last: bool = False,
    input_dtype: torch.dtype = torch.float32,
) -> Chain:
    """The costs that `measure_chain` would find, without a device: nothing is computed or allocated.

    They do not depend on the caller's autocast, `no_grad` or `inference_mode`.

    Kept bytes are exact. Transient bytes on a CPU are for this processor and PyTorch's number of threads in this
    process, accurate to some 100 KiB a thread (`deepres.memory.cpu_kernels`); on a card they are exact except for
    libraries' workspaces, which depend on the algorithms chosen. Times follow a roofline model
    (`deepres.memory.roofline`), good for shares of a step rather than for milliseconds.

    Args:
        model: see `measure_chain`; on any device, the meta device included.
        input_shape: of the model's input, batch first.
        gpu: a card, or its name in `deepres.memory.gpus`; None for a CPU.
        dtype: what to compute in: float32, or bfloat16 or float16 under autocast.
        loss: of the model's output; by default the cross entropy of logits (N, C), the mean of anything else.
        channels_last: whether inputs are in that memory format.
        input_dtype: of the input, such as `torch.long` for tokens (which are then all 0).

    Raises:
        TypeError: the model has no sequence of units that it calls once, or one of them does not return one tensor
            or cannot be copied.
        ValueError: there is no card of that name, the input is empty, or the model cannot be run in that dtype or
            without values.
    """
    images = checked_input(model, input_shape, input_dtype, dtype, channels_last=channels_last)
    card = find_gpu(gpu) if isinstance(gpu, str) else gpu
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # tensors that a unit uses besides its parameters
    try:
        with as_in_training("cpu"), mode, torch.random.fork_rng(devices=[]):
            return read_chain(model, images, _FakeBench(mode, card, dtype), loss)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(f"{_CANNOT} depends on values, by {error}: {_MEASURE}") from error
    except NotImplementedError as error:  # such as of sparse gradients
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{_CANNOT} does what PyTorch cannot do without values ({reason}): {_MEASURE}"
        ) from error


class _FakeBench:
    """See `deepres.memory.bench.Bench`; tensors here have shapes and storage sizes, but no values."""

    cache_bytes = 0

    def __init__(self, mode: FakeTensorMode, gpu: Gpu | None, dtype: torch.dtype) -> None:
        self._mode = mode
        self._gpu = gpu
        self._dtype = dtype

    def copy(self, module: nn.Module, instead: dict[int, nn.Module]) -> nn.Module:
        """A copy with fake parameters and buffers, in which compiled units are eager again."""
        memo: dict[int, Any] = dict(instead)
        for tensor in _tensors(module, instead):
            memo[id(tensor)] = self._mode.from_tensor(_on_cpu(tensor))
        copied = copy.deepcopy(module, memo)
        for unit in copied.modules():
            if isinstance(unit, ResidualUnit):
                unit.run_as(None)
        return copied

    def tensor(self, spec: Spec) -> Tensor:
        """A fake tensor, which has no values."""
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype)

    def meter(self) -> Meter:
        """Counts all tensors, and on a CPU what kernels allocate besides."""
        return TensorBytes(self._operator_peak_bytes)

    def _operator_peak_bytes(self, func: Any, args: Sequence[Any]) -> int:
        if func is torch.ops.aten.mkldnn_rnn_layer.default:
            raise ValueError(f"{_CANNOT} is an LSTM, of which PyTorch does not say what it keeps: {_MEASURE}")
        return operator_peak_bytes(func, args) if self._gpu is None else 0

    @contextmanager
    def compute(self) -> Iterator[None]:
        """Autocast without its cache, as units are run under a plan; on a card with the card's dropout."""
        with ExitStack() as stack:
            if self._dtype != torch.float32:
                stack.enter_context(torch.autocast("cpu", self._dtype, cache_enabled=False))
            if self._gpu is not None:
                stack.enter_context(_DropoutOfCards())
            yield

    def rounds_ms(self, runs: Sequence[Callable[[], object]]) -> list[list[float]]:
        """One round, by the card's roofline."""
        times = []
        for run in runs:
            with Roofline(self._gpu or CPU) as roofline:
                run()
            times.append(roofline.total_ms)
        return [times]


class _DropoutOfCards(TorchFunctionMode):
    """Dropout that keeps a byte a value, not a factor as on a CPU (`is_fused_kernel_acceptable` in PyTorch)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout and kwargs["training"] and not kwargs["inplace"] and 0 < kwargs["p"] < 1:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]
        return func(*args, **kwargs)


def _tensors(module: nn.Module, without: Container[int]) -> Iterator[Tensor]:
    """Parameters, buffers and attributes, except those of the modules whose `id` is in `without`."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
    yield from (value for value in vars(module).values() if isinstance(value, Tensor) and value.is_leaf)
    for child in module.children():
        if id(child) not in without:
            yield from _tensors(child, without)


def _on_cpu(tensor: Tensor) -> Tensor:
    """A tensor of the same kind on the CPU, without copying values: fake tensors are made from it."""
    if tensor.device.type == "cpu":
        return tensor
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
