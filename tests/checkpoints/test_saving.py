"""When to save, and the thread that does: what goes wrong there is told by the run."""

import shutil
import time
from types import SimpleNamespace

import pytest
import torch

from deepres.checkpoints import saving
from deepres.checkpoints.saving import LATEST, Saver, SaveSchedule, checkpoints_in, commit_snapshot
from deepres.checkpoints.snapshot import MODEL, TRAINING, Snapshot
from deepres.commit import SaveError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("save_every", "due"),
    [("3 steps", [3, 6, 9]), ("1 step", [*range(1, 11)]), ("2 epochs", [8]), (None, [])],
)
def test_a_checkpoint_is_due_every_so_many_steps_or_epochs(save_every, due):
    schedule = SaveSchedule(save_every, steps_per_epoch=4)
    assert [step for step in range(1, 11) if schedule.is_due(step)] == due


def test_minutes_and_what_a_save_may_cost_count_from_the_checkpoint_before(monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    schedule = SaveSchedule("2 minutes", steps_per_epoch=4)
    for _ in range(2):
        begin = now
        for seconds in (1, 119, 121):
            now = begin + seconds
            assert schedule.is_due(1) == (seconds > 120)
            assert not schedule.costs_too_much(0.019 * seconds)
            assert schedule.costs_too_much(0.021 * seconds)
        schedule.restart()


def test_a_checkpoint_that_was_saved_is_there(tmp_path):
    saver = Saver(tmp_path / "checkpoints", keep=1)
    for step in (1, 2):
        saver.save(Snapshot(step, {MODEL: {"x": torch.ones(2)}}, {TRAINING: "{}"}))
    saver.finish(CPU)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000002"]


def test_checkpoints_are_written_one_after_the_other(tmp_path):
    saver = Saver(tmp_path, keep=2)
    for step, num_values in ((1, 2**23), (2, 1)):  # the first takes longer
        saver.save(Snapshot(step, {MODEL: {"x": torch.ones(num_values)}}, {}))
    saver.finish(CPU)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-00000002", "step-00000001"]
    assert (tmp_path / LATEST).read_text(encoding="utf-8") == "step-00000002\n"


def test_what_has_just_been_saved_stays_where_a_later_step_is_there(tmp_path):
    for step in (5, 3):
        commit_snapshot(Snapshot(step, {}, {TRAINING: "{}"}), tmp_path, keep=1)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-00000005", "step-00000003"]


def test_the_latest_is_one_that_was_written(tmp_path):
    saver = Saver(tmp_path, keep=1)
    for step, text in ((1, "{}"), (2, "\ud800")):  # which is no UTF-8
        saver.save(Snapshot(step, {}, {TRAINING: text}))
    with pytest.raises(SaveError, match="UnicodeEncodeError"):
        saver.finish(CPU)
    assert (tmp_path / LATEST).read_text(encoding="utf-8") == "step-00000001\n"
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-00000001"]


@pytest.mark.parametrize("content", [{"x": "no tensor"}, {"x": torch.ones(2), "y": None}])
def test_whatever_goes_wrong_in_the_thread_is_an_error_of_the_run(tmp_path, content):
    saver = Saver(tmp_path / "checkpoints", keep=1)
    saver.save(Snapshot(1, {MODEL: content}, {}))
    with pytest.raises(
        SaveError, match=r"a checkpoint could not be written to .*checkpoints: AttributeError"
    ):
        saver.finish(CPU)
    assert saver.has_failed
    assert not list(tmp_path.rglob("step-*"))


def test_what_went_wrong_first_is_told(tmp_path):
    saver = Saver(tmp_path, keep=1)
    for step, content in ((1, {"x": "no tensor"}), (2, {"x": 2})):
        saver.save(Snapshot(step, {MODEL: content}, {}))
    with pytest.raises(SaveError, match="'str' object"):
        saver.finish(CPU)


def test_a_folder_that_cannot_be_made_is_one_too(tmp_path):
    (tmp_path / "file").touch()
    saver = Saver(tmp_path / "file" / "checkpoints", keep=1)
    saver.save(Snapshot(1, {MODEL: {"x": torch.ones(2)}}, {}))
    with pytest.raises(SaveError):
        saver.finish(CPU)


def test_a_checkpoint_is_begun_only_where_it_fits(tmp_path, monkeypatch):
    tensors = {f"{k}": torch.ones(1000) for k in range(20)}
    snapshot = Snapshot(1, {MODEL: tensors}, {TRAINING: "x" * 5000})
    usage = SimpleNamespace(free=snapshot.num_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(
        SaveError, match=f"needs about {snapshot.num_bytes} bytes, {usage.free} bytes are free"
    ):
        commit_snapshot(snapshot, tmp_path, keep=1)
    usage.free += 1
    taken_bytes = sum(path.stat().st_size for path in commit_snapshot(snapshot, tmp_path, keep=1).iterdir())
    assert taken_bytes <= snapshot.num_bytes <= 1.1 * taken_bytes


def test_a_saver_tells_how_long_its_last_commit_took(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "commit_snapshot", lambda *_: time.sleep(0.05))
    saver = Saver(tmp_path, keep=1)
    saver.save(Snapshot(1, {}, {TRAINING: "{}"}))
    saver.wait()
    assert 0.05 <= saver.commit_s < 5
