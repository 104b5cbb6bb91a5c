"""Momentum as checkpoints take it from the plain engine, and give it back."""

import torch

from deepres.data import Batch
from tests.engines.fp16_engine import fp16_engine


def test_a_skipped_step_makes_no_momentum_and_forgets_none():
    engine, factor = fp16_engine(), 1.0

    def spoil(_module, _input, logits):
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * factor)

    engine.net.register_forward_hook(spoil)
    batches = [Batch(torch.randn(4, 3, 8, 8), torch.randint(10, (4,)), torch.arange(4))]
    found = []
    for factor in (float("inf"), 1.0, float("inf")):  # noqa: B007 (spoil reads it)
        engine.step(batches, 0.1)
        found.append(len(list(engine.momentum())))
    assert found == [0, len(list(engine.net.parameters())), len(list(engine.net.parameters()))]


def test_momentum_that_was_loaded_is_there_before_a_step():
    engine = fp16_engine()
    engine.load_momentum(lambda name: torch.ones_like(engine.net.get_parameter(name)))
    momentum = dict(engine.momentum())
    assert momentum.keys() == dict(engine.net.named_parameters()).keys()
    assert all((tensor == 1).all() for tensor in momentum.values())


def test_what_was_taken_for_a_checkpoint_does_not_follow_the_training():
    """It may be written while the next steps run."""
    engine = fp16_engine()

    def step() -> None:
        engine.step([Batch(torch.randn(4, 3, 8, 8), torch.randint(10, (4,)), torch.arange(4))], 0.1)

    step()
    ways = (engine.whole_parameters, engine.momentum, engine.averaged_buffers, engine.state)
    taken = [dict(way()) for way in ways]
    before = [{name: tensor.clone() for name, tensor in each.items()} for each in taken]
    step()
    for way, each, was in zip(ways, taken, before, strict=True):
        assert all(torch.equal(each[name], was[name]) for name in was)
        assert not all(torch.equal(tensor, was[name]) for name, tensor in dict(way()).items())
