"""Runs a plan under autograd: exact training within the plan's bytes.

A unit is any module that takes one tensor, returns one, and does not change its input. Such a module has the
retention `all`. A unit that offers more follows the protocol `RetainingUnit`.

A plan does not restore for replays what it cannot see: random numbers that are not from PyTorch's default generators
(Python's, or a `torch.Generator`), and what a unit counts or records in its own attributes.
Gradients of a parameter shared by several units, or of several forward passes before one backward pass, are
accumulated one by one; if `.grad` is already set, or in bf16, the last bits may then differ.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd.forward_ad import unpack_dual

from deepres.recompute.execution import Execution
from deepres.recompute.gradient_guard import GradientGuard
from deepres.recompute.norm_updates import NormUpdates
from deepres.recompute.plan import Action, Plan
from deepres.recompute.retaining_unit import RetainingUnit, retentions_of
from deepres.recompute.unit_states import UnitStates


def apply_plan(model: nn.Module, plan: Plan | None) -> None:
    """Make `model` train under `plan`; None undoes it.

    Losses, gradients, buffers and the state of the random number generators stay the same, bit for bit; only
    memory and time change. Parameters, their names and hooks are untouched. If a new plan is refused, the model
    keeps its current one.

    Args:
        model: an `nn.Sequential` of units, or a module that has one as its attribute `units`.
        plan: a plan for that number of units.

    Raises:
        TypeError: there is no sequence of units, it has a `forward` of its own, a unit is TorchScript or sharded by
            FSDP, or `plan` is not a Plan.
        ValueError: the plan is for a different number of units, or names a retention that a unit does not offer; or
            a unit does not offer `all`.
    """
    units = planned_units(model)
    executor = None if plan is None else _executor(units, plan)
    before = units.__dict__.pop("forward", None)
    if before is not None:
        before.release()
    if executor is not None:
        units.__dict__["forward"] = executor


def _executor(units: nn.Sequential, plan: Plan) -> PlanExecutor | None:
    """The executor of the plan; None if the plan keeps everything."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan (of make_plan, Plan.load) or None, got {type(plan).__name__}")
    if plan.num_units != len(units):
        raise ValueError(
            f"this plan is for {plan.num_units} units, the model has {len(units)}: make one for this model"
        )
    for i, (unit, retention) in enumerate(zip(units, plan.retentions, strict=True)):
        offered = retentions_of(unit)
        if "all" not in offered:
            raise ValueError(
                f"unit {i} ({type(unit).__name__}) must offer the retention all, got {', '.join(offered)}"
            )
        if retention not in offered:
            raise ValueError(
                f"the plan keeps {retention!r} of unit {i} ({type(unit).__name__}), which offers "
                f"{', '.join(offered)}: make a plan from a chain measured on this model"
            )
    return PlanExecutor(units, plan) if plan.segments or set(plan.retentions) != {"all"} else None


def planned_units(model: nn.Module) -> nn.Sequential:
    """The sequence of units that plans apply to: `model.units`, or the model itself.

    Raises:
        TypeError: there is none, or it has a `forward` of its own.
    """
    units = model if isinstance(model, nn.Sequential) else getattr(model, "units", None)
    if not isinstance(units, nn.Sequential):
        raise TypeError(
            f"a plan applies to an nn.Sequential or a module with one as `.units`, got {type(model).__name__}: if "
            "its units are in one (`model.blocks`, or the `module` of DistributedDataParallel), give that"
        )
    own = units.__dict__.get("forward")
    if type(units).forward is not nn.Sequential.forward or not isinstance(own, PlanExecutor | None):
        raise TypeError(
            f"a plan applies to an nn.Sequential that runs its units one after another, but {type(units).__name__} "
            "has a forward of its own: let that be the forward of a module around the sequence"
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
        steps = tuple(plan.schedule())
        head = next(k for k, step in enumerate(steps) if step.action is Action.HEAD)
        self._forward, self._backward = steps[:head], steps[head + 1 :]
        self._follows = [False] * len(units)  # whether a unit's KEEP follows its predecessor's at once
        for before, step in pairwise(steps):
            if before.action is step.action is Action.KEEP:
                self._follows[step.unit] = step.unit == before.unit + 1
        self._draws: bool | None = None  # whether any unit draws random numbers; None: not known yet
        self._anchor = torch.empty(0, requires_grad=True)
        self._guard = GradientGuard()
        self._take_in(list(units))

    def release(self) -> None:
        """Stop watching the units' parameters."""
        self._guard.release()

    def __call__(self, input: Tensor) -> Tensor:  # noqa: A002 (as nn.Sequential calls it)
        """Run the units; under `no_grad`, or if nothing needs a gradient, simply one after another."""
        if torch.compiler.is_compiling():  # the compiler cannot trace nested backward passes
            return torch.compiler.disable(self.run)(input)  # type: ignore[no-any-return]
        return self.run(input)

    def run(self, x: Tensor) -> Tensor:
        """`__call__`, never compiled."""
        units = list(self._units)
        if not self._states.are_of(units):
            self._take_in(units)
        needs_grad = self._states.need_grad(x.requires_grad)
        if not (torch.is_grad_enabled() and needs_grad[-1]):
            for unit in units:
                x = unit(x)
            return x
        _check_use(x, self._states)
        is_captured = x.is_cuda and torch.cuda.is_current_stream_capturing()
        if is_captured and self._draws is not False:
            raise RuntimeError(
                "under a plan, a CUDA graph can be captured after a pass has shown that no unit draws random numbers "
                "(dropout), whose replay could not draw the same: run one first, or take the plan off"
            )
        self._guard.check_forward(self._states)
        execution = Execution(
            self._is_retaining,
            self.plan.retentions,
            self._continues,
            needs_grad,
            self._states,
            self._norm_updates,
            self._guard,
            x,
        )
        y = execution.output_of(x, self._anchor, self._forward, self._backward)
        if not is_captured:
            self._draws = bool(execution.draws)
        return y

    def _take_in(self, units: list[nn.Module]) -> None:
        """Run these units from now on; they may replace earlier ones."""
        if len(units) != self.plan.num_units:
            raise RuntimeError(
                f"the plan of this model is for {self.plan.num_units} units, but now it has {len(units)}: "
                "make a new plan, or take this one off with deepres.apply_plan(model, None)"
            )
        _refuse_others(units)
        self.release()  # watching would keep replaced parameters alive
        self._states, self._norm_updates = UnitStates(units), NormUpdates(units)
        self._is_retaining = [isinstance(unit, RetainingUnit) for unit in units]  # slow on a protocol
        # Whether a unit's graph continues that of the previous unit. Not if units share parameters: their gradients
        # are accumulated unit by unit, as autograd does it.
        self._continues = [follows and not self._states.share_parameters for follows in self._follows]


def _refuse_others(units: list[nn.Module]) -> None:
    """Refuse units that TorchScript or FSDP has taken over."""
    for i, unit in enumerate(units):
        for module in unit.modules():
            if isinstance(module, torch.jit.ScriptModule):
                what = "is" if module is unit else "contains"
                raise TypeError(
                    f"unit {i} {what} TorchScript, which a plan cannot replay: use the module that it was made of"
                )
            # By name, because importing FSDP is slow.
            if {"FSDPModule", "FullyShardedDataParallel"} & {each.__name__ for each in type(module).__mro__}:
                raise TypeError(
                    f"unit {i} is sharded by FSDP, which frees its parameters between its runs: shard the whole model "
                    "alone (fully_shard(model)), or take the plan off with deepres.apply_plan(model, None)"
                )


def refuse_draws_of_cudnn(states: UnitStates) -> None:
    """Refuse units that would draw random numbers from cuDNN's own state, which can be neither read nor restored.

    Raises:
        RuntimeError: there is such a unit.
    """
    for module, i in states.recurrent:
        if module.training and module.dropout > 0 and module.num_layers > 1:
            raise RuntimeError(
                f"dropout between the layers of {type(module).__name__} in unit {i} draws random numbers of cuDNN's "
                "own, which a plan cannot replay: put nn.Dropout between layers that are modules of their own, set "
                "torch.backends.cudnn.enabled = False, or take the plan off with deepres.apply_plan(model, None)"
            )


def _check_use(x: Tensor, states: UnitStates) -> None:
    if peek_interpreter_stack() is not None or unpack_dual(x).tangent is not None:
        raise RuntimeError(
            "a model under a plan supports loss.backward() only, not the transforms of torch.func or forward-mode "
            "derivatives: take the plan off with deepres.apply_plan(model, None)"
        )
    first = next((p for unit in states.units for p in unit.parameters()), x)
    if first.device != x.device and first.numel():  # ZeRO 3's is empty until its unit runs
        raise RuntimeError(
            f"units under a plan run on one device, but their parameters are on {first.device} and their input is on "
            f"{x.device}: move one of them (instead of torch.nn.DataParallel use DistributedDataParallel), or take the "
            "plan off with deepres.apply_plan(model, None)"
        )
    if x.device.type not in ("cpu", "cuda"):
        raise RuntimeError(
            f"a plan replays the random numbers of CPUs and CUDA devices alone, got an input on {x.device}: take the "
            "plan off with deepres.apply_plan(model, None)"
        )
    if x.is_cuda and torch.backends.cudnn.enabled:
        refuse_draws_of_cudnn(states)
