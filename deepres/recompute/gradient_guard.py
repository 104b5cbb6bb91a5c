"""Refuses what would let hooks (DDP's, a user's) see a parameter's gradient before it is complete."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from deepres.recompute.unit_states import UnitStates, has_hooks

_OR_OFF = "or take the plan off with deepres.apply_plan(model, None)"


class _Running(threading.local):
    """Per-thread state: a nested backward pass runs in the thread of the outer one.

    Attributes:
        task: the backward pass inside which units' own backward passes are running.
    """

    task: int | None = None


_RUNNING = _Running()


class _Watch(NamedTuple):
    """A hook on a parameter's gradient accumulation.

    Args:
        kind: the parameter's device and dtype.
        node: the parameter's AccumulateGrad node.
        handle: removes the hook.
    """

    kind: tuple[torch.device, torch.dtype]
    node: Node
    handle: RemovableHandle


class GradientGuard:
    """Ensures that hooks see each parameter's gradient only once it is complete.

    A parameter's hooks run as soon as a backward pass has accumulated into its gradient: DDP's average it over the
    processes, others clip it or step the optimizer. Under a plan, units' backward passes run one after another, so a
    gradient is accumulated into once for each unit and forward pass, and once more for all uses outside the units.
    """

    def __init__(self) -> None:
        self._last_task: int | None = None
        self._task_in_units: int | None = None  # the last backward pass that reached the units
        self._task_elsewhere: int | None = None  # the last to bring their parameters gradients from elsewhere
        self._is_in_units = False
        self._is_under_ddp = False
        self._watched: dict[int, _Watch] = {}  # by the id of the parameter, which its node keeps alive

    def __getstate__(self) -> dict[str, object]:
        """A fresh state: another process that loads a saved model numbers its backward passes anew."""
        return GradientGuard().__dict__

    @contextmanager
    def in_units(self) -> Iterator[None]:
        """Context of a backward pass of units."""
        around, _RUNNING.task = _RUNNING.task, self._task_in_units
        self._is_in_units = True
        try:
            yield
        finally:
            self._is_in_units = False
            _RUNNING.task = around

    def check_forward(self, states: UnitStates) -> None:
        """Check a forward pass.

        Raises:
            RuntimeError: units share parameters that DDP averages or that have hooks, or DDP looks for unused ones.
                The backward pass raises it if such a parameter also gets a gradient from outside the units.
        """
        ddp = _ddp()
        self._is_under_ddp = ddp is not None
        if ddp is not None and ddp.find_unused_parameters and not ddp.static_graph:
            raise RuntimeError(
                "under a plan DistributedDataParallel cannot find unused parameters, as those of all units would seem "
                f"to be: give it static_graph=True instead of find_unused_parameters=True, {_OR_OFF}"
            )
        if ddp is not None and states.share_parameters:
            raise RuntimeError(
                "under a plan and DistributedDataParallel, units must not share parameters: their gradients would be "
                f"averaged before they are complete; {_OR_OFF}"
            )
        are_seen = states.hooked_parameters if ddp is None else states.trained_parameters
        if states.share_parameters and are_seen:
            raise RuntimeError(
                "under a plan, parameters that units share must not have hooks, which would be given their gradients "
                f"in parts: change the gradients after the backward pass, {_OR_OFF}"
            )
        for parameter in are_seen:
            self._watch(parameter)

    def _watch(self, parameter: Tensor) -> None:
        """Refuse gradients of the parameter that do not come from the units."""
        # While we hold its AccumulateGrad node, a parameter keeps that one, unless its device or dtype changes. Asking
        # for the node takes microseconds, for each parameter in each step.
        kind = parameter.device, parameter.dtype
        if id(parameter) in self._watched:
            watch = self._watched[id(parameter)]
            if watch.kind == kind:
                return
            watch.handle.remove()
        node = get_gradient_edge(parameter).node
        # The node owns the hook, so the hook must not keep guard or parameter alive.
        guard, watched = weakref.ref(self), weakref.ref(parameter)

        def refuse(gradients: tuple[Tensor | None, ...]) -> None:
            me, it = guard(), watched()
            if me is None or it is None or me._is_in_units or all(each is None for each in gradients):
                return
            if me._is_under_ddp or has_hooks(it):
                me._task_elsewhere = _whole_task()
                me._check_complete()

        self._watched[id(parameter)] = _Watch(kind, node, node.register_prehook(refuse))

    def _check_complete(self) -> None:
        if self._task_in_units == self._task_elsewhere is not None:
            raise RuntimeError(
                "under a plan, a parameter that has hooks or that DistributedDataParallel averages must have its "
                "gradient from the units of one sequence alone, but the loss also depends on it in another way (a "
                f"penalty, or a layer that shares it): its hooks would be given that in parts; {_OR_OFF}"
            )

    def release(self) -> None:
        """Stop watching parameters."""
        for watch in self._watched.values():
            watch.handle.remove()
        self._watched.clear()

    def check_backward(self, states: UnitStates, *, is_under_ddp: bool) -> None:
        """Check a backward pass that has reached the units.

        Args:
            states: the units'.
            is_under_ddp: whether the forward pass was that of a module that DDP wraps.

        Raises:
            RuntimeError: it was here before, for another forward pass, or parts of gradients have come from
                elsewhere.
        """
        self._task_in_units = _whole_task()
        self._check_complete()
        task = torch._C._current_graph_task_id()
        if task == self._last_task and (is_under_ddp or states.hooked_parameters):
            raise RuntimeError(
                "under a plan and DistributedDataParallel, or with hooks on parameters, each forward pass needs a "
                "backward pass of its own (of DDP all but the last under no_sync()): gradients would be averaged, or "
                f"given to hooks, before they are complete; {_OR_OFF}"
            )
        self._last_task = task


def _whole_task() -> int:
    """The id of the outermost backward pass, which `loss.backward()` began."""
    inner: int = torch._C._current_graph_task_id()
    return inner if _RUNNING.task is None else _RUNNING.task


def is_under_ddp() -> bool:
    """Whether this is the forward pass of a module that DDP wraps."""
    return _ddp() is not None


def _ddp() -> DistributedDataParallel | None:
    return DistributedDataParallel._active_ddp_module
