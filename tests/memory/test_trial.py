"""Plans that the profiler runs: on the net as training has it."""

import pytest
import torch
from torch import nn

from deepres.config import Config
from deepres.memory import trial
from deepres.memory.profiled_net import ProfiledNet, Target
from deepres.memory.trial import run_plan, with_measured_costs
from deepres.models import ResidualUnit
from deepres.recompute.chain import combine

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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_costs_take_the_measured_times_and_a_cards_transients_and_grow_with_the_batch(monkeypatch, device):
    """As if measured: 3 ms for every time, and of bytes a hundred more than was predicted."""
    profiled, asked = _profiled("plain"), []
    before = profiled.scaling.chains

    def cost(name: str, value: float) -> float:
        return 3.0 if name.endswith("_ms") else value if name == "reads_input" else value + 100

    def measure(*_: object, repeats: int, **__: object) -> object:
        asked.append(repeats)
        return combine((before[0],), cost)

    monkeypatch.setattr(trial, "measure_chain", measure)
    with_measured_costs(profiled, torch.device(device), repeats=7)
    assert asked == [7]
    assert profiled.scaling.batches == (2, 4)
    for factor, old, new in zip((1, 2), before, profiled.scaling.chains, strict=True):
        more = 100 * factor if device == "cuda" else 0
        assert (new.fixed_ms, new.fixed_bytes) == (3 * factor, old.fixed_bytes)
        assert (new.stem_bytes, new.head_bytes) == (old.stem_bytes + more, old.head_bytes + more)
        was, now = old.units[1], new.units[1]
        assert (now.forward_ms, now.backward_ms, now.output_bytes) == (
            3 * factor,
            3 * factor,
            was.output_bytes,
        )
        assert now.forward_temp_bytes == was.forward_temp_bytes + more
        for kept_before, kept in zip(was.retentions, now.retentions, strict=True):
            assert (kept.kept_bytes, kept.freed_bytes) == (kept_before.kept_bytes, kept_before.freed_bytes)
            assert kept.backward_temp_bytes == kept_before.backward_temp_bytes + more
