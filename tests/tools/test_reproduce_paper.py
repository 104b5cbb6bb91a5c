"""Rows of the paper trained by real processes: none twice, and on from where they were ended."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from subprocess import CompletedProcess

import pytest
import torch

import reproduce_paper
from deepres.config import load_config
from deepres.train import main
from tests.processes import ROOT, environment, free_port, metrics, run

TOOL = ROOT / "tools" / "reproduce_paper.py"
SMALL = (
    "data.name=synthetic", "data.image_size=8", "data.num_images=32", "train.global_batch_size=8",
    "train.micro_batch_size=null", "train.eval_batch_size=6", "log.plots=false", "log.every=1",
)  # fmt: skip
pytestmark = pytest.mark.multi_process


@pytest.fixture
def tool(capfd, monkeypatch):
    """The command line in this process; what it starts is in processes of its own."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)

    def run_tool(command, results, *arguments):
        capfd.readouterr()
        status = reproduce_paper.main([command, *arguments, "--results", str(results)])
        return CompletedProcess(arguments, status, *capfd.readouterr())

    return run_tool


def test_an_output_that_nobody_reads_any_more_ends_without_a_word():
    command = [sys.executable, TOOL, "list"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe) as tool:
        tool.stdout.close()
        assert tool.stderr.read() == b""
    assert tool.returncode == 1


def test_a_shortened_row_is_trained_for_each_seed_once_and_shown_in_the_table(tmp_path, tool):
    options = ("--short", "0.0001", "--seeds", "1", "--results", tmp_path)
    first = run(sys.executable, TOOL, "run", "resnet20/original", *options, *SMALL)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "resnet20" / "original" / "short-0.0001"
    config = load_config(folder / "seed-1" / "config.yaml")
    assert (config.train.max_steps, config.optim.milestones, config.optim.warmup) == (6, (3, 5), 1)
    assert (config.train.seed, config.train.resume) == (1, "auto")
    (made_by,) = metrics(folder / "seed-1", "made_by")
    assert (made_by["note"], made_by["versions"]["torch"]) == ("", torch.__version__)
    written = (folder / "seed-1" / "metrics.jsonl").stat().st_mtime_ns

    both = tool("run", tmp_path, "resnet20/original", "--seeds", "1,2", "--short", "0.0001", *SMALL)
    assert both.returncode == 0, both.stderr
    assert "resnet20/original, seed 1: finished already" in both.stdout
    assert "resnet20/original, seed 2: begins" in both.stdout
    assert (folder / "seed-1" / "metrics.jsonl").stat().st_mtime_ns == written
    assert metrics(folder / "seed-2", "train")[-1]["step"] == 6
    errors = sorted(100 * (1 - metrics(folder / f"seed-{k}", "summary")[0]["top1"]) for k in (1, 2))

    shown = tool("table", tmp_path)
    assert shown.returncode == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if "(0.0001)" in line]
    assert f"{sum(errors) / 2:.2f}  {errors[0]:.2f}–{errors[1]:.2f}  " in line
    assert "  2  6 of 64,000 steps (0.0001)" in line
    for remark in ("data.name is synthetic, not cifar10", "train.global_batch_size is 8, not 128"):
        assert remark in line
    assert "2 runs were trained on" in shown.stdout
    listed = tool("list", tmp_path)
    assert "short-0.0001: 2 seeds" in listed.stdout


@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_row_goes_on_when_the_command_is_repeated(tmp_path, tool, number):
    arguments = (
        "resnet20/full_preactivation",
        "--seeds",
        "3",
        "--short",
        "0.003",
        "train.save_every=5 steps",
        *SMALL,
    )
    run_dir = tmp_path / "resnet20" / "full_preactivation" / "short-0.003" / "seed-3"
    first = subprocess.Popen(
        [sys.executable, TOOL, "run", *arguments, "--results", tmp_path], cwd=ROOT, env=environment(),
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    limit = time.monotonic() + 60
    while not (run_dir / "checkpoints" / "step-00000005").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    if number == signal.SIGKILL:
        os.killpg(first.pid, number)  # the tool's own session: it and what it has started
        assert first.wait(30) == -number
    else:
        first.send_signal(number)  # to the tool alone, which passes it on and awaits the end
        assert first.wait(60) == 75
    assert not (run_dir / "finished.json").exists()
    reached = metrics(run_dir, "train")[-1]["step"]
    assert reached < 192

    again = tool("run", tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    assert "seed 3: goes on" in again.stdout
    assert f"resumes from {run_dir}/checkpoints/step-" in again.stdout
    assert [row["step"] for row in metrics(run_dir, "train")] == list(range(1, 193))
    assert json.loads((run_dir / "finished.json").read_text(encoding="utf-8"))["step"] == 192


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("", marks=pytest.mark.slow),
        "-m torch.distributed.run --standalone --nproc_per_node 1",
    ],
)
def test_a_row_that_diverges_is_recorded_and_the_next_one_trained(tmp_path, tool, launcher):
    """Also where a launcher makes another status of the run's."""
    wild = ("optim.learning_rate=1e30", "optim.warmup_learning_rate=1e30")
    arguments = (
        "resnet20", "--seeds", "1", "--short", "0.0005", "--launcher", f"{sys.executable} {launcher}", *wild,
        *SMALL,
    )  # fmt: skip
    done = tool("run", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^error: .* is not finite", done.stderr, re.MULTILINE)) == 2
    for name in ("original", "full_preactivation"):
        folder = tmp_path / "resnet20" / name / "short-0.0005" / "seed-1"
        (end,) = metrics(folder, "not_finite")
        assert end["what"] in ("loss", "gradient")
        assert "it first shows in" in end["where"]
        assert not (folder / "finished.json").exists()
    again = tool("run", tmp_path, *arguments)
    assert again.returncode == 0
    assert again.stdout.count("diverged already") == 2


def test_a_launcher_starts_the_processes(tmp_path, tool):
    launcher = f"{sys.executable} -m torch.distributed.run --nproc_per_node 2 --master_port {free_port()}"
    options = ("--seeds", "1", "--short", "0.00002", "--launcher", launcher)
    done = tool("run", tmp_path, "resnet20/original", *options, *SMALL)
    assert done.returncode == 0, done.stderr
    (plan,) = metrics(tmp_path / "resnet20" / "original" / "short-0.00002" / "seed-1", "plan")
    assert plan["micro_batch_size"] == 4
    shown = tool("table", tmp_path)
    assert "batch norm over 4 images, not 64" in shown.stdout


def test_what_another_process_trains_is_left_to_it(tmp_path, tool, capfd):
    arguments = ("resnet20/original", "--seeds", "1", "--short", "0.1", "log.note=made-up images", *SMALL)
    command = [sys.executable, TOOL, "run", *arguments, "--results", tmp_path]
    run_dir = tmp_path / "resnet20" / "original" / "short-0.1" / "seed-1"
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL) as first:
        limit = time.monotonic() + 60
        while not (run_dir / "metrics.jsonl").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        second = tool("run", tmp_path, *arguments)
        config = ROOT / "configs" / "paper" / "resnet20" / "original.yaml"
        overrides = (*SMALL, f"train.run_dir={run_dir}", "train.overwrite=true")
        by_itself = main(["--config", str(config), *overrides])
        error = capfd.readouterr().err
        assert first.poll() is None, "the first run ended too soon to tell anything"
        first.terminate()
    assert second.returncode == 0
    assert f"seed 1: another process is training it, in {run_dir}" in second.stdout
    assert by_itself == 2
    assert error.startswith(f"error: another process is writing a run to {run_dir}: wait for its end, ")
    shown = tool("table", tmp_path)
    assert "; made-up images; unfinished at step " in shown.stdout


def test_data_that_is_not_there_is_told_in_one_line(tmp_path, tool):
    results = tmp_path / "results"
    done = tool("run", results, "table4/cifar100_resnet164", "data.root=/nowhere")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no CIFAR-100 at /nowhere" in done.stderr
    assert not results.exists()
