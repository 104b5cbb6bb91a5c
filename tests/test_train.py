"""The command line, as a user types it and launchers start it: what it trains, what it leaves, what it tells."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

from deepres import trainer
from deepres.config import load_config
from deepres.models import build_resnet
from deepres.throughput import Throughput
from deepres.train import main
from tests.processes import (
    NO_PLAN,
    PLAIN,
    QUICKSTART,
    ROOT,
    SMALL,
    TRAIN,
    environment,
    free_port,
    metrics,
    run,
)


def test_a_run_leaves_metrics_config_weights_and_a_picture(tmp_path):
    run_dir = tmp_path / "run"
    overrides = ("train.epochs=3", "log.plots=true", f"train.run_dir={run_dir}")
    done = run(sys.executable, TRAIN, "--config", QUICKSTART, *SMALL, *overrides)
    assert done.returncode == 0, done.stderr
    assert "note: the run has 24 steps: it ends before optim.milestones 6, 8 (epochs)\n" in done.stdout
    losses = [row["loss"] for row in metrics(run_dir, "train")]
    assert losses[-1] < losses[0] - 0.5
    (summary,) = metrics(run_dir, "summary")
    last_lines = "\n".join(done.stdout.strip().splitlines()[-2:])
    for part in (
        "test accuracy",
        "peak activation memory",
        "images/s",
        "waiting for data",
        "recomputation",
        f"run folder {run_dir}",
    ):
        assert part in last_lines
    assert summary["step"] == 24
    assert 0 <= summary["data_wait_share"] < 1
    assert [row["num_images"] for row in metrics(run_dir, "test")] == [12] * 3
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    config = load_config(run_dir / "config.yaml")
    assert config.model.depth == 11
    net = build_resnet(config.model.depth, block=config.model.block)
    net.load_state_dict(load_file(run_dir / "model.safetensors"))


def test_rates_follow_the_schedule_and_tests_come_when_they_are_due_and_at_the_end(tmp_path):
    """Of five epochs of two steps."""
    length = ("data.num_images=16", "train.epochs=5", "train.eval_every=2", "log.every=1")
    schedule = ("optim.warmup=1", "optim.warmup_learning_rate=0.02", "optim.milestones=[4]")
    arguments = (*SMALL, *PLAIN, *length, *schedule, "optim.learning_rate=0.1", f"train.run_dir={tmp_path}")
    assert main(["--config", QUICKSTART, *arguments]) == 0
    rates = [(row["step"], row["learning_rate"]) for row in metrics(tmp_path, "train")]
    expected = [0.02] * 2 + [0.1] * 6 + [0.01] * 2
    assert rates == [(step, pytest.approx(rate)) for step, rate in enumerate(expected, 1)]
    assert [row["step"] for row in metrics(tmp_path, "test")] == [4, 8, 10]


def test_all_micro_batches_of_a_step_count_for_images_per_second(tmp_path, monkeypatch):
    count, counted = Throughput.count, []

    def noted(throughput, num_images, waited_s):
        counted.append(num_images)
        count(throughput, num_images, waited_s)

    monkeypatch.setattr(Throughput, "count", noted)
    arguments = (*SMALL, *PLAIN, "train.micro_batch_size=2", "train.max_steps=2", f"train.run_dir={tmp_path}")
    assert main(["--config", QUICKSTART, *arguments]) == 0
    assert counted == [8, 8]


def test_between_steps_processes_ask_one_another_nothing(tmp_path, monkeypatch):
    """What they wish is in the step's own message: each more would be a wait for the device."""
    ask, num_asked = trainer.any_process, []

    def noted(*arguments):
        num_asked[-1] += 1
        return ask(*arguments)

    monkeypatch.setattr(trainer, "any_process", noted)
    for num_images in (64, 128):
        num_asked.append(0)
        arguments = (f"data.num_images={num_images}", f"train.run_dir={tmp_path / str(num_images)}")
        assert main(["--config", QUICKSTART, *SMALL, *PLAIN, "train.eval_batch_size=64", *arguments]) == 0
    assert num_asked[0] == num_asked[1] > 0


def test_a_line_of_metrics_is_of_the_steps_since_the_line_before(tmp_path):
    losses = {}
    for every in (1, 3):
        arguments = (*SMALL, *PLAIN, f"log.every={every}", f"train.run_dir={tmp_path / str(every)}")
        assert main(["--config", QUICKSTART, *arguments]) == 0
        losses[every] = {row["step"]: row["loss"] for row in metrics(tmp_path / str(every), "train")}
    means = {3: (1, 2, 3), 6: (4, 5, 6), 8: (7, 8)}
    expected = {line: sum(losses[1][step] for step in steps) / len(steps) for line, steps in means.items()}
    assert losses[3] == pytest.approx(expected)


@pytest.mark.parametrize("engine", ["name=plain", "name=deepspeed"])
def test_a_deterministic_rerun_with_segments_has_the_same_bits(tmp_path, forked, engine):
    weights = []
    for segments in ("none", "sqrt"):
        overrides = (f"engine.{engine}", "engine.zero_stage=0", f"recompute.segments={segments}")
        arguments = (*SMALL, *overrides, f"train.run_dir={tmp_path / segments}")
        forked.train(tmp_path, "--config", QUICKSTART, *arguments)
        weights.append(load_file(tmp_path / segments / "model.safetensors"))
    kept, replayed = weights
    assert all(torch.equal(kept[name], replayed[name]) for name in kept)


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_deepspeed_trains_a_net_with_an_odd_number_of_parameters(tmp_path, forked, stage):
    arguments = (*SMALL, "data.num_classes=5", f"engine.zero_stage={stage}", "train.max_steps=1", NO_PLAN)
    forked.train(tmp_path, "--config", QUICKSTART, *arguments, f"train.run_dir={tmp_path / 'run'}")
    net = build_resnet(11, block="bottleneck", num_classes=5)
    assert sum(p.numel() for p in net.parameters()) % 2 == 1
    net.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))


@pytest.mark.slow  # tests/models/test_compiled_unit.py has the same within one process
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler on CPUs needs g++")
def test_compiled_units_train_to_the_same_bits_under_a_plan(tmp_path):
    weights = []
    for segments in ("none", "2"):
        run_dir = tmp_path / segments
        overrides = (
            "engine.name=plain",
            "engine.zero_stage=0",
            "engine.compile=units",
            "precision.channels_last=true",
            "optim.fused=true",
        )
        done = run(
            sys.executable, TRAIN, "--config", QUICKSTART, *SMALL, *overrides, "train.max_steps=3",
            f"recompute.segments={segments}", f"train.run_dir={run_dir}", timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        weights.append(load_file(run_dir / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.multi_process
@pytest.mark.parametrize(
    "names",
    [
        ("deepspeed", "torchrun-hosts"),
        pytest.param(("deepspeed", "torchrun", "deepspeed-hosts"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_deepspeed_and_torchrun_and_two_hosts_train_alike(tmp_path, names):
    """One launcher with two processes, and two launchers with one each as on two hosts, by torchrun and deepspeed."""
    common = ("--config", QUICKSTART, *SMALL, "engine.zero_stage=2", "train.eval_batch_size=5", NO_PLAN)
    hostfile = tmp_path / "hosts"
    hostfile.write_text("first slots=1\nsecond slots=1\n", encoding="utf-8")

    def torchrun(*options: str) -> list[str]:
        return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", *options]

    ports = [str(free_port()) for _ in range(4)]
    hosts = ("--master_addr", "127.0.0.1", "--master_port")
    launches = {
        "deepspeed": [["deepspeed", "--num_gpus", "2", "--master_port", ports[0]]],
        "torchrun": [torchrun("2", "--master_port", ports[1])],
        "torchrun-hosts": [
            torchrun("1", "--nnodes", "2", "--node_rank", str(rank), *hosts, ports[2]) for rank in range(2)
        ],
        "deepspeed-hosts": [
            ["deepspeed", "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(rank), *hosts, ports[3]]
            for rank in range(2)
        ],
    }
    losses = {}
    for name in names:
        started = [
            subprocess.Popen(
                [*command, TRAIN, *common, f"train.run_dir={tmp_path / name}"],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for command in launches[name]
        ]
        outputs = [process.communicate(timeout=200)[0] for process in started]
        assert [process.returncode for process in started] == [0] * len(started), f"{name}: " + "\n".join(
            outputs
        )
        losses[name] = [row["loss"] for row in metrics(tmp_path / name, "train")]
        (test,) = metrics(tmp_path / name, "test")
        assert test["num_images"] == 12
    assert len(losses["deepspeed"]) == 4
    assert all(other == losses["deepspeed"] for other in losses.values())


def test_a_mistake_in_a_launched_run_is_told_once_and_ends_with_2(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()))
    done = run(sys.executable, *launcher, TRAIN, "--config", QUICKSTART, "optim.learning_rate=.nan")
    assert done.returncode != 0
    assert done.stderr.count("error: command line: optim.learning_rate must be a finite number") == 1
    alone = run(sys.executable, TRAIN, "--config", QUICKSTART, "optim.learning_rate=.nan")
    assert alone.returncode == 2
    assert "Traceback" not in alone.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --config"),
        (
            ["--config", QUICKSTART, "--local_rank", "first"],
            "argument --local_rank: invalid int value: 'first'",
        ),
        (["--config", QUICKSTART, "--epochs", "3"], "unrecognized arguments: --epochs"),
    ],
)
def test_a_mistake_in_the_command_is_told_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_an_environment_of_no_launcher_is_told_in_one_line(monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "first")
    assert main(["--config", QUICKSTART]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: RANK, WORLD_SIZE and LOCAL_RANK must be numbers: ")
    assert told.count("\n") == 1


def test_the_first_process_speaks_before_another_ends(monkeypatch, capsys):
    printed_before = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("time.sleep", lambda _: printed_before.append(capsys.readouterr().err))
    assert main(["--config", QUICKSTART, "optim.learning_rate=.nan"]) == 2
    assert printed_before == [""]
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.multi_process
def test_processes_of_different_settings_do_not_train_together(tmp_path):
    port, common = (
        str(free_port()),
        ("--config", QUICKSTART, *SMALL, *PLAIN, f"train.run_dir={tmp_path / 'run'}"),
    )
    started = [
        subprocess.Popen(
            [sys.executable, TRAIN, *common, f"optim.learning_rate={rate}"],
            cwd=ROOT,
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, rate in enumerate((0.1, 0.2))
    ]
    errors = [process.communicate(timeout=200)[1] for process in started]
    assert started[0].returncode == 2
    assert (
        "optim.learning_rate is 0.2 there, 0.1 in process 0: start all processes with the same" in errors[0]
    )
    assert started[1].returncode in (2, 5)  # the first, which keeps the place to meet at, may be gone
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("launcher", "name"),
    [("srun", "SLURM_STEP_NUM_TASKS"), ("mpirun", "OMPI_COMM_WORLD_SIZE"), ("mpiexec", "PMI_SIZE")],
)
def test_launchers_whose_processes_would_each_train_alone_are_refused(
    monkeypatch, tmp_path, capsys, launcher, name
):
    monkeypatch.setenv(name, "2")
    arguments = [
        "--config",
        QUICKSTART,
        *SMALL,
        *PLAIN,
        "train.max_steps=1",
        f"train.run_dir={tmp_path / 'run'}",
    ]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {launcher} started 2 processes ({name}), which would each train alone: ")
    assert error.count("\n") == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(arguments) == 0


def test_a_file_for_tensorboard_that_cannot_be_written_is_given_up_with_a_word(tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    arguments = (*SMALL, *PLAIN, "log.tensorboard=true", f"train.run_dir={tmp_path}")
    assert main(["--config", QUICKSTART, *arguments]) == 0
    assert capsys.readouterr().out.count("WARNING: TensorBoard's file cannot be written: No space left") == 1
    assert len(metrics(tmp_path, "train")) == 4
