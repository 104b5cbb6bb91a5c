"""Shipped nets that a user has altered: exact under a plan, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from deepres import apply_plan
from deepres.memory import measure_activation_peak
from deepres.models import BatchNorm2d, ResidualUnit
from deepres.recompute import Plan, uniform_plan
from tests.recompute.exactness import assert_same_bits, cross_entropy, outcome, small_net

SEGMENTS = uniform_plan(9, 3)
REPLAYED = Plan(((0, 8),), ("conv_outputs",) * 9)
KEPT = Plan((), ("conv_outputs",) * 9)


def _net() -> nn.Module:
    return copy.deepcopy(small_net(20))


def _with_spectral_norm(net: nn.Module) -> nn.Module:
    for unit in net.units:
        parametrizations.spectral_norm(unit.convs[0])
    return net


def _with_a_norm_behind_a_convolution(net: nn.Module) -> nn.Module:
    for unit in net.units:
        unit.convs[1] = nn.Sequential(unit.convs[1], nn.BatchNorm2d(unit.convs[1].out_channels))
    return net


def _with_a_norm_in_a_hook(net: nn.Module) -> nn.Module:
    for unit in net.units:
        unit.after = nn.BatchNorm2d(unit.convs[1].out_channels)
        unit.register_forward_hook(lambda unit, _, y: unit.after(y))
    return net


class _Normed(ResidualUnit):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, channels, block="basic")
        self.after = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, *more: object, **named: object) -> Tensor:
        return self.after(super().forward(x, *more, **named))


@pytest.mark.parametrize("plan", [SEGMENTS, REPLAYED], ids=["segments", "conv_outputs"])
@pytest.mark.parametrize(
    "alter", [_with_spectral_norm, _with_a_norm_behind_a_convolution, _with_a_norm_in_a_hook]
)
def test_residual_units_with_buffers_that_a_replay_would_change_are_refused(alter, plan):
    net = alter(_net())
    apply_plan(net, plan)
    with pytest.raises(
        RuntimeError, match=r"unit \d+ \(.*\) changes its buffer '.*' whenever it is run, so it cannot be"
    ):
        cross_entropy(net).backward()


def test_a_subclass_of_the_unit_with_a_norm_of_its_own_is_refused():
    net = nn.Sequential(*[_Normed(16) for _ in range(9)])
    apply_plan(net, SEGMENTS)
    with pytest.raises(RuntimeError, match=r"unit \d+ \(_Normed\) changes its buffer 'after\..*' whenever"):
        net(torch.randn(2, 16, 8, 8)).square().mean().backward()


@pytest.mark.parametrize(
    "alter", [_with_spectral_norm, _with_a_norm_behind_a_convolution, _with_a_norm_in_a_hook]
)
def test_what_is_kept_may_have_them(alter):
    net = alter(_net())
    assert_same_bits(outcome(net, KEPT), outcome(net, None))


@pytest.mark.parametrize("plan", [SEGMENTS, REPLAYED, KEPT], ids=["segments", "conv_outputs", "kept"])
def test_a_hook_may_change_what_a_norm_puts_out(plan):
    net = _net()
    for unit in net.units:
        for norm in unit.norms:
            norm.register_forward_hook(lambda _norm, _inputs, y: y * 1.01)
    assert_same_bits(outcome(net, plan), outcome(net, None))


def _hands_on_a_view(_norm, _inputs, y):
    return y.view_as(y)


def _changes_in_place(_norm, _inputs, y):
    return y.mul_(1.01)


def _changes_the_input(_norm, inputs):
    return (inputs[0] * 1.01, *inputs[1:])


@pytest.mark.parametrize("plan", [SEGMENTS, REPLAYED, KEPT], ids=["segments", "conv_outputs", "kept"])
@pytest.mark.parametrize(
    ("register", "hook"),
    [
        ("register_forward_hook", _hands_on_a_view),
        ("register_forward_hook", _changes_in_place),
        ("register_forward_pre_hook", _changes_the_input),
    ],
)
def test_a_hook_at_a_norm_may_do_what_it_likes(plan, register, hook):
    net = _net()
    for unit in net.units:
        for norm in unit.norms:
            getattr(norm, register)(hook)
    assert_same_bits(outcome(net, plan), outcome(net, None))


class _Doubling(BatchNorm2d):
    def forward(self, x: Tensor, memo: dict[object, object] | None = None) -> Tensor:
        return 2 * super().forward(x, memo)


@pytest.mark.parametrize("plan", [SEGMENTS, REPLAYED, KEPT], ids=["segments", "conv_outputs", "kept"])
def test_a_subclass_of_the_norm_may_compute_something_else(plan):
    net = _net()
    for unit in net.units:
        for k, norm in enumerate(unit.norms):
            unit.norms[k] = _Doubling(norm.num_features)
    assert_same_bits(outcome(net, plan), outcome(net, None))


@pytest.mark.parametrize("hook", [lambda *_: None, _hands_on_a_view])
def test_hooks_that_change_nothing_take_no_memory(hook):
    net, watched = _net(), _net()
    for unit in watched.units:
        for norm in unit.norms:
            norm.register_forward_hook(hook)
    peaks = []
    for each in (net, watched):
        apply_plan(each, KEPT)
        batch = torch.randn(8, 3, 16, 16), torch.arange(8)
        peaks.append(measure_activation_peak(each, each, *batch))
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("plan", [SEGMENTS, KEPT], ids=["segments", "kept"])
def test_a_hook_that_leaves_the_memo_out_is_refused(plan):
    net = _net()
    net.units[3].norms[1].register_forward_pre_hook(lambda _norm, inputs: (inputs[0] * 1.01,))
    apply_plan(net, plan)
    with pytest.raises(RuntimeError, match="gives a batch norm new arguments without its memo"):
        cross_entropy(net).backward()


@pytest.mark.parametrize("plan", [SEGMENTS, REPLAYED], ids=["segments", "conv_outputs"])
def test_a_norm_without_statistics_may_take_a_batch_norms_place(plan):
    net = _net()
    for unit in net.units:
        for k, norm in enumerate(unit.norms):
            unit.norms[k] = nn.GroupNorm(4, norm.num_features)
    assert_same_bits(outcome(net, plan), outcome(net, None))


def test_a_unit_whose_norms_were_taken_out_leaves_its_input_alone():
    unit = _net().units[1]
    for k in range(len(unit.norms)):
        unit.norms[k] = nn.Identity()
    x = torch.randn(2, 16, 8, 8)
    first, second = unit.convs
    expected = x + second(first(x.relu()).relu())
    before = x.clone()
    torch.testing.assert_close(unit(x), expected)
    assert torch.equal(x, before)


def test_pytorch_s_synchronised_batch_norm_may_take_its_place_without_a_plan():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(_net()).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(net(x), _net().eval()(x))


def test_a_norm_that_stands_twice_in_a_unit_is_refused():
    net = _net()
    net.units[1].norms[1] = net.units[1].norms[0]
    apply_plan(net, uniform_plan(len(net.units), 2))
    with pytest.raises(RuntimeError, match="a batch norm that stands twice in a unit cannot be replayed"):
        net(torch.randn(2, 3, 8, 8))
