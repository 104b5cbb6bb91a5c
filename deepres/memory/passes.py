"""The passes over a net from which a chain's costs are read: on a device, or with fake tensors.

NOTE [ Reading costs ]
1. Units that are alike (`signature`) are run once. Copies are run, so that the model stays as it is.
2. A unit is run as under a plan (`run_unit`): forward from a leaf, discarding or keeping; backward from a gradient
   whose only reference is passed to it. Parameters' gradients are model states, allocated from the start, so that
   what a backward allocates before it accumulates into them counts as transient.
3. Kept bytes are those that a keeping run leaves allocated, except for the memo of batch statistics: memos are held
   to the end of the step and belong to the chain's fixed bytes.
4. A unit's forward time is that of a discarding replay: what each further run under a plan adds. (With replays, the
   first run discards and the last one keeps: either way, batch statistics are computed once, and a graph is built
   once.) All other time counts as backward time, which occurs once a step, whatever the plan.
5. Whether a unit's graph holds its input is tested on a separate input, which nothing else holds.
6. Stem and head are run as the model itself runs them, with a stand-in for the units.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deepres.gradients import allocate_gradients
from deepres.memory.bench import Bench, Loss, Spec, copied
from deepres.memory.stem_and_head import StemAndHead
from deepres.models.signature import signature
from deepres.recompute import Chain, RetainingUnit, Retention, UnitCost
from deepres.recompute.discarding import CHANGES_INPUT, can_need_grad, changes_leaf, leaf_to_discard
from deepres.recompute.executor import planned_units
from deepres.recompute.gradient_holder import GradientHolder
from deepres.recompute.retaining_unit import retentions_of, run_unit


def read_chain(model: nn.Module, images: Spec, bench: Bench, loss: Loss) -> Chain:
    """The chain of a model's units, with what stem and head add.

    Args:
        model: `head(units(stem(x)))`, or an `nn.Sequential` of units.
        images: the model's input.
        bench: where to run it.
        loss: of the model's output.

    Raises:
        TypeError: the model has no sequence of units, or one of them does not return one tensor or changes its input.
        ValueError: there are no units.
    """
    units = planned_units(model)
    if not len(units):
        raise ValueError(f"the {type(model).__name__} has no units to plan")
    stem_and_head = StemAndHead(model, units, images, bench, loss)
    spec, needs_grad = stem_and_head.first, stem_and_head.needs_grad
    known: dict[object, tuple[_Unit, Spec]] = {}
    costs = []
    for unit in units:
        key = (signature(unit), spec, needs_grad)
        if key not in known:
            known[key] = _read_unit(unit, spec, needs_grad, bench)
        cost, spec = known[key]
        costs.append(cost)
        needs_grad = needs_grad or any(p.requires_grad for p in unit.parameters())
    other_bytes = sum(cost.memo_bytes for cost in costs)
    # Between units, there is only one gradient at a time.
    other_bytes += max((cost.gradient_excess_bytes for cost in costs), default=0)
    return stem_and_head.chain(spec, tuple(cost.unit for cost in costs), other_bytes)


@dataclass(frozen=True)
class _Unit:
    """What a unit's runs have shown.

    Attributes:
        unit: its costs.
        memo_bytes: of its batch statistics.
        gradient_excess_bytes: if the gradient of its input is a view, by how much its storage exceeds the input.
    """

    unit: UnitCost
    memo_bytes: int
    gradient_excess_bytes: int


def _read_unit(original: nn.Module, spec: Spec, needs_grad: bool, bench: Bench) -> tuple[_Unit, Spec]:
    unit = copied(bench, original, {})
    allocate_gradients(unit)
    meter = bench.meter()
    x = bench.tensor(spec)
    memo: dict[Any, Any] = {}
    with meter:
        y = _run_unit(unit, leaf_to_discard(x, needs_grad), bench, keep=None, memo=memo)
    output = Spec.of(y)
    discard_temp = meter.peak_bytes - meter.live_bytes
    # Statistics are fp32 even for bf16 values, but fake tensors (torch 2.13) report bf16.
    memo_bytes = _memo_bytes(memo, torch.float32.itemsize)
    del y

    def discard() -> None:
        _run_unit(unit, leaf_to_discard(x, needs_grad), bench, keep=None, memo=memo)

    def steps(name: str, kept_bytes: int) -> tuple[int, Callable[[], None]]:
        """A step of so many units that a backward finds kept tensors outside the caches, as in a net; their number."""
        num = max(1, min(16, bench.cache_bytes // max(1, kept_bytes)))
        # A unit that changes the shape has no successor like it.
        chains = [num] if output == spec else [1] * num

        def run() -> None:
            outputs = list[Tensor]()
            for length in chains:
                y = x.detach().requires_grad_(needs_grad and can_need_grad(x))
                for _ in range(length):
                    y = _run_unit(unit, y, bench, keep=name, memo={})
                outputs.append(y)
            while outputs:
                y = outputs.pop()
                if y.requires_grad:
                    torch.autograd.backward(y, gradient)

        return num, run

    gradient = bench.tensor(output)
    found = [_read_retention(unit, name, x, needs_grad, output, bench) for name in retentions_of(unit)]
    retentions = [retention for retention, _ in found]
    work = [*(steps(kept.name, kept.kept_bytes) for kept in retentions), (1, discard)]
    rounds = [
        [ms / num for ms, (num, _) in zip(all_ms, work, strict=True)]
        for all_ms in bench.rounds_ms([run for _, run in work])
    ]
    step_ms, forward_ms = (statistics.median(all_ms[k] for all_ms in rounds) for k in (0, -1))
    # Differences are taken within each round: a temporary slowdown of the machine affects both.
    replays_ms = [
        max(0.0, statistics.median(all_ms[k] - all_ms[0] for all_ms in rounds))
        for k in range(len(retentions))
    ]
    priced = tuple(
        replace(kept, replay_ms=replay_ms) for kept, replay_ms in zip(retentions, replays_ms, strict=True)
    )
    is_trained = needs_grad or any(p.requires_grad for p in unit.parameters())
    backward_ms = max(0.0, step_ms - forward_ms) if is_trained else 0.0
    cost = UnitCost(forward_ms, backward_ms, output.num_bytes, priced, discard_temp)
    return _Unit(cost, memo_bytes, max(excess_bytes for _, excess_bytes in found)), output


def _read_retention(
    unit: nn.Module, name: str, x: Tensor, needs_grad: bool, output: Spec, bench: Bench
) -> tuple[Retention, int]:
    """The retention's costs, and by how many bytes the input's gradient exceeds the input."""
    meter, memo = bench.meter(), dict[Any, Any]()
    holder = GradientHolder()
    leaf = holder.leaf_of(x, needs_grad)
    with meter:
        y = _run_unit(unit, leaf, bench, keep=name, memo=memo)
    memo_bytes, held_bytes = _memo_bytes(memo), meter.live_bytes
    forward_temp = meter.peak_bytes - held_bytes
    backward_temp = excess_bytes = 0
    edge = holder.edge_of(y) if y.requires_grad else None
    y = y.detach()
    with meter:
        del y
    freed_bytes = held_bytes - meter.live_bytes
    if edge is not None:
        with meter:
            holder.gradient = bench.tensor(output)
        meter.reset_peak()
        with meter:
            holder.backward(edge)
        gradient_bytes = output.num_bytes + (Spec.of(x).num_bytes if needs_grad else 0)
        backward_temp = max(0, meter.peak_bytes - (held_bytes - freed_bytes) - gradient_bytes)
        gradient = holder.take()
        if gradient is not None:
            excess_bytes = max(0, Spec.of(gradient).num_bytes - Spec.of(x).num_bytes)
    retention = Retention(
        name,
        held_bytes - memo_bytes,
        forward_temp_bytes=forward_temp,
        backward_temp_bytes=backward_temp,
        freed_bytes=freed_bytes,
        reads_input=_reads_input(unit, name, Spec.of(x), needs_grad, bench),
    )
    return retention, excess_bytes


def _reads_input(unit: nn.Module, name: str, spec: Spec, needs_grad: bool, bench: Bench) -> bool:
    """Whether a unit's graph, or its output (a view, say), keeps the unit's input alive."""
    meter = bench.meter()
    with meter:
        x = bench.tensor(spec)
        leaf = GradientHolder().leaf_of(x, needs_grad)
        y = _run_unit(unit, leaf, bench, keep=name, memo={})
    with_input_bytes = meter.live_bytes
    with meter:
        del x, leaf
    is_gone = meter.live_bytes < with_input_bytes
    del y
    return not is_gone


def _run_unit(unit: nn.Module, x: Tensor, bench: Bench, keep: str | None, memo: dict[Any, Any]) -> Tensor:
    try:
        with bench.compute():
            y = run_unit(unit, x, is_retaining=isinstance(unit, RetainingUnit), keep=keep, memo=memo)
    except RuntimeError as error:
        if not changes_leaf(error):
            raise
        raise TypeError(f"{type(unit).__name__} {CHANGES_INPUT}") from error
    if not isinstance(y, Tensor):
        raise TypeError(f"{type(unit).__name__} must return one tensor, got {type(y).__name__}")
    return y if keep is not None else y.detach()


def _memo_bytes(memo: dict[Any, Any], least_itemsize: int = 1) -> int:
    """The bytes of the tensors in a memo, each storage once, at `least_itemsize` or more bytes a value."""
    tensors = [t for value in memo.values() for t in (value if isinstance(value, tuple) else (value,))]
    storages = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes() * max(1, least_itemsize // t.itemsize)
        for t in tensors
        if isinstance(t, Tensor)
    }
    return sum(storages.values())
