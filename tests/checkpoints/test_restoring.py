"""A checkpoint's state in a net and an engine, and files that are of another net."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepres.checkpoints.identity import Identity
from deepres.checkpoints.restoring import restore_engine, restore_net
from deepres.checkpoints.resuming import read_checkpoint
from deepres.checkpoints.run_facts import RunFacts
from deepres.checkpoints.saving import commit_snapshot
from deepres.checkpoints.snapshot import MODEL, take_snapshot
from deepres.checkpoints.training_state import TrainingState
from deepres.config import ConfigError
from deepres.recompute import keep_all_plan
from tests.engines.fp16_engine import fp16_engine


def _saved(engine, folder):
    facts = RunFacts(Identity({}, {}), "", steps_per_epoch=8, plan=keep_all_plan(3))
    state = TrainingState(3, torch.zeros(4, dtype=torch.float64))
    snapshot = take_snapshot(engine, facts, state, metrics_bytes=0)
    return read_checkpoint(commit_snapshot(snapshot, folder, keep=1))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_loss_scale_and_the_generators_state_are_taken_over_from_any_number_of_processes(
    tmp_path, num_processes
):
    engine = fp16_engine()
    scaler = {**engine.loss_scaler.state_dict(), "scale": 8.0, "_growth_tracker": 3}
    told = {"loss_scaler": scaler, "num_skipped": 2, "num_processes": num_processes}
    checkpoint = _saved(engine, tmp_path)
    checkpoint = replace(checkpoint, progress=replace(checkpoint.progress, **told))
    state = torch.get_rng_state()
    torch.manual_seed(7)
    restore_engine(checkpoint, engine)
    assert engine.loss_scaler.state_dict() == scaler
    assert engine.num_skipped == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert engine.has_averaged_buffers == (num_processes == 2)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("more", torch.zeros(1), "more is in one of them only"),
        ("head.linear.bias", None, "head.linear.bias is in one of them only"),
        ("head.linear.bias", torch.zeros(1), r"is float32 \[10\] in the net, float32 \[1\] in the file"),
        ("head.linear.bias", torch.zeros(10).double(), r"is float32 \[10\] in the net, float64 \[10\] in"),
    ],
    ids=["more", "less", "another shape", "another format"],
)
def test_the_weights_of_another_net_are_refused(tmp_path, name, tensor, message):
    engine = fp16_engine()
    checkpoint = _saved(engine, tmp_path)
    weights = load_file(checkpoint.path / MODEL) | {name: tensor}
    save_file({key: value for key, value in weights.items() if value is not None}, checkpoint.path / MODEL)
    with pytest.raises(ConfigError, match=f"{MODEL} is of another net: .*{message}"):
        restore_net(checkpoint, engine.net)


def test_weights_that_cannot_be_read_are_refused(tmp_path):
    engine = fp16_engine()
    checkpoint = _saved(engine, tmp_path)
    (checkpoint.path / MODEL).write_bytes(b"")
    with pytest.raises(ConfigError, match=f"{MODEL} cannot be read: "):
        restore_net(checkpoint, engine.net)
