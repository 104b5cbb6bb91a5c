"""The thread that saves: what goes wrong there is told by the run."""

import pytest
import torch

from deepres.commit import SaveError
from deepres.saving import MODEL, TRAINING, Saver, Snapshot

CPU = torch.device("cpu")


def test_a_checkpoint_that_was_saved_is_there(tmp_path):
    saver = Saver(tmp_path / "checkpoints", keep=1)
    for step in (1, 2):
        saver.save(Snapshot(step, {MODEL: {"x": torch.ones(2)}}, {TRAINING: "{}"}))
    saver.finish(CPU)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000002"]


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


def test_a_folder_that_cannot_be_made_is_one_too(tmp_path):
    (tmp_path / "file").touch()
    saver = Saver(tmp_path / "file" / "checkpoints", keep=1)
    saver.save(Snapshot(1, {MODEL: {"x": torch.ones(2)}}, {}))
    with pytest.raises(SaveError):
        saver.finish(CPU)
