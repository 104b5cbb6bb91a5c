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


@pytest.mark.parametrize(
    ("num_steps", "settings", "told"),
    [
        (101, {"milestones": (50, 100), "warmup": 10, "schedule_unit": "iterations"}, None),
        (
            100,
            {"milestones": (50, 100, 150), "schedule_unit": "iterations"},
            "it ends before optim.milestones 100, 150 (iterations)",
        ),
        (20, {"warmup": 2}, "all of it is warm-up (optim.warmup is 2 epochs)"),
        (21, {"warmup": 2}, None),
    ],
)
def test_what_a_run_never_comes_to_is_told(num_steps, settings, told):
    unreached = StepSchedule(OptimConfig(**settings), steps_per_epoch=10).unreached(num_steps)
    assert unreached == (None if told is None else f"the run has {num_steps} steps: {told}")


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
