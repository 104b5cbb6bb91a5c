"""Units that know nothing of plans, under plans: the same bits as without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepres import apply_plan
from deepres.models import BatchNorm2d
from deepres.recompute import (
    Plan,
    per_unit_plan,
)
from tests.recompute.exactness import (
    Loss,
    assert_exact,
    outcome,
    plans,
)


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
@example(plan=Plan(((0, 7), (0, 5), (0, 3)), ("all",) * 7), training=True)
def test_a_conv_stack_with_pytorch_s_norms_trains_exactly_as_without_a_plan(norm, plan, training):
    # torch 2.9's instance norm writes its statistics in evaluation, too, and is refused there
    assume(training or "instance" not in norm or torch.__version__ >= "2.11")
    torch.manual_seed(0)
    model = _ConvStack(NORMS[norm]).train(training)
    assert_exact(model, plan, loss=_mean_of_squares((3, 3, 4, 4)), num_steps=3)


def test_a_cumulative_average_counts_each_batch_once():
    model = nn.Sequential(
        *[nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=None)) for _ in range(3)]
    )
    apply_plan(model, Plan(((0, 3), (0, 2)), ("all",) * 3))
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


@pytest.mark.parametrize("plan", [per_unit_plan(4), Plan(((0, 4), (1, 3)), ("all",) * 4)])
@pytest.mark.parametrize("cut", [_Constant, nn.Identity])
def test_a_unit_may_cut_the_gradient_or_pass_it_on(plan, cut):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), cut(), nn.Linear(4, 4))
    assert_exact(model, plan, loss=_mean_of_squares((3, 4)))
    assert (outcome(model, None, loss=_mean_of_squares((3, 4)))[1] is None) == (cut is _Constant)


def test_an_embedding_may_be_the_first_unit():
    tokens = torch.arange(6).view(2, 3)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    for plan in (per_unit_plan(4), Plan(((0, 4), (0, 2)), ("all",) * 4)):
        assert_exact(model, plan, loss=lambda model: model(tokens).square().sum())


def test_a_chain_of_one_unit_can_be_replayed():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    assert_exact(model, Plan(((0, 1),), ("all",)), loss=_mean_of_squares((3, 4)))


class _OwnAverage(nn.Module):
    """Centres its input by an average that it keeps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("average", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.training:
            with torch.no_grad():
                self.average.mul_(0.9).add_(y.mean(0), alpha=0.1)
        return torch.tanh(y - self.average)


class _NewAverage(_OwnAverage):
    """Puts another tensor in the buffer's place."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.average = 0.9 * self.average + 0.1 * y.detach().mean(0)
        return torch.tanh(y - self.average)


class _UnseenAverage(_OwnAverage):
    """Changes its average where no version counts it, as vector quantisation does with its codes."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.average.data.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
        return torch.tanh(y - self.average)


class _Counting(nn.BatchNorm1d):
    def __init__(self) -> None:
        super().__init__(6)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().forward(x)


@pytest.mark.parametrize("plan", [per_unit_plan(4), Plan(((0, 4), (1, 3)), ("all",) * 4)])
@pytest.mark.parametrize(
    ("unit", "buffer"), [(_NewAverage, "average"), (_UnseenAverage, "average"), (_Counting, "seen")]
)
def test_no_way_to_change_a_buffer_goes_unseen(unit, buffer, plan):
    net = nn.Sequential(*[unit() for _ in range(4)])
    apply_plan(net, plan)
    with pytest.raises(
        RuntimeError, match=rf"^unit \d+ \({unit.__name__}\) changes its buffer '{buffer}' whenever it is run"
    ):
        _mean_of_squares((3, 6))(net.train().requires_grad_()).backward()


class _Caching(nn.Module):
    """Makes a buffer anew, as tables of positions are, with the same values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("table", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.table = torch.arange(6.0).sin()
        return torch.tanh(self.linear(x) + self.table)


class _Scaling(nn.BatchNorm1d):
    """Does more than a batch norm, and leaves its statistics to it."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("unit", [_Caching, lambda: nn.Sequential(nn.Linear(6, 6), _Scaling(6))])
def test_units_that_leave_their_buffers_as_they_are_can_be_replayed(unit):
    net = nn.Sequential(*[unit() for _ in range(4)])
    assert_exact(net, per_unit_plan(4), loss=_mean_of_squares((3, 6)))


def test_a_unit_that_changes_a_buffer_of_its_own_cannot_be_replayed_but_kept():
    net = nn.Sequential(*[_OwnAverage() for _ in range(4)])
    loss = _mean_of_squares((3, 6))
    apply_plan(net, per_unit_plan(4))
    with pytest.raises(
        RuntimeError, match=r"^unit \d+ \(_OwnAverage\) changes its buffer 'average' whenever it is run"
    ):
        loss(net).backward()
    apply_plan(net, None)
    spectral = nn.Sequential(
        *[nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)) for _ in range(3)], *net
    )
    plan = Plan(((0, 2),), ("all",) * 7)
    apply_plan(spectral, plan)
    with pytest.raises(
        RuntimeError,
        match=r"^unit \d+ \(ParametrizedLinear\) changes its buffer 'parametrizations.weight.0._u'",
    ):
        loss(spectral).backward()
    apply_plan(spectral, None)
    spectral[:2].eval()
    assert_exact(spectral, plan, loss=loss)
