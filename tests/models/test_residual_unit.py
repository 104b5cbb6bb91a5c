"""Residual Units against the orders of the paper's Table 2, written out with torch.nn alone."""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from deepres.models import BatchNorm2d, ResidualUnit
from deepres.models.residual_unit import leading_activation
from deepres.net_options import ACTIVATIONS, SHORTCUTS

SHAPES = {
    "basic": {"in_channels": 8, "width": 8, "out_channels": 8, "block": "basic"},
    "bottleneck": {"in_channels": 16, "width": 4, "out_channels": 16, "block": "bottleneck"},
    "single": {"in_channels": 8, "width": 8, "out_channels": 8, "block": "single"},
}
GROWING = {
    "basic": {"in_channels": 8, "width": 16, "out_channels": 16, "block": "basic", "stride": 2},
    "bottleneck": {"in_channels": 16, "width": 8, "out_channels": 32, "block": "bottleneck", "stride": 2},
}


class PlainUnit(nn.Module):
    """The unit's parameters in the paper's order, one line for each step."""

    def __init__(self, unit: ResidualUnit, activation: str, preactivation: str = "own") -> None:
        super().__init__()
        self.convs = copy.deepcopy(unit.convs)
        self.norms = nn.ModuleList(_plain(norm) for norm in unit.norms)
        self.projection = copy.deepcopy(unit.shortcut.conv)
        self.projection_norm = None if unit.shortcut.norm is None else _plain(unit.shortcut.norm)
        self.activation = activation
        self.preactivation = preactivation

    def forward(self, x: Tensor) -> Tensor:
        norms = iter(self.norms)
        return getattr(self, self.activation)(x, list(self.convs[:-1]), self.convs[-1], norms)

    def h(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            x = self.projection(x)
        return x if self.projection_norm is None else self.projection_norm(x)

    def original(
        self, x: Tensor, convs: Sequence[nn.Module], last: nn.Module, norms: Iterator[nn.Module]
    ) -> Tensor:
        y = x
        for conv in convs:
            y = torch.relu(next(norms)(conv(y)))
        return torch.relu(self.h(x) + next(norms)(last(y)))

    def bn_after_addition(
        self, x: Tensor, convs: Sequence[nn.Module], last: nn.Module, norms: Iterator[nn.Module]
    ) -> Tensor:
        y = x
        for conv in convs:
            y = torch.relu(next(norms)(conv(y)))
        return torch.relu(next(norms)(self.h(x) + last(y)))

    def relu_before_addition(
        self, x: Tensor, convs: Sequence[nn.Module], last: nn.Module, norms: Iterator[nn.Module]
    ) -> Tensor:
        y = x
        for conv in convs:
            y = torch.relu(next(norms)(conv(y)))
        return self.h(x) + torch.relu(next(norms)(last(y)))

    def relu_only_preactivation(
        self, x: Tensor, convs: Sequence[nn.Module], last: nn.Module, norms: Iterator[nn.Module]
    ) -> Tensor:
        y = x if self.preactivation == "none" else torch.relu(x)
        h = self.h(y if self.preactivation == "shared" else x)
        for conv in convs:
            y = torch.relu(next(norms)(conv(y)))
        return h + next(norms)(last(y))

    def full_preactivation(
        self, x: Tensor, convs: Sequence[nn.Module], last: nn.Module, norms: Iterator[nn.Module]
    ) -> Tensor:
        y = x if self.preactivation == "none" else torch.relu(next(norms)(x))
        h = self.h(y if self.preactivation == "shared" else x)
        for conv in convs:
            y = torch.relu(next(norms)(conv(y)))
        return h + last(y)


def _plain(norm: BatchNorm2d) -> nn.BatchNorm2d:
    plain = nn.BatchNorm2d(norm.num_features)
    plain.load_state_dict(norm.state_dict())
    return plain


def _with_drawn_norms(unit: ResidualUnit) -> ResidualUnit:
    for module in unit.modules():
        if isinstance(module, BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return unit


def _step(unit: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor | None = None) -> list[Tensor]:
    """The output and the gradient of x."""
    x = x.clone().requires_grad_()
    y = unit(x)
    torch.manual_seed(1)
    y.backward(torch.randn_like(y) if gradient is None else gradient)
    assert x.grad is not None
    return [y.detach(), x.grad]


def _state(convs: nn.ModuleList, norms: nn.ModuleList, *others: nn.Module | None) -> list[Tensor]:
    """Gradients and buffers, in an order that does not depend on names."""
    modules = [*convs, *norms, *(m for m in others if m is not None)]
    gradients = [p.grad for m in modules for p in m.parameters()]
    assert all(g is not None for g in gradients)
    return [*gradients, *(b for m in modules for b in m.buffers())]


def _assert_same_bits(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("block", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_unit_computes_what_the_paper_s_order_says_bit_for_bit(activation, block, memory_format):
    """Outputs, gradients and buffers, twice in a row."""
    unit = _with_drawn_norms(ResidualUnit(**SHAPES[block], activation=activation))
    plain = PlainUnit(unit, activation)
    for _ in range(2):
        x = torch.randn(3, SHAPES[block]["in_channels"], 6, 6).to(memory_format=memory_format)
        _assert_same_bits(_step(unit, x), _step(plain, x))
    _assert_same_bits(_state(unit.convs, unit.norms), _state(plain.convs, plain.norms))
    assert all(int(norm.num_batches_tracked) == 2 for norm in unit.norms)


@pytest.mark.parametrize("preactivation", ["own", "shared", "none"])
@pytest.mark.parametrize("block", GROWING)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_unit_that_changes_the_shape_projects_what_its_preactivation_says(activation, block, preactivation):
    if preactivation != "own" and not leading_activation(activation):
        preactivation = "own"
    unit = _with_drawn_norms(
        ResidualUnit(**GROWING[block], activation=activation, preactivation=preactivation)
    )
    plain = PlainUnit(unit, activation, preactivation)
    x = torch.randn(3, GROWING[block]["in_channels"], 6, 6)
    outcome = _step(unit, x)
    assert outcome[0].shape == (3, GROWING[block]["out_channels"], 3, 3)
    _assert_same_bits(outcome, _step(plain, x))
    _assert_same_bits(
        _state(unit.convs, unit.norms, unit.shortcut.conv, unit.shortcut.norm),
        _state(plain.convs, plain.norms, plain.projection, plain.projection_norm),
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_unit_in_eval_mode_normalises_with_the_running_statistics(activation):
    unit = _with_drawn_norms(ResidualUnit(**SHAPES["bottleneck"], activation=activation))
    for _ in range(3):
        unit(torch.randn(4, 16, 6, 6))
    plain = PlainUnit(unit, activation)
    x = torch.randn(1, 16, 6, 6)
    _assert_same_bits(_step(unit.eval(), x), _step(plain.eval(), x))
    _assert_same_bits(_state(unit.convs, unit.norms), _state(plain.convs, plain.norms))


@pytest.mark.parametrize(
    ("activation", "block", "norm_channels"),
    [
        ("original", "bottleneck", [4, 4, 16]),
        ("bn_after_addition", "bottleneck", [4, 4, 16]),
        ("relu_before_addition", "bottleneck", [4, 4, 16]),
        ("relu_only_preactivation", "bottleneck", [4, 4, 16]),
        ("full_preactivation", "bottleneck", [16, 4, 4]),
        ("original", "basic", [8, 8]),
        ("full_preactivation", "basic", [8, 8]),
    ],
)
def test_batch_norms_have_the_channels_of_what_they_normalise(activation, block, norm_channels):
    unit = ResidualUnit(**SHAPES[block], activation=activation)
    assert [norm.num_features for norm in unit.norms] == norm_channels
    assert [conv.kernel_size[0] for conv in unit.convs] == ([1, 3, 1] if block == "bottleneck" else [3, 3])
    assert all(conv.bias is None for conv in unit.convs)


def test_pre_activation_units_can_put_out_what_is_negative_and_post_activation_ones_cannot():
    for activation in ACTIVATIONS:
        x = torch.randn(4, 16, 8, 8)
        lowest = ResidualUnit(**SHAPES["bottleneck"], activation=activation)(x).min().item()
        assert (lowest == 0) == (activation in ("original", "bn_after_addition"))


@pytest.mark.parametrize(("activation", "shortcut"), list(product(ACTIVATIONS, SHORTCUTS)))
def test_a_unit_never_changes_its_input(activation, shortcut):
    for retention, preactivation in product(ResidualUnit.retentions, ("own", "shared")):
        preactivation = preactivation if leading_activation(activation) else "own"
        unit = ResidualUnit(
            **SHAPES["basic"], activation=activation, shortcut=shortcut, preactivation=preactivation
        )
        x = torch.randn(2, 8, 6, 6)
        before = x.clone()
        unit(x, retention=retention).sum().backward()
        assert torch.equal(x, before)
        assert x._version == 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_residual_function_is_the_unit_without_its_shortcut(activation):
    unit = ResidualUnit(**SHAPES["basic"], activation=activation).double().eval()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    y = x + unit.residual(x)
    if activation == "bn_after_addition":
        y = unit.norms[-1](y)
    if activation in ("original", "bn_after_addition"):
        y = torch.relu(y)
    torch.testing.assert_close(unit(x), y, rtol=0, atol=1e-12)


def test_an_unknown_retention_is_refused():
    unit = ResidualUnit(**SHAPES["basic"])
    message = "retention must be one of all, conv_outputs, got 'none'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        unit(torch.randn(2, 8, 6, 6), retention="none")


@pytest.mark.parametrize("retention", ResidualUnit.retentions)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_pass_with_a_filled_memo_gives_the_same_bits_and_updates_nothing(activation, retention):
    unit = _with_drawn_norms(ResidualUnit(**GROWING["bottleneck"], activation=activation))
    x = torch.randn(3, 16, 6, 6)
    memo: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    first = _step(lambda x: unit(x, retention, memo), x)
    gradients = [p.grad.clone() for p in unit.parameters()]
    buffers = [b.clone() for b in unit.buffers()]
    unit.zero_grad()
    norms = {m for m in unit.modules() if isinstance(m, BatchNorm2d)}
    assert {key for key in memo if isinstance(key, nn.Module)} == norms
    for again in ("all", "conv_outputs"):
        unit.zero_grad()
        _assert_same_bits(_step(lambda x, r=again: unit(x, r, memo), x), first)
        _assert_same_bits([p.grad for p in unit.parameters()], gradients)
        _assert_same_bits(list(unit.buffers()), buffers)


@pytest.mark.parametrize("preactivation", ["own", "shared", "none"])
@pytest.mark.parametrize("block", GROWING)
@pytest.mark.parametrize(("activation", "shortcut"), list(product(ACTIVATIONS, SHORTCUTS)))
def test_the_activated_sum_of_its_terms_is_what_a_unit_computes(activation, shortcut, block, preactivation):
    if preactivation != "own" and not leading_activation(activation):
        preactivation = "own"
    unit = _with_drawn_norms(
        ResidualUnit(**GROWING[block], activation=activation, shortcut=shortcut, preactivation=preactivation)
    )
    x = torch.randn(3, GROWING[block]["in_channels"], 6, 6)
    torch.manual_seed(2)
    expected = unit(x)
    torch.manual_seed(2)
    h, residual = unit.terms(x)
    assert torch.equal(unit.activate(h + residual), expected)


def test_a_unit_prints_its_order_and_its_shortcut():
    shared = ResidualUnit(
        **GROWING["basic"], preactivation="shared", shortcut="constant_scaling", residual_scale=1.0
    )
    assert "before_split=BR, branch=WBRW, after_addition=None" in repr(shared)
    assert "constant_scaling, stride=2, shortcut_scale=0.5, residual_scale=1.0" in repr(shared)
    original = ResidualUnit(**SHAPES["bottleneck"], activation="original")
    assert "before_split=None, branch=WBRWBRWB, after_addition=R" in repr(original)


def test_a_projection_can_be_normalised_in_any_unit():
    assert ResidualUnit(**GROWING["basic"]).shortcut.norm is None
    assert ResidualUnit(**GROWING["basic"], normalise_projection=True).shortcut.norm is not None
