"""What an operator allocates on the CPU, by the allocator itself."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from deepres.memory import AllocatedBytes


def allocated_bytes(func: Callable[..., Any], args: Sequence[Any]) -> int:
    func(*args)  # oneDNN makes its kernel
    meter = AllocatedBytes(torch.device("cpu"))
    with meter:
        result = func(*args)
    del result
    return meter.peak_bytes
