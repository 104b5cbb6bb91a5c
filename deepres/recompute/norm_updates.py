"""A second pass over a batch without a second update of running statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from deepres.recompute.unit_states import version_of

_HIDES_COUNT = (_BatchNorm.forward, _InstanceNorm.forward)
"""Forwards that skip the batch count if `num_batches_tracked` is None; a subclass's own forward may need it."""


@contextlib.contextmanager
def without_updates(unit: nn.Module, name: str, *, by_value: bool) -> Iterator[None]:
    """Hide the running statistics of PyTorch's norms in `unit`: a batch in training is normalised without them.

    They stay among the norms' buffers, so that a `state_dict` taken meanwhile, by a hook or another thread, has them.

    Args:
        unit: the unit to replay.
        name: what errors call it.
        by_value: see `without_changes`.

    Raises:
        RuntimeError: the unit uses running statistics, or changes another buffer or a parameter.
    """
    hidden = {
        norm: _hidden(norm)
        for norm in unit.modules()
        if isinstance(norm, _BatchNorm | _InstanceNorm) and norm.training and norm.track_running_stats
    }
    kept = {norm: {name: norm._buffers[name] for name in values} for norm, values in hidden.items()}
    are_hidden = {id(tensor) for values in kept.values() for tensor in values.values()}
    with without_changes(unit, name, by_value=by_value, but=are_hidden):
        for norm, values in hidden.items():
            norm.__dict__.update(values)  # takes precedence over the buffers of these names
        try:
            yield
        except (AttributeError, TypeError, AssertionError) as error:
            if not hidden:
                raise
            raise RuntimeError(
                f"{name} uses the running statistics of a norm in training, which its first run "
                f"changed, so it cannot be replayed ({error}): {_ADVICE}"
            ) from error
        finally:
            for norm, buffers in kept.items():
                for name in buffers:
                    norm.__dict__.pop(name, None)
                norm._buffers.update(buffers)  # in case the norm has replaced one


@contextlib.contextmanager
def without_changes(
    unit: nn.Module, name: str, *, by_value: bool = False, but: Container[int] = frozenset()
) -> Iterator[None]:
    """Check that a replay leaves a unit's buffers and parameters as they are.

    Args:
        unit: the unit to replay.
        name: what errors call it.
        by_value: compare its buffers' values too, which takes a copy of them: writes to `.data` leave the version
            counter as it is.
        but: the `id`s of tensors to ignore.

    Raises:
        RuntimeError: the unit changes one, as its first run on the batch did.
    """
    before = {
        (kind, own_name): (
            tensor,
            version_of(tensor),
            tensor.clone() if by_value and kind == "buffer" else None,
        )
        for kind, own_name, tensor in _tensors(unit)
        if id(tensor) not in but
    }
    yield
    for kind, own_name, tensor in _tensors(unit):
        if id(tensor) in but:
            continue
        old, version, value = before.get((kind, own_name), (None, 0, None))
        is_same = old is not None and version_of(old) == version
        if is_same and old is not tensor:  # another tensor in its place
            value = old
        if not is_same or (value is not None and not torch.equal(value, tensor)):
            raise RuntimeError(
                f"{name} changes its {kind} {own_name!r} whenever it is run, so it cannot be replayed: "
                f"{_ADVICE}"
            )


_ADVICE = (
    "keep it (a Plan whose segments leave it out), or let it update nothing in replays (see `RetainingUnit`)"
)


def _hidden(norm: nn.Module) -> dict[str, Any]:
    """What replaces a norm's own values in a replay."""
    count: Any = None if type(norm).forward in _HIDES_COUNT else norm.num_batches_tracked
    return {
        "running_mean": None,
        "running_var": None,
        "num_batches_tracked": None if count is None else count.clone(),
    }


def _tensors(unit: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for name, buffer in unit.named_buffers():
        yield "buffer", name, buffer
    for name, parameter in unit.named_parameters():
        yield "parameter", name, parameter
