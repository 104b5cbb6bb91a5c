"""Damaged, foreign, newer, half-written and malicious checkpoints: found by name, refused, never executed."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from deepres.checkpoints.saving import checkpoints_in
from deepres.checkpoints.snapshot import FILES, MODEL
from deepres.commit import MANIFEST, commit_folder
from deepres.config import ConfigError
from deepres.train import main
from deepres.weights import load_weights
from tests.faults.forks import RUN

DAMAGES = ("truncated", "flipped", "deleted", "swapped")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints of steps 15 and 16."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert main([*RUN, f"train.run_dir={run_dir}"]) == 0
    assert [path.name for path in checkpoints_in(run_dir / "checkpoints")] == [
        "step-00000016",
        "step-00000015",
    ]
    return run_dir


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy, as if it had been killed before it was marked as finished."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("finished.json"))
    return tmp_path / "run"


def newest(run_dir: Path) -> Path:
    return checkpoints_in(run_dir / "checkpoints")[0]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in (MODEL, MANIFEST) else pytest.mark.slow)
        for name in sorted({*FILES, MANIFEST})
    ],
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_auto_falls_back_and_an_explicit_path_fails(run_dir, capsys, table, name, damage):
    path, older = newest(run_dir) / name, checkpoints_in(run_dir / "checkpoints")[1]
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "truncated":
        path.write_bytes(content[:middle])
    elif damage == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "deleted":
        path.unlink()
    else:
        # Two files whose content does not depend on the step: any other stands for another step's.
        same = (older / name).read_bytes() == content
        path.write_bytes((older / name).read_bytes() + b" " * same)
    # A manifest of another step accuses the files that it does not describe.
    accused = "step-00000016/" if name == MANIFEST and damage == "swapped" else f"step-00000016/{name}"

    explicit = main([*RUN, f"train.resume={newest(run_dir)}", f"train.run_dir={run_dir.parent / 'other'}"])
    error = capsys.readouterr().err
    refused = explicit == 2 and accused in error and error.count("\n") == 1

    fell_back = main([*RUN, f"train.run_dir={run_dir}"]) == 0
    output = capsys.readouterr().out
    told = f"WARNING: skipped checkpoint step-00000016: {run_dir / 'checkpoints' / accused}" in output
    lost = 16 - int(output.split(": step ")[1].split(",")[0])
    table.add(f"a checkpoint's file {damage}", refused and fell_back and told, lost)
    assert refused, error
    assert fell_back
    assert told, output
    assert lost == 1
    assert (run_dir / "checkpoints" / "step-00000016.damaged").is_dir()


def test_the_checkpoint_of_a_step_may_be_damaged_twice(run_dir):
    for k in range(2):
        (newest(run_dir) / MODEL).write_bytes(bytes([k]))
        assert main([*RUN, f"train.run_dir={run_dir}"]) == 0
        (run_dir / "finished.json").unlink()
        aside = run_dir / "checkpoints" / "step-00000016.damaged"
        assert (aside / MODEL).read_bytes() == bytes([k])
    assert newest(run_dir).name == "step-00000016"


def test_a_run_with_nothing_but_damaged_checkpoints_is_not_silently_begun_anew(run_dir, capsys):
    for path in checkpoints_in(run_dir / "checkpoints"):
        (path / "model.safetensors").unlink()
    before = (run_dir / "metrics.jsonl").read_bytes()
    assert main([*RUN, f"train.run_dir={run_dir}"]) == 2
    error = capsys.readouterr().err
    assert "none of the 2 checkpoints" in error
    assert "train.overwrite=true" in error
    assert (run_dir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "difference"),
    [
        (["model.depth=20"], "model.depth is 20 here, 11 in the checkpoint"),
        (["data.num_classes=7"], "model.num_classes is 7 here, 10 in the checkpoint"),
        (["data.name=digits", "data.num_images=null"], "data.name is digits here, synthetic in the checkpoint"),
        (["train.seed=5", "optim.learning_rate=1"], "run: train.seed is 5 here, 0 in the checkpoint\n"),
        (["train.global_batch_size=16"], "the global batch size is 16 here, 8 in the checkpoint"),
        (["data.augmentation=crop"], "data.augmentation is crop here, none in the checkpoint"),
        (["data.lighting=0.1"], "data.lighting is 0.1 here, 0.0 in the checkpoint"),
        (["data.normalize=half"], "data.normalize is half here, mean_std in the checkpoint"),
        (["data.image_size=12"], "data.image_size is 12 here, 16 in the checkpoint"),
        (["data.num_images=72"], "the number of training images is 72 here, 64 in the checkpoint"),
    ],
)  # fmt: skip
def test_a_foreign_checkpoint_is_refused_with_every_difference(run_dir, capsys, overrides, difference):
    before = sorted(path for path in run_dir.rglob("*"))
    assert main([*RUN, f"train.run_dir={run_dir}", *overrides]) == 2
    error = capsys.readouterr().err
    assert "is a checkpoint of another run" in error
    assert difference in error
    assert sorted(path for path in run_dir.rglob("*")) == before


def test_a_newer_format_asks_for_a_newer_deepres(run_dir, capsys, tmp_path):
    old = newest(run_dir)
    text = (old / "training.json").read_text(encoding="utf-8").replace('"version":1', '"version":7')
    files = {n: (lambda path, n=n: shutil.copy(old / n, path)) for n in FILES - {"training.json"}}
    commit_folder(
        tmp_path / "step-00000016", {**files, "training.json": lambda path: path.write_text(text)}, 0
    )
    assert (
        main([*RUN, f"train.resume={tmp_path / 'step-00000016'}", f"train.run_dir={tmp_path / 'new'}"]) == 2
    )
    error = capsys.readouterr().err
    assert "has version 7, and this deepres reads up to 1: update deepres" in error


@pytest.mark.parametrize("what", ["missing", "half-written", "a file", "a run that never saved"])
def test_what_is_no_checkpoint_is_refused(run_dir, capsys, tmp_path, what):
    path = tmp_path / "given"
    if what == "half-written":
        shutil.copytree(newest(run_dir), path)
        (path / MANIFEST).unlink()
    elif what == "a file":
        path.write_text("checkpoint", encoding="utf-8")
    elif what == "a run that never saved":
        (path / "checkpoints").mkdir(parents=True)
    assert main([*RUN, f"train.resume={path}", f"train.run_dir={tmp_path / 'new'}"]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_another_runs_folder_needs_resume_or_overwrite(run_dir, capsys):
    (run_dir / "mine.txt").write_text("keep", encoding="utf-8")
    assert main([*RUN, f"train.run_dir={run_dir}", "train.resume=never"]) == 2
    assert "train.resume=auto goes on with it, train.overwrite=true replaces it" in capsys.readouterr().err
    overwriting = (
        "train.resume=never",
        "train.overwrite=true",
        "train.max_steps=4",
        "train.save_every=2 steps",
    )
    assert main([*RUN, f"train.run_dir={run_dir}", *overwriting]) == 0
    assert [path.name for path in checkpoints_in(run_dir / "checkpoints")] == [
        "step-00000004",
        "step-00000002",
    ]
    assert (run_dir / "mine.txt").read_text(encoding="utf-8") == "keep"


def test_going_back_within_a_run_is_refused_while_newer_checkpoints_are_there(run_dir, capsys):
    older = checkpoints_in(run_dir / "checkpoints")[1]
    assert main([*RUN, f"train.run_dir={run_dir}", f"train.resume={older}"]) == 2
    assert "holds checkpoints after step 15, such as step-00000016" in capsys.readouterr().err
    assert main([*RUN, f"train.run_dir={run_dir.parent / 'branch'}", f"train.resume={older}"]) == 0


def test_leftovers_of_a_save_are_removed_and_nobody_takes_them_for_a_checkpoint(run_dir, capsys):
    shutil.copytree(newest(run_dir), run_dir / "checkpoints" / "step-00000099.tmp")
    (run_dir / "checkpoints" / "latest.tmp").write_text("step-00000099\n", encoding="utf-8")
    assert main([*RUN, f"train.run_dir={run_dir}"]) == 0
    assert "step 16, epoch 2.00" in capsys.readouterr().out
    assert not list((run_dir / "checkpoints").glob("*.tmp"))


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("where", ["pt", "safetensors", "checkpoint"])
def test_a_malicious_pickle_is_refused_and_not_run(run_dir, tmp_path, capsys, table, where):
    canary = tmp_path / "canary"
    content = pickle.dumps({"weight": Canary(canary)})
    if where == "checkpoint":
        path = newest(run_dir)
        for name in FILES:
            (path / name).write_bytes(content)
        refused = main([*RUN, f"train.resume={path}", f"train.run_dir={tmp_path / 'new'}"]) == 2
    else:
        path = tmp_path / f"weights.{where}"
        path.write_bytes(content)
        with pytest.raises(ConfigError):
            load_weights(path)
        refused = True
    table.add("malicious pickle as checkpoint or weights", refused and not canary.exists())
    assert refused
    assert not canary.exists()


def test_a_malicious_archive_of_torch_is_refused_and_not_run(tmp_path, table):
    canary, path = tmp_path / "canary", tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            is_pickle = name.endswith("data.pkl")
            archive.writestr(name, pickle.dumps(Canary(canary), 2) if is_pickle else content)
    with pytest.raises(ConfigError, match="refused"):
        load_weights(path)
    table.add("malicious pickle as checkpoint or weights", not canary.exists())
    assert not canary.exists()


def test_the_canary_sings_where_pickles_are_run(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def lying(header: dict | bytes, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        lying({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, length=2**60),
        lying({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        lying({"x": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}),
        lying({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}),
        lying({"x": {"dtype": "OBJECT", "shape": [4], "data_offsets": [0, 16]}}),
        lying({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
               "y": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        lying(b"{" * 1000),
        b"",
        b"\xff" * 100,
    ],
    ids=["header longer", "data longer", "negative", "too short", "objects", "overlap", "nested", "empty", "noise"],
)  # fmt: skip
def test_safetensors_with_a_lying_header_are_refused(tmp_path, table, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read") as error:
        load_weights(path)
    table.add("safetensors with lying header", True)
    assert "\n" not in str(error.value)


def test_plain_tensors_load_from_either_kind_of_file(trained, tmp_path):
    expected = load_weights(trained).tensors
    torch.save(expected, tmp_path / "weights.pt")
    loaded = load_weights(tmp_path / "weights.pt").tensors
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    torch.save({"state": expected}, tmp_path / "nested.pt")
    with pytest.raises(ConfigError, match="dictionary of tensors"):
        load_weights(tmp_path / "nested.pt")
