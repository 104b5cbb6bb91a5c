"""What `DistributedDataParallel` would average wrongly under a plan, without a word, is refused."""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel

from deepres.recompute.unit_states import UnitStates


class DdpGuard:
    """Sees that each parameter's gradient is complete when it is there.

    DDP averages a gradient over the processes as soon as a backward pass has added to it. Under a plan the units'
    backward passes follow one another, so that a parameter is added to once for each unit and forward pass.
    """

    def __init__(self) -> None:
        self._last_task: int | None = None

    def __getstate__(self) -> dict[str, None]:
        """Another process, which a saved model may come to, numbers its backward passes anew."""
        return {"_last_task": None}

    @staticmethod
    def is_under_ddp() -> bool:
        """Whether this is the forward pass of a module that DDP wraps."""
        return getattr(DistributedDataParallel, "_active_ddp_module", None) is not None

    def check_forward(self, states: UnitStates) -> None:
        """Called in the forward pass.

        Raises:
            RuntimeError: units share parameters, or DDP looks for unused ones.
        """
        ddp = DistributedDataParallel._active_ddp_module
        assert ddp is not None
        if ddp.find_unused_parameters and not ddp.static_graph:
            raise RuntimeError(
                "under a plan DistributedDataParallel cannot find unused parameters, as those of all units would seem "
                "to be: give it static_graph=True instead of find_unused_parameters=True, or take the plan off with "
                "deepres.apply_plan(model, None)"
            )
        if states.share_parameters:
            raise RuntimeError(
                "under a plan and DistributedDataParallel, units must not share parameters: their gradients would be "
                "averaged before they are complete; take the plan off with deepres.apply_plan(model, None)"
            )

    def check_backward(self) -> None:
        """Called when a backward pass reaches the units.

        Raises:
            RuntimeError: it has been there before, from another forward pass.
        """
        task = torch._C._current_graph_task_id()
        if task == self._last_task:
            raise RuntimeError(
                "under a plan and DistributedDataParallel, each forward pass needs a backward pass of its own (all but "
                "the last under no_sync()): gradients would be averaged before they are complete; or take the plan "
                "off with deepres.apply_plan(model, None)"
            )
        self._last_task = task
