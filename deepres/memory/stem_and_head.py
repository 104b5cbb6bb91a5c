"""What surrounds a net's units: stem, head and loss."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from deepres.gradients import allocate_gradients
from deepres.memory.bench import Bench, Loss, Spec, copied
from deepres.recompute import Chain, UnitCost

_ONE_CALL = "a plan is of one call of the whole sequence: x = self.units(x)"


class StemAndHead:
    """Runs a model without its units.

    Args:
        model: the whole.
        units: the part of it to leave out.
        images: the model's input.
        bench: where to run it.
        loss: of the model's output.

    Attributes:
        first: the first unit's input.
        needs_grad: whether that needs a gradient.
    """

    def __init__(
        self, model: nn.Module, units: nn.Sequential, images: Spec, bench: Bench, loss: Loss
    ) -> None:
        self._bench, self._loss = bench, loss
        self._stand_in = _StandIn(len(units))
        self._model = self._stand_in if model is units else copied(bench, model, {id(units): self._stand_in})
        allocate_gradients(self._model)
        self._images = bench.tensor(images)
        meter = bench.meter()
        with meter:
            x = self._stem()
        self.first, self.needs_grad = Spec.of(x), x.requires_grad
        self._kept_bytes = max(0, meter.live_bytes - self.first.num_bytes)
        self._stem_bytes = meter.peak_bytes
        if x.requires_grad:
            gradient = bench.tensor(self.first)
            edge, x = torch.autograd.graph.get_gradient_edge(x), x.detach()
            meter.reset_peak()
            with meter:
                torch.autograd.backward(edge, gradient)
            self._stem_bytes = max(self._stem_bytes, meter.peak_bytes + self.first.num_bytes)

    def chain(self, last: Spec, units: tuple[UnitCost, ...], other_bytes: int) -> Chain:
        """The chain of units between stem and head.

        Args:
            last: the last unit's output.
            units: their costs.
            other_bytes: what they hold besides, until the end of a step.
        """
        x, meter = self._bench.tensor(last).requires_grad_(), self._bench.meter()
        held = list[Tensor]()  # allocated before the meter began, so not to be freed while it counts
        with ExitStack() as stack:
            stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())

            def begin(first: Tensor) -> Tensor:
                self._stand_in.run = _second
                held.append(first)
                if self.needs_grad:
                    # If the head uses it too, its gradient from there is held until that from the units comes.
                    first.requires_grad_()
                torch.set_grad_enabled(True)
                stack.enter_context(meter)
                return x

            self._stand_in.run = begin
            torch.set_grad_enabled(False)
            with self._bench.compute():
                output = self._model(self._images)
            value = self._loss(output)
            value.backward()
        # Held to the step's end: the output, the loss, and a gradient of `first` that comes from the head.
        held_bytes = max(0, meter.live_bytes - last.num_bytes)
        # Held while the units' backward passes run: the gradient of the loss, and the stand-in for their output's.
        held_bytes += value.itemsize + last.dtype.itemsize
        return Chain(
            input_bytes=self.first.num_bytes,
            units=units,
            fixed_bytes=self._kept_bytes + other_bytes + held_bytes,
            head_bytes=meter.peak_bytes - held_bytes,
            fixed_ms=self._times_ms(x),
            stem_bytes=self._stem_bytes + other_bytes + held_bytes,
        )

    def _stem(self) -> Tensor:
        """The first unit's input, with its graph."""

        def leave(first: Tensor) -> Tensor:
            raise _Reached(first)

        self._stand_in.run = leave
        try:
            with self._bench.compute():
                self._model(self._images)
        except _Reached as reached:
            return reached.first
        raise TypeError(f"the forward pass of {type(self._model).__name__} does not call its units")

    def _times_ms(self, x: Tensor) -> float:
        """The time of stem, head and loss, forward and backward."""

        def connect(first: Tensor) -> Tensor:
            return x + first.flatten()[0] * 0 if first.requires_grad else x

        def step() -> None:
            with self._bench.compute():
                output = self._model(self._images)
            self._loss(output).backward()

        self._stand_in.run = connect
        return statistics.median(time_ms for (time_ms,) in self._bench.rounds_ms([step]))


def _second(_: Tensor) -> Tensor:
    raise TypeError(f"the forward pass calls its units more than once, and {_ONE_CALL}")


class _Reached(Exception):  # noqa: N818 (it is no error)
    def __init__(self, first: Tensor) -> None:
        super().__init__()
        self.first = first


class _StandIn(nn.Module):
    """Takes the units' place in a copy of a model."""

    run: Callable[[Tensor], Tensor]

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self._num_units = num_units

    def __len__(self) -> int:
        return self._num_units

    def __getitem__(self, _: object) -> nn.Module:
        """Refuse indexing, and with it iteration over the units."""
        raise TypeError(f"the forward pass takes its units one by one, and {_ONE_CALL}")

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)
