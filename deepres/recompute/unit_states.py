"""What a replay must find unchanged: parameters, whether they are trained, and the modules' modes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from torch import Tensor, nn


class State(NamedTuple):
    """What a replay must find unchanged, at one moment: a value for each parameter, or for each module.

    Args:
        parameters: the parameters themselves, so that no later one can be mistaken for them.
        versions: how often each was changed in place.
        are_trained: whether each requires a gradient.
        modes: whether each module is in training.
    """

    parameters: Sequence[Tensor | None]
    versions: list[int]
    are_trained: list[bool]
    modes: list[bool]


class UnitStates:
    """Reads the states of units, far faster than by walking through their modules.

    Args:
        units: the units.

    Attributes:
        units: the units.
        recurrent: PyTorch's recurrent layers in them, each with its unit's number.
        replayed: numbers of units that have been replayed without changing their buffers.
        marked: numbers of units whose graphs have been marked, see `mark_graph`.
    """

    def __init__(self, units: Sequence[nn.Module]) -> None:
        self.units = list(units)
        self.replayed, self.marked = set[int](), set[int]()
        self._modules = [(module, i) for i, unit in enumerate(units) for module in unit.modules()]
        self._children = self._read_children()
        self.recurrent = [(module, i) for module, i in self._modules if isinstance(module, nn.RNNBase)]
        self._places = [
            (module._parameters, name, i) for module, i in self._modules for name in module._parameters
        ]
        self._at_first = [parameters[name] for parameters, name, _ in self._places]
        owners = dict[int, int]()
        self._shared = [
            (parameters, name)
            for parameters, name, i in self._places
            if owners.setdefault(id(parameters[name]), i) != i and parameters[name] is not None
        ]

    def are_of(self, units: Sequence[nn.Module]) -> bool:
        """Whether these are still the same units, with the same layers and parameters."""
        now = (parameters.get(name) for parameters, name, _ in self._places)
        return (
            len(units) == len(self.units)
            and all(map(operator.is_, units, self.units))
            and self._have_same_layers()
            and all(map(operator.is_, now, self._at_first))
        )

    def _read_children(self) -> list[nn.Module | None]:
        return list(chain.from_iterable(module._modules.values() for module, _ in self._modules))

    def _have_same_layers(self) -> bool:
        now = self._read_children()
        return len(now) == len(self._children) and all(map(operator.is_, now, self._children))

    @property
    def share_parameters(self) -> bool:
        """Whether a trained parameter belonged to several units when they were taken in."""
        shared = (parameters.get(name) for parameters, name in self._shared)
        return any(p is not None and p.requires_grad for p in shared)

    @property
    def trained_parameters(self) -> list[Tensor]:
        """Those that require a gradient; one in two places is listed twice."""
        found = (parameters.get(name) for parameters, name, _ in self._places)
        return [p for p in found if p is not None and p.requires_grad]

    @property
    def hooked_parameters(self) -> list[Tensor]:
        """Those with hooks on their gradients."""
        found = (parameters.get(name) for parameters, name, _ in self._places)
        return [p for p in found if p is not None and has_hooks(p)]

    def read(self) -> State:
        """The state now."""
        parameters = [parameters.get(name) for parameters, name, _ in self._places]
        return State(
            parameters,
            [0 if p is None else version_of(p) for p in parameters],
            [p is not None and p.requires_grad for p in parameters],
            [module.training for module, _ in self._modules],
        )

    def need_grad(self, needs_grad: bool) -> list[bool]:
        """Which of x_0 … x_L need a gradient, given whether x_0 does."""
        are_trained = [False] * len(self.units)
        for parameters, name, i in self._places:
            p = parameters.get(name)
            if p is not None and p.requires_grad:
                are_trained[i] = True
        needs = [needs_grad]
        for unit, is_trained in zip(self.units, are_trained, strict=True):
            # Units that seem frozen, which a backward pass would skip, may have been given new modules.
            needs.append(needs[-1] or is_trained or any(p.requires_grad for p in unit.parameters()))
        return needs

    def check_same(self, then: State) -> None:
        """Compare the state now to that of the forward pass.

        Raises:
            RuntimeError: a replay would not compute what the forward pass did.
        """
        if not self._have_same_layers():
            raise _changed("a layer of a unit was replaced")
        now = self.read()
        if all(map(operator.is_, now.parameters, then.parameters)) and now[1:] == then[1:]:
            return
        for k, (module, i) in enumerate(self._modules):
            if then.modes[k] != now.modes[k]:
                unit = f"unit {i} ({type(self.units[i]).__name__})"
                what = unit if module is self.units[i] else f"{type(module).__name__} in {unit}"
                raise _changed(f"{what} was put into {'training' if now.modes[k] else 'evaluation'} mode")
        for k, (_, name, i) in enumerate(self._places):
            if then.parameters[k] is not now.parameters[k] or then.versions[k] != now.versions[k]:
                raise _changed(f"parameter {name!r} of unit {i} ({type(self.units[i]).__name__}) was changed")
            if then.are_trained[k] != now.are_trained[k]:
                raise _changed(f"requires_grad of parameter {name!r} of unit {i} was changed")


def has_hooks(parameter: Tensor) -> bool:
    """Whether it has hooks on its gradient."""
    hooks = parameter._backward_hooks or parameter._post_accumulate_grad_hooks
    return bool(hooks) and parameter.requires_grad


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place."""
    try:
        return tensor._version
    except RuntimeError:  # tensors made in inference mode have no version counter
        return 0


def _changed(what: str) -> RuntimeError:
    return RuntimeError(
        f"{what} between a forward pass under a plan and its backward pass, which would replay something else: "
        "do so after the backward pass, or take the plan off with deepres.apply_plan(model, None)"
    )
