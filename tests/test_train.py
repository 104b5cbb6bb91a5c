"""The command line, as a user types it: what it trains, what it leaves, what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from deepres.exit_status import ExitStatus
from deepres.load_config import load_config
from deepres.models import build_resnet
from deepres.recompute import Plan, keep_all_plan
from deepres.train import main
from deepres.trainer import Trainer
from tests.processes import ROOT, environment, free_port, metrics, run

QUICKSTART = "configs/quickstart.yaml"
TRAIN = "deepres/train.py"
SMALL = (
    "data.name=synthetic", "data.image_size=8", "data.num_images=64", "model.depth=11", "train.epochs=1",
    "train.global_batch_size=8", "log.every=2", "log.plots=false",
)  # fmt: skip


def test_a_run_leaves_metrics_config_weights_and_a_picture(tmp_path):
    run_dir = tmp_path / "run"
    overrides = ("train.epochs=3", "log.plots=true", f"train.run_dir={run_dir}")
    done = run(sys.executable, TRAIN, "--config", QUICKSTART, *SMALL, *overrides)
    assert done.returncode == 0, done.stderr
    losses = [row["loss"] for row in metrics(run_dir, "train")]
    assert losses[-1] < losses[0] - 0.5
    (summary,) = metrics(run_dir, "summary")
    last_line = done.stdout.strip().splitlines()[-1]
    for part in (
        "test accuracy",
        "peak activation memory",
        "images/s",
        "waiting for data",
        "recomputation",
        f"run folder {run_dir}",
    ):
        assert part in last_line
    assert summary["step"] == 24
    assert 0 <= summary["data_wait_share"] < 1
    assert [row["num_images"] for row in metrics(run_dir, "test")] == [12] * 3
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    config = load_config(run_dir / "config.yaml")
    assert config.model.depth == 11
    net = build_resnet(config.model.depth, block=config.model.block)
    net.load_state_dict(load_file(run_dir / "model.safetensors"))


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


def test_segments_are_told_and_save_memory(tmp_path):
    peaks = {}
    for segments in ("none", "sqrt"):
        run_dir = tmp_path / segments
        overrides = ("model.depth=83", "train.max_steps=1", "engine.name=plain", "engine.zero_stage=0")
        overrides += ("train.deterministic=false",)
        arguments = (*SMALL, *overrides, f"recompute.segments={segments}", f"train.run_dir={run_dir}")
        assert main(["--config", QUICKSTART, *arguments]) == 0
        (peaks[segments],) = metrics(run_dir, "summary")
    assert peaks["sqrt"]["activation_peak_bytes"] < 0.5 * peaks["none"]["activation_peak_bytes"]
    assert peaks["none"]["recompute_share"] == 0
    assert 0.1 < peaks["sqrt"]["recompute_share"] < 0.35  # a forward of 21 of 27 units, as measured


def test_a_plan_file_that_is_not_for_this_net_or_not_whole_is_refused(tmp_path, capsys):
    whole, newer, cut = (tmp_path / name for name in ("whole.json", "newer.json", "cut.json"))
    keep_all_plan(333).save(whole)
    newer.write_text(whole.read_text().replace('"version":1', '"version":2'))
    cut.write_text(whole.read_text()[:100])
    for path, message in {
        whole: "this plan is for 333 units, the chain has 9",
        newer: "has version 2, and this deepres reads up to 1",
        cut: "not a complete JSON document",
        tmp_path / "none.json": "cannot be read: No such file or directory",
    }.items():
        overrides = (f"recompute.plan={path}", f"train.run_dir={tmp_path / 'run'}")
        assert main(["--config", QUICKSTART, *PLAIN, *overrides]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


NO_PLAN = "recompute.segments=none"
PLAIN = ("engine.name=plain", "engine.zero_stage=0", NO_PLAN)


def _one_step(run_dir: Path, *overrides: str) -> dict[str, dict[str, Any]]:
    """The plan and the summary of a run of one step."""
    arguments = (
        *SMALL,
        *PLAIN,
        "model.depth=83",
        "train.max_steps=1",
        *overrides,
        f"train.run_dir={run_dir}",
    )
    assert main(["--config", QUICKSTART, *arguments]) == 0
    return {kind: metrics(run_dir, kind)[0] for kind in ("plan", "summary")}


def test_a_budget_is_kept_and_predicted(tmp_path, capsys):
    rows = _one_step(tmp_path / "a", "recompute.budget=3MiB")
    assert rows["plan"]["budget_bytes"] == 3 * 2**20
    assert rows["summary"]["activation_peak_bytes"] <= 3 * 2**20 * 1.01
    assert rows["summary"]["activation_peak_bytes"] == pytest.approx(
        rows["plan"]["predicted_peak_bytes"], rel=0.02
    )
    assert rows["plan"]["num_segments"] > 0
    told = capsys.readouterr().out
    assert "plan for micro batch 8: budget 3.00 MiB, predicted peak of activations " in told
    assert "% extra time predicted" in told
    plan = Plan.load(tmp_path / "a" / "plan.json")
    assert plan.num_segments == rows["plan"]["num_segments"]
    again = _one_step(tmp_path / "b", f"recompute.plan={tmp_path / 'a' / 'plan.json'}")
    assert again["summary"]["activation_peak_bytes"] == rows["summary"]["activation_peak_bytes"]


def test_device_memory_is_for_the_whole_run(tmp_path):
    rows = _one_step(tmp_path / "a", "recompute.device_memory=25MiB")
    assert rows["plan"]["predicted_total_bytes"] <= 25 * 2**20
    beside = rows["plan"]["predicted_total_bytes"] - rows["plan"]["predicted_peak_bytes"]
    num_parameters = sum(p.numel() for p in build_resnet(83).parameters())
    assert beside > 3 * 4 * num_parameters  # parameters, gradients and momentum, and the batch
    assert rows["plan"]["budget_bytes"] == 25 * 2**20 - beside
    free = _one_step(tmp_path / "b", "recompute.device_memory=auto")
    assert free["plan"]["num_segments"] == 0


def test_an_automatic_micro_batch_is_the_largest_that_fits_and_accumulation_keeps_the_global_batch(tmp_path):
    rows = _one_step(
        tmp_path / "a",
        "recompute.budget=2.5MiB",
        "train.micro_batch_size=auto",
        "train.global_batch_size=16",
        "recompute.max_extra=10",
    )
    assert rows["plan"]["micro_batch_size"] == 16
    assert rows["plan"]["micro_batch_size"] * rows["plan"]["accumulation"] == 16
    tight = _one_step(
        tmp_path / "b",
        "recompute.budget=0.7MiB",
        "train.micro_batch_size=auto",
        "train.global_batch_size=16",
        "recompute.max_extra=10",
    )
    assert tight["plan"]["micro_batch_size"] < rows["plan"]["micro_batch_size"]
    assert tight["plan"]["micro_batch_size"] * tight["plan"]["accumulation"] == 16


@pytest.mark.multi_process
def test_all_processes_run_the_plan_that_the_first_one_measured(tmp_path, forked):
    for name, overrides in {"kept": (), "planned": ("recompute.budget=600KiB",)}.items():
        forked.train(
            *(tmp_path, "--config", QUICKSTART, *SMALL, f"train.run_dir={tmp_path / name}"),
            *(
                "engine.zero_stage=3",
                "recompute.segments=none",
                "model.depth=83",
                "train.max_steps=2",
                *overrides,
            ),
            num_processes=2,
        )
    (row,) = metrics(tmp_path / "planned", "plan")
    assert row["num_segments"] > 0
    kept, planned = (load_file(tmp_path / name / "model.safetensors") for name in ("kept", "planned"))
    assert all(torch.equal(kept[name], planned[name]) for name in kept)


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


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_trains_two_steps(tmp_path, forked, path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "--config configs/" in text
    overrides = [
        "data.name=synthetic", "data.augmentation=null", "data.num_images=8", "train.max_steps=2",
        "train.global_batch_size=4", "train.eval_batch_size=2", f"train.run_dir={tmp_path / 'run'}", "log.plots=false",
    ]  # fmt: skip
    if "imagenet" in path.stem:
        overrides += ["data.image_size=32", "data.eval_image_size=null", "data.eval_shorter_side=null"]
    elif "1001" in path.stem:
        overrides += ["data.image_size=8"]
    if load_config(path).engine.name == "plain":
        assert main(["--config", str(path), *overrides]) == 0
    else:
        forked.train(tmp_path, "--config", path, *overrides)
    (summary,) = metrics(tmp_path / "run", "summary")
    assert summary["step"] == 2


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_written_for_its_own_data(path):
    config = load_config(path)
    assert (config.model.dataset == "imagenet") == (config.data.name == "imagenet")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.deph=20"], "unknown key model.deph; did you mean model.depth?"),
        (
            ["model.depth=1000"],
            "depth must be 9n+2 for bottleneck units (e.g. 164, 1001), got 1000; nearest: 992, 1001",
        ),
        (["train.micro_batch_size=3"], "train.micro_batch_size 3 does not divide; it may be 1, 2, 4, 8"),
        (["precision.compute=fp16"], "precision.compute fp16 needs a GPU"),
        (["recompute.segments=0"], "recompute.segments must be 'none' or 'sqrt'"),
        (["recompute.segments=none", "recompute.budget=lots"], "expected a positive size such as"),
        (["recompute.segments=none", "recompute.budget=-1"], "expected a positive size such as"),
        (
            ["recompute.segments=none", "recompute.budget=8e9", "recompute.device_memory=auto"],
            "give one of segments",
        ),
        (
            ["recompute.segments=none", "recompute.budget=1MiB"],
            "recompute.budget 1.00 MiB is too small: the smallest that any plan needs for a micro batch of 8",
        ),
        (
            ["recompute.segments=none", "recompute.budget=7MiB"],
            "the largest micro batch that fits is train.micro",
        ),
        (
            ["recompute.segments=none", "recompute.device_memory=9MiB"],
            "recompute.device_memory 9.00 MiB leaves 0 B for activations beside",
        ),
        (["train.micro_batch_size=auto"], "needs recompute.device_memory or recompute.budget"),
        (["recompute.segments=10"], "segments must be between 1 and the 9 units of this model, got 10"),
        (["model.num_classes=11"], "model.num_classes is 11, but digits has 10 classes"),
        (["data.name=cifar10", "data.root=/nowhere"], "no CIFAR-10 at /nowhere"),
        (["data.name=imagenet", "data.root=/nowhere"], "no image folder at /nowhere"),
        (["train.global_batch_size=4096"], "4096"),
        (["data.name=digits", "data.augmentation=scale"], "scale"),
        (
            ["engine.name=plain", "engine.zero_stage=0", "engine.device=cpu", "engine.cuda_graphs=true"],
            "engine.cuda_graphs needs one process on a GPU, got 1",
        ),
        pytest.param(
            ["engine.device=cuda"],
            "engine.device is cuda, but this host has no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU"),
        ),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_before_anything_starts(tmp_path, capsys, overrides, message):
    run_dir = tmp_path / "run"
    config = ["--config", QUICKSTART, "train.global_batch_size=8", f"train.run_dir={run_dir}"]
    assert main([*config, *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not dist.is_initialized()
    assert not run_dir.exists()


def test_a_mistake_in_a_launched_run_is_told_once_and_ends_with_2(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()))
    done = run(sys.executable, *launcher, TRAIN, "--config", QUICKSTART, "optim.learning_rate=.nan")
    assert done.returncode != 0
    assert done.stderr.count("error: command line: optim.learning_rate must be a finite number") == 1
    alone = run(sys.executable, TRAIN, "--config", QUICKSTART, "optim.learning_rate=.nan")
    assert alone.returncode == 2
    assert "Traceback" not in alone.stderr


def test_the_first_process_speaks_before_another_ends(monkeypatch, capsys):
    printed_before = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("time.sleep", lambda _: printed_before.append(capsys.readouterr().err))
    assert main(["--config", QUICKSTART, "optim.learning_rate=.nan"]) == 2
    assert printed_before == [""]
    assert capsys.readouterr().err.startswith("error: ")


def test_a_folder_that_holds_a_run_is_not_written_to(tmp_path, capsys):
    before = json.dumps({"kind": "summary"}) + "\n"
    Path(tmp_path / "metrics.jsonl").write_text(before, encoding="utf-8")
    assert main(["--config", QUICKSTART, *SMALL, f"train.run_dir={tmp_path}"]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == before


def test_a_finished_run_without_checkpoints_is_not_begun_anew_by_resuming_it(tmp_path, capsys):
    arguments = (*SMALL, *PLAIN, "train.max_steps=2", "train.save_every=null", f"train.run_dir={tmp_path}")
    assert main(["--config", QUICKSTART, *arguments]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["--config", QUICKSTART, *arguments, "train.resume=auto"]) == 2
    error = capsys.readouterr().err
    assert "holds a finished run and no checkpoint to go on from" in error
    assert "train.overwrite=true replaces it" in error
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = ("train.resume=never", "train.overwrite=true", "train.max_steps=1")
    assert main(["--config", QUICKSTART, *arguments, *again]) == 0
    assert json.loads((tmp_path / "finished.json").read_text(encoding="utf-8"))["step"] == 1


def test_a_run_cannot_end_before_the_checkpoint_that_it_goes_on_from_but_with_it(tmp_path, capsys):
    arguments = (*SMALL, *PLAIN, "train.save_every=3 steps", f"train.run_dir={tmp_path}")
    assert main(["--config", QUICKSTART, *arguments, "train.max_steps=4"]) == 0
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")
    resumed = (*arguments, "train.resume=auto")
    capsys.readouterr()
    assert main(["--config", QUICKSTART, *resumed, "train.max_steps=2"]) == 2
    error = capsys.readouterr().err
    assert "step-00000003 is of step 3, and train.max_steps and train.epochs end the run at step 2" in error
    assert error.count("\n") == 1
    assert len(metrics(tmp_path, "train")) == 2
    assert main(["--config", QUICKSTART, *resumed, "train.max_steps=3"]) == 0
    assert [row["step"] for row in metrics(tmp_path, "test")] == [3]
    assert json.loads((tmp_path / "finished.json").read_text(encoding="utf-8"))["step"] == 3


def _killed_before_its_next_step(monkeypatch, *arguments: str) -> None:
    def die(*_: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_step", die)
        with pytest.raises(SystemExit):
            main(["--config", QUICKSTART, *arguments])


def test_a_branch_of_a_run_that_is_killed_before_its_first_step_goes_on_from_where_it_began(
    tmp_path, capsys, monkeypatch
):
    arguments = (*SMALL, *PLAIN, "train.max_steps=2")
    assert main(["--config", QUICKSTART, *arguments, f"train.run_dir={tmp_path / 'base'}"]) == 0
    branch = (*arguments, "train.max_steps=4", f"train.run_dir={tmp_path / 'branch'}")
    _killed_before_its_next_step(monkeypatch, *branch, f"train.resume={tmp_path / 'base'}")
    assert main(["--config", QUICKSTART, *branch, "train.resume=auto"]) == 0
    assert "step-00000002" in capsys.readouterr().out
    assert [row["step"] for row in metrics(tmp_path / "branch", "train")] == [4]


def test_a_finished_run_that_is_lengthened_has_no_weights_until_its_new_end(tmp_path, monkeypatch):
    arguments = (*SMALL, *PLAIN, f"train.run_dir={tmp_path}")
    assert main(["--config", QUICKSTART, *arguments, "train.max_steps=2"]) == 0
    assert (tmp_path / "model.safetensors").exists()
    longer = (*arguments, "train.resume=auto", "train.max_steps=4")
    _killed_before_its_next_step(monkeypatch, *longer)
    assert not [name for name in ("model.safetensors", "finished.json") if (tmp_path / name).exists()]
    assert main(["--config", QUICKSTART, *longer]) == 0
    assert (tmp_path / "model.safetensors").exists()


def test_an_evaluation_that_is_stopped_again_and_again_is_made_in_the_end(tmp_path, monkeypatch):
    evaluate, told = Trainer._evaluate, list[int]()

    def stop(trainer: Trainer) -> None:
        told.append(trainer._step)
        os.kill(os.getpid(), signal.SIGTERM)
        evaluate(trainer)

    arguments = (*SMALL, *PLAIN, "train.max_steps=null", "train.epochs=2", f"train.run_dir={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_evaluate", stop)
        for resume in ("never", "auto", "auto"):
            assert main(["--config", QUICKSTART, *arguments, f"train.resume={resume}"]) == ExitStatus.STOPPED
    assert len(told) == 3
    assert len(set(told)) == 1
    assert main(["--config", QUICKSTART, *arguments, "train.resume=auto"]) == 0
    assert [row["step"] for row in metrics(tmp_path, "test")] == [told[0], 2 * told[0]]


def test_a_run_whose_test_images_cannot_be_read_may_be_resumed_at_its_end(tmp_path, capsys):
    for split in ("train", "val"):
        for label in "ab":
            (tmp_path / "images" / split / label).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / split / label / "0.png")
    for path in (tmp_path / "images" / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    data = ("data.name=image_folder", f"data.root={tmp_path / 'images'}", "data.num_images=null")
    sizes = ("data.max_bad_images=9", "train.global_batch_size=2", f"train.run_dir={tmp_path / 'run'}")
    for resume in ("never", "auto"):
        arguments = (*SMALL, *PLAIN, *data, *sizes, f"train.resume={resume}")
        assert main(["--config", QUICKSTART, *arguments]) == 0
        assert "test accuracy nan %" in capsys.readouterr().out
    assert [row["num_images"] for row in metrics(tmp_path / "run", "test")] == [0]


def test_two_processes_need_two_gpus(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["--config", QUICKSTART]) == 2
    assert "2 processes on this host need a GPU each, there are 1" in capsys.readouterr().err
