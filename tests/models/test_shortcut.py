"""Each shortcut of the paper's Table 1 against its formula."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepres.models.shortcut import Shortcut


def _gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad(value, inputs, torch.randn_like(value)))


def _assert_same(shortcut: Shortcut, x: Tensor, residual: Tensor, expected: Tensor, in_place: bool) -> None:
    """Value and gradients of x, residual and parameters, bit for bit."""
    inputs = (x, residual, *shortcut.parameters())
    wanted = [expected.detach().clone(), *_gradients(expected, *inputs)]
    torch.manual_seed(2)
    y = shortcut.combine(shortcut(x), residual * 1, in_place=in_place)
    for left, right in zip([y.detach(), *_gradients(y, *inputs)], wanted, strict=True):
        assert torch.equal(left, right)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 6, 5, 5, requires_grad=True)


@pytest.fixture
def residual() -> Tensor:
    return torch.randn(2, 6, 5, 5, requires_grad=True)


in_and_out_of_place = pytest.mark.parametrize("in_place", [True, False])


@in_and_out_of_place
def test_identity_adds_the_two(x, residual, in_place):
    shortcut = Shortcut(6, 6, 1)
    assert not list(shortcut.parameters())
    _assert_same(shortcut, x, residual, x + residual, in_place)


@in_and_out_of_place
@pytest.mark.parametrize(("shortcut_scale", "residual_scale"), [(0.5, 0.5), (0.5, 1.0), (0.0, 1.0)])
def test_constant_scaling_weighs_the_two(x, residual, in_place, shortcut_scale, residual_scale):
    shortcut = Shortcut(
        6, 6, 1, name="constant_scaling", shortcut_scale=shortcut_scale, residual_scale=residual_scale
    )
    assert not list(shortcut.parameters())
    _assert_same(shortcut, x, residual, shortcut_scale * x + residual_scale * residual, in_place)


def test_constant_scaling_by_zero_makes_a_plain_net(x, residual):
    shortcut = Shortcut(6, 6, 1, name="constant_scaling", shortcut_scale=0.0, residual_scale=1.0)
    assert torch.equal(shortcut.combine(shortcut(x), residual, in_place=False), residual)


@in_and_out_of_place
@pytest.mark.parametrize("gate_bias", [0.0, -6.0])
def test_exclusive_gating_gives_the_branch_what_it_takes_from_the_shortcut(x, residual, in_place, gate_bias):
    shortcut = Shortcut(6, 6, 1, name="exclusive_gating", gate_bias=gate_bias)
    assert isinstance(shortcut.gate, nn.Conv2d)
    g = torch.sigmoid(F.conv2d(x, shortcut.gate.weight, shortcut.gate.bias))
    _assert_same(shortcut, x, residual, (1 - g) * x + g * residual, in_place)


@in_and_out_of_place
@pytest.mark.parametrize("gate_bias", [0.0, -6.0])
def test_shortcut_only_gating_leaves_the_branch_as_it_is(x, residual, in_place, gate_bias):
    shortcut = Shortcut(6, 6, 1, name="shortcut_only_gating", gate_bias=gate_bias)
    assert isinstance(shortcut.gate, nn.Conv2d)
    g = torch.sigmoid(F.conv2d(x, shortcut.gate.weight, shortcut.gate.bias))
    _assert_same(shortcut, x, residual, (1 - g) * x + residual, in_place)


@pytest.mark.parametrize("name", ["exclusive_gating", "shortcut_only_gating"])
def test_a_gate_is_an_element_wise_1x1_convolution_with_the_initial_bias_asked_for(name):
    gate = Shortcut(4, 6, 2, name=name, gate_bias=-7.0).gate
    assert isinstance(gate, nn.Conv2d)
    assert (gate.in_channels, gate.out_channels, gate.kernel_size, gate.stride) == (6, 6, (1, 1), (1, 1))
    assert torch.equal(gate.bias, torch.full((6,), -7.0))


@in_and_out_of_place
@pytest.mark.parametrize("normalise", [True, False])
def test_the_1x1_shortcut_is_a_convolution_also_where_the_shape_stays(x, residual, in_place, normalise):
    shortcut = Shortcut(6, 6, 1, name="conv1x1", normalise_projection=normalise)
    assert isinstance(shortcut.conv, nn.Conv2d)
    assert shortcut.conv.bias is None
    h = F.conv2d(x, shortcut.conv.weight)
    if normalise:
        h = F.batch_norm(h, None, None, shortcut.norm.weight, shortcut.norm.bias, training=True)
    _assert_same(shortcut, x, residual, h + residual, in_place)


@in_and_out_of_place
def test_dropout_drops_values_of_the_shortcut_in_training(x, residual, in_place):
    shortcut = Shortcut(6, 6, 1, name="dropout", dropout=0.25)
    torch.manual_seed(2)
    _assert_same(shortcut, x, residual, F.dropout(x, 0.25) + residual, in_place)


def test_dropout_is_the_identity_in_eval_mode(x, residual):
    shortcut = Shortcut(6, 6, 1, name="dropout").eval()
    state = torch.get_rng_state()
    assert torch.equal(shortcut.combine(shortcut(x), residual, in_place=False), x + residual)
    assert torch.equal(torch.get_rng_state(), state)


@given(
    in_channels=st.integers(1, 5),
    more_channels=st.integers(0, 5),
    stride=st.sampled_from([1, 2]),
    side=st.integers(1, 7),
)
def test_zero_padding_subsamples_and_appends_channels_of_zeros(in_channels, more_channels, stride, side):
    """Option A of ResNet v1: no parameters, every value of x at most once."""
    shortcut = Shortcut(in_channels, in_channels + more_channels, stride, matching="zero_padding")
    assert not list(shortcut.parameters())
    x = torch.randn(2, in_channels, side, side)
    h = shortcut(x)
    assert h.shape == (2, in_channels + more_channels, -(-side // stride), -(-side // stride))
    assert torch.equal(h[:, :in_channels], x[:, :, ::stride, ::stride])
    assert not h[:, in_channels:].any()


@pytest.mark.parametrize("normalise", [True, False])
def test_a_projection_has_the_unit_s_stride_and_batch_norm_if_asked_for(normalise):
    shortcut = Shortcut(4, 6, 2, normalise_projection=normalise)
    assert isinstance(shortcut.conv, nn.Conv2d)
    assert (shortcut.norm is not None) == normalise
    x = torch.randn(3, 4, 6, 6)
    expected = F.conv2d(x, shortcut.conv.weight, stride=2)
    if normalise:
        expected = F.batch_norm(expected, None, None, training=True)
    assert torch.equal(shortcut(x), expected)


@pytest.mark.parametrize("name", ["identity", "constant_scaling", "exclusive_gating", "dropout"])
def test_a_unit_that_keeps_the_shape_needs_no_projection(name, x):
    shortcut = Shortcut(6, 6, 1, name=name)
    assert shortcut.conv is None
    assert shortcut(x) is x


def test_the_variant_acts_on_what_was_matched_to_the_unit_s_output():
    shortcut = Shortcut(4, 6, 2, name="constant_scaling", shortcut_scale=0.25, residual_scale=0.75)
    x, residual = torch.randn(2, 4, 6, 6), torch.randn(2, 6, 3, 3)
    expected = 0.25 * F.conv2d(x, shortcut.conv.weight, stride=2) + 0.75 * residual
    assert torch.equal(shortcut.combine(shortcut(x), residual, in_place=True), expected)


def test_the_sum_overwrites_the_branch_only_where_it_may(x, residual):
    shortcut = Shortcut(6, 6, 1)
    branch = residual.detach().clone()
    assert shortcut.combine(x.detach(), branch, in_place=False).data_ptr() != branch.data_ptr()
    assert torch.equal(branch, residual)
    assert shortcut.combine(x.detach(), branch, in_place=True).data_ptr() == branch.data_ptr()


def test_a_sum_of_two_dtypes_has_the_wider_one(x, residual):
    shortcut = Shortcut(6, 6, 1)
    narrow = residual.detach().bfloat16()
    y = shortcut.combine(x.detach(), narrow, in_place=True)
    assert torch.equal(y, x.detach() + narrow.float())
