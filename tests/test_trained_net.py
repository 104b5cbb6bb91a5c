"""Nets by their files of weights alone, which say what net they are of."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

import export
import propagation
from deepres import TrainedNetError, build_resnet, load_resnet
from deepres.checkpoints.saving import checkpoints_in
from deepres.checkpoints.snapshot import MOMENTUM, PROCESSES
from deepres.config import ConfigError
from deepres.evaluating import find_config, net_with
from deepres.models.difference import first_difference
from deepres.net_options import ACTIVATIONS, SHORTCUTS
from deepres.train import main
from deepres.trained_net import net_metadata
from deepres.weights import load_weights
from tests.processes import PLAIN, QUICKSTART, ROOT, SMALL

ARGUMENTS = ("model.shortcut=constant_scaling", "model.shortcut_scale=0.25", "data.num_classes=7")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    saving = ("train.max_steps=2", "train.save_every=1 steps", f"train.run_dir={folder}")
    assert main(["--config", QUICKSTART, *SMALL, *PLAIN, *ARGUMENTS, *saving]) == 0
    return folder


def saved(path, **arguments):
    """A file of a new net's weights, which tells of it."""
    net = build_resnet(**arguments)
    save_file(net.state_dict(), path, net_metadata(arguments, "mean_std"))
    return net


def test_a_run_its_checkpoints_and_exports_tell_their_net(run_dir):
    assert export.main([str(run_dir), "--format", "safetensors"]) == 0
    images = torch.randn(2, 3, 8, 8)
    expected = net_with(load_weights(run_dir), find_config(run_dir))(images)
    state = torch.get_rng_state()
    for folder in (run_dir, *checkpoints_in(run_dir / "checkpoints")[:1]):
        net = load_resnet(folder / "model.safetensors")
        assert not net.training
        assert net.units[0].shortcut.shortcut_scale == 0.25
        assert torch.equal(net(images), expected)
    assert torch.equal(load_resnet(run_dir / "export.safetensors")(images), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [MOMENTUM, PROCESSES])
def test_a_checkpoint_s_other_files_are_of_no_net(run_dir, name):
    path = checkpoints_in(run_dir / "checkpoints")[0] / name
    with pytest.raises(TrainedNetError, match=f"{name} does not record its architecture"):
        load_resnet(path)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"shortcut": shortcut, "dropout": 0.25} for shortcut in SHORTCUTS),
        *({"activation": activation} for activation in ACTIVATIONS),
        {"shortcut": "constant_scaling", "shortcut_scale": 1},
        {"depth": 18, "dataset": "imagenet", "stride_on": "3x3", "preactivation": "own", "num_classes": 3},
    ],
)
def test_every_net_is_built_again_and_can_be_trained_on(tmp_path, arguments):
    path = tmp_path / "net.safetensors"
    net = saved(path, **{"depth": 8} | arguments)
    loaded = load_resnet(path)
    assert first_difference(loaded, net) is None
    assert loaded.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    loaded.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_weights_in_16_bits_are_those_of_a_net_in_32(tmp_path):
    path = tmp_path / "net.safetensors"
    net = build_resnet(8).half()
    save_file(net.state_dict(), path, net_metadata({"depth": 8}, "mean_std"))
    loaded = load_resnet(path)
    assert torch.equal(loaded.head.linear.weight, net.head.linear.weight.float())
    assert loaded(torch.randn(2, 3, 8, 8)).dtype == torch.float32


def test_the_weights_of_another_net_are_told_from_those_of_the_configuration(run_dir, tmp_path):
    """Which have the same names and shapes."""
    path = tmp_path / "net.safetensors"
    saved(path, depth=11, block="bottleneck", num_classes=7)
    told = (
        "has weights of build_resnet(depth=11, num_classes=7, block='bottleneck'): here units.0.shortcut is "
    )
    with pytest.raises(ConfigError, match=re.escape(told)):
        net_with(load_weights(path), find_config(run_dir))


def test_torch_hub_has_the_paper_s_nets_and_loads_any(tmp_path):
    net = torch.hub.load(str(ROOT), "resnet110", source="local", num_classes=7)
    assert (net.units_per_stage, net.head.linear.out_features) == ((18, 18, 18), 7)
    path = tmp_path / "net.safetensors"
    own = saved(path, depth=20, shortcut="dropout")
    loaded = torch.hub.load(str(ROOT), "load_resnet", str(path), source="local")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in own.state_dict().items())


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ("[1\n,\x1b[31m", r"is damaged: it records '\[1\\n,\\x1b\[31m' as its net"),
        ("[1]", r"is damaged: it records '\[1\]' as its net"),
        ("[" * 200_000, "is damaged: it records"),
        ("{}", "is damaged: it records '{}' as its net"),
        ('{"build_resnet": {"depth": 8}, "normalize": "no", "classes_sha256": ""}', "is damaged: it records"),
        ({}, "records a net that cannot be built: missing a required argument: 'depth'"),
        ({"depth": 9}, "records a net that cannot be built: depth must be"),
        ({"depth": 600_002}, "is damaged: it records 600002 layers and has 44 tensors"),
        ({"depth": 8, "shape": "round"}, "records a net that cannot be built: .*shape"),
        (
            {"depth": 8, "gate_bias": "x" * 9999},
            "cannot be built: gate_bias must be a finite number, got 'xxx",
        ),
        ({"depth": 8, "dropout": float("nan")}, "cannot be built: dropout must be a finite number, got nan"),
        (
            {"depth": 8, "num_classes": 10**12},
            r"does not hold the weights of .*: head.linear.weight is \[10, 64\] instead of \[1000000000000, 64\]",
        ),
        ({"depth": 8, "num_classes": 10**18}, "records a net that cannot be built"),
        (
            {"depth": 14},
            r"of build_resnet\(depth=14\): units.1.convs.0.weight is \[32, 16, 3, 3\] instead of \[16, 16",
        ),
        ({"depth": 8, "activation": "original"}, "activation='original'.: stem.norm.weight is missing"),
    ],
)
def test_what_tells_of_no_net_or_of_another_is_refused_in_one_line(tmp_path, capsys, told, problem):
    path = tmp_path / "net.safetensors"
    text = (
        told
        if isinstance(told, str)
        else json.dumps({"build_resnet": told, "normalize": "half", "classes_sha256": ""})
    )
    save_file(build_resnet(8).state_dict(), path, {"deepres.net": text})
    with pytest.raises(TrainedNetError, match=problem) as error:
        load_resnet(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000
    assert propagation.main(["--checkpoint", str(path)]) == 2
    assert capsys.readouterr().err == f"error: {error.value}\n"


def test_files_that_tell_nothing_or_are_none_are_refused(tmp_path):
    for name, save in (("net.safetensors", save_file), ("net.pt", torch.save)):
        save(build_resnet(8).state_dict(), tmp_path / name)
        with pytest.raises(TrainedNetError, match="does not record its architecture"):
            load_resnet(tmp_path / name)
    more = build_resnet(8).state_dict() | {"more": torch.zeros(1)}
    save_file(more, tmp_path / "net.safetensors", net_metadata({"depth": 8}, "mean_std"))
    with pytest.raises(TrainedNetError, match=r"of build_resnet\(depth=8\): unexpected tensor 'more'"):
        load_resnet(tmp_path / "net.safetensors")
    with pytest.raises(FileNotFoundError):
        load_resnet(tmp_path / "nothing.safetensors")
    (tmp_path / "net.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        load_resnet(tmp_path / "net.safetensors")
