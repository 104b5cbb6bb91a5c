"""What a run is asked for: plans, budgets and micro batches that it keeps, and what is refused before it starts."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from deepres.batch_sizes import smaller_micro_batches
from deepres.config import ConfigError
from deepres.distributed import Process, share_cores
from deepres.job import prepare, run_job
from deepres.memory import run_planner
from deepres.models import build_resnet
from deepres.recompute import Plan, keep_all_plan
from deepres.stopping import StopRequest
from deepres.train import main
from tests.processes import PLAIN, QUICKSTART, SMALL, metrics


def test_a_net_of_another_seed_begins_with_other_weights():
    weights = [
        prepare(Path(QUICKSTART), [*SMALL, *PLAIN, f"train.seed={seed}"]).net.stem.conv.weight
        for seed in (0, 1)
    ]
    assert not torch.equal(*weights)


@pytest.mark.parametrize(("variable", "num_processes", "expected"), [(None, 2, 2), (None, 8, 1), ("4", 2, 4)])
def test_processes_share_the_cores_unless_the_environment_says_how(
    monkeypatch, variable, num_processes, expected
):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    try:
        torch.set_num_threads(4)
        share_cores(Process(0, 0, num_processes, num_processes, torch.device("cpu")))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


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
    (plan,), (summary,) = (metrics(run_dir, kind) for kind in ("plan", "summary"))
    return {"plan": plan, "summary": summary}


def test_segments_are_told_and_save_memory(tmp_path):
    peaks = {}
    for segments in ("none", "sqrt"):
        overrides = (f"recompute.segments={segments}", "train.deterministic=false")
        peaks[segments] = _one_step(tmp_path / segments, *overrides)["summary"]
    assert peaks["sqrt"]["activation_peak_bytes"] < 0.5 * peaks["none"]["activation_peak_bytes"]
    assert peaks["none"]["recompute_share"] == 0
    assert 0.1 < peaks["sqrt"]["recompute_share"] < 0.45  # a forward of 21 of 27 units, as measured


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


def test_a_plan_whose_micro_batch_ran_out_of_memory_is_told_as_it_is_with_the_smaller_one(tmp_path):
    settings = ("recompute.budget=30MiB", "train.micro_batch_size=auto", "train.global_batch_size=16")
    run_dir = f"train.run_dir={tmp_path}"
    job = prepare(Path(QUICKSTART), [*SMALL, *PLAIN, *settings, run_dir, "train.max_steps=1"])

    def ask_for_too_much(_, inputs):
        if len(inputs[0]) > 4:
            torch.empty(2**48, dtype=torch.uint8)  # more than there are addresses

    job.net.units[1].register_forward_pre_hook(ask_for_too_much)
    run_job(job, StopRequest())
    (plan,), (summary,) = (metrics(tmp_path, kind) for kind in ("plan", "summary"))
    assert (plan["micro_batch_size"], plan["accumulation"]) == (4, 4)
    assert summary["activation_peak_bytes"] == pytest.approx(plan["predicted_peak_bytes"], rel=0.02)
    assert summary["predicted_peak_bytes"] == plan["predicted_peak_bytes"] < plan["predicted_total_bytes"]
    assert Plan.load(tmp_path / "plan.json").peak_bytes == plan["predicted_peak_bytes"]


def test_what_the_first_process_finds_reaches_the_others_whole(tmp_path):
    job = prepare(Path(QUICKSTART), [*SMALL, *PLAIN, "recompute.budget=30MiB", f"train.run_dir={tmp_path}"])
    planned = job.planner.plan_as_measured(job.sizes)
    assert pickle.loads(pickle.dumps(planned)) == planned
    error = pickle.loads(pickle.dumps(ConfigError("no plan fits:\n  raise the budget")))
    assert type(error) is ConfigError
    assert str(error) == "no plan fits: raise the budget"


def test_a_plan_at_a_smaller_micro_batch_keeps_its_share_of_extra_time():
    job = prepare(Path(QUICKSTART), [*SMALL, *PLAIN, "recompute.segments=3"])
    planned = job.planner.plan_as_measured(job.sizes)
    smaller = next(sizes for sizes in smaller_micro_batches(job.sizes) if sizes.micro_size == 2)
    found = job.planner.rescaled(planned, smaller)
    assert found.sizes == smaller
    assert (found.plan.segments, found.plan.retentions) == (planned.plan.segments, planned.plan.retentions)
    assert found.plan.extra_share == pytest.approx(planned.plan.extra_share)
    assert found.plan.total_ms == planned.plan.total_ms / 4
    assert planned.plan.peak_bytes / 4 <= found.plan.peak_bytes < planned.plan.peak_bytes
    assert found.activations_bytes == found.plan.peak_bytes
    assert job.planner.rescaled(planned, job.sizes) is planned


def test_what_is_measured_is_the_runs_own_precision(monkeypatch):
    asked = []

    def measure(_net, shape, device, dtype, *, channels_last):
        asked.append((shape, device.type, dtype, channels_last))
        raise NotImplementedError

    monkeypatch.setattr(run_planner, "measure_chain", measure)
    precision = ("precision.compute=bf16", "precision.channels_last=true")
    job = prepare(Path(QUICKSTART), [*SMALL, *PLAIN, "recompute.segments=3", *precision])
    with pytest.raises(NotImplementedError):
        job.planner.plan_as_measured(job.sizes)
    assert asked == [((8, 3, 8, 8), "cpu", torch.bfloat16, True)]


@pytest.mark.multi_process
def test_all_processes_run_the_plan_that_the_first_one_measured(tmp_path, forked):
    for name, overrides in {"kept": (), "planned": ("recompute.budget=800KiB",)}.items():
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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.deph=20"], "unknown key model.deph; did you mean model.depth?"),
        (
            ["model.depth=1000"],
            "depth must be 9n+2 for bottleneck units (e.g. 164, 1001), got 1000; nearest: 992, 1001",
        ),
        (["train.micro_batch_size=3"], "train.micro_batch_size 3 does not divide; nearest: 1, 2, 4, 8"),
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


def test_two_processes_need_two_gpus(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["--config", QUICKSTART]) == 2
    assert "2 processes on this host need a GPU each, there are 1" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["recompute.budget=2GiB", "recompute.device_memory=2GiB"])
def test_a_run_on_a_gpu_is_prepared_without_asking_the_gpu(monkeypatch, override):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delattr(torch.cuda, "mem_get_info")
    job = prepare(Path(QUICKSTART), ["engine.device=cuda", "recompute.segments=none", override])
    assert job.process.device.type == "cuda"
