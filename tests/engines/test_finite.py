"""Which gradients stop a step: those with a NaN or an infinity, and no others, however large."""

import pytest
import torch

from deepres.batch_sizes import batch_sizes
from deepres.config import Config
from deepres.data import Batch
from deepres.distributed import this_process
from deepres.engines import NonFiniteError, make_engine
from deepres.models import build_resnet


def _engine(**optim):
    config = Config.model_validate(
        {
            "model": {"depth": 11},
            "data": {"name": "synthetic"},
            "optim": {"weight_decay": 0.0, **optim},
            "train": {"max_steps": 1, "micro_batch_size": 2},
        }
    )
    torch.manual_seed(0)
    return make_engine(build_resnet(11), config, this_process("cpu"), batch_sizes(config.train, 1))


def _step(engine, learning_rate=0.0, *, scale=1.0):
    images = scale * torch.randn(2, 3, 8, 8)
    engine.step([Batch(images, torch.tensor([0, 1]), torch.arange(2))], learning_rate)


def _step_with_gradient(engine, value):
    """A step in which one value of one parameter's gradient is that; what momentum has of it."""

    def replaced(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[0] = value
        return gradient

    next(engine.net.parameters()).register_hook(replaced)
    _step(engine)
    return next(momentum for _, momentum in engine.momentum()).view(-1)[0]


def _step_with_an_impossible_label(engine, learning_rate):
    """One whose loss is infinite and whose gradients are finite."""
    offset = torch.zeros(10)
    offset[0] = -torch.inf
    hook = engine.net.register_forward_hook(lambda _module, _input, logits: logits + offset)
    try:
        _step(engine, learning_rate)
    finally:
        hook.remove()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_enough(value, fused):
    with pytest.raises(NonFiniteError, match="the gradient is not finite"):
        _step_with_gradient(_engine(fused=fused), value)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("what", ["loss", "loss alone", "gradient"])
def test_a_bad_step_changes_neither_parameters_nor_momentum(fused, what):
    """Nor does it where the update has been launched before that is known; a good step before it does."""
    engine = _engine(fused=fused)
    stem = next(engine.net.parameters()).detach()
    drawn = stem.clone()
    _step(engine, 0.1)
    assert not torch.equal(stem, drawn)
    before = {name: p.detach().clone() for name, p in engine.net.named_parameters()}
    momentum = dict(engine.momentum())
    bad_step = {
        "gradient": lambda: _step_with_gradient(engine, float("nan")),
        "loss": lambda: _step(engine, 0.1, scale=float("inf")),
        "loss alone": lambda: _step_with_an_impossible_label(engine, 0.1),
    }[what]
    with pytest.raises(NonFiniteError, match=f"the {what.split()[0]} is not finite"):
        bad_step()
    assert all(torch.equal(p, before[name]) for name, p in engine.net.named_parameters())
    assert all(torch.equal(m, momentum[name]) for name, m in engine.momentum())


@pytest.mark.parametrize("value", [1e30, -3e38, -0.0, 1e-45])
def test_a_finite_gradient_is_taken_and_keeps_its_bits(value):
    """One whose square is not finite, too."""
    taken, expected = _step_with_gradient(_engine(), value), torch.tensor(value)
    assert torch.equal(taken.view(torch.int32), expected.view(torch.int32))
