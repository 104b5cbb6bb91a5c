"""Runs that begin with trained weights."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from deepres.job import _terms, prepare
from deepres.train import main
from tests.processes import PLAIN, QUICKSTART, ROOT, SMALL, metrics

HEAD = {"head.linear.weight", "head.linear.bias"}
FROZEN = ("optim.learning_rate=1e-30", "optim.weight_decay=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = (*SMALL, *PLAIN, "train.max_steps=2", f"train.run_dir={folder}", "train.overwrite=true")
    assert main(["--config", QUICKSTART, *arguments]) == 0
    return folder


def _net(*overrides):
    job = prepare(ROOT / QUICKSTART, [*SMALL, *PLAIN, *map(str, overrides)])
    return job.net.state_dict(), job.initial and job.initial.told


def _differing(ours, theirs):
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


@pytest.mark.parametrize("place", ["", "model.safetensors", "checkpoints/step-00000002"])
def test_a_run_begins_with_the_weights_and_statistics_of_another(trained, place):
    net, told = _net(f"train.initial_weights={trained / place}")
    assert _differing(net, load_file(trained / "model.safetensors")) == set()
    assert net["head.norm.num_batches_tracked"] == 2
    assert told == f"begins with the weights of {trained / place}"


def test_for_other_classes_the_classifier_alone_is_the_seeds(trained):
    others = ("data.num_classes=7",)
    net, told = _net(f"train.initial_weights={trained}", *others)
    assert _differing(net, load_file(trained / "model.safetensors")) == HEAD
    random, _ = _net(*others)
    assert _differing({name: net[name] for name in HEAD}, {name: random[name] for name in HEAD}) == set()
    assert told.endswith("except for the classifier, which was trained for other classes")


def test_image_folders_of_other_names_are_other_classes(tmp_path):
    def folder(name, *labels):
        for split in ("train", "val"):
            for label in labels:
                (tmp_path / name / split / label).mkdir(parents=True)
                Image.new("RGB", (8, 8)).save(tmp_path / name / split / label / "0.png")
        return ("data.name=image_folder", "data.num_images=null", f"data.root={tmp_path / name}")

    arguments = (*SMALL, *PLAIN, "train.global_batch_size=2", f"train.run_dir={tmp_path / 'run'}")
    assert main(["--config", QUICKSTART, *arguments, *folder("pets", "cat", "dog")]) == 0
    weights = load_file(tmp_path / "run" / "model.safetensors")
    again = ("train.global_batch_size=2", f"train.initial_weights={tmp_path / 'run'}", "train.seed=9")
    assert _differing(_net(*again, *folder("more", "cat", "dog"))[0], weights) == set()
    assert _differing(_net(*again, *folder("birds", "cat", "owl"))[0], weights) == HEAD


def test_another_normalization_than_the_weights_were_trained_with_is_told(trained):
    _, told = _net(f"train.initial_weights={trained}", "data.normalize=half")
    assert told.endswith("WARNING: they were trained with data.normalize=mean_std, this run has half")


@pytest.mark.multi_process
def test_two_processes_of_zero_3_begin_with_the_same_weights(trained, tmp_path, forked):
    arguments = ("engine.name=deepspeed", "engine.zero_stage=3", "recompute.segments=none", *FROZEN)
    arguments += (
        f"train.initial_weights={trained}",
        f"train.run_dir={tmp_path / 'run'}",
        "train.max_steps=1",
    )
    output = forked.train(tmp_path, "--config", QUICKSTART, *SMALL, *arguments, num_processes=2)
    assert output.count(f"begins with the weights of {trained}") == 1
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", trained))
    statistics = {name for name in ours if "running" in name or "tracked" in name}
    assert _differing(ours, theirs) == statistics


def test_resumed_it_goes_on_from_its_checkpoint(trained, tmp_path, capsys):
    arguments = (*SMALL, *PLAIN, f"train.initial_weights={trained}", "train.resume=auto")
    for name, steps in (("whole", [3]), ("parts", [2, 3])):
        for step in steps:
            run_dir = f"train.run_dir={tmp_path / name}"
            assert main(["--config", QUICKSTART, *arguments, run_dir, f"train.max_steps={step}"]) == 0
    assert capsys.readouterr().out.count("begins with the weights") == 2
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert _differing(whole, parts) == set()
    assert [row["step"] for row in metrics(tmp_path / "parts", "train")] == [2, 3]


@pytest.fixture(scope="module")
def unusable(trained, tmp_path_factory):
    """A folder of files with numbers that no net can compute with."""
    folder, weights = tmp_path_factory.mktemp("unusable"), load_file(trained / "model.safetensors")
    for name, value in (("nan", float("nan")), ("negative", -1.0)):
        variances = weights["head.norm.running_var"].clone()
        variances[0] = value
        save_file(weights | {"head.norm.running_var": variances}, folder / f"{name}.safetensors")
    save_file({k: v.int() for k, v in weights.items()}, folder / "int.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "why"), [("nan", "not finite"), ("negative", "negative"), ("int", "(int32)")]
)
def test_unusable_numbers_are_refused(unusable, name, why, tmp_path, capsys):
    path = f"train.initial_weights={unusable}/{name}.safetensors"
    assert main(["--config", QUICKSTART, *SMALL, *PLAIN, path, f"train.run_dir={tmp_path / 'run'}"]) == 2
    assert why in capsys.readouterr().err


def test_a_run_with_other_weights_or_none_is_another_run(trained, tmp_path, capsys):
    other = tmp_path / "other.safetensors"
    weights = load_file(trained / "model.safetensors")
    save_file(weights | {"head.linear.bias": weights["head.linear.bias"] + 1}, other)
    arguments = (
        "--config",
        QUICKSTART,
        *SMALL,
        *PLAIN,
        "train.resume=auto",
        f"train.run_dir={tmp_path / 'run'}",
    )
    assert main([*arguments, "train.max_steps=1", f"train.initial_weights={trained}"]) == 0
    for changed in ([], [f"train.initial_weights={other}"]):
        assert main([*arguments, "train.max_steps=2", *changed]) == 2
        assert "the SHA-256 of train.initial_weights is" in capsys.readouterr().err
    copied = tmp_path / "copy.safetensors"
    save_file(weights, copied)
    assert main([*arguments, "train.max_steps=2", f"train.initial_weights={copied}"]) == 0


def test_a_run_does_not_overwrite_the_weights_that_it_would_begin_with(trained, capsys):
    again = (f"train.run_dir={trained}", "train.overwrite=true", f"train.initial_weights={trained}")
    before = (trained / "model.safetensors").read_bytes()
    assert main(["--config", QUICKSTART, *SMALL, *PLAIN, *again]) == 2
    assert "train.overwrite would remove" in capsys.readouterr().err
    assert (trained / "model.safetensors").read_bytes() == before


def test_processes_may_find_the_weights_at_different_paths_but_not_different_weights(trained, tmp_path):
    """`rendezvous` refuses processes whose terms differ."""
    weights = load_file(trained / "model.safetensors")
    save_file(weights, tmp_path / "copy.safetensors")
    changed = {name: value + 1 if name.endswith("running_mean") else value for name, value in weights.items()}
    save_file(changed, tmp_path / "changed.safetensors")

    def terms(path):
        arguments = [*SMALL, *PLAIN, f"train.initial_weights={path}"]
        return _terms(prepare(ROOT / QUICKSTART, arguments))

    ours = terms(trained)
    assert terms(tmp_path / "copy.safetensors") == ours
    theirs = terms(tmp_path / "changed.safetensors")
    assert {name for name in ours if ours[name] != theirs[name]} == {"the SHA-256 of train.initial_weights"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.initial_weights={trained}", "model.depth=20"], "has weights of build_resnet(depth=11"),
        (
            ["train.initial_weights={trained}/none"],
            "train.initial_weights: there is no file {trained}/none",
        ),
        (["train.initial_weights={trained}/config.yaml"], "config.yaml is refused: no file of plain tensors"),
    ],
)
def test_what_cannot_be_begun_with_is_refused_in_one_line(trained, overrides, message, tmp_path, capsys):
    given = [override.format(trained=trained) for override in overrides]
    run_dir = f"train.run_dir={tmp_path / 'run'}"
    assert main(["--config", QUICKSTART, *SMALL, *PLAIN, *given, run_dir]) == 2
    error = capsys.readouterr().err
    assert message.format(trained=trained) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
