"""The command line of the propagation analysis: tables, files, checkpoints, and mistakes told in one line."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import deepres
import propagation
from deepres.analysis.measured_net import batch_of, checkpoint_nets
from deepres.config import DataConfig
from deepres.data import find_data
from deepres.models import build_resnet
from deepres.train import main as train
from deepres.trained_net import net_metadata

ROOT = Path(__file__).parents[2]

SMALL = ("--depth", "8", "--batch-size", "2")


def run(*arguments: object) -> int:
    try:
        return propagation.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's
        return stop.code


def trained(folder, *settings):
    settings = (
        "data.image_size=8", "model.depth=8", "model.block=basic", "train.epochs=1", "train.global_batch_size=8",
        "log.plots=false", "engine.name=plain", "engine.zero_stage=0", f"train.run_dir={folder}", *settings,
    )  # fmt: skip
    assert train(["--config", str(ROOT / "configs" / "quickstart.yaml"), *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    return trained(folder, "data.name=synthetic", "data.num_images=64")


@pytest.fixture
def image_folder(tmp_path):
    """Cats and dogs that a net can tell apart, and no noise."""
    folder = tmp_path / "animals"
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for k in range(8):
                colour = (20 * k, 200 if label == "dog" else 30, 60)
                Image.new("RGB", (40, 40), colour).save(folder / split / label / f"{k}.png")
    return folder


def test_all_shortcuts_are_measured_by_default_and_two_nets_or_fewer_unit_by_unit(capsys):
    assert run(*SMALL) == 0
    text = capsys.readouterr().out
    assert text.startswith("ResNet-8, batch 2 of noise, float32\n")
    for name in ("identity", "constant_scaling", "exclusive_gating", "conv1x1", "dropout"):
        assert f"\n{name} " in text
    assert "\nlambdas: what Equation 8 predicts" in text
    assert "\noutput" not in text
    assert run(*SMALL, "--variants", "identity,original") == 0
    assert capsys.readouterr().out.count("\noutput") == 2


def test_numbers_and_pictures_are_written(tmp_path):
    numbers, pictures = tmp_path / "numbers.json", tmp_path / "new" / "pictures"
    variants = "identity,constant_scaling,dropout+dropout=0.9,constant_scaling+bn_after_addition"
    done = run(*SMALL, "--variants", variants, "--dtype", "float64", "--json", numbers, "--out", pictures)
    assert done == 0
    found = json.loads(numbers.read_text(encoding="utf-8"))
    assert (found["format"], found["depth"], found["dtype"]) == ("deepres.propagation", 8, "float64")
    identity, scaled = found["nets"][:2]
    assert identity["name"] == "identity"
    assert identity["units_per_stage"] == [1, 1, 1]
    for key in ("signal_rms", "gradient_norm", "gradient_rms", "shortcut_gradient_norm", "lambda_product"):
        assert len(identity[key]) == 4
    assert len(identity["term_ratio"]) == 3
    assert scaled["lambda_product"] == [0.125, 0.25, 0.5, 1.0]
    for name in ("signal", "gradient"):
        assert (pictures / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_measured_beside_its_like_at_initialisation(run_dir, capsys, tmp_path):
    numbers = tmp_path / "numbers.json"
    assert run("--checkpoint", run_dir, "--json", numbers) == 0
    text = capsys.readouterr().out
    assert "batch 16 of synthetic" in text
    fresh, trained = json.loads(numbers.read_text(encoding="utf-8"))["nets"]
    assert fresh["name"] == "identity+full_preactivation, at initialisation"
    assert trained["name"] == "identity+full_preactivation, trained"
    assert trained["loss"] < fresh["loss"]


def test_synthetic_images_are_those_that_the_run_was_trained_on(tmp_path):
    folder = trained(tmp_path / "run", "data.name=synthetic", "data.num_images=16", "train.seed=3")
    found = find_data(DataConfig(name="synthetic", num_images=16, image_size=8)).open(
        micro_batch_size=16, seed=3
    )
    net, _ = checkpoint_nets(folder, None, None, None, None)
    images, labels, name = batch_of(net, None, 16, seed=0)
    (batch,) = found.train_batches(0)
    assert name == "synthetic"
    assert torch.equal(images, batch.images)
    assert torch.equal(labels, batch.labels)


def test_a_checkpoint_and_a_file_of_weights_are_the_same_net(run_dir, capsys, tmp_path):
    (checkpoint,) = (path for path in (run_dir / "checkpoints").iterdir() if path.name.startswith("step-"))
    untold, tables = tmp_path / "untold.safetensors", []
    save_file(load_file(run_dir / "model.safetensors"), untold)
    for source in (
        ("--checkpoint", run_dir),
        ("--checkpoint", checkpoint),
        ("--checkpoint", run_dir / "model.safetensors"),
        ("--checkpoint", untold, "--depth", 8, "--variants", "identity"),
    ):
        numbers = tmp_path / "numbers.json"
        assert run(*source, "--json", numbers) == 0
        tables.append(json.loads(numbers.read_text(encoding="utf-8"))["nets"][1]["signal_rms"])
    assert tables[0] == tables[1]
    assert len(tables[2]) == 4  # on noise, which is not the run's data
    assert tables[2] == tables[3]
    capsys.readouterr()


def test_images_are_normalised_as_those_that_the_net_was_trained_on(image_folder, tmp_path, capsys):
    arguments = {"depth": 18, "dataset": "imagenet", "num_classes": 2}
    file, net = tmp_path / "net.safetensors", build_resnet(**arguments)
    save_file(net.state_dict(), file, net_metadata(arguments, "half"))
    (_, measured) = checkpoint_nets(file, None, None, None, None)
    images, labels, _ = batch_of(measured, str(image_folder), 16, seed=0)
    torch.testing.assert_close(images[:, 2].unique(), torch.tensor([60 / 127.5 - 1]))
    assert set(labels.tolist()) == {0, 1}
    save_file(net.state_dict(), file, net_metadata(arguments, "per_pixel_mean"))
    assert run("--checkpoint", file, "--data", image_folder) == 2
    assert capsys.readouterr().err == (
        "error: the net was trained on images normalised by per_pixel_mean, which image_folder cannot be: give --data "
        "noise\n"
    )


def test_images_from_a_folder_are_used(image_folder, capsys):
    net = ("--depth", 18, "--dataset", "imagenet", "--variants", "identity", "--batch-size", 2)
    assert run(*net, "--data", image_folder) == 0
    assert "batch 2 of image_folder" in capsys.readouterr().out


def test_a_run_is_measured_on_its_own_data_and_refused_without_it(image_folder, capsys, tmp_path):
    own = trained(tmp_path / "run", "data.name=image_folder", f"data.root={image_folder}")
    net = ("--checkpoint", own, "--batch-size", 4)
    numbers = tmp_path / "numbers.json"

    def signal(*options):
        capsys.readouterr()
        assert run(*net, "--json", numbers, *options) == 0
        found = json.loads(numbers.read_text(encoding="utf-8"))
        assert f"batch 4 of {found['data']}" in capsys.readouterr().out
        return found["data"], found["nets"][1]["signal_rms"]

    of_run = signal()
    assert of_run[0] == "image_folder"
    elsewhere = image_folder.rename(tmp_path / "elsewhere")
    assert signal("--data", elsewhere) == of_run
    noise = signal("--data", "noise")
    assert noise[0] == "noise"
    assert noise[1] != of_run[1]
    assert run(*net) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the run's own data, image_folder, cannot be used: ")
    assert str(image_folder) in error
    assert error.endswith("; give its place, --data DIR, or --data noise\n")
    assert error.count("\n") == 1


def test_a_place_is_refused_where_the_run_s_data_have_none(run_dir, capsys):
    assert run("--checkpoint", run_dir, "--data", "somewhere") == 2
    error = (
        "error: the run's data, synthetic, has no place: leave --data somewhere out, or give --data noise\n"
    )
    assert capsys.readouterr().err == error
    assert run("--checkpoint", run_dir, "--data", "noise") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --depth (e.g. 110), or --checkpoint with the folder of a run"),
        (
            ("--depth", 21),
            "or 9n+2 for bottleneck units (e.g. 164, 1001), got 21; nearest: 20, 26",
        ),
        (
            (*SMALL, "--variants", "identity,dropot"),
            "no shortcut or activation 'dropot'; did you mean dropout?",
        ),
        ((*SMALL, "--variants", ""), "no variant is given"),
        ((*SMALL, "--variants", "identity+shortcut_scale=0.1"), "it is for constant_scaling"),
        ((*SMALL, "--variants", "activations", "--activation", "original"), "every variant names its own"),
        ((*SMALL, "--activation", "orginal"), "invalid choice: 'orginal'"),
        ((*SMALL, "--batch-size", "0"), "must be a whole number of at least 1, got '0'"),
        ((*SMALL, "--checkpoint", "nowhere"), "there is no file nowhere"),
        ((*SMALL, "--data", "nowhere"), "nowhere"),
        ((*SMALL, "--json", "/proc/numbers.json"), "/proc/numbers.json"),
        ((*SMALL, "--out", "/proc/pictures"), "/proc/pictures"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, capsys):
    assert run(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert message in output.err
    assert output.err.count("\n") == 1


def test_a_mistake_leaves_no_file(tmp_path, capsys):
    assert run(*SMALL, "--variants", "nothing", "--json", tmp_path / "a.json", "--out", tmp_path / "b") == 2
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert run(*SMALL, "--out", tmp_path / "file") == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_mistakes_about_checkpoints_are_told(run_dir, capsys, tmp_path):
    weights = tmp_path / "weights.safetensors"  # which do not tell their net
    save_file(load_file(run_dir / "model.safetensors"), weights)
    other = tmp_path / "other.safetensors"
    save_file(deepres.build_resnet(20).state_dict(), other)
    headless = tmp_path / "headless.safetensors"
    save_file({"a": deepres.build_resnet(8).head.linear.bias.detach()}, headless)
    for arguments, message in (
        (("--checkpoint", run_dir, "--depth", 8), "records its architecture: omit --depth"),
        (
            ("--checkpoint", run_dir, "--activation", "original", "--dataset", "cifar"),
            "records its architecture: omit --activation and --dataset",
        ),
        (
            ("--checkpoint", run_dir / "model.safetensors", "--depth", 8),
            "records its architecture: omit --depth",
        ),
        (("--checkpoint", run_dir, "--variants", ""), "records its architecture: omit --variants"),
        (("--checkpoint", weights, "--depth", 8, "--variants", ""), "no variant is given"),
        (("--checkpoint", weights), "does not record its architecture: give its --depth"),
        (("--checkpoint", weights, "--depth", 8, "--variants", "shortcuts"), "give one variant, not 6"),
        (("--checkpoint", other, "--depth", 8), "are of another net"),
        (("--checkpoint", headless, "--depth", 8), "holds no weights of a deepres net"),
    ):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
