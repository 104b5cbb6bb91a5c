"""Plans that are run: the forward runs and the bytes that the simulator counts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepres import apply_plan, build_resnet
from deepres.memory import TensorBytes
from deepres.recompute import (
    Chain,
    Plan,
    Retention,
    UnitCost,
    keep_all_plan,
    per_unit_plan,
    simulate,
    sqrt_plan,
    uniform_plan,
)
from tests.recompute.costs import UNIT
from tests.recompute.exactness import (
    BOTH,
    count_runs,
    cross_entropy,
    nested_plan,
    plans,
    small_net,
)


@given(plan=plans(8))
@example(plan=keep_all_plan(8))
@example(plan=per_unit_plan(8))
def test_units_run_forward_as_often_as_the_simulator_says(plan):
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(8)])
    runs = count_runs(model)
    apply_plan(model, plan)
    model(torch.randn(1, 2)).sum().backward()
    assert tuple(runs) == simulate(Chain(1, (UNIT,) * 8), plan).forward_runs


def test_frozen_units_at_the_front_are_not_replayed_for_nothing():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)])
    model[:4].requires_grad_(False)
    runs = count_runs(model)
    apply_plan(model, Plan(((0, 2), (2, 5)), ("all",) * 6))
    model(torch.randn(1, 2)).sum().backward()
    assert runs == [1, 1, 2, 2, 2, 1]


@pytest.mark.parametrize("retention", BOTH)
def test_residual_units_run_forward_as_often_as_the_simulator_says(retention):
    net = copy.deepcopy(small_net(29))
    plan = Plan(nested_plan(9).segments, (retention,) * 9)
    runs = count_runs(net)
    apply_plan(net, plan)
    cross_entropy(net).backward()
    chain = Chain(1, (replace(UNIT, retentions=(Retention(retention, 3),)),) * 9)
    assert tuple(runs) == simulate(chain, plan).forward_runs == (2, 4, 4, 4, 4, 4, 4, 3, 1)


# Bytes


class _Tanh(nn.Module):
    """A unit that keeps its output alone, and takes nothing in between: the figures follow by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(_ctx: Any, *_: Tensor) -> None:
        return None


class _Head(torch.autograd.Function):
    """A sum whose gradient is as large as its input, as a real head's is."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.shape = y.shape
        return y.sum()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        return torch.ones(ctx.shape)


STATE_BYTES = 4096
NUMBERS_BYTES = 4 * 4  # the loss, its gradient, and the two numbers that stand for gradients on their way


def _peaks(plan: Plan, units: Sequence[type[nn.Module]] = ()) -> tuple[int, int]:
    """The peaks of forward and backward pass over equal units, and a check that nothing is left."""
    model = nn.Sequential(*[unit() for unit in units or [_Tanh] * plan.num_units])
    apply_plan(model, plan)
    x = torch.randn(STATE_BYTES // 4, requires_grad=True)
    tracker = TensorBytes()
    with tracker:
        loss = _Head.apply(model(_Stem.apply(x)))
        forward = tracker.peak_bytes
        tracker.reset_peak()
        loss.backward()
    assert tracker.live_bytes == 4  # the loss
    return forward, tracker.peak_bytes


def _simulated(plan: Plan) -> int:
    unit = UnitCost(1.0, 2.0, STATE_BYTES, (Retention("all", STATE_BYTES, reads_input=False),))
    chain = Chain(STATE_BYTES, (unit,) * plan.num_units, fixed_bytes=NUMBERS_BYTES)
    return simulate(chain, plan).peak_bytes


@given(plan=plans(7).filter(lambda plan: bool(plan.segments)))
@example(plan=per_unit_plan(7))
@example(plan=uniform_plan(7, 2))
@example(plan=Plan(((0, 4), (1, 3)), ("all",) * 7))
@example(plan=Plan(((0, 7), (0, 5), (0, 3)), ("all",) * 7))
def test_the_peak_is_the_simulator_s_to_the_byte(plan):
    assert max(_peaks(plan)) == _simulated(plan)


class _Negative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


KINDS = {  # what the backward reads: the output, nothing, the input
    _Tanh: Retention("all", STATE_BYTES, reads_input=False),
    _Negative: Retention("all", STATE_BYTES, freed_bytes=STATE_BYTES, reads_input=False),
    _Sine: Retention("all", STATE_BYTES, freed_bytes=STATE_BYTES, backward_temp_bytes=STATE_BYTES),
}


@given(
    plan=plans(7).filter(lambda plan: bool(plan.segments)),
    units=st.lists(st.sampled_from(list(KINDS)), min_size=7, max_size=7),
)
def test_the_peak_is_the_simulator_s_whatever_backwards_read(plan, units):
    costs = tuple(UnitCost(1.0, 2.0, STATE_BYTES, (KINDS[unit],)) for unit in units)
    predicted = simulate(Chain(STATE_BYTES, costs, fixed_bytes=NUMBERS_BYTES), plan).peak_bytes
    assert 0 <= predicted - max(_peaks(plan, units)) <= NUMBERS_BYTES


@pytest.mark.parametrize(
    ("plan", "num_passes"),
    [
        (keep_all_plan(8, "conv_outputs"), 1),
        (uniform_plan(8, 3), 3),
        (per_unit_plan(8), 8),
        (Plan(((2, 4), (5, 6)), ("all",) * 8), 5),  # 7 and 6; 5; 4; 3 and 2; 1 and 0
    ],
)
def test_units_kept_right_after_one_another_are_one_backward_pass(plan, num_passes, monkeypatch):
    units = nn.Sequential(*build_resnet(83).units[1:9])
    apply_plan(units, plan)
    passes = []
    backward = torch.autograd.backward
    loss = units(torch.randn(2, 64, 8, 8)).square().mean()
    monkeypatch.setattr(torch.autograd, "backward", lambda *given: (passes.append(given), backward(*given)))
    backward(loss)
    assert len(passes) == num_passes


@pytest.mark.parametrize(
    ("plan", "states"),
    [
        # x_0 to x_14, two gradients, and the x_16 that the last unit keeps: a tanh's backward reads no input.
        (per_unit_plan(16), 18),
        (sqrt_plan(16), 9),  # x_0, x_4, x_8, four kept, and two gradients
        (Plan(tuple((0, n) for n in range(15, 0, -1)), ("all",) * 16), 4),  # x_0, x_i, x_{i+1}, its gradient
    ],
)
def test_the_peak_of_known_plans_is_the_one_counted_by_hand(plan, states):
    assert max(_peaks(plan)) == states * STATE_BYTES + NUMBERS_BYTES


def test_a_discarded_unit_leaves_no_cast_weights_behind_under_autocast():
    width = 64
    model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(5)])
    apply_plan(model, per_unit_plan(5))
    x = torch.randn(1, width, dtype=torch.bfloat16)
    tracker = TensorBytes()
    with torch.autocast("cpu", torch.bfloat16), tracker:
        loss = model(x).sum(dtype=torch.float32)
        # Four values between units, and of the last unit the weight that its backward reads; its output is not needed.
        assert tracker.live_bytes == 2 * (4 * width + width * width) + 4
    loss.backward()


def _peak_of_a_net(plan: Plan | None) -> int:
    torch.manual_seed(0)
    units = nn.Sequential(*build_resnet(254).units[1:28])  # equal bottleneck units of stage 1
    apply_plan(units, plan)
    x = torch.randn(2, 64, 8, 8)
    for p in units.parameters():
        p.grad = torch.zeros_like(p)
    tracker = TensorBytes()
    with tracker:
        _Head.apply(units(x)).backward()
    return tracker.peak_bytes


def test_plans_of_a_net_take_less_the_more_they_discard():
    keep_all = _peak_of_a_net(None)
    conv_outputs = _peak_of_a_net(keep_all_plan(27, "conv_outputs"))
    per_unit = _peak_of_a_net(per_unit_plan(27))
    root = _peak_of_a_net(sqrt_plan(27))
    root_conv_outputs = _peak_of_a_net(sqrt_plan(27, "conv_outputs"))
    nested = _peak_of_a_net(Plan(tuple((0, n) for n in range(26, 0, -1)), ("conv_outputs",) * 27))
    assert keep_all > conv_outputs > per_unit > root > root_conv_outputs > nested
    # Of 12w values a pixel conv_outputs keeps 6w, per unit 4w (its input), and what one unit's backward takes.
    assert conv_outputs < 0.58 * keep_all
    assert per_unit < 0.40 * keep_all
    assert nested < 0.09 * keep_all
