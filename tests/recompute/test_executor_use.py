"""Putting plans on models and off again, and what is refused."""

from __future__ import annotations

import copy
import functools
import re
import warnings

import pytest
import torch
from torch import Tensor, nn

from deepres import apply_plan, build_resnet
from deepres.recompute import (
    Plan,
    keep_all_plan,
    per_unit_plan,
    uniform_plan,
)
from tests.recompute.exactness import (
    assert_same_bits,
    count_runs,
    cross_entropy,
    nested_plan,
    outcome,
    small_net,
)


def test_torch_autograd_grad_is_refused_and_loss_backward_still_works_afterwards():
    net = copy.deepcopy(small_net(20))
    apply_plan(net, nested_plan(9))
    loss = cross_entropy(net)
    message = (
        "a model under a plan supports loss.backward() only, not torch.autograd.grad or backward(inputs=…)"
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        torch.autograd.grad(loss, list(net.stem.parameters()), retain_graph=True)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        loss.backward(inputs=list(net.stem.parameters()), retain_graph=True)
    loss.backward()
    assert_same_bits(
        [p.grad for p in net.parameters()],
        outcome(small_net(20), None, num_steps=1)[1 : 1 + len(list(net.parameters()))],
    )


def test_a_second_backward_pass_is_refused_also_with_retain_graph():
    net = copy.deepcopy(small_net(20))
    apply_plan(net, nested_plan(9))
    loss = cross_entropy(net)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"supports one backward pass for each forward pass"):
        loss.backward()
    loss = cross_entropy(net)
    loss.backward()
    with pytest.raises(RuntimeError, match=r"backward through the graph a second time"):
        loss.backward()


def test_second_derivatives_are_refused():
    net = copy.deepcopy(small_net(20))
    apply_plan(net, nested_plan(9))
    with (
        pytest.warns(UserWarning, match="create_graph=True"),
        pytest.raises(RuntimeError, match=r"a model under a plan has no second derivatives"),
    ):
        cross_entropy(net).backward(create_graph=True)


def test_an_input_changed_before_the_backward_pass_is_noticed_as_without_a_plan():
    units = copy.deepcopy(small_net(29)).units
    apply_plan(units, nested_plan(9))
    x = torch.randn(2, 16, 8, 8)
    loss = units(x).sum()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_torchscript_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated in newer releases
        unit = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(
        TypeError, match=r"^unit 1 is TorchScript, which a plan cannot replay: use the module"
    ):
        apply_plan(nn.Sequential(nn.Linear(4, 4), unit), per_unit_plan(2))


def test_a_plan_for_another_number_of_units_is_refused():
    message = "this plan is for 8 units, the model has 9: make one for this model"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        apply_plan(copy.deepcopy(small_net(20)), per_unit_plan(8))


def test_a_retention_that_a_unit_does_not_offer_is_refused():
    message = (
        "the plan keeps 'conv_outputs' of unit 1 (Linear), which offers all: "
        "make a plan from a chain measured on this model"
    )
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        apply_plan(model, Plan((), ("all", "conv_outputs")))
    message = "the plan keeps 'half' of unit 0 (ResidualUnit), which offers all, conv_outputs: make a plan"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        apply_plan(copy.deepcopy(small_net(20)), keep_all_plan(9, "half"))


class _Cheap(nn.Linear):
    retentions = ("few",)


def test_a_unit_that_cannot_be_kept_whole_is_refused():
    model = nn.Sequential(_Cheap(3, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"unit 0 \(_Cheap\) must offer the retention all, got few"):
        apply_plan(model, Plan((), ("few", "all")))


def test_a_plan_that_is_refused_leaves_the_one_before_it():
    net = copy.deepcopy(small_net(20))
    apply_plan(net, per_unit_plan(9))
    before = vars(net.units)["forward"]
    with pytest.raises(ValueError, match="this plan is for 8 units"):
        apply_plan(net, per_unit_plan(8))
    assert vars(net.units)["forward"] is before


def test_a_model_without_a_sequence_of_units_is_refused():
    message = "a plan applies to an nn.Sequential or a module with one as `.units`, got Linear: if its units are in one"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        apply_plan(nn.Linear(3, 3), per_unit_plan(1))


def test_what_is_no_plan_is_refused():
    message = "plan must be a Plan (of make_plan, Plan.load) or None, got str"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        apply_plan(copy.deepcopy(small_net(20)), "sqrt")


class _Scaled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_sequence_that_does_more_than_run_its_units_is_refused():
    net = _Scaled(nn.Linear(3, 3), nn.Linear(3, 3))
    message = (
        "a plan applies to an nn.Sequential that runs its units one after another, but _Scaled has a forward"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        apply_plan(net, per_unit_plan(2))


def test_a_forward_that_was_set_on_the_sequence_itself_is_refused_and_stays():
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    net.forward = functools.partial(lambda forward, x: 2 * forward(x), net.forward)
    x = torch.ones(1, 4)
    doubled = net(x)
    for plan in (per_unit_plan(3), None):
        with pytest.raises(TypeError, match="but Sequential has a forward of its own"):
            apply_plan(net, plan)
    assert torch.equal(net(x), doubled)


def test_the_input_may_be_given_by_its_name():
    net, x = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), torch.ones(1, 4)
    kept = net(input=x)
    apply_plan(net, per_unit_plan(3))
    assert torch.equal(net(input=x), kept)


class FSDPModule(nn.Linear):
    """Bears the name of what `fully_shard` makes of a module."""


def test_units_that_are_sharded_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(FSDPModule(4, 4)))
    with pytest.raises(TypeError, match=r"^unit 1 is sharded by FSDP"):
        apply_plan(net, per_unit_plan(2))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_runs_its_plan_outside_of_the_compiled_code(backend):
    def trained(plan: Plan | None) -> list[Tensor | None]:
        torch.manual_seed(0)
        units = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(3)])
        apply_plan(units, plan)
        torch._dynamo.reset()
        compiled = torch.compile(units, backend=backend)
        for k in (1, 2):
            compiled(k * torch.randn(4, 6)).square().sum().backward()
        return [*(p.grad for p in units.parameters()), *units.buffers()]

    assert_same_bits(trained(per_unit_plan(3)), trained(None))


@pytest.mark.parametrize("segments", [((0, 2),), ((2, 3),), ((0, 3), (1, 2))])
@pytest.mark.parametrize("trained", [True, False])
def test_a_unit_that_changes_its_input_in_place_is_named(segments, trained):
    """Kept or discarded, with gradients that reach it or not."""
    model = nn.Sequential(
        nn.Linear(4, 4), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)), nn.Linear(4, 4)
    )
    model[0].requires_grad_(trained)
    apply_plan(model, Plan(segments, ("all",) * 3))
    with pytest.raises(
        RuntimeError, match=r"^unit 1 \(Sequential\) changes its input in place, so it cannot be replayed"
    ):
        model(torch.randn(2, 4))


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize("segments", [((0, 1),), ((1, 2),)])
def test_a_unit_that_returns_a_tuple_is_named(segments):
    model = nn.Sequential(nn.Linear(4, 4), _Pair())
    apply_plan(model, Plan(segments, ("all", "all")))
    with pytest.raises(TypeError, match=r"^unit 1 \(_Pair\) must return one tensor, got tuple$"):
        model(torch.randn(2, 4))


# A plan is not part of the model


def test_none_takes_the_plan_off_and_a_new_plan_replaces_it():
    net = copy.deepcopy(small_net(20))
    runs = count_runs(net)
    for plan, expected in (
        (per_unit_plan(9), 17),
        (uniform_plan(9, 3), 15),
        (None, 9),
        (keep_all_plan(9), 9),
    ):
        apply_plan(net, plan)
        cross_entropy(net).backward()
        assert sum(runs) == expected
        runs[:] = [0] * 9
    assert "forward" not in vars(net.units)


def test_parameters_their_names_and_the_state_dict_are_untouched():
    net = copy.deepcopy(small_net(20))
    before = net.state_dict(keep_vars=True)
    apply_plan(net, per_unit_plan(9))
    after = net.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is value for name, value in before.items())
    fresh = build_resnet(20)
    fresh.load_state_dict(net.state_dict())
    assert [name for name, _ in net.named_modules()] == [name for name, _ in fresh.named_modules()]


def test_a_deep_copy_trains_its_own_units_under_the_same_plan():
    net = copy.deepcopy(small_net(20))
    apply_plan(net, per_unit_plan(9))
    twin = copy.deepcopy(net)
    runs, twin_runs = count_runs(net), count_runs(twin)
    before = [b.clone() for b in net.buffers()]
    cross_entropy(twin).backward()
    assert (sum(runs), sum(twin_runs)) == (0, 17)
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is not None for p in twin.parameters())
    assert_same_bits(list(net.buffers()), before)
