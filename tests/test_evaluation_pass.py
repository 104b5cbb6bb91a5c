"""An evaluation that fails: what was trained before it is saved, and goes on from there."""

import colorsys

import pytest
from PIL import Image

from deepres.data.image_files import FolderFiles
from deepres.engines import Engine
from deepres.exit_status import ExitStatus
from deepres.train import main
from tests.faults.forks import same_weights
from tests.processes import PLAIN, QUICKSTART, SMALL, TRAIN, torchrun


@pytest.fixture
def images(tmp_path):
    """Images of two colours, all of them good."""
    for split, number in (("train", 12), ("test", 6)):
        for hue in (0, 1):
            folder = tmp_path / "images" / split / f"hue{hue}"
            folder.mkdir(parents=True)
            for k in range(number):
                colour = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue / 2, 0.5 + k / 24, 0.8))
                Image.new("RGB", (8, 8), colour).save(folder / f"{k}.png")
    return tmp_path / "images"


def _train(images, run_dir, *overrides):
    data = ("data.name=image_folder", f"data.root={images}", "data.num_images=null", "train.epochs=2")
    arguments = (*SMALL, *PLAIN, *data, f"train.run_dir={run_dir}", "train.resume=auto", *overrides)
    return main(["--config", QUICKSTART, *arguments])


def test_a_test_image_that_cannot_be_read_loses_no_training(images, tmp_path, capsys):
    assert _train(images, tmp_path / "whole") == 0
    good = (images / "test/hue1/3.png").read_bytes()
    (images / "test/hue1/3.png").write_bytes(b"")
    assert _train(images, tmp_path / "run") == ExitStatus.REFUSED
    assert "hue1/3.png" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("run/checkpoints/step-*")] == ["step-00000003"]
    (images / "test/hue1/3.png").write_bytes(good)
    assert _train(images, tmp_path / "run") == 0
    assert same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.multi_process
def test_a_process_that_cannot_read_its_first_test_image_keeps_no_other_waiting_for_its_parameters(
    images, tmp_path
):
    (images / "test/hue0/0.png").write_bytes(b"")
    sharded = (
        "engine.name=deepspeed",
        "engine.zero_stage=3",
        "recompute.segments=none",
        "train.eval_batch_size=2",
    )
    data = ("data.name=image_folder", f"data.root={images}", "data.num_images=null")
    arguments = (*SMALL, *data, *sharded, f"train.run_dir={tmp_path / 'run'}")
    done = torchrun(TRAIN, "--config", QUICKSTART, *arguments)
    assert done.stderr.count("hue0/0.png") >= 1
    assert "error: " in done.stderr
    assert [path.name for path in tmp_path.glob("run/checkpoints/step-*")] == ["step-00000003"]


def test_test_images_that_take_too_much_memory_lose_no_training(images, tmp_path, capsys, monkeypatch):
    predict = Engine.predict

    def ask_for_too_much(engine, batch):
        return predict(engine, batch.new_zeros(2**45) if len(batch) > 5 else batch)

    monkeypatch.setattr(Engine, "predict", ask_for_too_much)
    assert _train(images, tmp_path / "run", "train.eval_batch_size=12") == ExitStatus.OUT_OF_MEMORY
    message = "error: out of memory in the evaluation, with 12 images at once: lower train.eval_batch_size\n"
    assert message in capsys.readouterr().err
    assert _train(images, tmp_path / "run", "train.eval_batch_size=5") == 0
    assert "resumes from" in capsys.readouterr().out


def test_memory_that_runs_out_while_test_images_are_read_loses_no_training(
    images, tmp_path, capsys, monkeypatch
):
    read = FolderFiles.read

    def ask_for_too_much(files, index):
        if "/test/" in files.path(index):
            raise MemoryError
        return read(files, index)

    monkeypatch.setattr(FolderFiles, "read", ask_for_too_much)
    assert _train(images, tmp_path / "run", "train.eval_batch_size=12") == ExitStatus.OUT_OF_MEMORY
    assert "error: out of memory in the evaluation, with 12 images at once: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("run/checkpoints/step-*")] == ["step-00000003"]


def test_a_process_without_memory_does_not_save_with_those_that_wait_for_its_parameters(
    images, tmp_path, capsys, monkeypatch
):
    def ask_for_too_much(_engine, batch):
        return batch.new_zeros(2**45)

    monkeypatch.setattr(Engine, "predict", ask_for_too_much)
    monkeypatch.setattr(Engine, "shards_parameters", True)
    assert _train(images, tmp_path / "run") == ExitStatus.OUT_OF_MEMORY
    assert "error: out of memory in the evaluation" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/checkpoints/step-*"))


@pytest.mark.parametrize(
    "settings", [("train.resume=auto", "train.epochs=3"), ("train.resume=never", "train.overwrite=true")]
)
def test_a_run_that_is_refused_leaves_the_one_that_its_folder_holds(
    images, tmp_path, capsys, monkeypatch, settings
):
    """Refused late: when the processes are to meet."""
    assert _train(images, tmp_path / "run") == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("run/**/*") if path.is_file()}
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _train(images, tmp_path / "run", *settings) == ExitStatus.REFUSED
    assert "2 processes need the port to meet at" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.glob("run/**/*") if path.is_file()} == before
    assert _train(images, tmp_path / "new") == ExitStatus.REFUSED
    assert not (tmp_path / "new").exists()
