"""The passes over a net from which a chain's costs are read: on a device, or with tensors that are none.

NOTE [ Reading costs ]
1. Units that are alike (`_signature`) are run once. Copies are run, so that the model stays as it is.
2. A unit is run as under a plan: from a leaf that is its input, discarding without a graph, keeping with one, its
   backward from a gradient that is handed over to it. Parameters' gradients are model states; they are there from
   the start, so that what a backward makes before it adds to them counts as transient.
3. Kept are the bytes that a keeping run leaves, but for the memo of batch statistics: all memos are held to the
   end of the step and belong to the chain's fixed bytes.
4. A unit's forward time is what a discarding run and a keeping replay before the backward take more than one
   keeping run: just what a plan adds. All else is in the backward time, which occurs once a step, whatever the plan.
5. Stem and head are run as the model itself runs them, with a stand-in for the units.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.recompute import Chain, RetainingUnit, Retention, UnitCost
from deepres.recompute.executor import planned_units
from deepres.recompute.gradient_holder import GradientHolder

Loss = Callable[[Tensor], Tensor]


class Spec(NamedTuple):
    """What a tensor is without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> Spec:
        """The spec of `x`."""
        return cls(tuple(x.shape), x.stride(), x.dtype)

    @property
    def num_bytes(self) -> int:
        """What a tensor like this takes, without gaps."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Meter(AbstractContextManager[Any], Protocol):
    """Counts bytes in a context that can be entered several times; see `AllocatedBytes` and `TensorBytes`."""

    live_bytes: int
    peak_bytes: int

    def reset_peak(self) -> None:
        """Begin to look for a new peak."""


class Bench(Protocol):
    """Where passes are run.

    Attributes:
        cache_bytes: more than the caches hold.
    """

    cache_bytes: int

    def copy(self, module: nn.Module, instead: dict[int, nn.Module]) -> nn.Module:
        """A copy of `module` to be run here, with the modules in `instead` (by `id`) in place of its own."""

    def tensor(self, spec: Spec) -> Tensor:
        """A tensor with values as they occur."""

    def meter(self) -> Meter:
        """A new meter."""

    def rounds_ms(self, runs: Sequence[Callable[[], object]]) -> list[list[float]]:
        """How long each of some pieces of work takes, in each of some rounds."""

    def compute(self) -> AbstractContextManager[Any]:
        """The number format to compute in (autocast)."""


def default_loss(output: Tensor) -> Tensor:
    """Cross entropy of logits (N, num_classes), the mean of anything else."""
    if output.dim() != 2:
        return output.float().mean()
    return F.cross_entropy(output.float(), torch.zeros(len(output), dtype=torch.long, device=output.device))


def read_chain(model: nn.Module, images: Spec, bench: Bench, loss: Loss) -> Chain:
    """The chain of a model's units, with what stem and head add.

    Args:
        model: `head(units(stem(x)))`, or an `nn.Sequential` of units.
        images: the model's input.
        bench: where to run it.
        loss: of the model's output.

    Raises:
        TypeError: the model has no sequence of units, or one of them does not return one tensor.
    """
    units = planned_units(model)
    ends = _Ends(model, units, images, bench, loss)
    spec, needs_grad = ends.first, ends.needs_grad
    known: dict[object, tuple[_Unit, Spec]] = {}
    costs = []
    for unit in units:
        key = (_signature(unit), spec, needs_grad)
        if key not in known:
            known[key] = _read_unit(unit, spec, needs_grad, bench)
        cost, spec = known[key]
        costs.append(cost)
        needs_grad = needs_grad or any(p.requires_grad for p in unit.parameters())
    return ends.chain(spec, tuple(cost.unit for cost in costs), sum(cost.memo_bytes for cost in costs))


@dataclass(frozen=True)
class _Unit:
    unit: UnitCost
    memo_bytes: int


def _read_unit(original: nn.Module, spec: Spec, needs_grad: bool, bench: Bench) -> tuple[_Unit, Spec]:
    unit = bench.copy(original, {})
    _allocate_gradients(unit)
    names = unit.retentions if isinstance(unit, RetainingUnit) else ("all",)
    meter = bench.meter()
    x = bench.tensor(spec)
    memo: dict[Any, Any] = {}
    with meter:
        y = _run_unit(unit, x, bench, keep=None, memo=memo)
    output = Spec.of(y)
    discard_temp = meter.peak_bytes - meter.live_bytes
    memo_bytes = _memo_bytes(memo)
    del y

    def steps(name: str, kept_bytes: int, *, replayed: bool = False) -> tuple[int, Callable[[], None]]:
        """So many units' steps that the backwards find what is kept out of the caches, as in a net."""
        num = max(1, min(16, bench.cache_bytes // max(1, kept_bytes)))

        def run() -> None:
            leaves = [x.detach().requires_grad_(needs_grad) for _ in range(num)]
            memos = [dict[Any, Any]() for _ in range(num)]
            if replayed:
                for memo in memos:
                    _run_unit(unit, x, bench, keep=None, memo=memo)
            outputs = [
                _run_unit(unit, leaf, bench, keep=name, memo=memo)
                for leaf, memo in zip(leaves, memos, strict=True)
            ]
            while outputs:
                y = outputs.pop()
                if y.requires_grad:
                    torch.autograd.backward(y, gradient)
                leaves.pop()

        return num, run

    gradient = bench.tensor(output)
    retentions = [_read_retention(unit, name, x, needs_grad, output, bench) for name in names]
    first = retentions[0]
    work = [steps(kept.name, kept.kept_bytes) for kept in retentions]
    work.append(steps(first.name, first.kept_bytes, replayed=True))
    rounds = [
        [ms / num for ms, (num, _) in zip(all_ms, work, strict=True)]
        for all_ms in bench.rounds_ms([run for _, run in work])
    ]
    step_ms = statistics.median(all_ms[0] for all_ms in rounds)
    # Differences are taken in each round: what slows the machine for a while slows both.
    *replays_ms, forward_ms = [
        max(0.0, statistics.median(all_ms[k] - all_ms[0] for all_ms in rounds)) for k in range(len(work))
    ]
    priced = tuple(
        replace(kept, replay_ms=replay_ms) for kept, replay_ms in zip(retentions, replays_ms, strict=True)
    )
    is_trained = needs_grad or any(p.requires_grad for p in unit.parameters())
    backward_ms = max(0.0, step_ms - forward_ms) if is_trained else 0.0
    cost = UnitCost(forward_ms, backward_ms, output.num_bytes, priced, discard_temp)
    return _Unit(cost, memo_bytes), output


def _read_retention(
    unit: nn.Module, name: str, x: Tensor, needs_grad: bool, output: Spec, bench: Bench
) -> Retention:
    meter, memo = bench.meter(), dict[Any, Any]()
    leaf = x.detach().requires_grad_(needs_grad)
    with meter:
        y = _run_unit(unit, leaf, bench, keep=name, memo=memo)
    memo_bytes, held_bytes = _memo_bytes(memo), meter.live_bytes
    forward_temp = meter.peak_bytes - held_bytes
    backward_temp, freed_bytes = 0, 0
    if y.requires_grad:
        holder = GradientHolder()
        edge = holder.edge_of(y)
        y = y.detach()
        with meter:
            del y
        freed_bytes = held_bytes - meter.live_bytes
        with meter:
            holder.gradient = bench.tensor(output)
        meter.reset_peak()
        with meter:
            holder.backward(edge)
        gradient_bytes = output.num_bytes + (Spec.of(x).num_bytes if needs_grad else 0)
        backward_temp = max(0, meter.peak_bytes - (held_bytes - freed_bytes) - gradient_bytes)
    return Retention(name, held_bytes - memo_bytes, 0.0, forward_temp, backward_temp, freed_bytes)


def _run_unit(unit: nn.Module, x: Tensor, bench: Bench, keep: str | None, memo: dict[Any, Any]) -> Tensor:
    how = {"retention": keep or "all", "memo": memo} if isinstance(unit, RetainingUnit) else {}
    with torch.set_grad_enabled(keep is not None), bench.compute():
        y = unit(x, **how)
    if not isinstance(y, Tensor):
        raise TypeError(f"{type(unit).__name__} must return one tensor, got {type(y).__name__}")
    return y


class _Ends:
    """What comes before the units, and what comes after them."""

    def __init__(
        self, model: nn.Module, units: nn.Sequential, images: Spec, bench: Bench, loss: Loss
    ) -> None:
        self._bench, self._loss = bench, loss
        self._stand_in = _StandIn()
        self._model = self._stand_in if model is units else bench.copy(model, {id(units): self._stand_in})
        _allocate_gradients(self._model)
        self._images = bench.tensor(images)
        meter = bench.meter()
        with meter:
            x = self._stem()
        self.first, self._needs_grad = Spec.of(x), x.requires_grad
        self._kept_bytes = max(0, meter.live_bytes - self.first.num_bytes)
        self._stem_bytes = meter.peak_bytes
        if x.requires_grad:
            gradient = bench.tensor(self.first)
            edge, x = torch.autograd.graph.get_gradient_edge(x), x.detach()
            meter.reset_peak()
            with meter:
                torch.autograd.backward(edge, gradient)
            self._stem_bytes = max(self._stem_bytes, meter.peak_bytes + self.first.num_bytes)

    @property
    def needs_grad(self) -> bool:
        """Whether the first unit's input has a gradient."""
        return self._needs_grad

    def chain(self, last: Spec, units: tuple[UnitCost, ...], memo_bytes: int) -> Chain:
        """The chain of `units` between stem and head; `last` is what the last of them puts out."""
        x, meter = self._bench.tensor(last).requires_grad_(), self._bench.meter()
        with ExitStack() as stack:
            stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())

            def begin(first: Tensor) -> Tensor:
                if first.untyped_storage()._cdata != self._images.untyped_storage()._cdata:
                    first.untyped_storage().resize_(0)  # now, for the meter would see it go
                torch.set_grad_enabled(True)
                stack.enter_context(meter)
                return x

            self._stand_in.run = begin
            torch.set_grad_enabled(False)
            with self._bench.compute():
                output = self._model(self._images)
            value = self._loss(output)
            value.backward()
        held_bytes = max(0, meter.live_bytes - last.num_bytes)  # the answer and the loss, to the step's end
        return Chain(
            input_bytes=self.first.num_bytes,
            units=units,
            fixed_bytes=self._kept_bytes + memo_bytes + held_bytes,
            head_bytes=meter.peak_bytes - held_bytes,
            fixed_ms=self._times_ms(x),
            stem_bytes=self._stem_bytes + memo_bytes + held_bytes,
        )

    def _stem(self) -> Tensor:
        """What the first unit is given, with its graph."""

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
        """Stem, head and loss, forward and backward."""

        def connect(first: Tensor) -> Tensor:
            return x + first.flatten()[0] * 0 if first.requires_grad else x

        def step() -> None:
            with self._bench.compute():
                output = self._model(self._images)
            self._loss(output).backward()

        self._stand_in.run = connect
        return statistics.median(time_ms for (time_ms,) in self._bench.rounds_ms([step]))


class _Reached(Exception):  # noqa: N818 (it is no error)
    def __init__(self, first: Tensor) -> None:
        super().__init__()
        self.first = first


class _StandIn(nn.Module):
    """Takes the units' place in a copy of a model."""

    run: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def _allocate_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _memo_bytes(memo: dict[Any, Any]) -> int:
    """What the tensors in a memo hold, each storage once."""
    tensors = [t for value in memo.values() for t in (value if isinstance(value, tuple) else (value,))]
    storages = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)
    }
    return sum(storages.values())


def _signature(value: Any) -> object:
    """Equal for modules that run alike: same classes, same settings, parameters of the same kinds."""
    if isinstance(value, nn.Module):
        return type(value), _signature(vars(value))
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.requires_grad
    if isinstance(value, dict):
        return tuple((_signature(k), _signature(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_signature, value))
    if isinstance(value, set | frozenset):
        return frozenset(map(_signature, value))
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        return type(value), value
    return id(value)
