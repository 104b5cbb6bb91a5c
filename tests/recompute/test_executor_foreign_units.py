"""Units that do what few units do: trained exactly, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from deepres import apply_plan
from deepres.recompute import Plan, per_unit_plan
from tests.recompute.exactness import assert_exact

PLANS = pytest.mark.parametrize("plan", [per_unit_plan(4), Plan(((0, 4), (1, 3)), ("all",) * 4)])


def _images() -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def _loss(model: nn.Module) -> Tensor:
    return model(_images()).square().sum()


class _Adding(nn.Module):
    """Adds what a tensor of its own, of all units, makes of x."""

    def __init__(self, box: list[Tensor]) -> None:
        super().__init__()
        self.linear, self._box = nn.Linear(8, 8), box

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self._box[0]


@PLANS
@pytest.mark.parametrize("compute", [lambda p: p.bfloat16().float(), lambda p: p - p.mean(0), Tensor.t])
def test_a_computed_tensor_that_units_share_is_refused_even_if_its_graph_saves_nothing(plan, compute):
    box = [compute(nn.Parameter(torch.randn(8, 8)))]
    net = nn.Sequential(*[_Adding(box) for _ in range(4)])
    apply_plan(net, plan)
    loss = _loss(net)
    with pytest.raises(RuntimeError, match="a closure took out of a unit or into several"):
        loss.backward()


class _Forking(nn.Linear):
    """Draws random numbers, and puts the generator back."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            return super().forward(x * torch.rand_like(x))


class _NoisyGradient(nn.Linear):
    """Draws random numbers in its backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        y.register_hook(lambda gradient: gradient + torch.randn_like(gradient))
        return y


def test_replays_draw_the_same_numbers_though_backward_passes_draw_too():
    net = nn.Sequential(_Forking(8, 8), _NoisyGradient(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    assert_exact(
        net, Plan(((0, 1),), ("all",) * 4), loss=_loss
    )  # the others are not replayed, and draw as they would


class _Backbone(nn.Linear):
    """Trained, as it seems."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@PLANS
def test_frozen_units_after_one_without_a_gradient_choose_the_kernels_that_they_would(plan):
    frozen = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval() for _ in range(2)]
    net = nn.Sequential(_Backbone(8, 8), *(each.requires_grad_(False) for each in frozen), nn.Linear(8, 8))

    def loss(model: nn.Module) -> Tensor:
        return model(_images().view(2, 2, 8)).square().mean()

    assert_exact(net, plan, loss=loss)


def test_an_output_without_a_gradient_has_none():
    net = nn.Sequential(nn.Linear(8, 8), _Backbone(8, 8))
    apply_plan(net, per_unit_plan(2))
    assert not net(_images()).requires_grad


class _Local(nn.Module):
    """Trains a part of itself in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.local = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.local(x.detach()).square().mean().backward()
        return self.linear(x)


@PLANS
def test_a_unit_with_a_backward_pass_of_its_own_cannot_be_replayed(plan):
    net = nn.Sequential(*[_Local() for _ in range(4)])
    apply_plan(net, plan)
    loss = _loss(net)
    with pytest.raises(
        RuntimeError, match=r"^unit \d \(_Local\) changes its gradient 'local.weight' whenever"
    ):
        loss.backward()


def test_a_backward_pass_in_inference_mode_is_refused():
    net = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
    apply_plan(net, per_unit_plan(4))
    loss = _loss(net)
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match="cannot replay units in inference mode"),
    ):
        loss.backward()


def test_a_frozen_first_unit_takes_a_tensor_made_in_inference_mode():
    net = nn.Sequential(nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8))
    with torch.inference_mode():
        x = _images()
    other = copy.deepcopy(net)
    apply_plan(other, per_unit_plan(2))
    for each in (net, other):
        each(x).sum().backward()
    assert torch.equal(net[1].weight.grad, other[1].weight.grad)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_torchscript_inside_of_a_unit_is_refused():
    net = nn.Sequential(nn.Linear(8, 8), nn.Sequential(torch.jit.script(nn.Linear(8, 8))))
    with pytest.raises(TypeError, match=r"^unit 1 contains TorchScript, which a plan cannot replay"):
        apply_plan(net, per_unit_plan(2))


class _Kind(Tensor):
    """A tensor of another kind."""


class _Making(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).as_subclass(_Kind)


def test_tensors_of_another_kind_are_refused_between_units():
    net = nn.Sequential(_Making(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    apply_plan(net, per_unit_plan(3))
    loss = net(_images()).sum()
    with pytest.raises(
        TypeError, match=r"^unit [12] \(Linear\) takes a _Kind, which its replay would not get"
    ):
        loss.backward()


class _Sparse(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to_sparse()


class _Nested(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nested.as_nested_tensor(list(super().forward(x)), layout=torch.jagged)


@pytest.mark.parametrize(("unit", "kind"), [(_Sparse, "torch.sparse_coo"), (_Nested, "nested")])
def test_sparse_and_nested_tensors_between_units_are_refused(unit, kind):
    net = nn.Sequential(unit(8, 8), nn.Identity())
    apply_plan(net, per_unit_plan(2))
    with pytest.raises(TypeError, match=rf"^unit 0 \({unit.__name__}\) returns a {kind} tensor"):
        net(_images())
