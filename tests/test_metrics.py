import json
import math

import torch
import torch.nn.functional as F

from deepres.metrics import Metrics, MetricsFile, metric_sums


def test_sums_count_right_answers_and_leave_out_ignored_labels():
    logits = torch.tensor([[9.0, 1, 2, 3, 4, 5, 0], [0.0, 1, 2, 3, 4, 5, 9], [9.0, 0, 0, 0, 0, 0, 0]])
    labels = torch.tensor([0, 5, -100])
    loss, top1, top5, count = metric_sums(logits, labels).tolist()
    assert (top1, top5, count) == (1, 2, 2)
    assert math.isclose(loss, float(F.cross_entropy(logits[:2], labels[:2], reduction="sum")), rel_tol=1e-6)


def test_the_label_with_the_sixth_best_logit_is_not_in_the_top_five():
    logits = torch.arange(10.0)[None]
    assert metric_sums(logits, torch.tensor([4])).tolist()[1:] == [0, 0, 1]
    assert metric_sums(logits, torch.tensor([5])).tolist()[1:] == [0, 1, 1]


def test_two_classes_have_a_top_five_of_two():
    assert metric_sums(torch.tensor([[1.0, 2.0]]), torch.tensor([0])).tolist()[1:] == [0, 1, 1]


def test_means_are_taken_over_images_and_are_nan_without_any():
    metrics = Metrics.over_processes(torch.tensor([4.0, 1, 2, 2], dtype=torch.float64))
    assert metrics == Metrics(2.0, 0.5, 1.0, 2)
    nothing = Metrics.over_processes(torch.zeros(4, dtype=torch.float64))
    assert math.isnan(nothing.loss)
    assert nothing.num_images == 0


def test_metrics_are_on_disk_line_by_line_as_json(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write("train", step=1, loss=float("nan"))
    file.write("test", step=2, loss=0.5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    file.close()
    assert rows == [{"kind": "train", "step": 1, "loss": None}, {"kind": "test", "step": 2, "loss": 0.5}]


def test_logits_that_are_not_finite_are_no_answer():
    logits = torch.full((6, 6), math.nan)
    logits[0] = torch.arange(6.0).flip(0)
    assert metric_sums(logits, torch.arange(6)).tolist()[1:] == [1, 1, 6]


def test_infinite_logits_are_no_answer():
    logits = torch.tensor([[math.inf, 0.0], [0.0, 1.0]])
    assert metric_sums(logits, torch.tensor([0, 1])).tolist()[1:] == [1, 1, 2]


def test_the_loss_of_16_bit_logits_is_computed_in_fp32():
    logits, labels = torch.randn(64, 10).bfloat16(), torch.arange(64) % 10
    expected = F.cross_entropy(logits.float(), labels, reduction="sum")
    assert metric_sums(logits, labels)[0] == expected
