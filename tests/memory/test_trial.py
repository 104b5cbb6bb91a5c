"""Plans that the profiler runs: on the net as training has it."""

import pytest
import torch
from torch import nn

from deepres.config import Config
from deepres.memory.profiled_net import ProfiledNet, Target
from deepres.memory.trial import run_plan, with_measured_costs
from deepres.models import ResidualUnit

CPU = torch.device("cpu")


def _profiled(engine: str) -> ProfiledNet:
    settings = {
        "model": {"depth": 11, "block": "bottleneck"},
        "data": {"name": "synthetic"},
        "train": {"max_steps": 1, "micro_batch_size": 2},
        "precision": {"channels_last": True},
        "engine": {"name": engine},
    }
    return ProfiledNet(Config.model_validate(settings), Target("a device", 2**30, None))


@pytest.mark.parametrize(("engine", "is_channels_last"), [("plain", True), ("deepspeed", False)])
def test_parameters_are_laid_out_as_the_engine_has_them(engine, is_channels_last):
    profiled, seen = _profiled(engine), set[bool]()

    def look(unit: nn.Module, *_: object) -> None:
        weight = unit.convs[1].weight
        seen.add(weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous())

    hooks = [
        module.register_forward_pre_hook(look)
        for module in profiled.net.units.modules()
        if isinstance(module, ResidualUnit)
    ]
    run_plan(profiled, None, CPU, repeats=1)
    with_measured_costs(profiled, CPU, repeats=1)
    for hook in hooks:
        hook.remove()
    assert seen == {is_channels_last}
    assert all(p.grad is None for p in profiled.net.parameters())
