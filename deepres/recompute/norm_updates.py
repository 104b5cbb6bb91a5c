"""A second pass over a batch without a second update of running statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from deepres.recompute.unit_states import version_of


@contextlib.contextmanager
def without_updates(unit: nn.Module) -> Iterator[None]:
    """Stop PyTorch's norms in `unit` from counting a batch and from updating their running statistics.

    Raises:
        RuntimeError: the unit changes another buffer or a parameter, as it did when the batch passed first.
    """
    kept: dict[nn.Module, dict[str, Any]] = {}
    for norm in unit.modules():
        if isinstance(norm, _BatchNorm | _InstanceNorm) and norm.training and norm.track_running_stats:
            hidden: dict[str, Any] = {"num_batches_tracked": None}
            if isinstance(norm, _BatchNorm):
                hidden["momentum"] = 0.0
            else:  # instance norm averages over the batch even what does not change, and that rounds
                hidden |= {"running_mean": None, "running_var": None}
            kept[norm] = {name: getattr(norm, name) for name in hidden}
            for name, value in hidden.items():
                setattr(norm, name, value)
    norms_buffers = {id(buffer) for norm in kept for buffer in norm.buffers(recurse=False)}
    others = [
        ("buffer" if is_buffer else "parameter", name, tensor, version_of(tensor))
        for is_buffer, tensors in ((True, unit.named_buffers()), (False, unit.named_parameters()))
        for name, tensor in tensors
        if id(tensor) not in norms_buffers
    ]
    try:
        yield
    finally:
        for norm, values in kept.items():
            for name, value in values.items():
                setattr(norm, name, value)
    for kind, name, tensor, version in others:
        if version_of(tensor) != version:
            raise RuntimeError(
                f"a {type(unit).__name__} changes its {kind} {name!r} whenever it is run, so it cannot be replayed: "
                "leave this unit out of segments, or let it follow the protocol `RetainingUnit`"
            )
