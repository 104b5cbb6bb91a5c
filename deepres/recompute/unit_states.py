"""What the units compute with, so that a change between a forward and its backward pass is noticed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class State(NamedTuple):
    """At one moment, of each parameter in turn and of each unit.

    Args:
        parameters: the parameters themselves, so that none of them can be taken for a later one.
        versions: how often each was changed in place.
        are_trained: whether each requires a gradient.
        modes: whether each unit is in training.
    """

    parameters: Sequence[Tensor | None]
    versions: list[int]
    are_trained: list[bool]
    modes: list[bool]


class UnitStates:
    """Reads the states of units, in far less time than it takes to walk through their modules.

    Args:
        units: the units; where modules inside of them are replaced later on, the new ones are not seen.
    """

    def __init__(self, units: Sequence[nn.Module]) -> None:
        self.units = list(units)
        self._places = [
            (module._parameters, name, i)
            for i, unit in enumerate(units)
            for module in unit.modules()
            for name in module._parameters
        ]

    @property
    def share_parameters(self) -> bool:
        """Whether a parameter that is trained belongs to several units."""
        owners = dict[int, int]()
        for parameters, name, i in self._places:
            p = parameters.get(name)
            if p is not None and p.requires_grad and owners.setdefault(id(p), i) != i:
                return True
        return False

    def read(self) -> State:
        """The state now."""
        parameters = [parameters.get(name) for parameters, name, _ in self._places]
        return State(
            parameters,
            [0 if p is None else _version(p) for p in parameters],
            [p is not None and p.requires_grad for p in parameters],
            [unit.training for unit in self.units],
        )

    def need_grad(self, needs_grad: bool) -> list[bool]:
        """Which of x_0 … x_L need a gradient, if that of x_0 does or not."""
        are_trained = [False] * len(self.units)
        for parameters, name, i in self._places:
            p = parameters.get(name)
            if p is not None and p.requires_grad:
                are_trained[i] = True
        needs = [needs_grad]
        for is_trained in are_trained:
            needs.append(needs[-1] or is_trained)
        return needs

    def check_same(self, then: State) -> None:
        """Compare the state now to that of the forward pass.

        Raises:
            RuntimeError: a replay would not compute what the forward pass did.
        """
        now = self.read()
        if all(map(operator.is_, now.parameters, then.parameters)) and now[1:] == then[1:]:
            return
        for i, (was_training, is_training) in enumerate(zip(then.modes, now.modes, strict=True)):
            if was_training != is_training:
                change = "put into training" if is_training else "put into evaluation"
                raise _changed(f"unit {i} ({type(self.units[i]).__name__}) was {change} mode")
        for k, (_, name, i) in enumerate(self._places):
            if then.parameters[k] is not now.parameters[k] or then.versions[k] != now.versions[k]:
                raise _changed(f"parameter {name!r} of unit {i} ({type(self.units[i]).__name__}) was changed")
            if then.are_trained[k] != now.are_trained[k]:
                raise _changed(f"requires_grad of parameter {name!r} of unit {i} was changed")


def _version(parameter: Tensor) -> int:
    try:
        return parameter._version
    except RuntimeError:  # made in inference mode: it is not counted how often such a tensor is changed
        return 0


def _changed(what: str) -> RuntimeError:
    return RuntimeError(
        f"{what} between a forward pass under a plan and its backward pass, which would replay something else: "
        "do so after the backward pass, or take the plan off with deepres.apply_plan(model, None)"
    )
