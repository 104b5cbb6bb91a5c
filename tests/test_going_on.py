"""A run's folder that is trained in again: what goes on, what is refused, what is kept."""

import errno
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from deepres.checkpoints import saving
from deepres.checkpoints.resuming import read_checkpoint
from deepres.commit import SaveError, commit_folder
from deepres.data.image_files import FolderFiles
from deepres.data.sampling import shuffled
from deepres.engines import Engine
from deepres.exit_status import ExitStatus
from deepres.train import main
from deepres.trainer import Trainer
from tests.processes import PLAIN, QUICKSTART, SMALL, metrics


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
    assert main(["--config", QUICKSTART, *arguments, "train.resume=auto"]) == 0
    assert capsys.readouterr().out.endswith("finished: nothing is left to do\n")
    assert main(["--config", QUICKSTART, *arguments, "train.resume=auto", "train.max_steps=3"]) == 2
    error = capsys.readouterr().err
    assert "holds a finished run and no checkpoint to go on from" in error
    assert "train.overwrite=true replaces it" in error
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = ("train.resume=never", "train.overwrite=true", "train.max_steps=1")
    assert main(["--config", QUICKSTART, *arguments, *again]) == 0
    assert json.loads((tmp_path / "finished.json").read_text(encoding="utf-8"))["step"] == 1


def test_the_command_of_a_finished_run_changes_nothing_and_with_more_steps_goes_on(tmp_path, capsys):
    arguments = (*SMALL, *PLAIN, f"train.run_dir={tmp_path}", "train.resume=auto")

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert main(["--config", QUICKSTART, *arguments, "train.max_steps=2"]) == 0
    before = files()
    capsys.readouterr()
    assert main(["--config", QUICKSTART, *arguments, "train.max_steps=2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path} holds this run, finished: nothing is left to do\n"
    assert files() == before
    (tmp_path / "model.safetensors").unlink()
    assert main(["--config", QUICKSTART, *arguments, "train.max_steps=2"]) == 0
    assert files().keys() == before.keys()
    assert (tmp_path / "model.safetensors").read_bytes() == before[tmp_path / "model.safetensors"]
    assert main(["--config", QUICKSTART, *arguments, "train.max_steps=3"]) == 0
    assert [row["step"] for row in metrics(tmp_path, "test")] == [2, 3]


@pytest.mark.multi_process
def test_two_processes_of_a_finished_run_leave_it_as_it_is(tmp_path, forked):
    arguments = ("--config", QUICKSTART, *SMALL, *PLAIN, "train.max_steps=2", "train.resume=auto")
    arguments += (f"train.run_dir={tmp_path / 'run'}",)
    forked.train(tmp_path, *arguments, num_processes=2)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    output = forked.train(tmp_path, *arguments, num_processes=2)
    assert output.count("nothing is left to do") == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_is_tested_again_in_another_precision_once(tmp_path, capsys):
    arguments = (*SMALL, *PLAIN, f"train.run_dir={tmp_path}", "train.resume=auto", "train.max_steps=2")
    for precision, is_done in (("fp32", False), ("bf16", False), ("bf16", True), ("fp32", False)):
        assert main(["--config", QUICKSTART, *arguments, f"precision.compute={precision}"]) == 0
        assert ("nothing is left to do" in capsys.readouterr().out) == is_done, precision
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8").count("compute: fp32") == 1


def test_a_run_that_was_stopped_in_its_last_evaluation_is_finished_after_it(tmp_path, monkeypatch, capsys):
    evaluate = Trainer._evaluate

    def stop(trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        evaluate(trainer)

    arguments = (*SMALL, *PLAIN, f"train.run_dir={tmp_path}", "train.resume=auto", "train.max_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_evaluate", stop)
        assert main(["--config", QUICKSTART, *arguments]) == ExitStatus.STOPPED
    for is_done in (False, True):
        assert main(["--config", QUICKSTART, *arguments]) == 0
        assert ("nothing is left to do" in capsys.readouterr().out) == is_done
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "step-00000002")
    assert checkpoint.progress.is_evaluated


def test_a_run_whose_last_checkpoint_is_damaged_is_still_finished_and_a_shorter_one_is_not(tmp_path, capsys):
    arguments = (*SMALL, *PLAIN, f"train.run_dir={tmp_path}", "train.resume=auto", "train.save_every=1 steps")
    assert main(["--config", QUICKSTART, *arguments, "train.max_steps=2"]) == 0
    (tmp_path / "checkpoints" / "step-00000002" / "model.safetensors").write_bytes(b"")
    capsys.readouterr()
    assert main(["--config", QUICKSTART, *arguments, "train.max_steps=2"]) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert main(["--config", QUICKSTART, *arguments, "train.max_steps=1"]) == 0
    assert "nothing is left to do" not in capsys.readouterr().out
    assert json.loads((tmp_path / "finished.json").read_text(encoding="utf-8"))["step"] == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"steps_per_epoch": "8"}'])
def test_a_finished_json_that_is_not_whole_does_not_make_a_run_finished(tmp_path, content, capsys):
    arguments = (*SMALL, *PLAIN, f"train.run_dir={tmp_path}", "train.resume=auto", "train.max_steps=1")
    assert main(["--config", QUICKSTART, *arguments]) == 0
    (tmp_path / "finished.json").write_text(content, encoding="utf-8")
    assert main(["--config", QUICKSTART, *arguments]) == 0
    assert "nothing is left to do" not in capsys.readouterr().out
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


def test_what_is_spelled_out_is_the_run_that_left_it_to_its_default(tmp_path):
    """And the folder of a run's checkpoints means that run."""
    arguments = (*SMALL, *PLAIN, "train.max_steps=2", "model.matching=null")
    assert main(["--config", QUICKSTART, *arguments, f"train.run_dir={tmp_path / 'base'}"]) == 0
    spelled = ("model.matching=projection", "model.stem_activation=false", "data.augmentation=none")
    branch = (
        *arguments,
        *spelled,
        f"train.resume={tmp_path / 'base' / 'checkpoints'}",
        f"train.run_dir={tmp_path / 'branch'}",
    )
    assert main(["--config", QUICKSTART, *branch, "train.max_steps=3"]) == 0
    assert [row["step"] for row in metrics(tmp_path / "branch", "train")] == [3]


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
        told.append(trainer._state.step)
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


@pytest.mark.parametrize(("moment", "last"), [("_set_learning_rate", 3), ("_update", 4)])
def test_a_signal_in_a_step_ends_the_run_after_it_or_the_next_one_with_a_checkpoint(
    tmp_path, monkeypatch, moment, last
):
    """The next one, where the processes have told one another what they wish already."""
    original, num_calls = getattr(Engine, moment), [0]

    def stop(*arguments):
        num_calls[0] += 1
        if num_calls[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    arguments = (*SMALL, *PLAIN, f"train.run_dir={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(Engine, moment, stop)
        assert main(["--config", QUICKSTART, *arguments]) == ExitStatus.STOPPED
    (checkpoint,) = (path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert checkpoint == f"step-{last:08d}"
    assert main(["--config", QUICKSTART, *arguments, "train.resume=auto"]) == 0
    assert [row["step"] for row in metrics(tmp_path, "train")] == [2, 4, 6, 8]


def test_a_checkpoint_that_fails_in_the_background_ends_the_run(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise SaveError("the disk is full")

    monkeypatch.setattr(saving, "commit_folder", fail)
    saves = ("train.save_every=2 steps", "train.save_in_background=always", f"train.run_dir={tmp_path}")
    assert main(["--config", QUICKSTART, *SMALL, *PLAIN, *saves]) == ExitStatus.NOT_SAVED
    assert capsys.readouterr().err.endswith("error: the disk is full\n")
    assert not (tmp_path / "finished.json").exists()


def test_a_run_is_not_gone_on_with_where_a_class_has_another_name(tmp_path, capsys):
    """Its labels would be others: of `a` and `b` the second one becomes the first."""
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "images" / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / place / "0.png")
    data = ("data.name=image_folder", f"data.root={tmp_path / 'images'}", "data.num_images=null")
    arguments = (*SMALL, *PLAIN, *data, "train.global_batch_size=2", f"train.run_dir={tmp_path / 'run'}")
    assert main(["--config", QUICKSTART, *arguments]) == 0
    for split in ("train", "val"):
        (tmp_path / "images" / split / "b").rename(tmp_path / "images" / split / "B")
    capsys.readouterr()
    assert main(["--config", QUICKSTART, *arguments, "train.resume=auto", "train.epochs=2"]) == 2
    error = capsys.readouterr().err
    assert "is a checkpoint of another run: the SHA-256 of the classes' names is " in error
    assert error.count("\n") == 1


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


def _weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model.safetensors")


def _are_same(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return ones.keys() == others.keys() and all(torch.equal(ones[name], others[name]) for name in ones)


@pytest.fixture
def stopped(tmp_path):
    """A run of 6 steps that ended after 4, with a checkpoint there; what it takes to go on."""
    run_dir = tmp_path / "run"
    arguments = (*SMALL, *PLAIN, "log.every=1", f"train.run_dir={run_dir}")
    assert main(["--config", QUICKSTART, *arguments, "train.max_steps=4"]) == 0
    return run_dir, (*arguments, "train.resume=auto", "train.max_steps=6")


def test_checkpoints_that_lie_elsewhere_by_a_link_are_the_run_s_own(stopped, tmp_path, capsys):
    run_dir, again = stopped
    (run_dir / "checkpoints").rename(tmp_path / "scratch")
    (run_dir / "checkpoints").symlink_to(tmp_path / "scratch")
    assert main(["--config", QUICKSTART, *again]) == 0
    assert [row["step"] for row in metrics(run_dir, "train")] == [1, 2, 3, 4, 5, 6]
    before = (run_dir / "metrics.jsonl").read_bytes()
    (tmp_path / "scratch").rename(tmp_path / "unmounted")
    capsys.readouterr()
    assert main(["--config", QUICKSTART, *again, "train.max_steps=8"]) == 2
    assert "scratch, which is not there: mount it, or remove the link" in capsys.readouterr().err
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_a_copy_of_a_run_s_checkpoint_in_its_folder_keeps_its_metrics(stopped):
    run_dir, again = stopped
    (run_dir / "checkpoints" / "step-00000004").rename(run_dir / "backup")
    assert main(["--config", QUICKSTART, *again, f"train.resume={run_dir / 'backup'}"]) == 0
    assert [row["step"] for row in metrics(run_dir, "train")] == [1, 2, 3, 4, 5, 6]


def test_metrics_that_somebody_edited_stay_whole_lines(stopped):
    run_dir, again = stopped
    path = run_dir / "metrics.jsonl"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"note": ""', '"note": "here"'), encoding="utf-8"
    )
    assert main(["--config", QUICKSTART, *again]) == 0
    steps = [row["step"] for row in metrics(run_dir, "train")]
    assert steps[:3] + steps[-2:] == [1, 2, 3, 5, 6]


@pytest.mark.parametrize("name", ["manifest.json", "training.json"])
def test_a_checkpoint_that_cannot_be_read_at_the_moment_is_not_put_aside(stopped, capsys, monkeypatch, name):
    run_dir, again = stopped
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == name:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert main(["--config", QUICKSTART, *again]) == 2
    assert f"{name} cannot be read: Stale file handle" in capsys.readouterr().err
    assert [path.name for path in (run_dir / "checkpoints").glob("step-*")] == ["step-00000004"]
    assert main(["--config", QUICKSTART, *again]) == 0


def _rewritten(checkpoint: Path, old: str, new: str) -> None:
    """Change what a checkpoint tells of its training, and commit it anew."""
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "manifest.json"}
    text = files["training.json"].decode()
    assert old in text
    files["training.json"] = text.replace(old, new).encode()
    writers = {name: partial(Path.write_bytes, data=content) for name, content in files.items()}
    commit_folder(checkpoint, writers, 0)


@pytest.mark.parametrize("name", ["manifest.json", "training.json"])
def test_a_checkpoint_of_a_newer_version_is_not_skipped(stopped, capsys, name):
    run_dir, again = stopped
    newest = run_dir / "checkpoints" / "step-00000005"
    shutil.copytree(run_dir / "checkpoints" / "step-00000004", newest)
    if name == "manifest.json":
        manifest = newest / name
        text = manifest.read_text(encoding="utf-8")
        manifest.write_text(text.replace('"version": 1', '"version": 2'), encoding="utf-8")
    else:
        _rewritten(newest, '"version":1', '"version":2')
    assert main(["--config", QUICKSTART, *again]) == 2
    assert "reads up to 1: update deepres" in capsys.readouterr().err
    assert newest.exists()


def test_another_number_of_threads_is_told(stopped, capsys, monkeypatch):
    _, again = stopped
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before + 1))
    torch.set_num_threads(before + 1)
    try:
        assert main(["--config", QUICKSTART, *again]) == 0
    finally:
        torch.set_num_threads(before)
    told = f"WARNING: the checkpoint's run computed with OMP_NUM_THREADS={before}, this one with {before + 1}"
    assert told in capsys.readouterr().out


def test_another_batch_of_batch_norm_is_told(stopped, capsys):
    _, again = stopped
    assert main(["--config", QUICKSTART, *again]) == 0
    assert "batch norm saw" not in capsys.readouterr().out
    assert main(["--config", QUICKSTART, *again, "train.max_steps=7", "train.micro_batch_size=4"]) == 0
    told = "WARNING: batch norm saw 8 images at once in the checkpoint's run and sees 4 in this one"
    assert told in capsys.readouterr().out


def _folder_of_images(root: Path, num_train: int, num_test: int) -> tuple[str, ...]:
    random = np.random.default_rng(0)
    for split, count in (("train", num_train), ("val", num_test)):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{k}.png")
    data = (f"data.root={root}", "data.name=image_folder", "data.num_images=null")
    return (*SMALL, *PLAIN, *data, "train.global_batch_size=4", "train.epochs=2", "log.every=1")


@pytest.mark.multi_process
@pytest.mark.parametrize(("step", "num_processes"), [(0, 1), (2, 2)])
def test_an_image_that_cannot_be_read_costs_no_step(tmp_path, forked, step, num_processes):
    """It is mended, and the run ends as if nothing had been: in every process, in the first batch or a later one."""
    settings = _folder_of_images(tmp_path / "images", 8, 2)
    position = 4 * step + 3  # the last process's
    files = sorted((tmp_path / "images" / "train").rglob("*.png"))
    broken = files[shuffled(len(files), 0, 0)[position]]
    whole, out = broken.read_bytes(), tmp_path / "out"
    out.mkdir()

    def train(name: str, *more: str) -> str:
        run_dir = f"train.run_dir={tmp_path / name}"
        return forked.train(
            out, "--config", QUICKSTART, *settings, run_dir, *more, num_processes=num_processes
        )

    train("whole")
    broken.write_bytes(b"no image")
    with pytest.raises(
        AssertionError, match=rf"{broken.name} .*the run stops after step {step}; train.resume=auto"
    ):
        train("again")
    assert [p.name for p in (tmp_path / "again" / "checkpoints").glob("step-*")] == [f"step-{step:08d}"]
    broken.write_bytes(whole)
    train("again", "train.resume=auto")
    assert _are_same(_weights(tmp_path / "again"), _weights(tmp_path / "whole"))
    assert [row["step"] for row in metrics(tmp_path / "again", "train")] == list(range(1, 9))


def test_a_network_that_fails_for_a_moment_costs_no_image(tmp_path, monkeypatch):
    settings = _folder_of_images(tmp_path / "images", 4, 2)
    read, failures = FolderFiles.read, [errno.ESTALE, errno.EIO]

    def fail(files: FolderFiles, index: int) -> bytes:
        if failures:
            raise OSError(failures.pop(), "for a moment")
        return read(files, index)

    monkeypatch.setattr(FolderFiles, "read", fail)
    assert main(["--config", QUICKSTART, *settings, f"train.run_dir={tmp_path / 'run'}"]) == 0
    assert not failures


@pytest.mark.parametrize(
    "other_test",
    [("data.eval_image_size=6",), ("data.eval_shorter_side=12",), ("precision.compute=bf16",), ()],
    ids=["crop", "shorter side", "precision", "images"],
)
def test_a_tested_net_is_tested_anew_where_the_test_is_another(tmp_path, other_test):
    settings = _folder_of_images(tmp_path / "images", 4, 2)
    assert main(["--config", QUICKSTART, *settings, f"train.run_dir={tmp_path / 'run'}"]) == 0
    again = (*settings, f"train.run_dir={tmp_path / 'run'}", "train.resume=auto")
    assert main(["--config", QUICKSTART, *again]) == 0
    assert len(metrics(tmp_path / "run", "test")) == 2  # of two epochs
    if not other_test:  # as many images, but not the same
        old = tmp_path / "images" / "val" / "a" / "0.png"
        Image.new("RGB", (8, 8), "red").save(old.with_name("new.png"))
        old.unlink()
    other = (*settings, f"train.run_dir={tmp_path / 'other'}", f"train.resume={tmp_path / 'run'}")
    assert main(["--config", QUICKSTART, *other, *other_test]) == 0
    assert len(metrics(tmp_path / "other", "test")) == 1
    loss = metrics(tmp_path / "other", "test")[0]["loss"]
    assert loss != metrics(tmp_path / "run", "test")[-1]["loss"]


def test_an_image_that_no_step_needs_stops_no_run(tmp_path):
    """One of the batch that is taken ahead in the last step."""
    settings = _folder_of_images(tmp_path / "images", 8, 2)
    files = sorted((tmp_path / "images" / "train").rglob("*.png"))
    files[shuffled(len(files), 0, 0)[4]].write_bytes(b"no image")
    run_dir = f"train.run_dir={tmp_path / 'run'}"
    assert main(["--config", QUICKSTART, *settings, run_dir, "train.max_steps=1"]) == 0
    assert main(["--config", QUICKSTART, *settings, run_dir, "train.resume=auto", "train.max_steps=2"]) == 2
