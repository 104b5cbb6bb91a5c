"""The retention conv_outputs: half the bytes, the same bits."""

import contextlib
import copy
import gc
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepres.memory import TensorBytes
from deepres.models import BatchNorm2d, ResidualUnit
from deepres.models.residual_unit import leading_activation
from deepres.net_options import ACTIVATIONS, SHORTCUTS
from tests.recompute.exactness import assert_same_bits


def _unit(
    activation: str = "full_preactivation",
    shortcut: str = "identity",
    *,
    block: str = "basic",
    preactivation: str = "own",
    stride: int = 1,
) -> ResidualUnit:
    preactivation = preactivation if leading_activation(activation) else "own"
    width, channels = (4, 16) if block == "bottleneck" else (8, 8)
    unit = ResidualUnit(
        channels,
        width * stride,
        channels * stride,
        block=block,
        stride=stride,
        activation=activation,
        shortcut=shortcut,
        preactivation=preactivation,
    )
    for module in unit.modules():
        if isinstance(module, BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return unit


def _outcome(
    unit: ResidualUnit,
    x: Tensor,
    retention: str,
    *,
    autocast: bool = False,
    backward_in_autocast: bool = False,
    num_backwards: int = 1,
) -> list[Tensor | None]:
    """Output, gradients and buffers; the unit itself stays as it is."""
    unit = copy.deepcopy(unit)
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with context:
        y = unit(x, retention)
    value = y.detach().clone()
    gradient = torch.randn_like(y)
    with context if backward_in_autocast else contextlib.nullcontext():
        for k in range(num_backwards):
            y.backward(gradient, retain_graph=k + 1 < num_backwards)
    return [value, x.grad, *(p.grad for p in unit.parameters()), *unit.buffers()]


def _kept_bytes(unit: ResidualUnit, x: Tensor, retention: str) -> int:
    """What is alive after the forward pass, the output included, the input not."""
    tracker = TensorBytes()
    with tracker:
        y = unit(x, retention)
    assert y.requires_grad
    return tracker.live_bytes


@given(width=st.integers(1, 9), batch=st.integers(1, 3), side=st.integers(2, 7))
def test_a_bottleneck_unit_of_inner_width_w_keeps_6w_values_a_pixel_and_not_12w(width, batch, side):
    unit = ResidualUnit(4 * width, width, 4 * width)
    x = torch.randn(batch, 4 * width, side, side, requires_grad=True)
    pixels, channels = batch * side * side, 4 * width + width + width
    # With both come mean and inverse std for each channel of a batch norm.
    assert _kept_bytes(unit, x, "all") == 4 * (12 * width * pixels + 2 * channels)
    assert _kept_bytes(unit, x, "conv_outputs") == 4 * (6 * width * pixels + 2 * channels)


@given(width=st.integers(1, 9), batch=st.integers(1, 3), side=st.integers(2, 7))
def test_a_basic_unit_of_width_w_keeps_2w_values_a_pixel_and_not_4w(width, batch, side):
    unit = ResidualUnit(width, width, width, block="basic")
    x = torch.randn(batch, width, side, side, requires_grad=True)
    pixels = batch * side * side
    assert _kept_bytes(unit, x, "all") == 4 * (4 * width * pixels + 2 * 2 * width)
    assert _kept_bytes(unit, x, "conv_outputs") == 4 * (2 * width * pixels + 2 * 2 * width)


def test_under_autocast_the_values_take_two_bytes_each():
    unit = ResidualUnit(16, 4, 16)
    x = torch.randn(2, 16, 6, 6, dtype=torch.bfloat16, requires_grad=True)
    weights = sum(conv.weight.numel() for conv in unit.convs) * 2  # autograd keeps the cast weights
    kept = {}
    for retention in unit.retentions:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            kept[retention] = _kept_bytes(unit, x, retention)
    assert kept["all"] == 2 * 12 * 4 * 72 + weights + 4 * 2 * 24
    assert kept["conv_outputs"] == 2 * 6 * 4 * 72 + weights + 4 * 2 * 24


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nothing_is_held_once_the_graph_is_gone_though_no_garbage_is_collected(activation):
    unit, x = _unit(activation), torch.randn(2, 8, 6, 6, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        tracker = TensorBytes()
        with tracker:
            y = unit(x, "conv_outputs")
            del y
            assert tracker.live_bytes == 0
    finally:
        gc.enable()


def test_a_shared_activation_that_projection_and_branch_read_is_dropped_and_recomputed_once():
    unit = _unit(block="bottleneck", preactivation="shared", stride=2)
    x = torch.randn(2, 16, 6, 6, requires_grad=True)
    pixels, channels = 2 * 36, 16 + 8 + 8
    quarter = pixels // 4
    kept = {r: _kept_bytes(unit, x, r) for r in unit.retentions}
    conv_outputs = (8 + 8 + 32) * quarter  # two convolutions' and the sum, all behind the stride
    dropped = 16 * pixels + (8 + 8) * quarter
    assert kept["all"] == 4 * (conv_outputs + dropped + 2 * channels)
    assert kept["conv_outputs"] == 4 * (conv_outputs + 2 * channels)

    calls = 0

    class CountReLU(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal calls
            calls += func is torch.ops.aten.relu_.default
            return func(*args, **(kwargs or {}))

    y = unit(x, "conv_outputs")
    with CountReLU():
        y.sum().backward()
    assert calls == 3


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("activation", "shortcut"), list(product(ACTIVATIONS, SHORTCUTS)))
def test_results_gradients_and_buffers_are_those_of_keeping_all(activation, shortcut, autocast):
    for block, preactivation, stride in (
        ("basic", "own", 1),
        ("bottleneck", "own", 1),
        ("bottleneck", "shared", 2),
        ("basic", "none", 1),
    ):
        unit = _unit(activation, shortcut, block=block, preactivation=preactivation, stride=stride)
        x = torch.randn(2, unit.convs[0].in_channels, 6, 6)
        for dtype in {torch.float32, torch.bfloat16} if autocast else {torch.float32}:
            outcomes = [_outcome(unit, x.to(dtype), r, autocast=autocast) for r in unit.retentions]
            assert_same_bits(*outcomes)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("preactivation", ["own", "shared"])
def test_a_graph_can_be_walked_three_times(preactivation, autocast):
    unit = _unit(block="bottleneck", preactivation=preactivation, stride=2)
    x = torch.randn(2, 16, 6, 6)
    all_, conv_outputs = (
        _outcome(unit, x, r, autocast=autocast, num_backwards=3) for r in ("all", "conv_outputs")
    )
    assert_same_bits(all_, conv_outputs)
    once = _outcome(unit, x, "conv_outputs", autocast=autocast)
    assert not torch.equal(once[1], conv_outputs[1])


@pytest.mark.parametrize("preactivation", ["own", "shared"])
def test_a_graph_that_is_walked_again_holds_nothing_of_what_was_recomputed(preactivation):
    unit = _unit(block="bottleneck", preactivation=preactivation, stride=2)
    x = torch.randn(2, 16, 6, 6)
    parameters = list(unit.parameters())
    for p in parameters:
        p.grad = torch.zeros_like(p)
    tracker = TensorBytes()
    with tracker:
        loss = unit(x, "conv_outputs").sum()
        before = tracker.live_bytes
        for _ in range(2):
            loss.backward(retain_graph=True)
            assert tracker.live_bytes == before


def test_the_backward_pass_may_run_under_autocast_too():
    unit = _unit(block="bottleneck")
    x = torch.randn(2, 16, 6, 6)
    assert_same_bits(
        *[_outcome(unit, x, r, autocast=True, backward_in_autocast=True) for r in unit.retentions]
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_eval_mode_gives_the_same_with_gradients(activation):
    unit = _unit(activation, block="bottleneck")
    unit(torch.randn(4, 16, 6, 6))
    x = torch.randn(2, 16, 6, 6)
    assert_same_bits(*[_outcome(unit.eval(), x, r) for r in unit.retentions])


@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1, 2)])
def test_batch_norms_frozen_in_a_training_unit_are_left_alone(frozen):
    unit = _unit(block="bottleneck")
    unit(torch.randn(4, 16, 6, 6))
    for i in frozen:
        unit.norms[i].eval()
    before = [unit.norms[i].running_mean.clone() for i in frozen]
    x = torch.randn(2, 16, 6, 6)
    assert_same_bits(*[_outcome(unit, x, r) for r in unit.retentions])
    for i, mean in zip(frozen, before, strict=True):
        assert torch.equal(unit.norms[i].running_mean, mean)


@pytest.mark.parametrize("trained", ["convs", "norms", "shortcut"])
def test_parameters_may_be_frozen(trained):
    unit = _unit(block="bottleneck", preactivation="shared", stride=2)
    for name, parameter in unit.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    x = torch.randn(2, 16, 6, 6)
    outcomes = [_outcome(unit, x, r) for r in unit.retentions]
    assert_same_bits(*outcomes)
    assert sum(g is None for g in outcomes[0]) == sum(not p.requires_grad for p in unit.parameters())


def test_without_gradients_nothing_is_kept_and_buffers_are_updated_all_the_same():
    unit = _unit(block="bottleneck")
    x = torch.randn(2, 16, 6, 6)
    outcomes = []
    for retention in unit.retentions:
        copy_ = copy.deepcopy(unit)
        tracker = TensorBytes()
        with torch.no_grad(), tracker:
            y = copy_(x, retention)
        assert not y.requires_grad
        assert tracker.live_bytes == y.numel() * 4
        outcomes.append([y, *copy_.buffers()])
    assert_same_bits(*outcomes)
    assert int(outcomes[1][-1]) == 1


def test_what_is_dropped_is_recomputed_without_reading_a_parameter():
    """ZeRO-3 releases a unit's parameters after its forward pass, and fetches a batch norm's for its backward."""
    unit = _unit(block="bottleneck")
    x = torch.randn(2, 16, 6, 6)
    y = unit(x, "conv_outputs")
    y.backward(torch.ones_like(y), retain_graph=True)
    expected = unit.convs[-1].weight.grad.clone()
    unit.zero_grad()
    for norm in unit.norms:
        norm.weight.data = torch.full_like(norm.weight, 7.0)
        norm.bias.data = torch.full_like(norm.bias, 7.0)
    y.backward(torch.ones_like(y))
    assert torch.equal(unit.convs[-1].weight.grad, expected)
