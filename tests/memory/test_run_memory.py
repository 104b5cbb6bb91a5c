"""What a run holds beside activations."""

from dataclasses import replace

import pytest
import torch

from deepres.batch_sizes import batch_sizes
from deepres.config import Config, EngineConfig, ModelConfig, PrecisionConfig, TrainConfig
from deepres.data import Batch
from deepres.data_config import DataConfig
from deepres.distributed import this_process
from deepres.engines import make_engine
from deepres.memory import AllocatedBytes, measure_activation_peak
from deepres.memory.run_memory import accumulates, run_memory
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
    counted = run_memory(
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
    on_cpu, on_card = (run_memory(config, **sizes, on_cuda=on_cuda) for on_cuda in (False, True))
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
