import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from deepres.config import Config, DataConfig, ModelConfig, PrecisionConfig, TrainConfig
from deepres.models import build_resnet
from deepres.run_net import net_of


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_runs_net_is_laid_out_as_by_module_to_with_or_without_values(channels_last):
    config = Config(
        model=ModelConfig(depth=29),
        data=DataConfig(name="cifar10"),
        train=TrainConfig(max_steps=1),
        precision=PrecisionConfig(channels_last=channels_last),
    )
    expected = build_resnet(29).to(memory_format=config.parameters_format)
    strides = [p.stride() for p in expected.parameters()]
    assert [p.stride() for p in net_of(config).parameters()] == strides
    with FakeTensorMode():
        assert [p.stride() for p in net_of(config).parameters()] == strides
    with torch.device("meta"):
        assert [p.stride() for p in net_of(config).parameters()] == strides
