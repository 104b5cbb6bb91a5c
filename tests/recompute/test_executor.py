"""Plans under autograd: the same bits as without, the runs and the bytes that the simulator counts."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepres import ResNet, apply_plan, build_resnet
from deepres.memory import TensorBytes
from deepres.models import BatchNorm2d
from deepres.models.residual_unit import ACTIVATIONS
from deepres.models.shortcut import SHORTCUTS
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

Loss = Callable[[nn.Module], Tensor]


@st.composite
def plans(draw: st.DrawFn, num_units: int, retentions: tuple[str, ...] = ("all",)) -> Plan:
    """Any plan: nested segments and a retention for each unit."""
    segments: list[tuple[int, int]] = []

    def fill(start: int, stop: int, around: tuple[int, int] | None) -> None:
        while start < stop:
            end = draw(st.integers(start + 1, stop))
            if (start, end) != around and draw(st.booleans()):
                segments.append((start, end))
                fill(start, end, (start, end))
            start = end

    fill(0, num_units, None)
    names = draw(st.lists(st.sampled_from(retentions), min_size=num_units, max_size=num_units))
    return Plan(num_units, tuple(segments), tuple(names))


def nested_plan(num_units: int) -> Plan:
    """Three levels of segments, units outside of them, and both retentions of residual units."""
    n = num_units
    segments = ((0, n - 1), (1, n - 1), (1, 2), (2, n - 2))
    return Plan(n, segments, tuple(("all", "conv_outputs")[i % 2] for i in range(n)))


BOTH = ("all", "conv_outputs")


@cache
def _net(depth: int = 20, **variant: Any) -> ResNet:
    """Never run: tests run copies of it."""
    torch.manual_seed(0)
    return build_resnet(depth, **variant)


def _images(batch: int = 2, side: int = 8) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def _cross_entropy(model: nn.Module, batch: int = 2, side: int = 8) -> Tensor:
    return F.cross_entropy(model(_images(batch, side)), torch.arange(batch) % 10)


def outcome(
    model: nn.Module,
    plan: Plan | None,
    *,
    loss: Loss = _cross_entropy,
    dtype: torch.dtype | None = None,
    num_steps: int = 2,
) -> list[Tensor | None]:
    """Train a copy of the model for some steps of SGD: losses, gradients, buffers, and the generator's state."""
    model = copy.deepcopy(model)
    apply_plan(model, plan)
    torch.manual_seed(2)
    found: list[Tensor | None] = []
    for _ in range(num_steps):
        with torch.autocast("cpu", dtype) if dtype is not None else contextlib.nullcontext():
            value = loss(model)
        value.backward()
        found += [value.detach(), *(None if p.grad is None else p.grad.clone() for p in model.parameters())]
        found += [b.clone() for b in model.buffers()]
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.05 * p.grad
        model.zero_grad()
    return [*found, torch.get_rng_state()]


def assert_same_bits(left: list[Tensor | None], right: list[Tensor | None]) -> None:
    for a, b in zip(left, right, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def assert_exact(model: nn.Module, plan: Plan, **how: Any) -> None:
    assert_same_bits(outcome(model, plan, **how), outcome(model, None, **how))


# Residual nets


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("activation", "shortcut"), list(product(ACTIVATIONS, SHORTCUTS)))
def test_every_kind_of_net_trains_exactly_as_without_a_plan(activation, shortcut, dtype):
    block = ("basic", "bottleneck")[(ACTIVATIONS.index(activation) + SHORTCUTS.index(shortcut)) % 2]
    net = _net({"basic": 14, "bottleneck": 20}[block], block=block, activation=activation, shortcut=shortcut)
    assert_exact(net, nested_plan(6), dtype=dtype)


@cache
def _without_a_plan(depth: int, shortcut: str, dtype: torch.dtype | None) -> list[Tensor | None]:
    return outcome(_net(depth, shortcut=shortcut), None, dtype=dtype)


@settings(max_examples=25)
@given(
    plan=plans(9, BOTH),
    depth=st.sampled_from([20, 29]),
    shortcut=st.sampled_from(["identity", "dropout"]),
    dtype=st.sampled_from([None, torch.bfloat16]),
)
@example(plan=keep_all_plan(9, "conv_outputs"), depth=29, shortcut="identity", dtype=None)
@example(plan=sqrt_plan(9), depth=20, shortcut="dropout", dtype=torch.bfloat16)
@example(plan=per_unit_plan(9), depth=29, shortcut="dropout", dtype=None)
@example(plan=Plan(9, ((0, 9), (3, 9)), BOTH[:1] * 9), depth=29, shortcut="identity", dtype=torch.bfloat16)
@example(
    plan=Plan(9, tuple((0, n) for n in range(9, 0, -1)), BOTH[:1] * 9),
    depth=20,
    shortcut="dropout",
    dtype=None,
)
def test_any_plan_trains_exactly_as_without_a_plan(plan, depth, shortcut, dtype):
    planned = outcome(_net(depth, shortcut=shortcut), plan, dtype=dtype)
    assert_same_bits(planned, _without_a_plan(depth, shortcut, dtype))


def test_an_imagenet_net_trains_exactly_as_without_a_plan():
    net = _net(18, dataset="imagenet")
    assert_exact(net, nested_plan(8), loss=lambda net: _cross_entropy(net, side=32), num_steps=1)


def test_a_channels_last_net_trains_exactly_as_without_a_plan():
    net = copy.deepcopy(_net(29)).to(memory_format=torch.channels_last)

    def loss(net: nn.Module) -> Tensor:
        return net(_images().to(memory_format=torch.channels_last)).square().mean()

    assert_exact(net, nested_plan(9), loss=loss)


@settings(max_examples=15)
@given(plan=plans(9, BOTH), frozen=st.integers(0, 9), stem=st.booleans(), head=st.booleans())
@example(plan=Plan(9, ((0, 6), (1, 5)), ("all",) * 9), frozen=3, stem=True, head=False)
@example(plan=uniform_plan(9, 2), frozen=9, stem=True, head=False)
@example(plan=uniform_plan(9, 2), frozen=9, stem=True, head=True)
def test_a_net_with_a_frozen_prefix_trains_exactly_as_without_a_plan(plan, frozen, stem, head):
    net = copy.deepcopy(_net(20))
    net.stem.requires_grad_(not stem)
    net.units[:frozen].requires_grad_(False)
    net.head.requires_grad_(not head)
    if not any(p.requires_grad for p in net.parameters()):
        apply_plan(net, plan)
        assert not net(_images()).requires_grad
        return
    assert_exact(net, plan, num_steps=1)


def test_units_frozen_in_the_middle_pass_gradients_on():
    net = copy.deepcopy(_net(20))
    net.units[3:6].requires_grad_(False)
    assert_exact(net, nested_plan(9))


@pytest.mark.parametrize("retention", BOTH)
def test_batch_norms_frozen_in_eval_mode_stay_so(retention):
    net = copy.deepcopy(_net(29))
    for module in net.units.modules():
        if isinstance(module, BatchNorm2d):
            module.eval()
    assert_exact(net, uniform_plan(9, 3, retention))


@pytest.mark.parametrize("plan", [nested_plan(9), per_unit_plan(9), Plan(9, ((0, 9),), ("all",) * 9)])
def test_the_gradient_of_the_images_is_the_same(plan):
    gradients = []
    for applied in (None, plan):
        units = copy.deepcopy(_net(29)).units
        apply_plan(units, applied)
        x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        units(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in units.parameters())])
    assert_same_bits(*gradients)


@pytest.mark.parametrize("training", [True, False])
def test_no_grad_computes_the_same_and_updates_buffers_as_without_a_plan(training):
    found = []
    for plan in (None, nested_plan(9)):
        net = copy.deepcopy(_net(29, shortcut="dropout")).train(training)
        apply_plan(net, plan)
        torch.manual_seed(2)
        with torch.no_grad():
            logits = [net(_images()), net(_images())]
        assert not logits[0].requires_grad
        found.append([*logits, *net.buffers(), torch.get_rng_state()])
    assert_same_bits(*found)


def test_eval_mode_with_gradients_is_the_same():
    net = copy.deepcopy(_net(29))
    net(_images(4))
    assert_exact(net.eval(), nested_plan(9))


def test_a_forward_pass_without_a_backward_pass_updates_buffers_once():
    found = []
    for plan in (None, nested_plan(9), Plan(9, ((0, 9), (4, 9)), ("all",) * 9)):
        net = copy.deepcopy(_net(29, shortcut="dropout"))
        apply_plan(net, plan)
        torch.manual_seed(2)
        logits = net(_images())
        found.append([logits.detach(), *net.buffers(), torch.get_rng_state()])
        assert all(int(m.num_batches_tracked) == 1 for m in net.modules() if isinstance(m, BatchNorm2d))
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])


def test_a_replay_leaves_the_generator_where_draws_after_the_forward_pass_put_it():
    net = _net(14, shortcut="dropout")

    def loss(net: nn.Module) -> Tensor:
        return (net(_images()) * torch.rand(2, 10)).sum()

    assert_exact(net, nested_plan(6), loss=loss)


def test_gradients_accumulate_over_several_backward_passes():
    def two_losses(net: nn.Module) -> Tensor:
        (net(_images(3)).square().mean() / 2).backward()
        return net(_images(2)).square().mean() / 2

    assert_exact(_net(29, shortcut="dropout"), nested_plan(9), loss=two_losses)


def test_two_forward_passes_may_come_before_their_backward_passes():
    def summed(net: nn.Module) -> Tensor:
        first = net(_images(3)).square().mean()
        return first + net(_images(2)).square().mean()

    def in_either_order(net: nn.Module) -> Tensor:
        first, second = net(_images(3)).square().mean(), net(_images(2)).square().mean()
        first.backward()
        return second

    for loss in (summed, in_either_order):
        assert_exact(_net(29, shortcut="dropout"), nested_plan(9), loss=loss)


def test_a_backward_pass_under_autocast_is_the_same():
    def loss(net: nn.Module) -> Tensor:
        value = net(_images()).float().square().mean()
        value.backward()
        return net.head(net.units(net.stem(_images()))).float().square().mean()

    assert_exact(_net(29), nested_plan(9), loss=loss, dtype=torch.bfloat16)


def test_gradients_of_the_output_can_be_seen_and_retained():
    found = []
    for plan in (None, nested_plan(9)):
        net = copy.deepcopy(_net(20))
        apply_plan(net, plan)
        features = net.units(net.stem(_images()))
        features.retain_grad()
        seen: list[Tensor] = []
        features.register_hook(seen.append)
        net.head(features).square().sum().backward()
        found.append([features.grad, *seen])
    assert_same_bits(*found)
    assert found[0][0].any()


@pytest.mark.parametrize("activation", ["original", "full_preactivation"])
def test_what_follows_the_units_may_work_in_place_only_where_it_may_without_a_plan(activation):
    for plan in (None, nested_plan(9)):
        net = copy.deepcopy(_net(29, activation=activation))
        net.head = nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.AdaptiveAvgPool2d(1))
        apply_plan(net, plan)
        loss = net(_images()).sum()
        if activation == "original":  # its last ReLU keeps its output for its backward
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
        else:
            loss.backward()


# What is refused


def test_torch_autograd_grad_is_refused_and_loss_backward_still_works_afterwards():
    net = copy.deepcopy(_net(20))
    apply_plan(net, nested_plan(9))
    loss = _cross_entropy(net)
    message = (
        "a model under a plan supports loss.backward() only, not torch.autograd.grad or backward(inputs=…)"
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        torch.autograd.grad(loss, list(net.stem.parameters()), retain_graph=True)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        loss.backward(inputs=list(net.stem.parameters()), retain_graph=True)
    loss.backward()
    assert_same_bits(
        [p.grad for p in net.parameters()], outcome(_net(20), None, num_steps=1)[1 : 1 + _num_parameters(net)]
    )


def test_a_second_backward_pass_is_refused_also_with_retain_graph():
    net = copy.deepcopy(_net(20))
    apply_plan(net, nested_plan(9))
    loss = _cross_entropy(net)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"supports one backward pass for each forward pass"):
        loss.backward()
    loss = _cross_entropy(net)
    loss.backward()
    with pytest.raises(RuntimeError, match=r"backward through the graph a second time"):
        loss.backward()


def test_second_derivatives_are_refused():
    net = copy.deepcopy(_net(20))
    apply_plan(net, nested_plan(9))
    with (
        pytest.warns(UserWarning, match="create_graph=True"),
        pytest.raises(RuntimeError, match=r"a model under a plan has no second derivatives"),
    ):
        _cross_entropy(net).backward(create_graph=True)


def test_an_input_changed_before_the_backward_pass_is_noticed_as_without_a_plan():
    units = copy.deepcopy(_net(29)).units
    apply_plan(units, nested_plan(9))
    x = torch.randn(2, 16, 8, 8)
    loss = units(x).sum()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_plan_for_another_number_of_units_is_refused():
    message = "this plan is for 8 units, the model has 9: make one for this model"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        apply_plan(copy.deepcopy(_net(20)), per_unit_plan(8))


def test_a_retention_that_a_unit_does_not_offer_is_refused():
    message = (
        "the plan keeps 'conv_outputs' of unit 1 (Linear), which offers all: "
        "make a plan from a chain measured on this model"
    )
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        apply_plan(model, Plan(2, (), ("all", "conv_outputs")))
    message = "the plan keeps 'half' of unit 0 (ResidualUnit), which offers all, conv_outputs: make a plan"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        apply_plan(copy.deepcopy(_net(20)), keep_all_plan(9, "half"))


def test_a_refused_plan_leaves_none_behind():
    net = copy.deepcopy(_net(20))
    apply_plan(net, per_unit_plan(9))
    with pytest.raises(ValueError, match="this plan is for 8 units"):
        apply_plan(net, per_unit_plan(8))
    assert "forward" not in vars(net.units)


def test_a_model_without_a_sequence_of_units_is_refused():
    message = "a plan applies to an nn.Sequential or a module with one as `.units`, got Linear"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        apply_plan(nn.Linear(3, 3), per_unit_plan(1))


@pytest.mark.parametrize("segments", [((0, 2),), ((2, 3),), ((0, 3), (1, 2))])
@pytest.mark.parametrize("trained", [True, False])
def test_a_unit_that_changes_its_input_in_place_is_named(segments, trained):
    """Kept or discarded, with gradients that reach it or not."""
    model = nn.Sequential(
        nn.Linear(4, 4), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)), nn.Linear(4, 4)
    )
    model[0].requires_grad_(trained)
    apply_plan(model, Plan(3, segments, ("all",) * 3))
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
    apply_plan(model, Plan(2, segments, ("all", "all")))
    with pytest.raises(TypeError, match=r"^unit 1 \(_Pair\) must return one tensor, got tuple$"):
        model(torch.randn(2, 4))


# A plan is not part of the model


def test_none_takes_the_plan_off_and_a_new_plan_replaces_it():
    net = copy.deepcopy(_net(20))
    runs = _count_runs(net)
    for plan, expected in (
        (per_unit_plan(9), 17),
        (uniform_plan(9, 3), 15),
        (None, 9),
        (keep_all_plan(9), 9),
    ):
        apply_plan(net, plan)
        _cross_entropy(net).backward()
        assert sum(runs) == expected
        runs[:] = [0] * 9
    assert "forward" not in vars(net.units)


def test_parameters_their_names_and_the_state_dict_are_untouched():
    net = copy.deepcopy(_net(20))
    before = net.state_dict(keep_vars=True)
    apply_plan(net, per_unit_plan(9))
    after = net.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is value for name, value in before.items())
    fresh = build_resnet(20)
    fresh.load_state_dict(net.state_dict())
    assert [name for name, _ in net.named_modules()] == [name for name, _ in fresh.named_modules()]


def test_a_deep_copy_trains_its_own_units_under_the_same_plan():
    net = copy.deepcopy(_net(20))
    apply_plan(net, per_unit_plan(9))
    twin = copy.deepcopy(net)
    runs, twin_runs = _count_runs(net), _count_runs(twin)
    before = [b.clone() for b in net.buffers()]
    _cross_entropy(twin).backward()
    assert (sum(runs), sum(twin_runs)) == (0, 17)
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is not None for p in twin.parameters())
    assert_same_bits(list(net.buffers()), before)


# Units that know nothing of plans


class _MLP(nn.Sequential):
    def __init__(self, width: int = 6, depth: int = 7, dropout: float = 0.3) -> None:
        super().__init__(
            *[nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout)) for _ in range(depth)]
        )


class _ConvStack(nn.Module):
    """Convolutions and PyTorch's own norms, one of each kind, with dropout in between."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.units = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            *[
                nn.Sequential(
                    nn.Conv2d(4, 4, 3, padding=1), norm(4), nn.ReLU(inplace=True), nn.Dropout2d(0.2)
                )
                for _ in range(4)
            ],
            nn.Flatten(),
            nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.units(x)


def _mean_of_squares(shape: tuple[int, ...]) -> Loss:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return lambda model: model(x).square().mean()


@settings(max_examples=25)
@given(plan=plans(7), training=st.booleans(), dtype=st.sampled_from([None, torch.bfloat16]))
def test_a_plain_mlp_with_dropout_trains_exactly_as_without_a_plan(plan, training, dtype):
    torch.manual_seed(0)
    assert_exact(_MLP().train(training), plan, loss=_mean_of_squares((5, 6)), dtype=dtype)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch norm": nn.BatchNorm2d,
    "batch norm with a cumulative average": lambda n: nn.BatchNorm2d(n, momentum=None),
    "batch norm that tracks nothing": lambda n: nn.BatchNorm2d(n, track_running_stats=False),
    "instance norm with statistics": lambda n: nn.InstanceNorm2d(n, affine=True, track_running_stats=True),
    "deepres' batch norm": BatchNorm2d,
}


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=8)
@given(plan=plans(7), training=st.booleans())
@example(plan=Plan(7, ((0, 7), (0, 5), (0, 3)), ("all",) * 7), training=True)
def test_a_conv_stack_with_pytorch_s_norms_trains_exactly_as_without_a_plan(norm, plan, training):
    torch.manual_seed(0)
    model = _ConvStack(NORMS[norm]).train(training)
    assert_exact(model, plan, loss=_mean_of_squares((3, 3, 4, 4)), num_steps=3)


def test_a_cumulative_average_counts_each_batch_once():
    model = nn.Sequential(
        *[nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=None)) for _ in range(3)]
    )
    apply_plan(model, Plan(3, ((0, 3), (0, 2)), ("all",) * 3))
    batches = torch.randn(4, 5, 3, 2, 2)
    for x in batches:
        model(x).sum().backward()
    conv, norm = model[0]
    means = conv(batches.flatten(0, 1)).unflatten(0, (4, 5)).mean((1, 3, 4))
    torch.testing.assert_close(norm.running_mean, means.mean(0))
    assert [int(unit[1].num_batches_tracked) for unit in model] == [4, 4, 4]
    assert [unit[1].momentum for unit in model] == [None, None, None]


class _Constant(nn.Module):
    """Depends on its parameter alone."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand_as(x)


@pytest.mark.parametrize("plan", [per_unit_plan(4), Plan(4, ((0, 4), (1, 3)), ("all",) * 4)])
@pytest.mark.parametrize("cut", [_Constant, nn.Identity])
def test_a_unit_may_cut_the_gradient_or_pass_it_on(plan, cut):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), cut(), nn.Linear(4, 4))
    assert_exact(model, plan, loss=_mean_of_squares((3, 4)))
    assert (outcome(model, None, loss=_mean_of_squares((3, 4)))[1] is None) == (cut is _Constant)


def test_an_embedding_may_be_the_first_unit():
    tokens = torch.arange(6).view(2, 3)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    for plan in (per_unit_plan(4), Plan(4, ((0, 4), (0, 2)), ("all",) * 4)):
        assert_exact(model, plan, loss=lambda model: model(tokens).square().sum())


def test_a_chain_of_one_unit_can_be_replayed():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    assert_exact(model, Plan(1, ((0, 1),), ("all",)), loss=_mean_of_squares((3, 4)))


# Runs


def _num_parameters(model: nn.Module) -> int:
    return len(list(model.parameters()))


def _count_runs(model: nn.Module) -> list[int]:
    units = model if isinstance(model, nn.Sequential) else model.units
    runs = [0] * len(units)
    for i, unit in enumerate(units):

        def count(*_: object, i: int = i) -> None:
            runs[i] += 1

        unit.register_forward_hook(count)
    return runs


@given(plan=plans(8))
@example(plan=keep_all_plan(8))
@example(plan=per_unit_plan(8))
def test_units_run_forward_as_often_as_the_simulator_says(plan):
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(8)])
    runs = _count_runs(model)
    apply_plan(model, plan)
    model(torch.randn(1, 2)).sum().backward()
    assert tuple(runs) == simulate(Chain(1, (UnitCost(),) * 8), plan).forward_runs


def test_frozen_units_at_the_front_are_not_replayed_for_nothing():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)])
    model[:4].requires_grad_(False)
    runs = _count_runs(model)
    apply_plan(model, Plan(6, ((0, 2), (2, 5)), ("all",) * 6))
    model(torch.randn(1, 2)).sum().backward()
    assert runs == [1, 1, 2, 2, 2, 1]


@pytest.mark.parametrize("retention", BOTH)
def test_residual_units_run_forward_as_often_as_the_simulator_says(retention):
    net = copy.deepcopy(_net(29))
    plan = Plan(9, nested_plan(9).segments, (retention,) * 9)
    runs = _count_runs(net)
    apply_plan(net, plan)
    _cross_entropy(net).backward()
    chain = Chain(1, (UnitCost(retentions=(Retention(retention),)),) * 9)
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


def _peaks(plan: Plan) -> tuple[int, int]:
    """The peaks of forward and backward pass over equal units, and a check that nothing is left."""
    model = nn.Sequential(*[_Tanh() for _ in range(plan.num_units)])
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
    unit = UnitCost(output_bytes=STATE_BYTES, retentions=(Retention("all", STATE_BYTES),))
    chain = Chain(STATE_BYTES, (unit,) * plan.num_units, fixed_bytes=NUMBERS_BYTES)
    return simulate(chain, plan).peak_bytes


@given(plan=plans(7).filter(lambda plan: bool(plan.segments)))
@example(plan=per_unit_plan(7))
@example(plan=uniform_plan(7, 2))
@example(plan=Plan(7, ((0, 4), (1, 3)), ("all",) * 7))
@example(plan=Plan(7, ((0, 7), (0, 5), (0, 3)), ("all",) * 7))
def test_the_peak_is_the_simulator_s_to_the_byte(plan):
    assert max(_peaks(plan)) == _simulated(plan)


@pytest.mark.parametrize(
    ("plan", "num_passes"),
    [
        (keep_all_plan(8, "conv_outputs"), 1),
        (uniform_plan(8, 3), 3),
        (per_unit_plan(8), 8),
        (Plan(8, ((2, 4), (5, 6)), ("all",) * 8), 5),  # 7 and 6; 5; 4; 3 and 2; 1 and 0
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
        (per_unit_plan(16), 19),  # x_0 to x_16 and two gradients, for these units keep no more than that
        (sqrt_plan(16), 10),  # x_0, x_4, x_8, x_12, four kept, and two gradients
        (
            Plan(16, tuple((0, n) for n in range(15, 0, -1)), ("all",) * 16),
            5,
        ),  # x_0, x_i, x_{i+1} and those of two
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
    nested = _peak_of_a_net(Plan(27, tuple((0, n) for n in range(26, 0, -1)), ("conv_outputs",) * 27))
    assert keep_all > conv_outputs > per_unit > root > root_conv_outputs > nested
    # Of 12w values a pixel conv_outputs keeps 6w, per unit 4w (its input), and what one unit's backward takes.
    assert conv_outputs < 0.58 * keep_all
    assert per_unit < 0.40 * keep_all
    assert nested < 0.09 * keep_all
