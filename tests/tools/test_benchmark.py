"""The benchmark of training speed, run as a user would; that it measures is asserted, what it finds is not."""

import json
import sys

import pytest

import benchmark
from measuring import training_speed
from tests.processes import ROOT, run

TOOL = ROOT / "tools" / "benchmark.py"


@pytest.mark.multi_process
def test_the_trainer_and_a_steps_options_stand_beside_a_bare_loop(tmp_path):
    done = run(
        sys.executable, TOOL, "--depth", "11", "--batch", "8", "--rounds", "3", "--steps", "2", "--no-compile",
        "--processor-time", "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "training_11x8.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == [
        "bare PyTorch loop", "whole trainer", "trainer's step", "fused SGD", "channels_last", "bf16",
        "bf16, channels_last",
    ]  # fmt: skip
    assert rows["bare PyTorch loop"]["ratio"] == 1
    for row in rows.values():
        assert row["images_per_s"] > 0
        assert row["ratio"] == sorted(row.get("ratios", [1]))[len(row["ratios"]) // 2]
    assert 0 < rows["whole trainer"]["data_wait_percent"] < 100
    assert rows["trainer's step"]["ratio"] < 3  # not a loop that does something else
    trainer = rows["whole trainer"]  # with the rate that its ratio is to
    rounds = sorted(
        ratio * trainer["images_per_s"] / trainer["bare_images_per_s"] for ratio in trainer["ratios"]
    )
    assert rounds[0] - 1e-9 <= 1 <= rounds[-1] + 1e-9
    assert trainer["note"] == f"bare loop beside it: {trainer['bare_images_per_s']:.4g} images/s"
    markdown = (tmp_path / "training_11x8.md").read_text(encoding="utf-8")
    assert done.stdout.partition("\n\n")[0] in markdown
    assert f"| {trainer['note']} |" in markdown
    assert document["command"].startswith("python tools/benchmark.py --depth 11")


def test_an_option_that_fails_is_a_row_that_says_so(monkeypatch):
    options = {
        "refused": ("precision.compute=fp16",),
        "fails in a step": ("data.num_classes=5",),  # the batch has labels up to 9
        "stands": (),
    }
    monkeypatch.setattr(training_speed, "OPTIONS", options)
    rows = {
        row["name"]: row for row in training_speed.steps_of_options(11, 16, 1, 1, "cpu", with_compiler=False)
    }
    failed = [name for name, row in rows.items() if row.get("note", "").startswith("failed: ")]
    assert failed == ["refused", "fails in a step"]
    assert "needs a GPU" in rows["refused"]["note"]
    assert "is out of bounds" in rows["fails in a step"]["note"]
    assert [name for name, row in rows.items() if "ratio" in row] == ["bare PyTorch loop", "stands"]


@pytest.mark.slow
def test_a_compiler_that_fails_leaves_the_other_rows(tmp_path):
    done = run(
        sys.executable, TOOL, "--depth", "11", "--batch", "8", "--rounds", "1", "--steps", "1", "--out", tmp_path,
        CXX="/bin/false", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "training_11x8.json").read_text(encoding="utf-8"))["rows"]
    failed = [row["name"] for row in rows if row.get("note", "").startswith("failed: ")]
    assert failed == ["compiled units, channels_last", "bf16, compiled units, channels_last"]
    assert all("ratio" in row for row in rows if row["name"] not in failed)


def test_a_depth_that_does_not_exist_is_one_line():
    done = run(sys.executable, TOOL, "--depth", "12")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: depth must be")
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--depth", "11", "--out", str(tmp_path / "file" / "folder")])
    told = capsys.readouterr()
    assert (stop.value.code, told.out) == (2, "")
    assert "cannot be written: Not a directory" in told.err
