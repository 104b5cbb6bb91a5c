"""`Bench`, on which units are run to read their costs: a device (measure.py) or fake tensors (predict.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deepres.gradients import backward_in_this_thread

Loss = Callable[[Tensor], Tensor]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Spec(NamedTuple):
    """A tensor's properties without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    storage_bytes: int

    @classmethod
    def of(cls, x: Tensor) -> Spec:
        """The spec of `x`."""
        return cls(tuple(x.shape), x.stride(), x.dtype, x.untyped_storage().nbytes())

    @property
    def num_bytes(self) -> int:
        """The bytes that such a tensor holds; a view counts its whole storage."""
        return max(torch.Size(self.shape).numel() * self.dtype.itemsize, self.storage_bytes)


class Meter(AbstractContextManager[Any], Protocol):
    """Counts bytes in a context that can be entered several times; see `AllocatedBytes` and `TensorBytes`."""

    live_bytes: int
    peak_bytes: int

    def reset_peak(self) -> None:
        """Start looking for a new peak."""


class Bench(Protocol):
    """Where passes are run.

    Attributes:
        cache_bytes: a size that no longer fits the caches.
    """

    cache_bytes: int

    def copy(self, module: nn.Module, instead: dict[int, nn.Module]) -> nn.Module:
        """A copy of `module` to run here, with its modules replaced by those in `instead` (by `id`)."""

    def tensor(self, spec: Spec) -> Tensor:
        """A tensor with random values, or a fake one without any."""

    def meter(self) -> Meter:
        """A new meter."""

    def rounds_ms(self, runs: Sequence[Callable[[], object]]) -> list[list[float]]:
        """How long each of `runs` takes, in each of several rounds."""

    def compute(self) -> AbstractContextManager[Any]:
        """A context that sets the number format (autocast)."""


def copied(bench: Bench, module: nn.Module, instead: dict[int, nn.Module]) -> nn.Module:
    """`bench.copy(module, instead)`.

    Raises:
        TypeError: the module holds what cannot be copied.
    """
    try:
        return bench.copy(module, instead)
    except RuntimeError as error:
        if "support the deepcopy protocol" not in str(error):
            raise
        raise TypeError(
            f"a {type(module).__name__} cannot be copied, and only copies are run to see what it takes: it holds a "
            "tensor that was computed from others, as the old torch.nn.utils.weight_norm and spectral_norm do; use "
            "those of torch.nn.utils.parametrizations"
        ) from None


def checked_input(
    model: nn.Module,
    input_shape: tuple[int, ...],
    input_dtype: torch.dtype,
    dtype: torch.dtype,
    *,
    channels_last: bool,
) -> Spec:
    """The spec of the model's input, after checks that the model can run on it in `dtype`.

    Raises:
        ValueError: it cannot.
    """
    if not input_shape or min(input_shape) < 1:
        raise ValueError(f"input_shape must be sizes of at least 1, batch first, got {tuple(input_shape)}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype}")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"parameter {name} has no shape yet, as its layer is lazy: run a batch first")
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, dtype):
            wanted = " or ".join(dict.fromkeys(map(str, (torch.float32, dtype))))
            raise ValueError(
                f"parameters must be {wanted} to compute in {dtype}, {name} is {parameter.dtype}"
            )
    images = torch.empty(input_shape, dtype=input_dtype, device="meta")
    return Spec.of(images.to(memory_format=torch.channels_last) if channels_last else images)


@contextmanager
def as_in_training(device_type: str) -> Iterator[None]:
    """Record gradients and compute in the bench's own number format, whatever context the caller is in."""
    with ExitStack() as stack:
        for context in (torch.inference_mode(False), torch.enable_grad(), backward_in_this_thread()):
            stack.enter_context(context)
        if torch.is_autocast_enabled(
            device_type
        ):  # around autocast of a unit's own, it would keep cast weights alive
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def default_loss(output: Tensor) -> Tensor:
    """Cross entropy of logits (N, num_classes), the mean of anything else.

    Raises:
        TypeError: the output is not a tensor.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the model returns a {type(output).__name__} instead of one tensor: pass `loss`, a function of it"
        )
    if output.dim() != 2:
        return output.float().mean()
    return F.cross_entropy(output.float(), torch.zeros(len(output), dtype=torch.long, device=output.device))
