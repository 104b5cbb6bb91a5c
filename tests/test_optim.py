import pytest
import torch

from deepres.config import OptimConfig
from deepres.optim import StepSchedule, sgd


def test_the_papers_schedule_in_iterations():
    config = OptimConfig(
        learning_rate=0.1,
        schedule_unit="iterations",
        milestones=(32000, 48000),
        warmup=400,
        warmup_learning_rate=0.01,
    )
    schedule = StepSchedule(config, steps_per_epoch=390)
    expected = {
        0: 0.01,
        399: 0.01,
        400: 0.1,
        31999: 0.1,
        32000: 0.01,
        47999: 0.01,
        48000: 0.001,
        63999: 0.001,
    }
    assert {step: schedule(step) for step in expected} == pytest.approx(expected)


def test_milestones_in_epochs_count_whole_epochs():
    schedule = StepSchedule(OptimConfig(milestones=(81, 122), warmup=0), steps_per_epoch=781)
    assert schedule(81 * 781 - 1) == 0.1
    assert schedule(81 * 781) == pytest.approx(0.01)
    assert schedule(122 * 781) == pytest.approx(0.001)


def test_a_warm_up_in_epochs_counts_whole_epochs():
    schedule = StepSchedule(OptimConfig(milestones=(81,), warmup=2), steps_per_epoch=781)
    assert schedule(2 * 781 - 1) == 0.01
    assert schedule(2 * 781) == 0.1


def test_sgd_decays_every_trained_parameter_and_leaves_out_frozen_ones():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    net[0].bias.requires_grad_(False)
    optimizer = sgd(
        net.parameters(), OptimConfig(learning_rate=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4)
    )
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 3
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (
        0.2,
        0.9,
        True,
        1e-4,
    )
