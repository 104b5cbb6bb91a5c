"""Runs a plan under autograd: exact training within the plan's bytes.

NOTE [ Running a plan ]
1. The units run inside one autograd function. Its forward pass takes the plan's schedule up to the HEAD, which
   runs outside, its backward pass takes the rest: discarding runs, keeping runs, and one backward a unit.
2. Units that are kept right after one another build one graph, from a leaf that shares the first one's input; their
   backwards follow each other too, and are one backward pass, which adds to the parameters' `.grad` at once, so that
   hooks on them (DDP, ZeRO) run as without a plan. This is why `loss.backward()` is supported and
   `torch.autograd.grad` is not.
3. The first run of a unit on a batch is the only one that may change anything. Later runs (replays) see the random
   numbers of the first, leave the generators as they found them, and do not touch running statistics: units with
   the protocol below are given their memo, all others have their batch norms' updates switched off.
4. A value is released at the last step that reads it; what a unit's graph holds goes with the graph.

A unit is any module that takes one tensor, returns one, and does not change its input. Such a module has the
retention `all`. A unit that offers more follows the protocol `RetainingUnit`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from deepres.recompute.gradient_holder import GradientHolder
from deepres.recompute.norm_updates import without_updates
from deepres.recompute.plan import Action, Plan, Step
from deepres.recompute.random_state import Draws


@runtime_checkable
class RetainingUnit(Protocol):
    """A unit that can keep less than autograd would, and replays without help.

    Its `forward(x, retention, memo)` gives the same result and gradients, bit for bit, for each of its
    retentions. `memo` is a dict, empty at a batch's first run and handed back at each replay; a replay computes
    from it whatever must not be computed twice (statistics of the batch) and updates nothing.
    """

    retentions: tuple[str, ...]


def apply_plan(model: nn.Module, plan: Plan | None) -> None:
    """Make `model` train under `plan`; None undoes it.

    Losses, gradients, buffers and the state of the random number generators stay the same, bit for bit; only
    memory and time change. Parameters, their names and hooks are untouched.

    Args:
        model: an `nn.Sequential` of units, or a module that has one as its attribute `units`.
        plan: a plan for that number of units.

    Raises:
        TypeError: there is no sequence of units.
        ValueError: the plan is for another number of units, or names a retention that a unit does not offer.
    """
    units = planned_units(model)
    units.__dict__.pop("forward", None)
    if plan is None:
        return
    if plan.num_units != len(units):
        raise ValueError(
            f"this plan is for {plan.num_units} units, the model has {len(units)}: make one for this model"
        )
    for i, (unit, retention) in enumerate(zip(units, plan.retentions, strict=True)):
        offered = unit.retentions if isinstance(unit, RetainingUnit) else ("all",)
        if retention not in offered:
            raise ValueError(
                f"the plan keeps {retention!r} of unit {i} ({type(unit).__name__}), which offers "
                f"{', '.join(offered)}: make a plan from a chain measured on this model"
            )
    if plan.segments or set(plan.retentions) != {"all"}:
        units.__dict__["forward"] = PlanExecutor(units, plan)


def planned_units(model: nn.Module) -> nn.Sequential:
    """The sequence of units that plans apply to: `model.units`, or the model itself.

    Raises:
        TypeError: there is none.
    """
    units = model if isinstance(model, nn.Sequential) else getattr(model, "units", None)
    if not isinstance(units, nn.Sequential):
        raise TypeError(
            f"a plan applies to an nn.Sequential or a module with one as `.units`, got {type(model).__name__}"
        )
    return units


class PlanExecutor:
    """The forward function of a sequence of units under a plan.

    Attributes:
        plan: the plan it runs.
    """

    def __init__(self, units: nn.Sequential, plan: Plan) -> None:
        self.plan = plan
        self._units = units
        self._is_retaining = [isinstance(unit, RetainingUnit) for unit in units]  # slow for a protocol
        steps = tuple(plan.schedule())
        head = next(k for k, step in enumerate(steps) if step.action is Action.HEAD)
        self._forward, self._backward = steps[:head], steps[head + 1 :]
        self._continues = [False] * len(units)  # whether a unit's graph goes on from that of the unit before
        for before, step in pairwise(steps):
            if before.action is step.action is Action.KEEP:
                self._continues[step.unit] = step.unit == before.unit + 1
        self._draws: bool | None = None  # whether a unit draws random numbers, once that is known
        self._anchor = torch.empty(0, requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the units on `x`; under `no_grad`, or where nothing is to be trained, simply one after another."""
        needs_grad = [x.requires_grad]
        for unit in self._units:
            needs_grad.append(needs_grad[-1] or any(p.requires_grad for p in unit.parameters()))
        if not (torch.is_grad_enabled() and needs_grad[-1]):
            for unit in self._units:
                x = unit(x)
            return x
        units = list(self._units)
        is_captured = x.is_cuda and torch.cuda.is_current_stream_capturing()
        if is_captured and self._draws is not False:
            raise RuntimeError(
                "under a plan, a CUDA graph can be captured after a pass has shown that no unit draws random numbers "
                "(dropout), whose replay could not draw the same: run one first, or take the plan off"
            )
        execution = _Execution(
            units, self._is_retaining, self.plan.retentions, self._continues, needs_grad, x
        )
        # The anchor makes autograd call the backward pass even if x itself needs no gradient.
        x = _RunPlan.apply(x, self._anchor, execution, self._forward, self._backward)  # type: ignore[no-untyped-call]
        if not is_captured:
            self._draws = bool(execution.draws)
        return execution.holder.filled_by(x)


class _RunPlan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,  # noqa: ARG004 (see where it is passed)
        execution: _Execution,
        forward: tuple[Step, ...],
        backward: tuple[Step, ...],
    ) -> Tensor:
        ctx.save_for_backward(x)  # so that a change in place before the backward pass is noticed
        ctx.execution, ctx.steps = execution, backward
        return execution.run_forward(x.detach(), forward)

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
        return (ctx.execution.run_backward(ctx.steps), None, None, None, None)


class _Execution:
    """One pass of a batch through the units: the values, graphs and memos that are live."""

    def __init__(
        self,
        units: list[nn.Module],
        is_retaining: list[bool],
        retentions: tuple[str, ...],
        continues: list[bool],
        needs_grad: list[bool],
        x: Tensor,
    ) -> None:
        self._units = units
        self._retentions = retentions
        self._needs_grad = needs_grad
        self._is_retaining = is_retaining
        self._continues = [*continues, False]
        self._values: dict[int, Tensor] = {}
        self._leaves: list[Tensor] = []  # of the graph that is being built
        self._graphs: dict[int, tuple[Tensor, torch.autograd.graph.GradientEdge | None]] = {}
        self._memos: dict[int, dict[Any, Any]] = {}
        self._autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {x.device.type, "cpu"}
        ]
        self.draws = Draws(x.device)
        self._is_spent = False
        self.holder = GradientHolder()  # of the gradient of the output of the units whose backward is next

    def run_forward(self, x: Tensor, steps: tuple[Step, ...]) -> Tensor:
        self._values[0] = x
        with self._as_in_forward():
            for step in steps:
                self._run_unit(step)
        return self._values.pop(len(self._units))

    def run_backward(self, steps: tuple[Step, ...]) -> Tensor | None:
        if self._is_spent:
            raise RuntimeError(
                "a model under a plan supports one backward pass for each forward pass, even with retain_graph=True: "
                "add the losses up first, or take the plan off with deepres.apply_plan(model, None)"
            )
        self._is_spent = True
        first_trained = self._needs_grad.index(True, 1) - 1  # all units before it are frozen
        last = steps.index(Step(Action.BACKWARD, first_trained, holds_input=False))
        for step in steps[: last + 1]:
            if step.action is not Action.BACKWARD:
                with self._as_in_forward():
                    self._run_unit(step)
            elif not self._continues[step.unit + 1]:
                self._backward_to_leaf(step.unit)
        return self.holder.take()

    def _backward_to_leaf(self, i: int) -> None:
        """The backward pass of the graph that ends in unit i."""
        leaf, edge = self._graphs.pop(i)
        self._values.pop(i + 1, None)
        if edge is None or self.holder.gradient is None:
            self.holder.gradient = None  # on the way to the loss a unit used nothing that is trained
            return
        self.holder.backward(edge)
        self.holder.gradient = leaf.grad

    def _run_unit(self, step: Step) -> None:
        i, keep = step.unit, step.action is Action.KEEP
        is_segment_input = step.holds_input and not keep  # what KEEP holds is in the unit's graph
        x = self._values[i] if is_segment_input else self._values.pop(i)
        unit, version = self._units[i], x._version
        if not (keep and self._continues[i]):
            x = x.detach()
            x.requires_grad_(keep and self._needs_grad[i])
            if keep:
                self._leaves.append(x)
        try:
            with torch.set_grad_enabled(keep), self._first_run_or_replay(i):
                if self._is_retaining[i]:
                    retention = self._retentions[i] if keep else "all"
                    y = unit(x, retention=retention, memo=self._memos.setdefault(i, {}))
                else:
                    self._memos[i] = {}
                    y = unit(x)
        except RuntimeError as error:
            if "a leaf Variable that requires grad" not in str(error):
                raise
            raise _changes_input(i, unit) from error
        if not isinstance(y, Tensor):
            raise TypeError(
                f"unit {i} ({type(unit).__name__}) must return one tensor, got {type(y).__name__}"
            )
        if x._version != version:
            raise _changes_input(i, unit)
        if keep and not self._continues[i + 1]:
            self._graphs[i] = (self._leaves.pop(), self.holder.edge_of(y) if y.requires_grad else None)
            y = y.detach()
        self._values[i + 1] = y

    @contextlib.contextmanager
    def _as_in_forward(self) -> Iterator[None]:
        """Autocast as in the forward pass, but without its cache, which would hold on to cast weights."""
        with contextlib.ExitStack() as stack:
            for kind, enabled, dtype in self._autocast:
                if not (enabled or torch.is_autocast_enabled(kind)):
                    continue  # as it is; to enter the context takes as long as a small kernel
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield

    @contextlib.contextmanager
    def _first_run_or_replay(self, i: int) -> Iterator[None]:
        if i not in self._memos:
            with self.draws.first_run(i):
                yield
            return
        updates = contextlib.nullcontext() if self._is_retaining[i] else without_updates(self._units[i])
        with self.draws.replay(i), updates:
            yield


def _changes_input(i: int, unit: nn.Module) -> RuntimeError:
    return RuntimeError(
        f"unit {i} ({type(unit).__name__}) changes its input in place, so it cannot be replayed: "
        "make its first layer work out of place (inplace=False)"
    )
