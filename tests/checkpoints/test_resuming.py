"""A run that goes on from a checkpoint is the run that never stopped."""

import json
import multiprocessing
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed import FileStore

from deepres.checkpoints.resuming import read_checkpoint, share_start
from deepres.checkpoints.saving import commit_snapshot
from deepres.checkpoints.snapshot import FORMAT, MODEL, TRAINING, VERSION, Snapshot
from deepres.config import Config, ConfigError
from deepres.distributed import Process, start_process_group, stop_process_group
from deepres.evaluating import evaluate, find_config
from deepres.recompute.document import write_document
from tests.checkpoints.progress import PROGRESS
from tests.checkpoints.resume_cases import CONFIG, overrides
from tests.processes import metrics

SCRIPT = Path(__file__).with_name("resume_cases.py")
ENGINES = (
    "plain", "fairscale", "zero0", "zero1", "zero2", "zero3", "zero1_offload", "zero2_offload", "zero3_offload",
)  # fmt: skip
PLANNED = ("plain", "zero3")  # and ZeRO-2 goes on from a checkpoint of the first
EXTRAS = [
    *((engine, "plan") for engine in PLANNED),
    *((engine, "none") for engine in ENGINES if engine not in PLANNED),
    *((engine, "dropout") for engine in ("plain", "zero2")),
    *((engine, "accumulated") for engine in ("plain", "zero2")),
    *(("plain", f"workers{n}") for n in (0, 2)),
]
# 3: within the first epoch; 5 has no checkpoint; 6: within the second, after an evaluation.
STEPS = {("plain", extra): (3, 6) for extra in ("plan", "dropout", "workers2")}
pytestmark = pytest.mark.multi_process


@pytest.fixture(scope="module")
def folder(tmp_path_factory, forked):
    """Uninterrupted runs in two processes with a checkpoint every 3 of their 10 steps, and what goes on from them."""
    base = tmp_path_factory.mktemp("resume")
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for label in "ab":
            (base / "images" / split / label).mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 256, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).save(base / "images" / split / label / f"{k}.png")
    two = [f"run:{engine}-{extra}:{engine}:{extra}" for engine, extra in EXTRAS]
    two += [
        f"again:{e}-{x}-{step}:{e}:{x}:{e}-{x}:{step}" for e, x in EXTRAS for step in STEPS.get((e, x), (3,))
    ]
    two += [f"move:zero3-to-{engine}-2:{engine}:zero3-plan:6" for engine in ENGINES]
    two += [f"move:plain-to-{engine}-2:{engine}:plain-plan:6" for engine in ENGINES]
    two += ["again:mixed:zero2:plan:plain-plan:3", "again:mixed-plan:plain:none:plain-plan:3"]
    one = [f"move:zero3-to-{engine}-1:{engine}:zero3-plan:6" for engine in ENGINES]
    one += ["again:half:plain:accumulated:plain-accumulated:3"]
    forked.train(base, "--config", CONFIG, *overrides(base, "alone", "plain", "accumulated"))
    forked.run_script(SCRIPT, base, base, *two, "again:doubled:zero1:accumulated:alone:3")
    forked.run_script(SCRIPT, base, base, *one, num_processes=1)
    return base


def checkpoint(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def assert_same_bits(ours: Path, theirs: Path, *names: str) -> None:
    for name in names:
        a, b = load_file(ours / name), load_file(theirs / name)
        assert a.keys() == b.keys()
        assert not [key for key in a if not torch.equal(a[key], b[key])], f"{ours / name} and {theirs / name}"


def rows(run_dir: Path) -> list[dict]:
    content = [
        json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    # Each start tells what it is made by and its plan, whose times are measured, and its own speed.
    timed, of_a_start = ("images_per_s", "data_wait_share", "recompute_share"), ("made_by", "plan")
    return [
        {k: v for k, v in row.items() if k not in timed} for row in content if row["kind"] not in of_a_start
    ]


@pytest.mark.parametrize(("engine", "extra"), EXTRAS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(folder, engine, extra):
    whole = folder / f"{engine}-{extra}"
    for step in STEPS.get((engine, extra), (3,)):
        resumed = folder / f"{engine}-{extra}-{step}"
        for later in (6, 9, 10):
            if later > step:
                files = ("model.safetensors", "momentum.safetensors", "processes.safetensors")
                assert_same_bits(checkpoint(resumed, later), checkpoint(whole, later), *files)
        assert_same_bits(resumed, whole, "model.safetensors")
        assert rows(resumed) == [row for row in rows(whole) if row["step"] > step]


def test_checkpoints_of_one_run_differ_and_averages_are_not_what_a_process_has(folder):
    for earlier, later in pairwise((3, 6, 9, 10)):
        a, b = (
            load_file(checkpoint(folder / "plain-plan", step) / "model.safetensors")
            for step in (earlier, later)
        )
        assert not torch.equal(a["stem.conv.weight"], b["stem.conv.weight"])
    own = load_file(checkpoint(folder / "plain-plan", 3) / "processes.safetensors")
    means = load_file(checkpoint(folder / "plain-plan", 3) / "model.safetensors")
    name = "head.norm.running_mean"
    assert not torch.equal(own[f"0/buffer/{name}"], own[f"1/buffer/{name}"])
    torch.testing.assert_close((own[f"0/buffer/{name}"] + own[f"1/buffer/{name}"]) / 2, means[name])


@pytest.mark.parametrize("engine", PLANNED)
def test_two_processes_test_the_net_that_they_leave_on_each_image_once(folder, engine):
    """Whose statistics are the mean of theirs, and whose images do not divide by the batch."""
    run_dir = folder / f"{engine}-plan"
    config = find_config(run_dir)
    alone = evaluate(run_dir, config, "config", torch.device("cpu"))
    told = metrics(run_dir, "test")[-1]
    assert (alone.num_images, alone.top1, alone.top5) == (told["num_images"], told["top1"], told["top5"])
    assert told["loss"] == pytest.approx(alone.loss, rel=1e-5)


def test_processes_draw_other_random_numbers(folder):
    own = load_file(checkpoint(folder / "plain-dropout", 3) / "processes.safetensors")
    assert not torch.equal(own["0/generator/cpu"], own["1/generator/cpu"])


def test_images_per_second_are_of_both_processes_in_each_line(folder):
    """So is their mean in the summary; the first step after a start or a test does not count."""
    (summary,) = metrics(folder / "plain-plan", "summary")
    speeds = [row["images_per_s"] for row in metrics(folder / "plain-plan", "train")]
    num_counted = (1, 2, 1, 2, 2)  # of steps 1 and 2, 3 and 4, …, with a test after step 5
    seconds = sum(number / speed for number, speed in zip(num_counted, speeds, strict=True))
    assert summary["images_per_s"] == pytest.approx(sum(num_counted) / seconds)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("source", "num_processes"), [("zero3", 2), ("plain", 2), ("zero3", 1)])
def test_state_moves_between_engines_and_numbers_of_processes_without_a_bit_lost(
    folder, source, engine, num_processes
):
    moved = checkpoint(folder / f"{source}-to-{engine}-{num_processes}", 6)
    original = checkpoint(folder / f"{source}-plan", 6)
    assert_same_bits(moved, original, "momentum.safetensors")
    a, b = load_file(moved / "model.safetensors"), load_file(original / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_every_checkpoint_has_momentum_for_every_parameter(folder):
    for engine, extra in EXTRAS:
        momentum = load_file(checkpoint(folder / f"{engine}-{extra}", 3) / "momentum.safetensors")
        model = load_file(checkpoint(folder / f"{engine}-{extra}", 3) / "model.safetensors")
        buffers = ("running_mean", "running_var", "tracked")
        assert momentum.keys() == {name for name in model if not name.endswith(buffers)}
        assert all(tensor.abs().max() > 0 for tensor in momentum.values())


@pytest.mark.parametrize(
    ("resumed", "whole"),
    [
        ("half", "plain-accumulated"),  # from two processes to one
        ("doubled", "alone"),  # from one to two, and to ZeRO-1
        ("mixed", "plain-plan"),  # to ZeRO-2
        ("mixed-plan", "plain-plan"),  # without the plan
    ],
)
def test_another_number_of_processes_or_engine_sees_the_same_samples_and_trains_alike(folder, resumed, whole):
    ours, theirs = (
        {row["step"]: row["loss"] for row in metrics(folder / name, "train") if row["step"] > 3}
        for name in (resumed, whole)
    )
    assert ours.keys() == theirs.keys() == {4, 6, 8, 10}
    if resumed == "mixed-plan":
        assert ours == theirs
    # The same micro batches of 2 (or 4) images in the same order; sums over processes round in another order. The line
    # of step 4 is of the third step, too, which the checkpoint tells of.
    assert ours[4] == pytest.approx(theirs[4], rel=1e-4)
    assert ours[6] == pytest.approx(theirs[6], rel=2e-3)


def _shared(store_path, process, found, train):
    """What a process is to go on from, or why it cannot."""
    config = Config.model_validate(
        {"model": {"depth": 8}, "data": {"name": "synthetic"}, "train": {"epochs": 1, **train}}
    )
    start_process_group(process, FileStore(str(store_path), 2))
    try:
        return share_start(found, config, process)
    except ConfigError as error:
        return str(error)
    finally:
        stop_process_group()


@pytest.fixture(scope="module")
def two_processes():
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        yield pool


@pytest.fixture
def shared(tmp_path, two_processes):
    """What rank 0 goes on from, step 3 of the run `first`, and what gives rank 1's answer, by its own settings."""
    snapshot = Snapshot(
        PROGRESS.step,
        {MODEL: {"x": torch.ones(2)}},
        {TRAINING: write_document(FORMAT, VERSION, asdict(PROGRESS))},
    )
    found = read_checkpoint(commit_snapshot(snapshot, tmp_path / "first" / "checkpoints", keep=1))

    def share(local_rank=1, **train):
        cpu = torch.device("cpu")
        processes = Process(0, 0, 2, 2, cpu), Process(1, local_rank, 2, 2, cpu)
        settings = {"resume": "auto", "run_dir": tmp_path / "first"}, {"resume": "auto", **train}
        store = Path(tempfile.mkdtemp(dir=tmp_path)) / "store"
        told = [
            two_processes.submit(_shared, store, *each)
            for each in zip(processes, (found, None), settings, strict=True)
        ]
        ours, theirs = (each.result() for each in told)
        assert ours == found
        return theirs

    return found, share


@pytest.mark.parametrize("resume", ["auto", "first", "first/checkpoints", "first/checkpoints/step-00000003"])
def test_every_process_goes_on_from_what_the_first_has_chosen(tmp_path, shared, resume):
    found, share = shared
    resume = resume if resume == "auto" else tmp_path / resume
    assert share(run_dir=tmp_path / "first", resume=resume) == found


def test_a_process_that_begins_anew_where_the_first_goes_on_is_refused(tmp_path, shared):
    told = shared[1](run_dir=tmp_path / "first", resume="never")
    assert "process 1 was started with train.resume=never, process 0 resumes from step 3" in told


@pytest.mark.parametrize("local_rank", [0, 1])
def test_what_a_process_reads_in_a_folder_of_its_own_is_the_checkpoint_of_the_first_or_refused(
    tmp_path, shared, local_rank
):
    """The first process of a host looks at every file."""
    found, share = shared
    other = tmp_path / "other"
    assert "process 1 does not see the run's folder: " in share(local_rank, run_dir=other)
    shutil.copytree(tmp_path / "first", other)
    copy = other / found.path.relative_to(tmp_path / "first")
    assert share(local_rank, run_dir=other) == replace(found, path=copy)
    (copy / MODEL).write_bytes(b"")
    damaged = share(local_rank, run_dir=other)
    if local_rank == 0:
        assert f"process 1 does not see the run's folder: {copy / MODEL} has 0 bytes" in damaged
    else:
        assert damaged == replace(found, path=copy)
    snapshot = Snapshot(PROGRESS.step, {}, {TRAINING: (copy / TRAINING).read_text(encoding="utf-8")})
    commit_snapshot(snapshot, copy.parent, keep=1)
    told = share(local_rank, run_dir=other)
    assert f"process 1 sees another checkpoint at {copy} than process 0: share the folder" in told
