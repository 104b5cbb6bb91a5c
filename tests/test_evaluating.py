"""Nets out of their training: exported, evaluated, loaded by others."""

import os
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import evaluate
import export
from deepres import build_resnet, evaluating, exporting
from deepres.autocast import ComputeIn
from deepres.config import ConfigError
from deepres.evaluating import find_config, net_with, ten_crop_logits
from deepres.tensor_files import read_tensor_file
from deepres.train import main
from deepres.trained_net import net_metadata, trained_on
from deepres.weights import load_weights
from tests.processes import ROOT, metrics, run

SMALL = (
    "data.image_size=8",
    "model.depth=11",
    "train.epochs=1",
    "train.global_batch_size=8",
    "train.save_every=4 steps",
    "log.plots=false",
)
CONFIG = ROOT / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    plain = ("engine.name=plain", "engine.zero_stage=0")
    data = (
        "data.name=synthetic",
        "data.num_images=64",
        "data.normalize=imagenet_mean_std",
    )  # as image files have
    assert main(["--config", str(CONFIG), *SMALL, *plain, *data, f"train.run_dir={folder}"]) == 0
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


def status(tool, *arguments):
    """The exit status of a command line in this process."""
    try:
        return tool.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's
        return stop.code


@pytest.mark.parametrize("kind", ["safetensors", "torchscript", "onnx"])
def test_an_exported_net_gives_the_nets_logits_on_any_number_of_images(run_dir, kind, capsys):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    assert status(export, run_dir, "--format", kind) == 0
    assert "; logits " in capsys.readouterr().out
    suffix = {"safetensors": "safetensors", "torchscript": "pt", "onnx": "onnx"}[kind]
    assert (run_dir / f"export.{suffix}").stat().st_size > 100_000
    if kind == "torchscript":
        net = net_with(load_weights(run_dir), find_config(run_dir))
        x = torch.randn(5, 3, 8, 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            loaded = torch.jit.load(run_dir / "export.pt")
            torch.testing.assert_close(loaded(x), net(x))


def test_a_net_of_image_files_is_exported_for_images_of_their_size(run_dir, tmp_path):
    onnx = pytest.importorskip("onnx")
    config = yaml.safe_load((run_dir / "config.yaml").read_text()) | {"data": {"name": "image_folder"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(run_dir / "model.safetensors", tmp_path)
    assert status(export, tmp_path, "--format", "onnx") == 0
    (images,) = onnx.load(tmp_path / "export.onnx").graph.input
    assert [dim.dim_value for dim in images.type.tensor_type.shape.dim[1:]] == [3, 224, 224]


def last_test(run_dir):
    (test,) = metrics(run_dir, "test")
    return f"test on 12 images: loss {test['loss']:.4f}  top-1 {100 * test['top1']:.2f} %"


def test_the_tools_are_started_as_programs(run_dir, tmp_path):
    done = run(sys.executable, "tools/evaluate.py", run_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(last_test(run_dir))
    target = tmp_path / "net.safetensors"
    done = run(sys.executable, "tools/export.py", run_dir, "--format", "safetensors", "--output", target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{target}: {target.stat().st_size} bytes; logits are the net's\n")


def test_a_file_that_records_its_net_needs_no_configuration(run_dir, tmp_path, capsys):
    net = tmp_path / "net.safetensors"
    shutil.copy(run_dir / "model.safetensors", net)
    assert status(export, net, "--format", "torchscript") == 0
    own = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))["data"]
    names = ("name", "image_size", "num_images", "num_test_images", "normalize", "num_classes")
    data = [f"data.{name}={own[name]}" for name in names if own.get(name) is not None]
    assert status(evaluate, net, *data) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(last_test(run_dir))
    assert status(evaluate, net) == 2
    assert "set data.root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("normalize", "dataset"), [("per_pixel_mean", "cifar"), ("per_pixel_mean", "imagenet"), ("half", "cifar")]
)
def test_a_file_that_records_its_net_has_its_normalization_and_may_lie_beside_any_configuration(
    tmp_path, normalize, dataset, capsys
):
    arguments, file = (
        {"depth": 18 if dataset == "imagenet" else 8, "dataset": dataset},
        tmp_path / "x.safetensors",
    )
    save_file(build_resnet(**arguments).state_dict(), file, net_metadata(arguments, normalize))
    (tmp_path / "config.json").write_text('{"architecture": "resnet"}', encoding="utf-8")
    assert status(export, file, "--format", "safetensors", "--image-size", "32") == 0
    assert trained_on(read_tensor_file(tmp_path / "export.safetensors")).normalize == normalize
    data = ("data.name=synthetic", "data.num_images=16", "data.image_size=32")
    own = (f"data.normalize={normalize}",)
    assert status(evaluate, file, *data, *own) == 0
    assert status(evaluate, file, *data, "data.normalize=mean_std") == 2
    assert f"was trained on images normalised by data.normalize={normalize}" in capsys.readouterr().err


class _NoNumberAlone(torch.nn.Module):
    """Makes what is no number of the logits of a single image."""

    def forward(self, logits):
        return logits if len(logits) > 1 else logits * float("nan")


def test_an_export_is_compared_on_a_single_image_too(tmp_path):
    target = tmp_path / "net.safetensors"
    net = build_resnet(8).eval()
    net.head.append(_NoNumberAlone())
    with pytest.raises(ConfigError, match="was not written: its logits differ from the net's by nan"):
        exporting.export(net, net_metadata({"depth": 8}, "mean_std"), target, "safetensors", image_size=8)
    assert list(tmp_path.iterdir()) == []


def test_evaluating_a_run_or_a_part_of_it_repeats_its_own_last_evaluation(
    run_dir, tmp_path, capsys, monkeypatch
):
    last = run_dir / "checkpoints" / "step-00000008"
    alone, elsewhere = tmp_path / "step", tmp_path / "weights.safetensors"
    shutil.copytree(last, alone)
    shutil.copy(run_dir / "model.safetensors", elsewhere)
    of_run = tmp_path / "run" / "checkpoints" / "step-00000008"  # whose own configuration is gone
    shutil.copytree(last, of_run)
    (of_run / "config.json").unlink()
    shutil.copy(run_dir / "config.yaml", tmp_path / "run")
    monkeypatch.chdir(last.parent)
    for arguments in (
        [run_dir / "model.safetensors"],
        [last],
        [last / "model.safetensors"],
        [last.name],
        [alone],
        [of_run],
        [elsewhere, "--config", run_dir / "config.yaml"],
        [last, "--crop", "config", "train.eval_batch_size=5"],
    ):
        assert status(evaluate, *arguments) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.startswith(last_test(run_dir)), arguments


def test_a_run_is_tested_in_its_own_precision_and_on_images_of_its_own_seed(tmp_path, capsys):
    folder = tmp_path / "bf16"
    settings = ("engine.name=plain", "engine.zero_stage=0", "data.name=synthetic", "data.num_images=64")
    own = (
        f"train.run_dir={folder}", "precision.compute=bf16", "precision.channels_last=true", "train.seed=3",
    )  # fmt: skip
    assert main(["--config", str(CONFIG), *SMALL, *settings, *own]) == 0
    capsys.readouterr()
    assert status(evaluate, folder) == 0
    assert capsys.readouterr().out.startswith(last_test(folder))
    for other in ("precision.compute=fp32", "train.seed=4"):
        assert status(evaluate, folder, other) == 0
        assert not capsys.readouterr().out.startswith(last_test(folder))


def test_a_checkpoint_is_evaluated_and_exported_by_itself(run_dir, capsys):
    first = run_dir / "checkpoints" / "step-00000004"
    assert status(evaluate, first) == 0
    told = capsys.readouterr().out
    assert told.startswith("test on 12 images: loss ")
    assert not told.startswith(last_test(run_dir))
    assert status(export, first, "--format", "safetensors") == 0
    exported = run_dir / "export-step-00000004.safetensors"
    assert capsys.readouterr().out.startswith(f"{exported}: ")
    ours, theirs = (read_tensor_file(path) for path in (exported, first / "model.safetensors"))
    assert ours.metadata == theirs.metadata
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)


def test_a_checkpoint_that_has_changed_since_it_was_saved_is_told(run_dir, tmp_path, capsys):
    folder = tmp_path / "run" / "checkpoints" / "step-00000008"
    shutil.copytree(run_dir / "checkpoints" / "step-00000008", folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-2] ^= 1  # of a weight, which is still finite
    (folder / "model.safetensors").write_bytes(content)
    for weights in (folder, folder / "model.safetensors", tmp_path / "run"):
        for arguments in ((evaluate, weights), (export, weights, "--format", "safetensors")):
            assert status(*arguments, "--config", run_dir / "config.yaml") == 2
            told = f"error: {folder / 'model.safetensors'} has changed since it was saved (SHA-256)\n"
            assert capsys.readouterr().err == told


@pytest.mark.parametrize("crop", ["224", "320", "ten"])
def test_image_files_are_tested_at_224_320_and_in_ten_crops(run_dir, images, crop, capsys):
    overrides = ["data.name=image_folder", f"data.root={images}", "data.image_size=8", "data.num_images=null"]
    assert status(evaluate, run_dir, "--crop", crop, *overrides, "train.eval_batch_size=2") == 0
    assert capsys.readouterr().out.startswith("test on 10 images: loss ")


class _SeenError(Exception):
    """Of a net that has seen images."""


@pytest.mark.parametrize(
    ("crop", "side", "edges"), [("224", 224, (16, 239)), ("320", 320, (0, 255)), ("ten", 224, (0, 223))]
)
def test_crops_of_224_are_of_a_side_of_256_and_those_of_320_of_320(run_dir, tmp_path, crop, side, edges):
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3))
    for split in ("train", "val"):
        for label in range(10):
            (tmp_path / split / str(label)).mkdir(parents=True)
            Image.fromarray(ramp).save(tmp_path / split / str(label) / "0.png")
    overrides = ["data.name=image_folder", f"data.root={tmp_path}", "data.num_images=null"]
    config = find_config(run_dir, None, overrides)
    seen = []

    def look(_net, inputs):
        seen.append(inputs[0])
        raise _SeenError

    hook = register_module_forward_pre_hook(look)
    try:
        with pytest.raises(_SeenError):
            evaluating.evaluate(run_dir, config, crop, torch.device("cpu"))
    finally:
        hook.remove()
    red = seen[0][:, 0] * 255 * 0.229 + 255 * 0.485
    assert red.shape[1:] == (side, side)
    assert (float(red.min()), float(red.max())) == pytest.approx(edges, abs=1)


AUTO = (
    "train.micro_batch_size=auto",
    "recompute.segments=none",
    "recompute.budget=1GiB",
    "data.num_images=200",
)


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [(["train.eval_batch_size=5"], [5, 5, 2]), (["train.micro_batch_size=4"], [4, 4, 4]), (AUTO, [32, 8])],
)
def test_images_are_tested_as_many_at_once_as_in_the_run_and_leave_no_graph(run_dir, settings, sizes):
    seen = []
    hook = register_module_forward_hook(lambda net, _inputs, logits: seen.append((type(net), logits)))
    try:
        evaluating.evaluate(run_dir, find_config(run_dir, None, settings), "config", torch.device("cpu"))
    finally:
        hook.remove()
    whole = [logits for kind, logits in seen if kind is ComputeIn]
    assert [len(logits) for logits in whole] == sizes
    assert not any(logits.requires_grad for logits in whole)


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


def test_ten_views_of_which_a_net_is_certain_have_a_finite_loss():
    logits = ten_crop_logits(
        lambda x: torch.tensor([[0.0, 500.0]]).expand(len(x), 2), torch.zeros(2, 3, 6, 6), 4
    )
    torch.testing.assert_close(logits, torch.tensor([[-500.0, 0.0]]).expand(2, 2))


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (evaluate, ["RUN", "model.depth=20"], "the weights at"),
        (evaluate, ["RUN", "data.num_classes=11"], "synthetic has 11 classes, the net was built for 10"),
        (evaluate, ["RUN", "data.num_classes=9"], "synthetic has 9 classes, the net was built for 10"),
        (evaluate, ["RUN", "--crop", "ten"], "crop ten is for image files, not for synthetic: use config"),
        (evaluate, ["RUN", "--crop", "9"], "argument --crop: invalid choice: '9'"),
        (evaluate, ["RUN", "depth=20"], "expected section.key=value (e.g. train.epochs=3), got 'depth=20'"),
        (evaluate, ["RUN", "--config", "/nowhere.yaml"], "/nowhere.yaml: cannot be read: No such file"),
        (evaluate, ["/nowhere"], "there is no /nowhere"),
        (evaluate, ["x" * 300], "x cannot be read: [Errno 36] File name too long"),
        (evaluate, ["x" * 300, "--config", "RUN_CONFIG"], "x cannot be read: [Errno 36] File name too long"),
        (
            export,
            ["RUN", "--format", "torchscript", "--output", "/proc/x.pt"],
            "/proc/x.pt cannot be written: No such file",
        ),
        (
            evaluate,
            ["/usr"],
            "the architecture of /usr is recorded nowhere: /usr has no config.yaml of a run and no ",
        ),
        (evaluate, [], "the following arguments are required: weights"),
        (export, ["RUN", "--format", "onnx", "--image-size", "-1"], "argument --image-size: "),
        (export, ["RUN", "--format", "onnx", "--image-size", "0"], "must be a whole number of at least 1"),
        (
            export,
            ["RUN", "--format", "onnx", "--image-size", "99999999"],
            "must be at most 16384, got '99999999'",
        ),
        (export, ["RUN", "--format", "gguf"], "argument --format: invalid choice: 'gguf'"),
        (export, ["RUN", "--format", "onnx", "--output", "/nowhere/x"], "/nowhere/x cannot be written"),
        (
            export,
            ["RUN", "--format", "onnx", "--output", "/tmp/x.pt"],
            "onnx must end with .onnx, got /tmp/x.pt",
        ),
        (export, ["RUN", "--format", "safetensors", "--output", "RUN_FILE"], "is the file to export"),
        (export, ["/nowhere", "--format", "onnx"], "there is no /nowhere"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else getattr(value, "__name__", ""),
)
def test_a_mistake_is_told_in_one_line_and_ends_with_2(run_dir, tool, arguments, message, capsys):
    there = {"RUN": run_dir, "RUN_CONFIG": run_dir / "config.yaml", "RUN_FILE": run_dir / "model.safetensors"}
    assert status(tool, *[there.get(argument, argument) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert message in told.err


def test_what_is_exported_replaces_no_pipe_and_is_written_where_a_link_leads(run_dir, tmp_path, capsys):
    pipe, link, file = (
        tmp_path / name for name in (f"{each}.safetensors" for each in ("pipe", "link", "file"))
    )
    os.mkfifo(pipe)
    link.symlink_to(file)
    arguments = (run_dir, "--format", "safetensors", "--output")
    for target in (pipe, tmp_path):
        assert status(export, *arguments, target) == 2
        assert f"{target} cannot be written: " in capsys.readouterr().err
    assert pipe.is_fifo()
    for _ in range(2):
        assert status(export, *arguments, link) == 0
        assert link.is_symlink()
        assert load_file(file).keys() == load_file(run_dir / "model.safetensors").keys()
        file.write_text("something older", encoding="utf-8")
    link.unlink()
    link.symlink_to(tmp_path / "nowhere" / file.name)
    assert status(export, *arguments, link) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in (file, link, pipe)]


def test_weights_of_no_net_are_refused(run_dir, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"head\.linear\.weight is missing"):
        net_with(load_weights(tmp_path / "other.safetensors"), find_config(run_dir))


def test_a_net_is_not_tested_on_classes_of_other_names(tmp_path, capsys):
    data = ("data.name=image_folder", f"data.root={tmp_path / 'images'}", "data.num_images=null")
    for split in ("train", "val"):
        for label in "ab":
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for k in range(4):
                Image.new("RGB", (8, 8)).save(tmp_path / "images" / split / label / f"{k}.png")
    run_dir = tmp_path / "run"
    arguments = (*SMALL, "engine.name=plain", "engine.zero_stage=0", f"train.run_dir={run_dir}", *data)
    assert main(["--config", str(CONFIG), *arguments]) == 0
    assert evaluate.main([str(run_dir)]) == 0
    without_names = (
        "data.name=synthetic",
        "data.num_classes=2",
        "data.num_images=8",
        "data.normalize=imagenet_mean_std",
    )
    assert evaluate.main([str(run_dir), *without_names]) == 0
    for split in ("train", "val"):
        (tmp_path / "images" / split / "a").rename(tmp_path / "images" / split / "c")
    for weights in (run_dir, run_dir / "checkpoints" / "step-00000001"):
        capsys.readouterr()
        assert evaluate.main([str(weights)]) == 2
        error = capsys.readouterr().err
        assert "have other names than those that" in error
        assert error.count("\n") == 1
