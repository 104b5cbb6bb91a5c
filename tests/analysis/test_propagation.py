"""Equations 4, 5 and 8 of the paper, to rounding, and what is measured against plain autograd."""

import copy
import itertools
import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.analysis import Propagation, measure_propagation
from deepres.models import BatchNorm2d, ResNet, build_resnet
from deepres.net_options import ACTIVATIONS, SHORTCUTS


def _net(depth: int = 8, **arguments: object) -> ResNet:
    net = build_resnet(depth, **arguments).double()
    for module in net.modules():
        if isinstance(module, BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return net


def _batch(size: int = 3, side: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, side, side, dtype=torch.float64), torch.randint(10, (size,))


def _measure(net: ResNet) -> Propagation:
    return measure_propagation(net, *_batch())


def _norms(tensors: list[Tensor]) -> list[float]:
    return [tensor.detach().norm().item() for tensor in tensors]


@pytest.mark.parametrize(("activation", "shortcut"), list(product(ACTIVATIONS, SHORTCUTS)))
def test_norms_are_those_of_plain_autograd_through_the_whole_net(activation, shortcut):
    net = _net(activation=activation, shortcut=shortcut)
    images, labels = _batch()
    found = measure_propagation(net, images, labels, seed=7)

    states: list[Tensor] = []
    for unit in net.units:
        unit.register_forward_pre_hook(lambda _, x: states.append(x[0]))
    torch.manual_seed(7)
    states_end = net.units.register_forward_hook(lambda _, __, y: states.append(y))
    loss = F.cross_entropy(net(images), labels)
    states_end.remove()
    gradients = torch.autograd.grad(loss, states)
    assert math.isclose(found.loss, loss.item(), rel_tol=1e-12)
    for ours, theirs in (
        (found.gradient_norm, _norms(list(gradients))),
        (found.gradient_rms, [float(g.square().mean().sqrt()) for g in gradients]),
        (found.signal_rms, [float(x.detach().square().mean().sqrt()) for x in states]),
    ):
        assert ours == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize(("activation", "shortcut"), list(product(ACTIVATIONS, SHORTCUTS)))
def test_the_shortcuts_share_is_the_gradient_of_the_net_with_constant_residuals(activation, shortcut):
    net = _net(activation=activation, shortcut=shortcut)
    images, labels = _batch()
    found = measure_propagation(net, images, labels, seed=7)

    torch.manual_seed(7)
    states = [net.stem(images)]
    terms = []
    for unit in net.units:
        h, residual = unit.terms(states[-1])
        terms.append((h, residual))
        states.append(unit.activate(h + residual.detach()))
    gradients = torch.autograd.grad(F.cross_entropy(net.head(states[-1]), labels), states)
    assert found.shortcut_gradient_norm == pytest.approx(_norms(list(gradients)), rel=1e-10)
    ratios = [(h.norm() / residual.norm()).item() for h, residual in terms]
    assert found.term_ratio == pytest.approx(ratios, rel=1e-10)


def test_equation_4_every_x_is_any_earlier_one_plus_the_residuals_between():
    net = _net(20, preactivation="own")
    states, residuals = [net.stem(_batch()[0])], []
    for unit in net.units:
        h, residual = unit.terms(states[-1])
        residuals.append(residual)
        states.append(unit.activate(h + residual))
    for stage in range(3):
        for first, last in itertools.combinations(range(3 * stage + 1, 3 * stage + 4), 2):
            expected = states[first] + sum(residuals[first:last])
            torch.testing.assert_close(states[last], expected, rtol=0, atol=1e-12)


def test_equation_5_the_gradient_is_that_of_the_last_x_plus_what_comes_through_the_residuals():
    """dE/dx_l = dE/dx_L (1 + d/dx_l sum F): the 1 is measured as the shortcuts' share."""
    net = _net(20)
    units = list(net.units)[1:3]
    first = torch.randn(2, 16, 8, 8, dtype=torch.float64, requires_grad=True)
    x, total = first, torch.zeros((), dtype=torch.float64)
    for unit in units:
        h, residual = unit.terms(x)
        total = total + residual
        x = unit.activate(h + residual)
    gradient = torch.randn_like(x)
    (whole,) = torch.autograd.grad(x, first, gradient, retain_graph=True)
    (through_residuals,) = torch.autograd.grad(total, first, gradient)
    torch.testing.assert_close(whole, gradient + through_residuals, rtol=0, atol=1e-12)
    assert through_residuals.norm() > 0.1


@pytest.mark.parametrize("preactivation", ["own", "shared"])
@pytest.mark.parametrize("depth", [20, 29])
def test_equation_8_the_share_shrinks_by_exactly_one_half_a_unit_under_a_scale_of_one_half(
    depth, preactivation
):
    found = _measure(_net(depth, shortcut="constant_scaling", preactivation=preactivation))
    halved = [
        before == after / 2
        for before, after, is_direct in zip(
            found.shortcut_gradient_norm, found.shortcut_gradient_norm[1:], found.is_direct, strict=False
        )
        if is_direct
    ]
    assert len(halved) == sum(found.is_direct) >= 6
    assert all(halved)
    assert found.direct_factor == found.direct_lambdas == 0.5 ** len(halved)
    assert found.lambda_product[0] == 0.5**found.num_units
    assert found.lambda_product[-1] == 1.0


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_equation_8_holds_for_any_lambda_to_rounding(scale):
    found = _measure(_net(20, shortcut="constant_scaling", shortcut_scale=scale, residual_scale=1.0))
    assert math.isclose(found.direct_factor, found.direct_lambdas, rel_tol=1e-12)
    assert math.isclose(found.direct_lambdas, scale ** sum(found.is_direct), rel_tol=1e-12)


def test_through_identity_shortcuts_the_gradient_passes_a_stage_unchanged():
    found = _measure(_net(20))
    assert found.is_direct == (False, True, True) * 3
    for stage in range(3):
        shares = found.shortcut_gradient_norm[3 * stage + 1 : 3 * stage + 4]
        assert len(set(shares)) == 1


@pytest.mark.parametrize(
    "net",
    [{"shortcut": "shortcut_only_gating"}, {"activation": "original"}, {"activation": "bn_after_addition"}],
    ids=str,
)
def test_the_equations_name_no_lambda_where_shortcuts_are_no_constant_factor_or_f_no_identity(net):
    found = _measure(_net(**net))
    assert found.lambdas is found.lambda_product is found.direct_lambdas is None


def test_a_residual_of_zero_makes_an_infinite_ratio():
    net = _net()
    nn.init.zeros_(net.units[1].convs[-1].weight)
    assert _measure(net).term_ratio[1] == math.inf


@pytest.mark.parametrize("training", [True, False])
def test_the_net_its_gradients_and_the_random_numbers_stay_as_they_are(training):
    net = _net(shortcut="dropout").train(training)
    before = copy.deepcopy(net.state_dict())
    images, labels = _batch()
    state = torch.get_rng_state()
    first, second = (measure_propagation(net, images, labels) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == second
    assert net.training is training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_it_measures_where_gradients_are_switched_off():
    with torch.no_grad():
        assert _measure(_net()).gradient_norm[0] > 0


@pytest.mark.parametrize("depth", [110])
def test_in_resnet_110_scaling_by_half_loses_the_share_that_identity_keeps(depth):
    """The measured first over last is the product of lambdas within a factor of 2; identity keeps every stage's."""
    images, labels = torch.randn(2, 3, 16, 16), torch.randint(10, (2,))
    scaled, identity = (
        measure_propagation(build_resnet(depth, shortcut=name), images, labels)
        for name in ("constant_scaling", "identity")
    )
    assert 0.5 < scaled.relative_shortcut_gradient[0] / scaled.lambda_product[0] < 2
    assert identity.direct_factor == 1
    assert identity.relative_shortcut_gradient[0] > 1e-2
