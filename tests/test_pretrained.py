"""Weights from elsewhere, against the structures they come from, written out in plain PyTorch with their names."""

import copy
import functools
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import deepres
import evaluate
import export
from deepres.config import load_config
from deepres.data import find_data
from deepres.initial_weights import set_initial_weights
from deepres.pretrained import PretrainedError
from deepres.run_net import net_of
from deepres.tensor_files import read_tensor_file
from deepres.trained_net import trained_on

UNITS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
NUM_CLASSES = 5


class TimmUnit(nn.Module):
    """timm's PreActBottleneck: the projection sees what norm1 and ReLU give, the 3×3 has the stride."""

    def __init__(self, channels: int, width: int, stride: int, *, projects: bool) -> None:
        super().__init__()
        self.downsample = nn.Module() if projects else None
        if projects:
            self.downsample.conv = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample.conv(y)
        y = self.conv2(F.relu(self.norm2(self.conv1(y))))
        return self.conv3(F.relu(self.norm3(y))) + shortcut


class TimmNet(nn.Module):
    """timm's resnetv2_50: nothing is activated in the stem, the classifier is a 1×1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(3, 64, 7, 2, 3, bias=False), pool=nn.MaxPool2d(3, 2, 1))
        )
        self.stages = nn.Sequential()
        channels = 64
        for stage, (num_units, width) in enumerate(zip(UNITS, WIDTHS, strict=True)):
            blocks = nn.Sequential()
            for unit in range(num_units):
                stride = 2 if stage and not unit else 1
                blocks.append(TimmUnit(channels, width, stride, projects=unit == 0))
                channels = 4 * width
            self.stages.append(nn.Sequential(OrderedDict(blocks=blocks)))
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Sequential(
            OrderedDict(pool=nn.AdaptiveAvgPool2d(1), fc=nn.Conv2d(channels, NUM_CLASSES, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.stages(self.stem(x))))).flatten(1)


class Branches(nn.Sequential):
    """Torch's ConcatTable."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self]


class Add(nn.Module):
    """Torch's CAddTable."""

    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0] + xs[1]


def _torch7_net() -> nn.Sequential:
    """The pre-activation net of fb.resnet.torch as it was published: own activations, normalised projections."""
    net = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    channels = 64
    for stage, (num_units, width) in enumerate(zip(UNITS, WIDTHS, strict=True)):
        units = nn.Sequential()
        for unit in range(num_units):
            stride = 2 if stage and not unit else 1
            branch = nn.Sequential(
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, width, 1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, stride, 1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, 4 * width, 1),
            )
            shortcut: nn.Module = nn.Identity()
            if channels != 4 * width:
                shortcut = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))
            units.append(nn.Sequential(Branches(branch, shortcut), Add()))
            channels = 4 * width
        net.append(units)
    net.extend([nn.Identity(), nn.BatchNorm2d(channels), nn.ReLU()])
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    return net.append(nn.Sequential(nn.Identity(), nn.Linear(channels, NUM_CLASSES)))


NETS = {"timm": TimmNet, "torch7": _torch7_net}
ARGUMENTS = {"timm": {"stem_activation": False}, "torch7": {"preactivation": "own"}}


def _ours(source: str, depth: int = 50, **others: object) -> deepres.ResNet:
    arguments = {"dataset": "imagenet", "num_classes": NUM_CLASSES, "stride_on": "3x3", **ARGUMENTS[source]}
    return deepres.build_resnet(depth, **(arguments | others))


@functools.cache
def _theirs(source: str) -> nn.Module:
    """A net of theirs after some training: norms far from their initial values."""
    torch.manual_seed(1)
    net = NETS[source]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.8)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            module.num_batches_tracked.fill_(3)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.5)
    return net.eval()


def _file(folder: Path, source: str, weights: dict[str, Tensor] | None = None) -> Path:
    path = folder / "theirs.safetensors"
    save_file(_theirs(source).state_dict() if weights is None else weights, path)
    return path


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        (
            "timm",
            {
                "stem.conv.weight": (64, 3, 7, 7),
                "stages.0.blocks.0.norm1.running_mean": (64,),
                "stages.0.blocks.0.downsample.conv.weight": (256, 64, 1, 1),
                "stages.1.blocks.0.conv2.weight": (128, 128, 3, 3),
                "stages.3.blocks.2.norm3.bias": (512,),
                "stages.3.blocks.2.conv3.weight": (2048, 512, 1, 1),
                "norm.weight": (2048,),
                "head.fc.weight": (NUM_CLASSES, 2048, 1, 1),
            },
        ),
        (
            "torch7",
            {
                "0.bias": (64,),
                "1.running_var": (64,),
                "4.0.0.0.0.weight": (64,),
                "4.0.0.1.0.weight": (256, 64, 1, 1),
                "5.0.0.0.5.weight": (128, 128, 3, 3),
                "7.0.0.1.1.running_mean": (2048,),
                "7.2.0.0.8.weight": (2048, 512, 1, 1),
                "9.weight": (2048,),
                "13.1.weight": (NUM_CLASSES, 2048),
            },
        ),
    ],
)
def test_the_nets_written_out_here_have_the_published_names(source, keys):
    state = _theirs(source).state_dict()
    assert {key: tuple(state[key].shape) for key in keys} == keys


@pytest.mark.parametrize("source", NETS)
def test_a_loaded_net_computes_their_logits_in_evaluation_and_in_training(source, tmp_path):
    theirs = copy.deepcopy(_theirs(source)).double()
    path = tmp_path / "theirs.pt"
    torch.save(theirs.state_dict(), path)
    ours = _ours(source).double()
    deepres.load_pretrained(ours, path, source=source)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for training in (False, True):
            theirs.train(training)
            ours.train(training)
            torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)
        theirs.eval()
        ours.eval()
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)
    assert int(ours.head.norm.num_batches_tracked) == 4


def test_every_tensor_of_timm_lands_in_ours_unchanged(tmp_path):
    theirs = _theirs("timm").state_dict()
    ours = _ours("timm")
    deepres.load_pretrained(ours, _file(tmp_path, "timm"))
    state = ours.state_dict()
    assert len(state) == len(theirs)
    for mine, key in (
        ("stem.conv.weight", "stem.conv.weight"),
        ("units.0.norms.0.running_var", "stages.0.blocks.0.norm1.running_var"),
        ("units.3.shortcut.conv.weight", "stages.1.blocks.0.downsample.conv.weight"),
        ("units.12.convs.2.weight", "stages.2.blocks.5.conv3.weight"),
        ("units.15.norms.2.bias", "stages.3.blocks.2.norm3.bias"),
        ("head.norm.num_batches_tracked", "norm.num_batches_tracked"),
    ):
        assert torch.equal(state[mine], theirs[key])
    assert torch.equal(state["head.linear.weight"], theirs["head.fc.weight"].flatten(1))
    assert sum(t.double().sum() for t in state.values()) == pytest.approx(
        sum(t.double().sum() for t in theirs.values()).item(), rel=1e-9
    )


@pytest.mark.parametrize(("source", "depth"), [("timm", 50), ("timm", 101), ("timm", 152), ("torch7", 200)])
def test_names_and_shapes_fit_at_every_published_depth(source, depth, tmp_path):
    """No missing key is one of a published net: their number is that of the net's own tensors."""
    with torch.device("meta"):
        net = _ours(source, depth)
    with pytest.raises(PretrainedError) as caught:
        deepres.load_pretrained(net, _file(tmp_path, source, {"other": torch.zeros(1)}), source=source)
    tracked = sum(name.endswith("num_batches_tracked") for name in net.state_dict())
    assert len(caught.value.missing) == len(net.state_dict()) - tracked
    units = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}[depth]
    form, end = {
        "timm": ("stages.{}.blocks.{}.conv2.weight", ".conv2.weight"),
        "torch7": ("{}.{}.0.0.5.weight", ".0.0.5.weight"),
    }[source]
    first = 0 if source == "timm" else 4
    expected = {form.format(first + stage, unit) for stage in range(4) for unit in range(units[stage])}
    assert {key for key in caught.value.missing if key.endswith(end)} == expected


def test_files_older_than_num_batches_tracked_are_loaded(tmp_path):
    weights = {k: v for k, v in _theirs("timm").state_dict().items() if not k.endswith("tracked")}
    net = _ours("timm")
    net.head.norm.num_batches_tracked.fill_(9)
    deepres.load_pretrained(net, _file(tmp_path, "timm", weights))
    assert int(net.head.norm.num_batches_tracked) == 0


def test_all_differences_are_told_in_the_files_names_and_nothing_is_changed(tmp_path):
    weights = dict(_theirs("timm").state_dict())
    del weights["stages.2.blocks.5.norm2.bias"]
    weights["fc.bias"] = torch.zeros(3)
    weights["head.fc.weight"] = torch.zeros(1000, 2048, 1, 1)
    net = _ours("timm")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(PretrainedError) as caught:
        deepres.load_pretrained(net, _file(tmp_path, "timm", weights))
    assert caught.value.missing == ("stages.2.blocks.5.norm2.bias",)
    assert caught.value.unexpected == ("fc.bias",)
    assert caught.value.wrong_shape == ("head.fc.weight",)
    message = str(caught.value)
    for part in (
        "1 missing: stages.2.blocks.5.norm2.bias",
        "1 unexpected: fc.bias",
        "1 of another shape: head.fc.weight [1000, 2048, 1, 1]",
        f"build_resnet(depth=50, dataset='imagenet', num_classes={NUM_CLASSES}, stride_on='3x3', stem_activation=",
    ):
        assert part in message
    assert "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("source", "others", "part"),
    [
        (
            "timm",
            {"stride_on": "1x1"},
            "units.3.convs.0 is Conv2d(256, 128, kernel_size=(1, 1), stride=(2, 2)",
        ),
        ("timm", {"stem_activation": True}, "units.0 is ResidualUnit(before_split=None"),
        ("timm", {"preactivation": "own"}, "units.0 is ResidualUnit(before_split=None, branch=BRWBRWBRW"),
        ("timm", {"activation": "original"}, "units.0 is ResidualUnit(before_split=None, branch=WBRWBRWB"),
        ("timm", {"shortcut": "constant_scaling"}, "units.0.shortcut is Shortcut(constant_scaling"),
        ("timm", {"depth": 34}, "(depth 50, 101, 152); this model has 3-4-6-3 basic units"),
        (
            "timm",
            {"depth": 20, "dataset": "cifar"},
            "(depth 50, 101, 152); this model has 3-3-3 basic units",
        ),
        ("torch7", {"depth": 18}, "(depth 200); this model has 2-2-2-2 basic units"),
        ("torch7", {"preactivation": "shared"}, "units.0 is ResidualUnit(before_split=None, branch=WBRWBRW"),
        ("torch7", {"stem_activation": False}, "stem.norm is missing instead of BatchNorm2d(64"),
    ],
)
def test_a_model_that_would_compute_something_else_is_refused(source, others, part, tmp_path):
    with torch.device("meta"), pytest.raises(PretrainedError) as caught:
        deepres.load_pretrained(_ours(source, **others), tmp_path / "none.pt", source=source)
    assert part in str(caught.value)


@pytest.mark.parametrize("source", NETS)
def test_a_file_of_another_depth_is_told_by_its_units(source, tmp_path):
    path = _file(tmp_path, source)
    with torch.device("meta"), pytest.raises(PretrainedError) as caught:
        deepres.load_pretrained(_ours(source, 101), path, source=source)
    message = f"{path} has 3-4-6-3 units (depth 50), this model 3-4-23-3 (depth 101): 255 missing: "
    assert str(caught.value).startswith(message)
    assert len(caught.value.missing) > 100


@pytest.mark.filterwarnings("ignore:.*parse:UserWarning")  # of loading sparse tensors, in some releases
@pytest.mark.parametrize(
    ("key", "spoil", "why"),
    [
        (
            "stem.conv.weight",
            lambda t: t.index_fill(0, torch.tensor(3), float("nan")),
            "not finite as float32",
        ),
        ("norm.bias", lambda t: t.double().fill_(1e200), "not finite as float32"),
        ("stem.conv.weight", lambda t: t.to(torch.int64), "int64"),
        ("stem.conv.weight", lambda t: t.to(torch.complex64), "complex64"),
        ("stem.conv.weight", lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        ("stem.conv.weight", lambda t: t.to_sparse(), "sparse"),
        ("stem.conv.weight", lambda t: t.to("meta"), "without values"),
        ("norm.running_var", lambda t: -t, "negative"),
        ("norm.num_batches_tracked", lambda t: t.float(), "float32"),
        ("norm.num_batches_tracked", lambda t: -t, "negative"),
    ],
)
def test_what_no_net_can_compute_with_is_refused_and_nothing_is_changed(key, spoil, why, tmp_path):
    weights = dict(_theirs("timm").state_dict())
    weights[key] = spoil(weights[key])
    path = tmp_path / "theirs.pt"
    torch.save(weights, path)
    net = _ours("timm")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(PretrainedError) as caught:
        deepres.load_pretrained(net, path)
    assert caught.value.unusable == (key,)
    assert str(caught.value).endswith(f": {key} ({why})")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_weights_that_overflow_the_model_s_own_numbers_are_refused(tmp_path):
    weights = dict(_theirs("timm").state_dict())
    weights["norm.bias"] = torch.full((2048,), 1e5)
    with pytest.raises(PretrainedError, match=r"norm.bias \(not finite as float16\)"):
        deepres.load_pretrained(_ours("timm").half(), _file(tmp_path, "timm", weights))


def test_a_model_without_numbers_is_refused(tmp_path):
    with torch.device("meta"):
        net = _ours("timm")
    with pytest.raises(PretrainedError, match="the model is on the meta device"):
        deepres.load_pretrained(net, _file(tmp_path, "timm"))


def test_a_bias_of_another_length_is_told(tmp_path):
    weights = dict(_theirs("torch7").state_dict())
    weights["4.0.0.0.2.bias"] = torch.zeros(3)
    with torch.device("meta"), pytest.raises(PretrainedError) as caught:
        deepres.load_pretrained(_ours("torch7"), _file(tmp_path, "torch7", weights), source="torch7")
    assert caught.value.wrong_shape == ("4.0.0.0.2.bias",)


def test_what_is_no_net_no_source_or_no_file_is_told(tmp_path):
    with torch.device("meta"):
        net = _ours("timm")
    with pytest.raises(ValueError, match=r"^source must be one of timm, torch7, got 'keras'$"):
        deepres.load_pretrained(net, tmp_path / "x.pt", source="keras")
    with pytest.raises(TypeError, match=r"must be a deepres\.ResNet, got Linear"):
        deepres.load_pretrained(nn.Linear(1, 1), tmp_path / "x.pt")
    for name in ("x.pt", "x.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            deepres.load_pretrained(net, tmp_path / name)
    with pytest.raises(IsADirectoryError):
        deepres.load_pretrained(net, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("x.pt", b"", "is refused: no file of plain tensors"),
        ("x.pth", b"no weights", "is refused: no file of plain tensors"),
        ("x.safetensors", b"no weights", "cannot be read: "),
        ("x.pt", [torch.zeros(1)], "is refused: it must hold a dictionary of tensors by name"),
        ("x.pt", {"epoch": 3}, "is refused: it must hold a dictionary of tensors by name"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_in_one_line(name, content, part, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with torch.device("meta"):
        net = _ours("timm")
    with pytest.raises(PretrainedError) as caught:
        deepres.load_pretrained(net, path)
    assert str(caught.value).startswith(f"{path} {part}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", NETS)
def test_exported_they_are_files_that_record_their_net(source, tmp_path, capsys):
    target = tmp_path / "ours.safetensors"
    arguments = [str(_file(tmp_path, source)), "--source", source, "--format", "safetensors"]
    assert export.main([*arguments, "--output", str(target), "--image-size", "32"]) == 0
    assert capsys.readouterr().out.startswith(f"{target}: ")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(deepres.load_resnet(target)(x), _theirs(source)(x), rtol=1e-4, atol=1e-3)
    normalize = {"timm": "half", "torch7": "imagenet_mean_std"}[source]
    assert trained_on(read_tensor_file(target)) == (normalize, "")
    again = tmp_path / "again.safetensors"
    assert export.main([str(target), "--format", "safetensors", "--output", str(again)]) == 0
    assert trained_on(read_tensor_file(again)) == (normalize, "")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """timm's weights as a file of ours, and a folder of images of as many classes."""
    folder = tmp_path_factory.mktemp("exported")
    arguments = [str(_file(folder, "timm")), "--source", "timm", "--format", "safetensors"]
    assert export.main([*arguments, "--output", str(folder / "ours.safetensors"), "--image-size", "32"]) == 0
    for split in ("train", "val"):
        for label in range(NUM_CLASSES):
            (folder / "images" / split / str(label)).mkdir(parents=True)
            colour = (50 * label, 255 - 50 * label, 128)
            Image.new("RGB", (32, 32), colour).save(folder / "images" / split / str(label) / "0.png")
    return folder


def _data(folder, *others):
    return ["data.name=image_folder", f"data.root={folder / 'images'}", "data.image_size=32", *others]


def test_exported_they_are_tested_with_their_own_normalization(exported, capsys):
    assert evaluate.main([str(exported / "ours.safetensors"), *_data(exported)]) == 0
    told = capsys.readouterr().out
    images = torch.stack(
        [torch.tensor((50 * k, 255 - 50 * k, 128)) for k in range(NUM_CLASSES)]
    )[:, :, None, None].expand(-1, -1, 32, 32) / 127.5 - 1  # fmt: skip
    with torch.no_grad():
        loss = F.cross_entropy(_theirs("timm")(images), torch.arange(NUM_CLASSES))
    assert float(told.split("loss ")[1].split()[0]) == pytest.approx(float(loss), rel=1e-3)
    assert (
        evaluate.main(
            [str(exported / "ours.safetensors"), *_data(exported, "data.normalize=imagenet_mean_std")]
        )
        == 2
    )
    assert (
        "was trained on images normalised by data.normalize=half, not by imagenet_mean_std"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("num_classes", [NUM_CLASSES, NUM_CLASSES + 1])
def test_exported_they_are_what_a_run_begins_with(exported, num_classes):
    theirs = deepres.load_resnet(exported / "ours.safetensors").state_dict()
    settings = [
        "model.depth=50", "model.dataset=imagenet", "model.stride_on=3x3", "model.stem_activation=false",
        "data.name=synthetic", f"data.num_classes={num_classes}", "data.normalize=half", "train.epochs=1",
        "train.global_batch_size=2", f"train.initial_weights={exported / 'ours.safetensors'}",
    ]  # fmt: skip
    config = load_config(None, settings)
    net = net_of(config)
    initial = set_initial_weights(net, config, find_data(config.data).info)
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, theirs[name])}
    assert changed == (set() if num_classes == NUM_CLASSES else {"head.linear.weight", "head.linear.bias"})
    assert "WARNING" not in initial.told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["THEIRS", "--source", "torch7"], "net of torch7 (published: depth 200): by its names it has no units"),
        (["PART", "--source", "timm"], "timm (published: depth 50, 101, 152): by its names it has 3-4-6-2 units"),
        (["LESS", "--source", "timm"], "1 missing: norm.weight"),
        (["THEIRS", "--source", "keras"], "invalid choice: 'keras'"),
        (["THEIRS", "--source", "timm", "--config", "x"], "--config is for files of deepres"),
        (["/nowhere", "--source", "timm"], "there is no file /nowhere"),
        (["MANY", "--source", "timm"], "of another shape: head.fc.weight [30000000, 1]"),
        (["NONE", "--source", "timm"], "2 of another shape: head.fc.weight [0, 2048], head.fc.bias [0]"),
        (["THEIRS"], "(weights of other libraries: tools/export.py FILE --source …)"),
        (["THEIRS", "--config", "configs/imagenet101.yaml"], "(those of other libraries: tools/export.py FILE --"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_in_one_line(exported, arguments, message, tmp_path, capsys):
    weights = dict(_theirs("timm").state_dict())
    last = {name for name in weights if name.startswith("stages.3.blocks.2.")}
    for name, lacks in (("PART", last), ("LESS", {"norm.weight"})):
        torch.save({key: value for key, value in weights.items() if key not in lacks}, tmp_path / name)
    torch.save(weights | {"head.fc.weight": torch.zeros(30_000_000, 1)}, tmp_path / "MANY")
    torch.save(
        weights | {"head.fc.weight": torch.zeros(0, 2048), "head.fc.bias": torch.zeros(0)}, tmp_path / "NONE"
    )
    there = {name: tmp_path / name for name in ("PART", "LESS", "MANY", "NONE")}
    there["THEIRS"] = exported / "theirs.safetensors"
    given = [str(there.get(each, each)) for each in arguments]
    target = tmp_path / "ours.safetensors"
    try:
        status = export.main([*given, "--format", "safetensors", "--output", str(target)])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert not target.exists()
