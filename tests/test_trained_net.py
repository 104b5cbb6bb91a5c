"""Nets by their files of weights alone, which say what net they are of."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

import export
from deepres import TrainedNetError, build_resnet, load_resnet
from deepres.evaluating import find_config, load_net
from deepres.models.difference import first_difference
from deepres.net_options import ACTIVATIONS, SHORTCUTS
from deepres.saving import checkpoints_in
from deepres.train import main
from deepres.trained_net import net_metadata
from tests.processes import PLAIN, QUICKSTART, ROOT, SMALL

ARGUMENTS = ("model.shortcut=constant_scaling", "model.shortcut_scale=0.25", "data.num_classes=7")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    saving = ("train.max_steps=2", "train.save_every=1 steps", f"train.run_dir={folder}")
    assert main(["--config", QUICKSTART, *SMALL, *PLAIN, *ARGUMENTS, *saving]) == 0
    return folder


def saved(net, path):
    save_file(net.state_dict(), path, net_metadata(net))
    return path


def test_a_run_its_checkpoints_and_exports_tell_their_net(run_dir):
    assert export.main([str(run_dir), "--format", "safetensors"]) == 0
    images = torch.randn(2, 3, 8, 8)
    expected = load_net(run_dir, find_config(run_dir))(images)
    state = torch.get_rng_state()
    for folder in (run_dir, *checkpoints_in(run_dir / "checkpoints")[:1]):
        net = load_resnet(folder / "model.safetensors")
        assert not net.training
        assert net.arguments["shortcut_scale"] == 0.25
        assert torch.equal(net(images), expected)
    assert torch.equal(load_resnet(run_dir / "export.safetensors")(images), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"shortcut": shortcut, "dropout": 0.25} for shortcut in SHORTCUTS),
        *({"activation": activation} for activation in ACTIVATIONS),
        {"depth": 18, "dataset": "imagenet", "stride_on": "3x3", "preactivation": "own", "num_classes": 3},
    ],
)
def test_every_net_is_built_again_and_can_be_trained_on(tmp_path, arguments):
    net = build_resnet(**{"depth": 8} | arguments)
    loaded = load_resnet(saved(net, tmp_path / "net.safetensors"))
    assert first_difference(loaded, net) is None
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), loaded.parameters(), strict=True))
    loaded.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_the_weights_of_another_net_are_told_from_those_of_the_configuration(run_dir, tmp_path):
    """Which have the same names and shapes."""
    other = build_resnet(11, block="bottleneck", num_classes=7)
    told = re.escape(
        "has weights of build_resnet(depth=11, num_classes=7, block='bottleneck'): here units.0.shortcut"
    )
    with pytest.raises(Exception, match=told):
        load_net(saved(other, tmp_path / "net.safetensors"), find_config(run_dir))


def test_torch_hub_gives_the_paper_s_net_with_its_weights_and_no_other(tmp_path):
    net = torch.hub.load(str(ROOT), "resnet110", source="local")
    path = str(saved(net, tmp_path / "net.safetensors"))
    again = torch.hub.load(str(ROOT), "resnet110", source="local", weights=path)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in again.state_dict().items())
    path = str(saved(build_resnet(110, shortcut="dropout"), tmp_path / "dropout.safetensors"))
    with pytest.raises(
        ValueError, match=r"is of another net, .* its units\.0\.shortcut is Shortcut\(dropout"
    ):
        torch.hub.load(str(ROOT), "resnet110", source="local", weights=path)


def test_files_that_do_not_tell_their_net_or_tell_of_another_are_refused_in_one_line(tmp_path):
    net, path = build_resnet(8), tmp_path / "net.safetensors"
    tensors, arguments = net.state_dict(), net.arguments
    for metadata, problem in (
        (None, "does not tell what net its weights are of"),
        ({"deepres.build_resnet": "[1"}, r"is damaged: what it tells of its net is \[1"),
        ({"deepres.build_resnet": "[1]"}, r"is damaged: what it tells of its net is \[1\]"),
        ({"deepres.build_resnet": "{}"}, "tells of a net that cannot be built: .*depth"),
        (arguments | {"depth": 9}, "tells of a net that cannot be built: depth must be"),
        (arguments | {"depth": 600_002}, "is damaged: it tells of 600002 layers and has 44 tensors"),
        (arguments | {"shape": "round"}, "tells of a net that cannot be built: .*shape"),
        (arguments | {"depth": 14}, r"has not the weights of build_resnet\(depth=14\): .*Missing key"),
        (
            arguments | {"num_classes": 10**12},
            "has not the weights of .*size mismatch for head.linear.weight",
        ),
    ):
        told = metadata
        if metadata and "depth" in metadata:
            told = {"deepres.build_resnet": json.dumps(metadata)}
        save_file(tensors, path, told)
        with pytest.raises(TrainedNetError, match=problem) as error:
            load_resnet(path)
        assert "\n" not in str(error.value)
    torch.save(tensors, tmp_path / "net.pt")
    with pytest.raises(TrainedNetError, match="does not tell what net"):
        load_resnet(tmp_path / "net.pt")
    with pytest.raises(FileNotFoundError):
        load_resnet(tmp_path / "nothing.safetensors")
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        load_resnet(path)
