"""A unit under a plan sees what it sees without one; where it passes gradients by other ways, that is refused."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from deepres import apply_plan
from deepres.recompute import Plan, keep_all_plan, per_unit_plan, uniform_plan
from deepres.recompute.executor import refuse_draws_of_cudnn
from deepres.recompute.unit_states import UnitStates
from tests.recompute.exactness import Loss, assert_exact, assert_same_bits, cross_entropy, small_net

PLANS = {
    "per unit": per_unit_plan(4),
    "nested": Plan(((0, 3), (1, 2)), ("all",) * 4),
    "kept at the end": Plan(((0, 2),), ("all",) * 4),
}
OTHER_WAYS = "^under a plan a gradient may enter a unit through its output alone"


class _LSTM(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class _ThroughTime(nn.Module):
    """Works along both axes: its gradients are laid out otherwise than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.features = nn.Linear(10, 10), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.time(torch.tanh(self.features(x)).transpose(1, 2)).transpose(1, 2)


class _SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return x + y * self.gate(y)


class _Nearest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


def _linear() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.Tanh())


def _four(make: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[make() for _ in range(4)])


def _loss(*shape: int, memory_format: torch.memory_format = torch.contiguous_format) -> Loss:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(memory_format=memory_format)
    return lambda model: model(x.clone().requires_grad_()).square().mean()


SEQUENCES = _loss(3, 10, 32)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("training", [True, False])
def test_modules_that_choose_other_kernels_without_gradients_train_exactly(plan, training):
    for make in (
        lambda: _LSTM(32, 32, batch_first=True),
        lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True),
    ):
        assert_exact(_four(make).train(training), plan, loss=SEQUENCES)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_gradients_pass_from_unit_to_unit_in_the_layout_that_they_have(plan):
    assert_exact(_four(_ThroughTime), plan, loss=SEQUENCES)
    net = _four(_SqueezeExcite).to(memory_format=torch.channels_last)
    assert_exact(net, plan, loss=_loss(3, 8, 9, 9, memory_format=torch.channels_last))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_unit_may_return_numbers_that_have_no_gradient(plan):
    net = nn.Sequential(nn.Linear(32, 20), _Nearest(), nn.Embedding(20, 32), nn.Linear(32, 32))
    assert_exact(net, plan, loss=SEQUENCES)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_gradients_of_a_parameter_that_units_share_are_added_up_as_without_a_plan(plan):
    unit = _linear()
    assert_exact(_four(lambda: unit), plan, loss=SEQUENCES, num_steps=1)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_hook_on_a_unit_may_hook_its_output(plan):
    def loss(net: nn.Module) -> Tensor:
        for unit in net:
            unit.register_forward_hook(lambda _unit, _x, y: (y.register_hook(lambda g: g / 2), None)[1])
        return SEQUENCES(net)

    assert_exact(_four(_linear), plan, loss=loss, num_steps=1)


# Ways that a plan would lose


@pytest.mark.parametrize("segments", [((0, 4),), ((0, 1),), ((2, 3),)])
@pytest.mark.parametrize("unit", [_linear, lambda: nn.Linear(32, 32), lambda: nn.Unflatten(2, (4, 8))])
def test_a_loss_on_what_a_hook_took_out_of_a_unit_is_refused(segments, unit):
    """Of a discarded unit and of a kept one; where its gradient passes saved tensors and where not."""
    net, found = nn.Sequential(_linear(), _linear(), unit(), nn.Flatten()), []
    apply_plan(net, Plan(segments, ("all",) * 4))
    net[2].register_forward_hook(lambda _unit, _x, y: found.append(y))
    loss = net(torch.randn(3, 10, 32)).mean()
    with pytest.raises(RuntimeError, match=OTHER_WAYS):
        (loss + found[0].square().mean()).backward()


def test_a_loss_on_what_a_hook_took_out_of_a_residual_unit_is_refused():
    net, found = copy.deepcopy(small_net(20)), []
    apply_plan(net, per_unit_plan(9))
    net.units[4].register_forward_hook(lambda _unit, _x, y: found.append(y))
    with pytest.raises(RuntimeError, match=OTHER_WAYS):
        (cross_entropy(net) + found[0].square().mean()).backward()
    assert_exact(net, per_unit_plan(9))


@pytest.mark.parametrize("take", [lambda x: x, lambda x: x.square().mean()], ids=["input", "of the input"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_loss_on_what_a_hook_saw_go_into_a_residual_unit_is_refused(everywhere, take):
    net, found = copy.deepcopy(small_net(20)), []
    apply_plan(net, per_unit_plan(9))
    register = (
        nn.modules.module.register_module_forward_pre_hook
        if everywhere
        else net.units[4].register_forward_pre_hook
    )
    handle = register(lambda unit, x: found.append(take(x[0])) if unit is net.units[4] else None)
    try:
        with pytest.raises(RuntimeError, match=OTHER_WAYS):
            (cross_entropy(net) + found[0].square().mean()).backward()
    finally:
        handle.remove()


class _Scaled(nn.Module):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) * self.scale)


def _scaled(net: nn.Sequential) -> Tensor:
    """Scales all units by one tensor, and returns what it comes from."""
    source = torch.ones(32, requires_grad=True)
    scale = torch.exp(source)
    for unit in net:
        unit.__dict__["scale"] = scale
    return source


def test_a_tensor_between_units_beside_their_outputs_is_refused():
    net = _four(_Scaled)
    source = _scaled(net)
    apply_plan(net, keep_all_plan(4))
    SEQUENCES(net).backward()
    assert source.grad is not None
    _scaled(net)
    apply_plan(net, per_unit_plan(4))
    with pytest.raises(RuntimeError, match=OTHER_WAYS):
        SEQUENCES(net).backward()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_frozen_unit_that_trains_a_tensor_which_is_not_its_own_is_refused(plan):
    net = _four(_Scaled)
    net[:2].requires_grad_(False)
    _scaled(net)
    apply_plan(net, plan)
    with pytest.raises(RuntimeError, match=r"^unit 0 \(_Scaled\) uses a tensor that needs a gradient and is"):
        net(torch.randn(3, 10, 32))


def test_weights_may_be_computed_once_for_all_runs():
    net = _four(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)))

    def loss(net: nn.Module) -> Tensor:
        with nn.utils.parametrize.cached():
            return SEQUENCES(net)

    assert_exact(net, per_unit_plan(4), loss=SEQUENCES)
    assert_exact(net, per_unit_plan(4), loss=loss)


class _OfItsOwnGradient(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(torch.tanh(super().forward(z)).sum(), z)
        return super().forward(x) + gradient + torch.func.grad(lambda z: torch.tanh(z).sum())(x)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_unit_may_compute_gradients_of_its_own(plan):
    assert_exact(_four(lambda: _OfItsOwnGradient(32, 32)), plan, loss=SEQUENCES)


class _WithoutGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(_ctx: object, *_: Tensor) -> None:
        return None


def test_where_no_gradient_comes_back_there_is_none():
    weight = torch.ones(32, requires_grad=True)
    for plan in (None, *PLANS.values()):
        net = _four(_linear)
        apply_plan(net, plan)
        (_WithoutGradient.apply(net(torch.randn(3, 10, 32))) * weight).sum().backward()
        assert all(p.grad is None for p in net.parameters())


class _Decaying(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.mul_(0.99)
        return super().forward(x)


def test_a_unit_that_changes_its_parameter_cannot_be_replayed_but_kept():
    net = _four(lambda: _Decaying(32, 32))
    apply_plan(net, PLANS["kept at the end"])
    with pytest.raises(
        RuntimeError, match=r"^unit \d+ \(_Decaying\) changes its parameter 'weight' whenever it is run"
    ):
        SEQUENCES(net).backward()
    net[0], net[1] = nn.Linear(32, 32), nn.Linear(32, 32)
    apply_plan(net, None)
    assert_exact(net, PLANS["kept at the end"], loss=SEQUENCES)


def test_a_buffer_made_in_inference_mode_may_be_read():
    with torch.inference_mode():
        shift = torch.ones(10)
    net = _four(lambda: nn.BatchNorm1d(10))
    for unit in net:
        unit.register_buffer("shift", shift)
    assert_exact(net, per_unit_plan(4), loss=SEQUENCES)


# Hooks of parameters, which would be given parts of a gradient


def _clip(net: nn.Module) -> None:
    for p in net.parameters():
        p.register_hook(lambda gradient: gradient.clamp(-1e-4, 1e-4))


def test_hooks_on_parameters_that_units_share_are_refused():
    unit = _linear()
    net = _four(lambda: unit)
    apply_plan(net, per_unit_plan(4))
    _clip(net)
    with pytest.raises(RuntimeError, match=r"^under a plan, parameters that units share must not have hooks"):
        net(torch.randn(3, 10, 32))


def test_hooks_on_parameters_and_two_forward_passes_before_a_backward_pass_are_refused():
    net = _four(_linear)
    apply_plan(net, per_unit_plan(4))
    (SEQUENCES(net) + SEQUENCES(net)).backward()
    _clip(net)
    with pytest.raises(
        RuntimeError, match="with hooks on parameters, each forward pass needs a backward pass"
    ):
        (SEQUENCES(net) + SEQUENCES(net)).backward()
    assert_exact(
        _four(_linear), per_unit_plan(4), loss=lambda net: (_clip(net), SEQUENCES(net))[1], num_steps=1
    )


def _penalty(net: nn.Module) -> Tensor:
    return 1e-2 * sum(p.square().sum() for p in net.parameters())


def _tied(net: nn.Module) -> Tensor:
    return net[1][0].weight.sum()


@pytest.mark.parametrize("other_way", [_penalty, _tied])
@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_parameters_that_the_loss_depends_on_in_another_way_too_are_refused(other_way, register):
    net, calls = _four(_linear), []
    apply_plan(net, per_unit_plan(4))
    (SEQUENCES(net) + other_way(net)).backward()  # without hooks it does not matter
    handles = [getattr(p, register)(calls.append) for p in net.parameters()]
    SEQUENCES(net).backward()
    assert len(calls) == len(handles)
    other_way(net).backward()  # alone
    loss = SEQUENCES(net) + other_way(net)
    with pytest.raises(RuntimeError, match=r"^under a plan, a parameter that has hooks or that Distributed"):
        loss.backward()
    apply_plan(net, uniform_plan(4, 2))
    SEQUENCES(net).backward()
    apply_plan(net, None)
    (SEQUENCES(net) + other_way(net)).backward()
    apply_plan(net, per_unit_plan(4))
    copied = copy.deepcopy(net)
    for handle in handles:
        handle.remove()
    (SEQUENCES(net) + other_way(net)).backward()
    (SEQUENCES(copied) + other_way(copied)).backward()


def test_a_planned_net_whose_parameters_have_hooks_goes_with_its_last_reference():
    net = _four(_linear)
    apply_plan(net, per_unit_plan(4))
    _clip(net)
    SEQUENCES(net).backward()
    gone = weakref.ref(net[0])
    del net
    gc.collect()
    assert gone() is None


def test_a_parameter_with_hooks_that_is_replaced_goes_with_its_last_reference():
    net = _four(_linear)
    apply_plan(net, per_unit_plan(4))
    _clip(net)
    SEQUENCES(net).backward()
    gone = weakref.ref(next(net[0].parameters()))
    net[0] = _linear()
    SEQUENCES(net).backward()
    gc.collect()
    assert gone() is None


def test_parameters_that_two_planned_sequences_share_must_not_have_hooks():
    first, second = _four(_linear), _four(_linear)
    second[2][0].weight = first[1][0].weight
    for units in (first, second):
        apply_plan(units, per_unit_plan(4))
    first[1][0].weight.register_hook(lambda gradient: gradient)
    loss = second(first(torch.randn(3, 10, 32))).square().mean()
    with pytest.raises(RuntimeError, match=r"from the units of one sequence alone"):
        loss.backward()


def test_layers_that_units_come_to_share_under_a_plan_are_seen():
    net = _four(_linear)
    apply_plan(net, per_unit_plan(4))
    SEQUENCES(net).backward()
    net[3][0] = net[0][0]
    _clip(net)
    with pytest.raises(RuntimeError, match=r"^under a plan, parameters that units share must not have hooks"):
        SEQUENCES(net)


def test_a_layer_that_is_replaced_before_the_backward_pass_is_refused():
    net = _four(_linear)
    apply_plan(net, per_unit_plan(4))
    loss = SEQUENCES(net)
    net[2][0] = nn.Linear(32, 32)
    with pytest.raises(
        RuntimeError, match=r"^a layer of a unit was replaced between a forward pass under a plan"
    ):
        loss.backward()
    SEQUENCES(net).backward()


def test_threads_train_nets_with_hooks_of_their_own():
    nets = [_four(_linear) for _ in range(2)]
    for net in nets:
        apply_plan(net, per_unit_plan(4))
        _clip(net)

    def train(net: nn.Module) -> None:
        for _ in range(20):
            SEQUENCES(net).backward()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(train, nets))
    _penalty(nets[0]).backward()  # in a pass of its own
    SEQUENCES(nets[0]).backward()


class _Noisy(nn.Module):
    """Draws, and leaves the generators where they were."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) * self.draw())

    def draw(self) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            return torch.rand(32)


class _Seeding(_Noisy):
    def draw(self) -> Tensor:
        torch.manual_seed(7)
        return torch.rand(32)


@pytest.mark.parametrize("plan", PLANS.values())
def test_draws_that_leave_the_generators_where_they_were_are_drawn_again(plan):
    def loss(net: nn.Module) -> Tensor:
        return F.dropout(net(torch.ones(3, 32)), 0.5).square().mean()

    assert_exact(_four(_Noisy), plan, loss=loss)


@pytest.mark.parametrize("plan", PLANS.values())
def test_units_may_seed_the_generators(plan):
    assert_exact(_four(_Seeding), plan, loss=lambda net: net(torch.ones(3, 32)).square().mean())


def test_units_may_come_to_share_a_parameter_under_a_plan():
    def tied(plan: Plan | None) -> list[Tensor | None]:
        torch.manual_seed(0)
        net = _four(_linear)
        apply_plan(net, plan)
        net[3][0].weight = net[0][0].weight
        SEQUENCES(net).backward()
        return [p.grad for p in net.parameters()]

    for plan in PLANS.values():
        assert_same_bits(tied(plan), tied(None))


# Other kinds of derivatives, other devices


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own use of it
def test_transforms_of_torch_func_and_forward_mode_are_refused():
    net, x = _four(_linear), torch.randn(3, 10, 32)
    apply_plan(net, per_unit_plan(4))
    message = (
        r"^a model under a plan supports loss.backward\(\) only, not the transforms of torch.func or forward"
    )
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(lambda x: net(x).mean())(x)
    with pytest.raises(RuntimeError, match=message):
        torch.func.vmap(net)(x)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=message):
        net(forward_ad.make_dual(x, x))
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(net)(x), net(x))


class _ToMeta(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to("meta")


def test_a_device_whose_random_numbers_are_not_replayed_is_refused():
    net = _four(_linear).to("meta")
    apply_plan(net, per_unit_plan(4))
    with pytest.raises(RuntimeError, match="CPUs and CUDA devices alone, got an input on meta"):
        net(torch.randn(3, 10, 32, device="meta"))


def test_units_on_several_devices_are_refused():
    net = _four(_linear)
    apply_plan(net, per_unit_plan(4))
    with pytest.raises(
        RuntimeError, match="run on one device, but their parameters are on cpu and their input is on meta"
    ):
        net(torch.randn(3, 10, 32, device="meta"))
    net[2] = _ToMeta()
    with pytest.raises(
        RuntimeError, match=r"^unit 2 \(_ToMeta\) leads from cpu to meta: under a plan all units run"
    ):
        net(torch.randn(3, 10, 32))


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_inside_of_cudnn_s_layers_is_refused(layer):
    def states(**settings):
        return UnitStates([nn.Linear(4, 4), nn.Sequential(layer(4, 4, **settings))])

    refuse_draws_of_cudnn(states(num_layers=2))
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        refuse_draws_of_cudnn(states(dropout=0.5))
    two_layers = states(num_layers=2, dropout=0.5)
    with pytest.raises(
        RuntimeError, match=rf"^dropout between the layers of {layer.__name__} in unit 1 draws"
    ):
        refuse_draws_of_cudnn(two_layers)
    two_layers.units[1].eval()
    refuse_draws_of_cudnn(two_layers)
