"""Nets out of their training: exported, evaluated, loaded by others."""

import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from deepres.config import ConfigError
from deepres.evaluating import load_net, ten_crop_logits
from deepres.load_config import load_config
from deepres.train import main
from tests.processes import ROOT, metrics, run

SMALL = (
    "data.image_size=8",
    "model.depth=11",
    "train.epochs=1",
    "train.global_batch_size=8",
    "log.plots=false",
)
CONFIG = ROOT / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    plain = ("engine.name=plain", "engine.zero_stage=0", "data.name=synthetic", "data.num_images=64")
    assert main(["--config", str(CONFIG), *SMALL, *plain, f"train.run_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten classes of one colour each, larger than a crop."""
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for label in range(10):
            (root / split / f"c{label}").mkdir(parents=True)
            pixels = np.full((40, 50, 3), 25 * label, np.uint8)
            Image.fromarray(pixels).save(root / split / f"c{label}" / "0.png")
    return root


@pytest.mark.parametrize("kind", ["safetensors", "torchscript", "onnx"])
def test_an_exported_net_gives_the_nets_logits_on_any_number_of_images(run_dir, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    done = run(sys.executable, "tools/export.py", run_dir, "--format", kind)
    assert done.returncode == 0, done.stderr
    assert "logits differ by" in done.stdout
    suffix = {"safetensors": "safetensors", "torchscript": "pt", "onnx": "onnx"}[kind]
    assert (run_dir / f"export.{suffix}").stat().st_size > 100_000
    if kind == "torchscript":
        net = load_net(run_dir, load_config(run_dir / "config.yaml"))
        x = torch.randn(5, 3, 8, 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript's own
            loaded = torch.jit.load(run_dir / "export.pt")
            torch.testing.assert_close(loaded(x), net(x))


def test_evaluating_a_run_repeats_its_own_last_evaluation(run_dir):
    (test,) = metrics(run_dir, "test")
    expected = f"test on 12 images: loss {test['loss']:.4f}  top-1 {100 * test['top1']:.2f} %"
    for arguments in ([run_dir], [run_dir / "model.safetensors", "--config", run_dir / "config.yaml"]):
        done = run(sys.executable, "tools/evaluate.py", *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(expected)


@pytest.mark.parametrize("crop", ["224", "320", "ten"])
def test_image_files_are_tested_at_224_320_and_in_ten_crops(run_dir, images, crop):
    overrides = ["data.name=image_folder", f"data.root={images}", "data.image_size=8", "data.num_images=null"]
    command = ["tools/evaluate.py", run_dir, "--crop", crop, *overrides, "train.eval_batch_size=2"]
    done = run(sys.executable, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("test on 10 images: loss ")


def test_ten_crops_are_the_centre_the_corners_and_their_mirror_images():
    seen = []

    def net(x):
        seen.append(x)
        return torch.stack([x.sum((1, 2, 3)), x[:, 0, 0, 0]], dim=1)

    images = torch.randn(2, 3, 6, 8)
    logits = ten_crop_logits(net, images, 4)
    expected = [images[..., t : t + 4, x : x + 4] for t, x in ((0, 0), (0, 4), (2, 0), (2, 4), (1, 2))]
    assert len(seen) == 10
    for k, view in enumerate(expected):
        assert torch.equal(seen[2 * k], view)
        assert torch.equal(seen[2 * k + 1], view.flip(-1))
    mean = torch.stack([torch.softmax(net(view), 1) for view in seen[:10]]).mean(0)
    torch.testing.assert_close(logits.exp(), mean)


def test_weights_of_another_net_are_refused_in_one_line(run_dir, tmp_path):
    done = run(sys.executable, "tools/evaluate.py", run_dir, "model.depth=20")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the weights at")
    assert done.stderr.count("\n") == 1
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"head\.linear\.weight is missing"):
        load_net(tmp_path / "other.safetensors", load_config(run_dir / "config.yaml"))


def test_torch_hub_loads_a_net_with_the_weights_of_a_run(tmp_path):
    net = torch.hub.load(str(ROOT), "resnet110", source="local")
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    again = torch.hub.load(
        str(ROOT), "resnet110", source="local", weights=str(tmp_path / "model.safetensors")
    )
    state = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
