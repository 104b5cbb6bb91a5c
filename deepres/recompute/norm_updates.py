"""A second pass over a batch without a second update of running statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from deepres.recompute.unit_states import version_of

_KNOWN = ("torch.", "deepres.")


@contextlib.contextmanager
def without_updates(unit: nn.Module) -> Iterator[None]:
    """Stop PyTorch's norms in `unit` from counting a batch and from updating their running statistics.

    Raises:
        RuntimeError: the unit changes another buffer or a parameter, as it did when the batch passed first.
    """
    norms = [
        norm
        for norm in unit.modules()
        if isinstance(norm, _BatchNorm | _InstanceNorm) and norm.training and norm.track_running_stats
    ]
    before = {(kind, name): (tensor, version_of(tensor)) for kind, name, tensor in _tensors(unit)}
    # PyTorch's own updates write, with a momentum of 0, what is there; others may write what they like.
    written = {
        id(buffer): buffer if type(norm).__module__.startswith(_KNOWN) else buffer.clone()
        for norm in norms
        for buffer in (norm.running_mean, norm.running_var)
        if buffer is not None
    }
    kept: dict[nn.Module, dict[str, Any]] = {}
    for norm in norms:
        hidden: dict[str, Any] = {"num_batches_tracked": None}
        if isinstance(norm, _BatchNorm):
            hidden["momentum"] = 0.0
        else:  # instance norm averages over the batch even what does not change, and that rounds
            hidden |= {"running_mean": None, "running_var": None}
        kept[norm] = {name: getattr(norm, name) for name in hidden}
        for name, value in hidden.items():
            setattr(norm, name, value)
    try:
        yield
    finally:
        for module, values in kept.items():
            for name, value in values.items():
                setattr(module, name, value)
    for kind, name, tensor in _tensors(unit):
        old, version = before.get((kind, name), (None, 0))
        if old is tensor and id(tensor) in written:
            is_same = written[id(tensor)] is tensor or torch.equal(written[id(tensor)], tensor)
        elif old is tensor:
            is_same = version_of(tensor) == version
        else:  # another tensor in its place
            is_same = old is not None and version_of(old) == version and torch.equal(old, tensor)
        if not is_same:
            raise RuntimeError(
                f"a {type(unit).__name__} changes its {kind} {name!r} whenever it is run, so it cannot be replayed: "
                "leave this unit out of segments, or let it follow the protocol `RetainingUnit`"
            )


def _tensors(unit: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for name, buffer in unit.named_buffers():
        yield "buffer", name, buffer
    for name, parameter in unit.named_parameters():
        yield "parameter", name, parameter
