"""What a run holds, from its configuration alone."""

from dataclasses import asdict

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from deepres.config import Config, ConfigError, ModelConfig, PrecisionConfig
from deepres.memory import predict_run
from deepres.memory.run_memory import net_of
from deepres.models import build_resnet


def _config(recompute, **train):
    return Config.model_validate(
        {
            "model": {"depth": 20},
            "data": {"name": "cifar10"},
            "train": {"max_steps": 1, "global_batch_size": 16, **train},
            "recompute": recompute,
        }
    )


def test_every_part_is_a_whole_number_of_bytes_and_plans_hold_less():
    kept = predict_run(_config({}))
    assert all(type(value) is int for value in asdict(kept).values())
    assert kept.total_bytes == kept.activations_bytes + kept.without_activations_bytes
    segmented = predict_run(_config({"segments": "sqrt"}))
    assert segmented.activations_bytes < kept.activations_bytes
    assert segmented.without_activations_bytes == kept.without_activations_bytes


def test_a_devices_memory_is_kept_and_auto_is_the_cards():
    total = predict_run(_config({})).total_bytes
    assert predict_run(_config({"device_memory": total - 2**20})).total_bytes <= total - 2**20
    on_card = predict_run(_config({"device_memory": "auto"}), gpu="RTX 4090")
    assert on_card == predict_run(_config({}), gpu="RTX 4090")  # everything fits it
    with pytest.raises(ValueError, match=r"recompute\.device_memory is auto: give gpu"):
        predict_run(_config({"device_memory": "auto"}))


def test_an_automatic_micro_batch_is_refused():
    with pytest.raises(ConfigError, match=r"needs a number as train\.micro_batch_size, got auto"):
        predict_run(_config({"budget": "1GiB"}, micro_batch_size="auto"))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_runs_net_is_laid_out_as_by_module_to_with_or_without_values(channels_last):
    update = {"model": ModelConfig(depth=29), "precision": PrecisionConfig(channels_last=channels_last)}
    config = _config({}).model_copy(update=update)
    expected = build_resnet(29).to(memory_format=config.parameters_format)
    strides = [p.stride() for p in expected.parameters()]
    assert [p.stride() for p in net_of(config).parameters()] == strides
    with FakeTensorMode():
        assert [p.stride() for p in net_of(config).parameters()] == strides
    with torch.device("meta"):
        assert [p.stride() for p in net_of(config).parameters()] == strides
