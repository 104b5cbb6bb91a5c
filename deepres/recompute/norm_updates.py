"""A second pass over a batch without a second update of running statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from deepres.recompute.unit_states import version_of

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_HIDES_COUNT = (_BatchNorm.forward, _InstanceNorm.forward)
"""Forwards that skip the batch count if `num_batches_tracked` is None; a subclass's own forward may need it."""


class NormUpdates:
    """Lets norms be replayed without a second update of their running statistics.

    A replay writes into tensors of NaN instead, which all norms of one width share. A norm that reads them in training
    returns NaN, and is refused. Compiled code does not see them, and updates the statistics, which are then put back:
    those of compiled modules always, of others if a norm's first replay has changed them.

    Args:
        units: the units.
    """

    def __init__(self, units: Iterable[nn.Module]) -> None:
        self._nowhere: dict[tuple[object, ...], Tensor] = {}
        self._updates_anyway: dict[nn.Module, bool] = {}  # of each norm that has been replayed
        self._is_first = False  # whether a norm's first replay is running
        for unit in units:
            for norm in _updating_norms(unit):
                self._instead(norm)  # allocated before any step whose bytes somebody counts

    @contextlib.contextmanager
    def without(self, unit: nn.Module, name: str, *, by_value: bool, may_wait: bool) -> Iterator[None]:
        """Context of a replay, which leaves the running statistics of PyTorch's norms in `unit` as they are.

        They stay among the norms' buffers, so that a `state_dict` taken meanwhile, by a hook or another thread, has
        them.

        Args:
            unit: the unit to replay.
            name: what errors call it.
            by_value: see `without_changes`.
            may_wait: whether values may be looked at, which waits for the device.

        Raises:
            RuntimeError: the unit uses a norm's batch count, or changes another buffer or a parameter.
        """
        norms = _updating_norms(unit)
        is_compiled = bool(norms) and _is_compiled(unit)
        kept = {norm: {each: norm._buffers[each] for each in _STATISTICS} for norm in norms}
        are_kept = {id(tensor) for tensors in kept.values() for tensor in tensors.values()}
        first = [norm for norm in norms if may_wait and norm not in self._updates_anyway]
        before = [
            (norm, tensor, tensor.clone())
            for norm in norms
            if is_compiled or self._updates_anyway.get(norm, True)
            for tensor in kept[norm].values()
            if tensor is not None
        ]
        updated = set[nn.Module]()
        with without_changes(unit, name, by_value=by_value, but=are_kept):
            try:
                for norm in norms:
                    # Takes precedence over the buffers of these names.
                    norm.__dict__.update(self._instead(norm))
                for norm, tensor, _ in before:
                    if is_compiled and norm in first and tensor.is_floating_point():
                        _set_value(tensor, torch.nan)
                self._is_first = bool(first)
                yield
            except (AttributeError, TypeError, AssertionError) as error:
                if not norms:
                    raise
                raise _uses_statistics(name) from error
            finally:
                self._is_first = False
                for norm, tensors in kept.items():
                    for each in _STATISTICS:
                        norm.__dict__.pop(each, None)
                    norm._buffers.update(tensors)  # in case the norm has replaced one
                for norm, tensor, value in before:
                    if norm in first and not torch.equal(tensor, value):
                        updated.add(norm)
                    _set_value(tensor, value)
        self._updates_anyway.update({norm: norm in updated for norm in first})

    def returned_nan(self, unit: nn.Module, y: Tensor) -> bool:
        """Whether a unit's first run has returned NaN; False if its replay will not be checked."""
        return any(norm not in self._updates_anyway for norm in _updating_norms(unit)) and _has_nan(y)

    def check_unused(self, name: str, y: Tensor) -> None:
        """Check, in a norm's first replay, that what the unit has returned, y, does not depend on running statistics.

        Raises:
            RuntimeError: it does.
        """
        if self._is_first and _has_nan(y):
            raise _uses_statistics(name)

    def _instead(self, norm: nn.Module) -> dict[str, Tensor | None]:
        """What replaces a norm's own values in a replay."""
        own = norm._buffers
        count = None if type(norm).forward in _HIDES_COUNT else own["num_batches_tracked"]
        return {
            "running_mean": self._nowhere_like("running_mean", own["running_mean"]),
            "running_var": self._nowhere_like("running_var", own["running_var"]),
            "num_batches_tracked": None if count is None else count.clone(),
        }

    def _nowhere_like(self, name: str, own: Tensor | None) -> Tensor | None:
        """A tensor of NaN to write to, the same one for all of this name and kind."""
        if own is None:
            return None
        kind = name, own.shape, own.dtype, own.device
        if kind not in self._nowhere:
            self._nowhere[kind] = torch.full_like(own, torch.nan)
        return self._nowhere[kind].data  # with a version counter of its own: graphs may save it


def _updating_norms(unit: nn.Module) -> list[nn.Module]:
    """PyTorch's norms in it that update running statistics."""
    return [
        norm
        for norm in unit.modules()
        if isinstance(norm, _BatchNorm | _InstanceNorm) and norm.training and norm.track_running_stats
    ]


def _is_compiled(unit: nn.Module) -> bool:
    """Whether it or a module in it is compiled; a function that its forward calls may be, too."""
    # By name, because importing the compiler is slow.
    return any(
        module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"
        for module in unit.modules()
    )


def _set_value(tensor: Tensor, value: Tensor | float) -> None:
    """Set a tensor's value unseen by graphs that have saved the tensor."""
    with torch.no_grad(), _unsafe_preserve_version_counter(tensor):
        tensor.copy_(value) if isinstance(value, Tensor) else tensor.fill_(value)


def _has_nan(x: Tensor) -> bool:
    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    if not x.is_floating_point() or x.numel() == 0:
        return False
    if x.dtype.itemsize == 1:
        x = x.float()
    return bool(x.amax().isnan())  # needs no memory, unlike isnan of all


def _uses_statistics(name: str) -> RuntimeError:
    return RuntimeError(
        f"{name} uses the running statistics of a norm in training, which its first run changed, so it cannot be "
        f"replayed: {_ADVICE}"
    )


@contextlib.contextmanager
def without_changes(
    unit: nn.Module, name: str, *, by_value: bool = False, but: Container[int] = frozenset()
) -> Iterator[None]:
    """Check that a replay leaves a unit's buffers, parameters and their gradients as they are.

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


def _tensors(unit: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for name, buffer in unit.named_buffers():
        yield "buffer", name, buffer
    for name, parameter in unit.named_parameters():
        yield "parameter", name, parameter
        if parameter.grad is not None:
            yield "gradient", name, parameter.grad
