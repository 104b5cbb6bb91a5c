"""What a run tells on the screen."""

import math
from types import SimpleNamespace

import pytest

from deepres.config import LogConfig
from deepres.distributed import this_process
from deepres.metrics import Metrics
from deepres.run_log import RunLog
from deepres.throughput import Throughput

METRICS = Metrics(loss=1.25, top1=0.5, top5=0.75, num_images=40)


def _log(num_steps, steps_per_epoch):
    return RunLog(LogConfig(), this_process("cpu"), None, num_steps, steps_per_epoch, first_step=0)


@pytest.mark.parametrize(("peak_bytes", "is_told"), [(102, False), (103, True)])
def test_a_micro_batch_that_takes_more_than_its_budget_is_told(capsys, peak_bytes, is_told):
    planned = SimpleNamespace(plan=None, activations_bytes=peak_bytes, budget_bytes=100)
    _log(1, 1).begin(planned)
    warning = (
        "WARNING: a micro batch was measured to take 103 B of activations, more than the budget of 100 B"
    )
    assert (warning in capsys.readouterr().out) is is_told


def test_a_training_line_has_a_rate_only_where_there_is_one(capsys):
    throughput = Throughput()
    throughput.count(8, 0.0)
    assert math.isnan(throughput.per_s)
    assert math.isnan(throughput.since_last_asked())
    line = "epoch 0.20/2  step 2/20  lr 0.1  loss 1.2500  top-1 50.0 %"
    _log(20, 10).training(2, 0.1, METRICS, throughput.per_s)
    assert capsys.readouterr().out == f"{line}\n"
    _log(20, 10).training(2, 0.1, METRICS, 123.45)
    assert capsys.readouterr().out == f"{line}  123.5 images/s\n"


def test_a_test_line_says_how_many_epochs_were_trained(capsys):
    for num_steps, steps_per_epoch, step, epoch in (
        (8, 100, 8, "0.08/1"),
        (20, 10, 10, "1/2"),
        (25, 10, 25, "2.50/3"),
    ):
        _log(num_steps, steps_per_epoch).test(step, METRICS)
        line = f"epoch {epoch}  test on 40 images: loss 1.2500  top-1 50.00 %  top-5 75.00 %\n"
        assert capsys.readouterr().out == line
