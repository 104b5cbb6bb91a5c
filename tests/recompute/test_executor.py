"""Residual nets under plans: the same bits as without."""

from __future__ import annotations

import copy
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepres import apply_plan
from deepres.models import BatchNorm2d
from deepres.net_options import ACTIVATIONS, SHORTCUTS
from deepres.recompute import (
    Plan,
    keep_all_plan,
    per_unit_plan,
    sqrt_plan,
    uniform_plan,
)
from tests.recompute.exactness import (
    BOTH,
    assert_exact,
    assert_same_bits,
    cross_entropy,
    images,
    nested_plan,
    outcome,
    plans,
    small_net,
)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("activation", "shortcut"), list(product(ACTIVATIONS, SHORTCUTS)))
def test_every_kind_of_net_trains_exactly_as_without_a_plan(activation, shortcut, dtype):
    block = ("basic", "bottleneck")[(ACTIVATIONS.index(activation) + SHORTCUTS.index(shortcut)) % 2]
    net = small_net(
        {"basic": 14, "bottleneck": 20}[block], block=block, activation=activation, shortcut=shortcut
    )
    assert_exact(net, nested_plan(6), dtype=dtype)


@cache
def _without_a_plan(depth: int, shortcut: str, dtype: torch.dtype | None) -> list[Tensor | None]:
    return outcome(small_net(depth, shortcut=shortcut), None, dtype=dtype)


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
@example(plan=Plan(((0, 9), (3, 9)), BOTH[:1] * 9), depth=29, shortcut="identity", dtype=torch.bfloat16)
@example(
    plan=Plan(tuple((0, n) for n in range(9, 0, -1)), BOTH[:1] * 9),
    depth=20,
    shortcut="dropout",
    dtype=None,
)
def test_any_plan_trains_exactly_as_without_a_plan(plan, depth, shortcut, dtype):
    planned = outcome(small_net(depth, shortcut=shortcut), plan, dtype=dtype)
    assert_same_bits(planned, _without_a_plan(depth, shortcut, dtype))


def test_an_imagenet_net_trains_exactly_as_without_a_plan():
    net = small_net(18, dataset="imagenet")
    assert_exact(net, nested_plan(8), loss=lambda net: cross_entropy(net, side=32), num_steps=1)


def test_a_channels_last_net_trains_exactly_as_without_a_plan():
    net = copy.deepcopy(small_net(29)).to(memory_format=torch.channels_last)

    def loss(net: nn.Module) -> Tensor:
        return net(images().to(memory_format=torch.channels_last)).square().mean()

    assert_exact(net, nested_plan(9), loss=loss)


@settings(max_examples=15)
@given(plan=plans(9, BOTH), frozen=st.integers(0, 9), stem=st.booleans(), head=st.booleans())
@example(plan=Plan(((0, 6), (1, 5)), ("all",) * 9), frozen=3, stem=True, head=False)
@example(plan=uniform_plan(9, 2), frozen=9, stem=True, head=False)
@example(plan=uniform_plan(9, 2), frozen=9, stem=True, head=True)
def test_a_net_with_a_frozen_prefix_trains_exactly_as_without_a_plan(plan, frozen, stem, head):
    net = copy.deepcopy(small_net(20))
    net.stem.requires_grad_(not stem)
    net.units[:frozen].requires_grad_(False)
    net.head.requires_grad_(not head)
    if not any(p.requires_grad for p in net.parameters()):
        apply_plan(net, plan)
        assert not net(images()).requires_grad
        return
    assert_exact(net, plan, num_steps=1)


def test_units_frozen_in_the_middle_pass_gradients_on():
    net = copy.deepcopy(small_net(20))
    net.units[3:6].requires_grad_(False)
    assert_exact(net, nested_plan(9))


@pytest.mark.parametrize("retention", BOTH)
def test_batch_norms_frozen_in_eval_mode_stay_so(retention):
    net = copy.deepcopy(small_net(29))
    for module in net.units.modules():
        if isinstance(module, BatchNorm2d):
            module.eval()
    assert_exact(net, uniform_plan(9, 3, retention))


@pytest.mark.parametrize("plan", [nested_plan(9), per_unit_plan(9), Plan(((0, 9),), ("all",) * 9)])
def test_the_gradient_of_the_images_is_the_same(plan):
    gradients = []
    for applied in (None, plan):
        units = copy.deepcopy(small_net(29)).units
        apply_plan(units, applied)
        x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        units(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in units.parameters())])
    assert_same_bits(*gradients)


@pytest.mark.parametrize("training", [True, False])
def test_no_grad_computes_the_same_and_updates_buffers_as_without_a_plan(training):
    found = []
    for plan in (None, nested_plan(9)):
        net = copy.deepcopy(small_net(29, shortcut="dropout")).train(training)
        apply_plan(net, plan)
        torch.manual_seed(2)
        with torch.no_grad():
            logits = [net(images()), net(images())]
        assert not logits[0].requires_grad
        found.append([*logits, *net.buffers(), torch.get_rng_state()])
    assert_same_bits(*found)


def test_eval_mode_with_gradients_is_the_same():
    net = copy.deepcopy(small_net(29))
    net(images(4))
    assert_exact(net.eval(), nested_plan(9))


def test_a_forward_pass_without_a_backward_pass_updates_buffers_once():
    found = []
    for plan in (None, nested_plan(9), Plan(((0, 9), (4, 9)), ("all",) * 9)):
        net = copy.deepcopy(small_net(29, shortcut="dropout"))
        apply_plan(net, plan)
        torch.manual_seed(2)
        logits = net(images())
        found.append([logits.detach(), *net.buffers(), torch.get_rng_state()])
        assert all(int(m.num_batches_tracked) == 1 for m in net.modules() if isinstance(m, BatchNorm2d))
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])


def test_a_replay_leaves_the_generator_where_draws_after_the_forward_pass_put_it():
    net = small_net(14, shortcut="dropout")

    def loss(net: nn.Module) -> Tensor:
        return (net(images()) * torch.rand(2, 10)).sum()

    assert_exact(net, nested_plan(6), loss=loss)


def test_gradients_accumulate_over_several_backward_passes():
    def two_losses(net: nn.Module) -> Tensor:
        (net(images(3)).square().mean() / 2).backward()
        return net(images(2)).square().mean() / 2

    assert_exact(small_net(29, shortcut="dropout"), nested_plan(9), loss=two_losses)


def test_two_forward_passes_may_come_before_their_backward_passes():
    def summed(net: nn.Module) -> Tensor:
        first = net(images(3)).square().mean()
        return first + net(images(2)).square().mean()

    def in_either_order(net: nn.Module) -> Tensor:
        first, second = net(images(3)).square().mean(), net(images(2)).square().mean()
        first.backward()
        return second

    for loss in (summed, in_either_order):
        assert_exact(small_net(29, shortcut="dropout"), nested_plan(9), loss=loss)


def test_a_backward_pass_under_autocast_is_the_same():
    def loss(net: nn.Module) -> Tensor:
        value = net(images()).float().square().mean()
        value.backward()
        return net.head(net.units(net.stem(images()))).float().square().mean()

    assert_exact(small_net(29), nested_plan(9), loss=loss, dtype=torch.bfloat16)


def test_gradients_of_the_output_can_be_seen_and_retained():
    found = []
    for plan in (None, nested_plan(9)):
        net = copy.deepcopy(small_net(20))
        apply_plan(net, plan)
        features = net.units(net.stem(images()))
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
        net = copy.deepcopy(small_net(29, activation=activation))
        net.head = nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.AdaptiveAvgPool2d(1))
        apply_plan(net, plan)
        loss = net(images()).sum()
        if activation == "original":  # its last ReLU keeps its output for its backward
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
        else:
            loss.backward()
