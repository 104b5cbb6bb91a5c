"""One execution of a plan: its steps, under autograd.

NOTE [ Running a plan ]
1. The units run inside one autograd function. Its forward executes the plan's schedule up to the HEAD, which runs
   outside of it; its backward executes the rest: discarding runs, keeping runs, and one backward per unit.
2. Units kept directly after one another build one graph, from a leaf that shares the first one's input. Their
   backwards are consecutive too, and form one backward pass, which accumulates straight into the parameters' `.grad`,
   so that hooks on them (DDP, ZeRO) run as without a plan. This is why `loss.backward()` is supported and
   `torch.autograd.grad` is not.
3. Only a unit's first run on a batch may change any state. Later runs (replays) draw the random numbers of the first,
   leave the generators as they found them, and do not touch running statistics: units that follow the protocol
   `RetainingUnit` are given their memo; in all others, updates by batch norms are switched off. A unit that still
   changes state in a replay is an error.
4. A value is released at the last step that reads it; what a unit's graph holds is released with the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deepres.recompute.discarding import CHANGES_INPUT, changes_leaf, leaf_to_discard
from deepres.recompute.gradient_guard import GradientGuard, is_under_ddp
from deepres.recompute.gradient_holder import GradientHolder
from deepres.recompute.norm_updates import NormUpdates, without_changes
from deepres.recompute.plan import Action, Step
from deepres.recompute.random_state import Draws
from deepres.recompute.retaining_unit import run_unit
from deepres.recompute.shared_graph import mark_graph
from deepres.recompute.unit_states import State, UnitStates


class Execution:
    """One pass of a batch through the units: the values, graphs and memos that are live.

    Args:
        is_retaining: for each unit, whether it follows the protocol `RetainingUnit`.
        retentions: for each unit, its retention.
        continues: for each unit, whether its graph continues that of the previous unit.
        needs_grad: for each of x_0 … x_L, whether it needs a gradient.
        states: holds the units, and reads their states.
        norm_updates: of the units' norms.
        guard: ensures that hooks see complete gradients.
        x: the input x_0.
    """

    def __init__(
        self,
        is_retaining: list[bool],
        retentions: tuple[str, ...],
        continues: list[bool],
        needs_grad: list[bool],
        states: UnitStates,
        norm_updates: NormUpdates,
        guard: GradientGuard,
        x: Tensor,
    ) -> None:
        self._units = states.units
        self._retentions = retentions
        self._needs_grad = needs_grad
        self._states, self._guard, self._is_under_ddp = states, guard, is_under_ddp()
        self._norm_updates = norm_updates
        self._then: State | None = None  # as of the end of the forward pass, which may create lazy parameters
        self._is_retaining = is_retaining
        self._continues = [*continues, False]
        self._values: dict[int, Tensor] = {}
        self._discarded_output: int | None = None  # index of the x that the last step made, if a DISCARD
        self._graphs: dict[int, torch.autograd.graph.GradientEdge | None] = {}
        self._memos: dict[int, dict[Any, Any]] = {}
        self._autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {x.device.type, "cpu"}
        ]
        self.draws = Draws(x.device)
        self._is_captured = x.is_cuda and torch.cuda.is_current_stream_capturing()
        self._is_spent = False
        self._with_nan = set[int]()  # units whose first run has returned NaN
        self._mark = object()  # of this pass's graphs
        self.holder = GradientHolder()  # of the gradient of the output of the units whose backward comes next

    def output_of(
        self, x: Tensor, anchor: Tensor, forward: tuple[Step, ...], backward: tuple[Step, ...]
    ) -> Tensor:
        """The units' output, computed from `x` by a single autograd function.

        Args:
            x: the units' input.
            anchor: requires a gradient, so that autograd runs the backward pass even if x requires none.
            forward: the steps before the HEAD.
            backward: the steps after it.
        """
        y: Tensor = _RunPlan.apply(x, anchor, self, forward, backward)  # type: ignore[no-untyped-call]
        return self.holder.filled_by(y)

    @property
    def output_needs_grad(self) -> bool:
        """Whether the units' output needs a gradient, once they have run."""
        return self._needs_grad[-1]

    def run_forward(self, x: Tensor, steps: tuple[Step, ...]) -> Tensor:
        """Execute the steps before the HEAD; return the units' output."""
        self._values[0] = x
        with self._as_in_forward():
            for step in steps:
                self._run_unit(step)
        self._then = self._states.read()
        return self._values.pop(len(self._units))

    def run_backward(self, steps: tuple[Step, ...]) -> Tensor | None:
        """Execute the steps after the HEAD; return the gradient of `x`, or None."""
        if self._is_spent:
            raise RuntimeError(
                "a model under a plan supports one backward pass for each forward pass, even with retain_graph=True: "
                "add the losses up first, or take the plan off with deepres.apply_plan(model, None)"
            )
        self._is_spent = True
        self._guard.check_backward(self._states, is_under_ddp=self._is_under_ddp)
        assert self._then is not None
        self._states.check_same(self._then)
        first_trained = self._needs_grad.index(True, 1) - 1  # all units before it are frozen
        last = steps.index(Step(Action.BACKWARD, first_trained))
        for step in steps[: last + 1]:
            if step.action is not Action.BACKWARD:
                with self._as_in_forward():
                    self._run_unit(step)
            elif not self._continues[step.unit + 1]:
                self._backward_to_leaf(step.unit)
        return self.holder.take()

    def _backward_to_leaf(self, i: int) -> None:
        """Run the backward pass of the graph that ends with unit i."""
        edge = self._graphs.pop(i)
        self._values.pop(i + 1, None)
        if edge is None or self.holder.gradient is None:
            self.holder.gradient = None  # this or a later unit used nothing that needs a gradient
            return
        with self._guard.in_units():
            self.holder.backward(edge)

    def _run_unit(self, step: Step) -> None:
        i, keep = step.unit, step.action is Action.KEEP
        if self._discarded_output not in (None, i):  # nothing follows its segment
            self._values.pop(self._discarded_output, None)
        self._discarded_output = None if keep else i + 1
        # What a KEEP still needs of its input is held by the unit's graph.
        x = self._values[i] if step.begins_segment else self._values.pop(i)
        unit, version = self._units[i], x._version
        if not (keep and self._continues[i]):
            kind, begin = type(x), self.holder.leaf_of if keep else leaf_to_discard
            x = begin(x, self._needs_grad[i])
            if i > 0 and type(x) is not kind:
                raise TypeError(
                    f"{_name(i, unit)} takes a {kind.__name__}, which its replay would not get: under a plan units "
                    "take plain tensors"
                )
        try:
            with self._first_run_or_replay(i):
                is_first = i not in self._memos
                memo = self._memos.setdefault(i, {})
                retention = self._retentions[i] if keep else None
                y = run_unit(unit, x, is_retaining=self._is_retaining[i], keep=retention, memo=memo)
                if isinstance(y, Tensor) and not self._is_retaining[i] and not self._is_captured:
                    self._look_for_nan(i, y, is_first=is_first, keep=keep)
        except RuntimeError as error:
            if not changes_leaf(error):
                raise
            raise RuntimeError(f"{_name(i, unit)} {CHANGES_INPUT}") from error
        y = _checked(y, x, _name(i, unit), needs_grad=self._needs_grad[i + 1])
        if x._version != version:
            raise RuntimeError(f"{_name(i, unit)} {CHANGES_INPUT}")
        if is_first and not self._is_retaining[i]:  # so that its run has recorded a graph
            self._needs_grad[i + 1] = y.requires_grad  # not after no_grad, say; kernels are chosen by it
        if not (keep and self._continues[i + 1]):
            if keep:
                if y.requires_grad and i not in self._states.marked:
                    self._states.marked.add(i)
                    mark_graph(y, self._mark, i)
                self._graphs[i] = self.holder.edge_of(y) if y.requires_grad else None
            y = y.detach()
        self._values[i + 1] = y

    def _look_for_nan(self, i: int, y: Tensor, *, is_first: bool, keep: bool) -> None:
        """Refuse a unit whose output depends on running statistics, by the NaN that a replay has in their place."""
        if is_first:
            will_be_checked = not keep and i not in self._states.replayed  # looking waits for the device
            if will_be_checked and self._norm_updates.returned_nan(self._units[i], y):
                self._with_nan.add(i)
        elif i not in self._with_nan:
            self._norm_updates.check_unused(_name(i, self._units[i]), y)

    @contextlib.contextmanager
    def _as_in_forward(self) -> Iterator[None]:
        """Autocast as in the forward pass, but without its cache, which would keep cast weights alive."""
        with contextlib.ExitStack() as stack:
            for kind, enabled, dtype in self._autocast:
                if not (enabled or torch.is_autocast_enabled(kind)):
                    continue  # off already; entering the context takes as long as a small kernel
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield

    @contextlib.contextmanager
    def _first_run_or_replay(self, i: int) -> Iterator[None]:
        if i not in self._memos:
            with self.draws.first_run(i):
                yield
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.draws.replay(i))
            unit, is_first = self._units[i], i not in self._states.replayed
            if not self._is_retaining[i]:
                may_wait = not self._is_captured
                stack.enter_context(
                    self._norm_updates.without(
                        unit, _name(i, unit), by_value=is_first and may_wait, may_wait=may_wait
                    )
                )
            elif is_first:  # changes by norms that take no memo, or by parametrizations
                stack.enter_context(without_changes(unit, _name(i, unit)))
            yield
        self._states.replayed.add(i)


def _name(i: int, unit: nn.Module) -> str:
    return f"unit {i} ({type(unit).__name__})"


def _checked(y: object, x: Tensor, name: str, *, needs_grad: bool) -> Tensor:
    """What a unit has returned for x.

    Raises:
        TypeError: it is not one tensor, or a gradient of its kind cannot be passed on.
        RuntimeError: it is on another device, or needs a gradient for an unknown reason.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} must return one tensor, got {type(y).__name__}")
    if y.device != x.device:
        raise RuntimeError(
            f"{name} leads from {x.device} to {y.device}: under a plan all units run on one device, whose random "
            "numbers are replayed"
        )
    if y.requires_grad and not needs_grad:
        raise RuntimeError(
            f"{name} uses a tensor that needs a gradient and is neither its input nor its parameter, so that a plan "
            "would leave it untrained: register it, or take the plan off with deepres.apply_plan(model, None)"
        )
    if y.requires_grad and (y.is_nested or y.layout is not torch.strided):
        kind = "nested" if y.is_nested else f"{y.layout}"
        raise TypeError(
            f"{name} returns a {kind} tensor, which a plan cannot pass on: put two units into one"
        )
    return y


class _RunPlan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,  # noqa: ARG004 (see where it is passed)
        execution: Execution,
        forward: tuple[Step, ...],
        backward: tuple[Step, ...],
    ) -> Tensor:
        if not x.is_inference():
            ctx.save_for_backward(x)  # so that autograd detects in-place changes before the backward pass
        ctx.execution, ctx.steps = execution, backward
        y = execution.run_forward(x.detach(), forward)
        if not execution.output_needs_grad:
            ctx.mark_non_differentiable(y)
        return y

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        if not torch.autograd._is_checkpoint_valid():
            raise RuntimeError(
                "a model under a plan supports loss.backward() only, not torch.autograd.grad or backward(inputs=…); "
                "deepres.apply_plan(model, None) takes the plan off"
            )
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a model under a plan has no second derivatives (backward with create_graph=True); "
                "deepres.apply_plan(model, None) takes the plan off"
            )
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "a model under a plan cannot replay units in inference mode: call backward outside of it, or take the "
                "plan off with deepres.apply_plan(model, None)"
            )
        return (ctx.execution.run_backward(ctx.steps), None, None, None, None)
