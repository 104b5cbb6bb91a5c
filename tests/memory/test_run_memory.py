"""What a run holds beside activations."""

from dataclasses import replace

import pytest
import torch

from deepres.batch_sizes import batch_sizes
from deepres.config import (
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    PrecisionConfig,
    RecomputeConfig,
    TrainConfig,
)
from deepres.data import Batch
from deepres.distributed import this_process
from deepres.engines import make_engine
from deepres.memory import AllocatedBytes, measure_activation_peak
from deepres.memory.predict import predict_chain
from deepres.memory.run_memory import accumulates, other_memory, plan_for, predict_run_chain
from deepres.recompute import Chain, Retention, UnitCost, smallest_budget, sqrt_plan
from deepres.recompute.frontier import Frontier
from deepres.run_net import net_of


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_holds_its_batch_as_often_as_is_counted(channels_last):
    num = 256
    config = Config(
        model=ModelConfig(depth=11),
        data=DataConfig(name="synthetic"),
        train=TrainConfig(max_steps=1, micro_batch_size=num),
        engine=EngineConfig(device="cpu"),
        precision=PrecisionConfig(channels_last=channels_last),
    )
    net = net_of(config)
    engine = make_engine(net, config, this_process("cpu"), batch_sizes(config.train, 1))
    images, labels = torch.randn(num, 3, 32, 32), torch.zeros(num, dtype=torch.long)
    meter = AllocatedBytes(torch.device("cpu"))
    with meter:
        engine.run_passes([Batch(images, labels, labels)])
    laid_out = images.contiguous(memory_format=config.precision.memory_format)
    activations = measure_activation_peak(net, engine.module, laid_out, labels)
    parameters = sum(p.numel() for p in net.parameters())
    counted = other_memory(
        config, num_parameters=parameters, image_size=32, micro_size=num, world_size=1, on_cuda=False
    )
    beside = images.nbytes + labels.nbytes + meter.peak_bytes - activations - counted.states.gradients_bytes
    assert counted.batch_bytes == pytest.approx(beside, abs=images.nbytes // 10)


def test_images_that_live_on_the_device_count_and_a_card_has_a_reserve():
    config = Config(
        model=ModelConfig(depth=11),
        data=DataConfig(name="cifar10"),
        train=TrainConfig(max_steps=1, micro_batch_size=4),
    )
    sizes = {"num_parameters": 10, "image_size": 32, "micro_size": 4, "world_size": 1}
    on_cpu, on_card = (other_memory(config, **sizes, on_cuda=on_cuda) for on_cuda in (False, True))
    pixels = 3 * 32 * 32
    assert on_cpu.batch_bytes == 4 * (4 * pixels + 8) + 60_000 * (pixels + 8)
    assert on_card == replace(on_cpu, workspace_bytes=256 * 2**20)
    assert on_card.total_bytes == on_cpu.total_bytes + 256 * 2**20


@pytest.mark.parametrize(
    ("train", "world_size", "expected"),
    [
        ({"global_batch_size": 8}, 2, False),
        ({"global_batch_size": 16}, 2, True),
        ({"accumulation": 1}, 2, False),
        ({"accumulation": 2}, 2, True),
        ({}, 1, False),
    ],
)
def test_a_step_accumulates_if_its_micro_batches_are_several(train, world_size, expected):
    config = TrainConfig(max_steps=1, micro_batch_size=4, **train)
    assert accumulates(config, 4, world_size) == expected
    assert (batch_sizes(config, world_size).accumulation > 1) == expected


def _config(**sections):
    settings = {
        "model": {"depth": 11},
        "data": {"name": "synthetic"},
        "train": {"max_steps": 1, "micro_batch_size": 4},
    }
    return Config.model_validate(settings | sections)


SIZES = {"num_parameters": 10, "image_size": 32, "micro_size": 4, "on_cuda": False}


def test_a_run_without_momentum_has_no_room_for_one():
    assert (
        other_memory(
            _config(optim={"momentum": 0, "nesterov": False}), **SIZES, world_size=1
        ).states.optimizer_bytes
        == 0
    )


def test_a_run_that_accumulates_holds_gradients_twice():
    config = _config(train={"max_steps": 1, "micro_batch_size": 4, "accumulation": 2})
    assert other_memory(config, **SIZES, world_size=2).states.gradients_bytes == 80
    assert other_memory(_config(), **SIZES, world_size=2).states.gradients_bytes == 40


def test_segments_of_sqrt_are_about_the_root_of_the_units():
    chain = Chain(1, (UnitCost(1.0, 1.0, 1, (Retention("all", 2),)),) * 16)
    assert plan_for(RecomputeConfig(segments="sqrt"), chain, 0).segments == sqrt_plan(16).segments


@pytest.mark.parametrize("precision", [{"compute": "bf16"}])
def test_a_chain_is_predicted_for_the_precision_of_the_run(precision):
    config = _config(model={"depth": 11, "block": "bottleneck"}, precision=precision)
    net = net_of(config)
    found = predict_run_chain(config, net, 4, 32, None)
    dtype = torch.bfloat16 if "compute" in precision else torch.float32
    expected = predict_chain(net, (4, 3, 32, 32), None, dtype, channels_last="channels_last" in precision)
    assert found == expected
    assert found != predict_chain(net, (4, 3, 32, 32), None, torch.float32)


def test_hundreds_of_units_are_planned_for_a_run_as_for_the_profiler():
    chain = Chain(1, (UnitCost(1.0, 2.0, 999, (Retention("all", 2501), Retention("less", 1303, 0.5))),) * 430)
    budget_bytes = 5 * smallest_budget(chain)
    plan = plan_for(RecomputeConfig(budget=budget_bytes), chain, 0)
    assert plan == Frontier(chain).plan(budget_bytes)
    assert plan.peak_bytes <= budget_bytes
