"""A step of an engine is that of a loop written by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F

from deepres import build_resnet
from deepres.autocast import ComputeIn
from deepres.batch_sizes import batch_sizes
from deepres.config import Config
from deepres.data import Batch
from deepres.distributed import this_process
from deepres.engines import make_engine


@pytest.mark.parametrize("clip_grad_norm", [None, 0.5])
def test_steps_over_micro_batches_are_those_of_sgd_on_the_mean_loss_of_all_images(clip_grad_norm):
    config = Config.model_validate(
        {
            "model": {"depth": 11},
            "data": {"name": "synthetic"},
            "train": {"max_steps": 2, "global_batch_size": 6, "micro_batch_size": 2},
            "optim": {
                "learning_rate": 9.0,
                "momentum": 0.8,
                "weight_decay": 0.01,
                "clip_grad_norm": clip_grad_norm,
            },
        }
    )
    torch.manual_seed(0)
    net = build_resnet(11)
    expected = copy.deepcopy(net)
    engine = make_engine(net, config, this_process("cpu"), batch_sizes(config.train, 1))
    sgd = torch.optim.SGD(
        expected.parameters(), momentum=0.8, weight_decay=0.01, nesterov=config.optim.nesterov
    )
    for learning_rate in (0.1, 0.02):
        images, labels = torch.randn(3, 2, 3, 8, 8), torch.tensor([[0, 1], [2, -100], [3, 4]])
        batches = [Batch(*pair, torch.arange(2)) for pair in zip(images, labels, strict=True)]
        sums, flags = engine.step(batches, learning_rate, lambda: [False, True])
        assert flags == [False, True]
        losses = [F.cross_entropy(expected(batch.images), batch.labels, reduction="sum") for batch in batches]
        (sum(losses) / 6).backward()
        if clip_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(expected.parameters(), clip_grad_norm)
            assert norm > 1.5 * clip_grad_norm
        for group in sgd.param_groups:
            group["lr"] = learning_rate
        sgd.step()
        sgd.zero_grad()
        assert float(sums[0]) == pytest.approx(sum(losses).item(), rel=1e-6)
        assert sums[3] == 5
    for name, ours in net.named_parameters():
        torch.testing.assert_close(ours, expected.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_logits_are_fp32_in_any_format():
    for dtype in (torch.float32, torch.bfloat16):
        net = ComputeIn(build_resnet(11), dtype, "cpu")
        assert net(torch.randn(2, 3, 8, 8)).dtype == torch.float32
