"""What changes between a forward pass under a plan and its backward pass is noticed, before anything is replayed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from deepres import apply_plan
from deepres.recompute import Plan, per_unit_plan
from tests.recompute.exactness import assert_exact, assert_same_bits, cross_entropy, small_net

ADVICE = "do so after the backward pass, or take the plan off"


def _clamp(net: nn.Module) -> None:
    with torch.no_grad():
        net.units[4].convs[1].weight.clamp_(-0.1, 0.1)


def _replace(net: nn.Module) -> None:
    net.units[4].convs[1].weight = nn.Parameter(net.units[4].convs[1].weight.detach() * 2)


CHANGES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "evaluation mode": (lambda net: net.eval(), r"^unit 0 \(ResidualUnit\) was put into evaluation mode"),
    "one unit's mode": (lambda net: net.units[3].eval(), r"^unit 3 \(ResidualUnit\) was put into evaluation"),
    "one layer's mode": (
        lambda net: net.units[3].norms[1].eval(),
        r"^BatchNorm2d in unit 3 \(ResidualUnit\) was put into evaluation mode",
    ),
    "in place": (_clamp, r"^parameter 'weight' of unit 4 \(ResidualUnit\) was changed"),
    "replaced": (_replace, r"^parameter 'weight' of unit 4 \(ResidualUnit\) was changed"),
    "frozen": (
        lambda net: net.units[2].requires_grad_(False),
        r"^requires_grad of parameter 'weight' of unit 2 ",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("segments", [((0, 8),), ((1, 8), (4, 6))])
def test_a_change_before_the_backward_pass_is_refused(change: str, segments: tuple[tuple[int, int], ...]):
    net = copy.deepcopy(small_net(20))
    apply_plan(net, Plan(segments, ("all",) * 9))
    loss = cross_entropy(net)
    make, message = CHANGES[change]
    make(net)
    with pytest.raises(RuntimeError, match=f"{message}.*{ADVICE}"):
        loss.backward()


def test_training_mode_after_a_pass_in_evaluation_mode_is_refused():
    net = copy.deepcopy(small_net(20)).eval()
    apply_plan(net, per_unit_plan(9))
    loss = cross_entropy(net)
    net.train()
    with pytest.raises(RuntimeError, match=r"^unit 0 \(ResidualUnit\) was put into training mode"):
        loss.backward()


def test_parameters_lent_for_one_forward_pass_are_refused():
    net = copy.deepcopy(small_net(20))
    apply_plan(net, per_unit_plan(9))
    lent = {name: (2 * p.detach()).requires_grad_() for name, p in net.named_parameters()}
    loss = torch.func.functional_call(net, lent, (torch.randn(2, 3, 8, 8),)).sum()
    with pytest.raises(RuntimeError, match=r"^parameter 'weight' of unit 0 \(ResidualUnit\) was changed"):
        loss.backward()


def test_an_optimizer_that_steps_inside_the_backward_pass_may_do_so():
    def trained(plan: Plan | None) -> list[torch.Tensor]:
        net = copy.deepcopy(small_net(20))
        apply_plan(net, plan)

        def step(p: torch.Tensor) -> None:
            with torch.no_grad():
                p.sub_(p.grad, alpha=0.1)
            p.grad = None

        for p in net.parameters():
            p.register_post_accumulate_grad_hook(step)
        for _ in range(2):
            cross_entropy(net).backward()
        return list(net.parameters())

    assert all(map(torch.equal, trained(per_unit_plan(9)), trained(None)))


def test_parameters_that_the_first_pass_makes_are_no_change():
    net = nn.Sequential(*[nn.Sequential(nn.LazyLinear(6), nn.Tanh()) for _ in range(3)])
    apply_plan(net, per_unit_plan(3))
    x = torch.randn(2, 6)
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    apply_plan(net, None)
    assert_exact(net, per_unit_plan(3), loss=lambda model: model(x).square().mean())


def test_frozen_parameters_that_were_made_in_inference_mode_may_take_part():
    net = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)])
    with torch.inference_mode():
        scale = torch.rand(6)
    net[0].register_parameter("unused", nn.Parameter(scale, requires_grad=False))
    apply_plan(net, per_unit_plan(3))
    net(torch.randn(2, 6)).sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_a_unit_may_be_replaced_by_another_but_not_added_or_taken_away():
    net = nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)])
    apply_plan(net, per_unit_plan(4))
    x = torch.randn(2, 6)
    net[1] = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    net(x).square().sum().backward()
    assert net[1][0].weight.grad is not None
    assert net[1][1].num_batches_tracked == 1
    net.append(nn.Linear(6, 6))
    with pytest.raises(
        RuntimeError, match=r"^the plan of this model is for 4 units, but now it has 5: make a new"
    ):
        net(x)
    del net[3:]
    with pytest.raises(
        RuntimeError, match=r"^the plan of this model is for 4 units, but now it has 3: make a new"
    ):
        net(x)


@pytest.mark.parametrize("segments", [((0, 3),), ((0, 2), (2, 3)), ((2, 3),)])
def test_layers_that_are_put_into_frozen_units_under_a_plan_are_trained(segments):
    def gradients(plan: Plan | None) -> list[torch.Tensor | None]:
        torch.manual_seed(0)
        net = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)])
        net[:3].requires_grad_(False)
        apply_plan(net, plan)
        net[1][0] = nn.Sequential(net[1][0], nn.Linear(6, 6))
        net(torch.randn(2, 6)).square().sum().backward()
        return [p.grad for p in net.parameters()]

    found = gradients(Plan(segments, ("all",) * 4))
    assert [gradient is not None for gradient in found] == [False] * 4 + [True] * 2 + [False] * 2 + [True] * 2
    assert_same_bits(found, gradients(None))
