"""Which gradients stop a step: those with a NaN or an infinity, and no others, however large."""

import pytest
import torch

from deepres.batch_sizes import batch_sizes
from deepres.config import Config
from deepres.data import Batch
from deepres.distributed import this_process
from deepres.engines import NonFiniteError, make_engine
from deepres.models import build_resnet


def _step_with_gradient(value):
    """A step in which one value of one parameter's gradient is that; what momentum has of it."""
    config = Config.model_validate(
        {
            "model": {"depth": 11},
            "data": {"name": "synthetic"},
            "optim": {"weight_decay": 0.0},
            "train": {"max_steps": 1, "micro_batch_size": 2},
        }
    )
    torch.manual_seed(0)
    net = build_resnet(11)
    engine = make_engine(net, config, this_process("cpu"), batch_sizes(config.train, 1))

    def replaced(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[0] = value
        return gradient

    next(net.parameters()).register_hook(replaced)
    engine.step([Batch(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]), torch.arange(2))], 0.0)
    return next(momentum for _, momentum in engine.momentum()).view(-1)[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_enough(value):
    with pytest.raises(NonFiniteError, match="the gradient is not finite"):
        _step_with_gradient(value)


@pytest.mark.parametrize("value", [1e30, -3e38, -0.0, 1e-45])
def test_a_finite_gradient_is_taken_and_keeps_its_bits(value):
    """One whose square is not finite, too."""
    taken, expected = _step_with_gradient(value), torch.tensor(value)
    assert torch.equal(taken.view(torch.int32), expected.view(torch.int32))
