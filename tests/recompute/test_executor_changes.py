"""What changes under a plan between passes: units, parameters, hooks, settings."""

import copy

import pytest
import torch
from torch import nn

from deepres import apply_plan
from deepres.recompute import Plan, keep_all_plan, per_unit_plan
from tests.recompute.exactness import assert_exact, assert_same_bits, cross_entropy, small_net
from tests.recompute.test_executor_what_units_see import OTHER_WAYS, PLANS, SEQUENCES, _clip, _four, _linear


class _Failing(nn.Module):
    fails = False

    def forward(self, x):
        y = nn.functional.dropout(x, 0.5)
        if self.fails:
            raise TypeError("this unit's own error")
        return y


def test_a_replay_that_fails_leaves_the_generators_as_they_were_and_its_own_error():
    net = nn.Sequential(nn.Linear(8, 8), _Failing(), nn.Linear(8, 8))
    apply_plan(net, per_unit_plan(3))
    loss = net(torch.randn(2, 8)).sum()
    torch.rand(1)
    net[1].fails, before = True, torch.get_rng_state()
    with pytest.raises(TypeError, match=r"^this unit's own error$"):
        loss.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_that_units_come_to_share_under_a_plan_must_not_have_hooks():
    net = _four(_linear)
    apply_plan(net, per_unit_plan(4))
    SEQUENCES(net).backward()
    net[3][0].weight = net[0][0].weight
    _clip(net)
    with pytest.raises(RuntimeError, match=r"^under a plan, parameters that units share must not have hooks"):
        SEQUENCES(net)


def test_a_layer_that_is_added_at_the_end_is_watched():
    net = _four(_linear)
    apply_plan(net, Plan(((2, 4),), ("all",) * 4))
    SEQUENCES(net).backward()
    net[3].append(nn.Dropout())
    loss = SEQUENCES(net)
    net[3][2].eval()
    with pytest.raises(RuntimeError, match=r"^Dropout in unit 3 \(Sequential\) was put into evaluation mode"):
        loss.backward()


class _Shifted(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y + self.shift if "shift" in self._parameters else y


def test_a_parameter_that_is_added_to_a_frozen_unit_under_a_plan_is_trained():
    for plan in PLANS.values():
        net = _four(lambda: _Shifted(32, 32))
        net[:3].requires_grad_(False)
        apply_plan(net, plan)
        net[0].shift = nn.Parameter(torch.zeros(32))
        net(torch.randn(3, 10, 32)).square().mean().backward()
        assert net[0].shift.grad is not None


def test_frozen_parameters_may_have_hooks():
    net = _four(_linear)
    _clip(net)
    net[1].requires_grad_(False)
    for plan in PLANS.values():
        apply_plan(net, plan)
        SEQUENCES(net).backward()
    assert net[1][0].weight.grad is None
    net = _four(_linear)
    net[1][0].weight.register_hook(lambda gradient: gradient)
    net[1].requires_grad_(False)
    apply_plan(net, per_unit_plan(4))
    (SEQUENCES(net) + SEQUENCES(net)).backward()


def test_frozen_parameters_may_be_shared_where_others_have_hooks():
    frozen = nn.Linear(32, 32).requires_grad_(False)
    net = _four(lambda: nn.Sequential(frozen, nn.Linear(32, 32)))
    for p in net.parameters():
        if p.requires_grad:
            p.register_hook(lambda gradient: gradient)
    apply_plan(net, per_unit_plan(4))
    SEQUENCES(net).backward()


def test_a_unit_may_be_replaced_by_one_of_another_kind():
    net = copy.deepcopy(small_net(20))
    apply_plan(net, per_unit_plan(9))
    net.units[1] = nn.Conv2d(16, 16, 3, padding=1)
    cross_entropy(net).backward()
    assert net.units[1].weight.grad is not None


class _Rotation(nn.Module):
    def __init__(self):
        super().__init__()
        self.angles = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return x * torch.polar(torch.ones(8), self.angles)


@pytest.mark.parametrize("plan", [keep_all_plan(4, "all"), *PLANS.values()])
def test_units_may_pass_complex_numbers_on(plan):
    torch.manual_seed(0)
    net = nn.Sequential(*[_Rotation() for _ in range(4)])
    x = torch.randn(3, 8, dtype=torch.complex64)
    assert_exact(net, plan, loss=lambda model: model(x).real.square().mean())


def test_a_loss_on_what_a_hook_on_every_module_took_out_of_a_residual_unit_is_refused():
    net, found = copy.deepcopy(small_net(20)), []
    apply_plan(net, per_unit_plan(9))
    handle = nn.modules.module.register_module_forward_hook(
        lambda unit, _x, y: found.append(y) if unit is net.units[4] else None
    )
    try:
        with pytest.raises(RuntimeError, match=OTHER_WAYS):
            (cross_entropy(net) + found[0].square().mean()).backward()
    finally:
        handle.remove()


class _CountsLater(nn.Module):
    counts = False

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.counts:
            self.seen = self.seen + 1
        return self.linear(x) * (1 + self.seen)


def test_a_unit_that_begins_to_change_a_buffer_is_refused():
    net = _four(_CountsLater)
    apply_plan(net, per_unit_plan(4))
    SEQUENCES(net).backward()
    net[1].counts = True
    with pytest.raises(
        RuntimeError, match=r"^unit \d+ \(_CountsLater\) changes its buffer 'seen' whenever it is run"
    ):
        SEQUENCES(net).backward()


class FullyShardedDataParallel(nn.Linear):
    pass


def test_units_that_the_older_fsdp_shards_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(FullyShardedDataParallel(4, 4)))
    with pytest.raises(TypeError, match=r"^unit 1 is sharded by FSDP"):
        apply_plan(net, per_unit_plan(2))


def test_a_unit_s_first_parameter_may_be_empty():
    """ZeRO's parameters are empty until the unit runs."""
    net = nn.Sequential(_linear(), _linear())
    net[0][0].register_parameter("empty", nn.Parameter(torch.empty(0, device="meta")))
    net[0][0]._parameters = {k: net[0][0]._parameters[k] for k in ("empty", "weight", "bias")}
    apply_plan(net, per_unit_plan(2))
    net(torch.randn(3, 32)).sum().backward()


@pytest.mark.parametrize("first", [False, True])
def test_a_backward_pass_computes_in_the_format_of_its_forward_pass(first):
    """Autograd's own backward pass does so, whatever is switched on or off meanwhile."""
    net = copy.deepcopy(small_net(20))
    plain = copy.deepcopy(net)
    apply_plan(net, per_unit_plan(9))
    for each in (net, plain):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=first):
            loss = cross_entropy(each)
        with torch.autocast("cpu", torch.bfloat16, enabled=not first):
            loss.backward()
    assert_same_bits([p.grad for p in net.parameters()], [p.grad for p in plain.parameters()])
