"""Running statistics in replays: of PyTorch's norms however they are used, or the unit is refused."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepres import apply_plan, build_resnet
from deepres.recompute import Plan, per_unit_plan
from tests.recompute.exactness import assert_exact

PLANS = pytest.mark.parametrize("plan", [per_unit_plan(4), Plan(((0, 4), (1, 3)), ("all",) * 4)])


def _loss(model: nn.Module) -> Tensor:
    return model(torch.randn(5, 6, generator=torch.Generator().manual_seed(1))).square().mean()


class _Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.use(self.linear(x), self.norm))

    def use(self, y: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        raise NotImplementedError


class _Function(_Unit):
    """With a momentum that the norm does not know."""

    def use(self, y: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        return F.batch_norm(
            y, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training, 0.3
        )


class _SetsMomentum(_Unit):
    def use(self, y: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        norm.momentum = 0.05
        return norm(y)


class _Overflowing(_Unit):
    """Has an infinite variance, of which a momentum of 0 would make no number."""

    def use(self, y: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        return norm(y * 1e25)


class _WithNan(_Unit):
    """As attention gives for a row that is masked throughout."""

    def use(self, y: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        return norm(y).masked_fill(torch.arange(6) > 3, torch.nan)


def test_a_unit_may_return_nan():
    units = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), _WithNan()]

    def loss(model: nn.Module) -> Tensor:
        return model(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))[:, :4].square().mean()

    assert_exact(nn.Sequential(*units), per_unit_plan(2), loss=loss)
    assert_exact(nn.Sequential(*units), Plan(((0, 2),), ("all",) * 2), loss=loss)


class _Counting(nn.BatchNorm1d):
    """Needs its counter."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None
        y = super().forward(x)
        return y if self.num_batches_tracked < 100 else 2 * y


class _ByHand(_Unit):
    def use(self, y: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        with torch.no_grad():
            norm.running_mean.lerp_(y.mean(0), 0.1)
        return norm(y)


class _Checkpointed(_Unit):
    """Runs the norm again in its backward pass, which updates it again, with or without a plan."""

    def use(self, y: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        return checkpoint(norm, y, use_reentrant=False)


@PLANS
@pytest.mark.parametrize(
    "unit",
    [
        _Function,
        _SetsMomentum,
        _Overflowing,
        _ByHand,
        _Checkpointed,
        lambda: nn.Sequential(nn.Linear(6, 6), _Counting(6)),
    ],
    ids=["function", "momentum", "overflow", "by_hand", "checkpoint", "counter"],
)
def test_a_norm_s_statistics_are_updated_once_however_it_is_used(unit, plan):
    assert_exact(nn.Sequential(*[unit() for _ in range(4)]), plan, loss=_loss)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@PLANS
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, partial(nn.InstanceNorm1d, track_running_stats=True)])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_norm_s_statistics_are_updated_once(plan, norm, backend):
    torch._dynamo.reset()
    model = nn.Sequential(
        *[nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), norm(2), nn.Tanh()) for _ in range(4)]
    )
    x = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(1))
    trained = []
    for each in (None, plan):
        units = (torch.compile(unit, backend=backend) for unit in copy.deepcopy(model))
        net = nn.Sequential(*units)
        apply_plan(net, each)
        for _ in range(3):
            net(x).square().mean().backward()
        trained.append([*net.buffers(), *(p.grad for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


class _Plain(_Unit):
    def use(self, y: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        return norm(y)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@PLANS
@pytest.mark.parametrize(("compiled_in", "trained_in"), [(1, 0), (0, 1)])
def test_a_norm_may_be_compiled_or_trained_from_the_second_step_on(plan, compiled_in, trained_in):
    torch._dynamo.reset()
    model = nn.Sequential(*[_Plain() for _ in range(4)])
    trained = []
    for each in (None, plan):
        net = copy.deepcopy(model)
        apply_plan(net, each)
        for step in range(3):
            if step == compiled_in:
                for unit in net:
                    unit.compile(backend="aot_eager")
            net.train(step >= trained_in)
            _loss(net).backward()
        trained.append([*net.buffers(), *(p.grad for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


class _Renormalising(_Unit):
    """Uses the statistics as they were before this batch (Batch Renormalization, Ioffe 2017)."""

    def use(self, y: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        scale = norm.running_var.sqrt().clone()
        return norm(y) / scale


class _RenormalisingIfItCan(nn.BatchNorm1d):
    """Uses them if there are any, as there are not with `track_running_stats=False`."""

    def __init__(self) -> None:
        super().__init__(6)

    def forward(self, x: Tensor) -> Tensor:
        scale = 1.0 if self.running_var is None else self.running_var.sqrt().clone()
        return super().forward(x) / scale


class _Subclass(nn.BatchNorm1d):
    def __init__(self) -> None:
        super().__init__(6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.running_mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return (x - self.running_mean) * self.weight


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@PLANS
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("unit", [_Renormalising, _RenormalisingIfItCan, _Subclass])
def test_a_unit_that_uses_running_statistics_itself_cannot_be_replayed(unit, is_compiled, plan):
    torch._dynamo.reset()
    net = nn.Sequential(*[unit() for _ in range(4)])
    if is_compiled:
        for each in net:
            each.compile(backend="aot_eager")
    apply_plan(net, plan)
    before = list(net.state_dict())
    loss = _loss(net)
    with pytest.raises(
        RuntimeError, match=rf"^unit \d+ \({unit.__name__}\) uses the running statistics of a norm in train"
    ):
        loss.backward()
    assert list(net.state_dict()) == before


@pytest.mark.parametrize("plan", [per_unit_plan(3), Plan((), ("conv_outputs",) * 3)])
def test_batch_norm_with_16_bit_parameters_is_refused_under_a_plan(plan):
    images = torch.randn(2, 3, 8, 8).bfloat16()
    net = build_resnet(11).bfloat16()
    net(images).float().sum().backward()
    apply_plan(net, plan)
    with pytest.raises(
        TypeError, match=r"^batch norm with torch.bfloat16 parameters cannot be replayed exactly"
    ):
        net(images).float().sum().backward()


@PLANS
def test_a_state_that_a_hook_takes_during_a_replay_is_whole(plan):
    model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh()) for _ in range(4)])
    found, whole = list[set[str]](), set(model.state_dict())
    for unit in model:
        unit[2].register_forward_hook(lambda *_: found.append(set(model.state_dict())))
    apply_plan(model, plan)
    _loss(model).backward()
    assert len(found) > 4  # with replays
    assert all(names == whole for names in found)
    assert all(int(unit[1].num_batches_tracked) == 1 for unit in model)


class _CountsAnew(nn.BatchNorm1d):
    """Puts another tensor in its counter's place."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.num_batches_tracked = self.num_batches_tracked + 1
        return y


@PLANS
def test_a_counter_that_a_norm_replaces_is_the_first_run_s(plan):
    units = [nn.Sequential(nn.Linear(6, 6), _CountsAnew(6)) for _ in range(4)]
    assert_exact(nn.Sequential(*units), plan, loss=_loss)
