"""Residual networks of any depth: `stem -> units -> head` (He et al. 2016)."""

from __future__ import annotations

import math
from collections import OrderedDict
from numbers import Integral, Real

from torch import Tensor, nn

from deepres.models.batch_norm import BatchNorm2d
from deepres.models.layout import layout_of
from deepres.models.residual_unit import ResidualUnit, UnitPreactivation, leading_activation
from deepres.net_options import (
    ACTIVATIONS,
    BLOCKS,
    FAMILIES,
    MATCHINGS,
    PREACTIVATIONS,
    SHORTCUTS,
    STRIDES_ON,
    Activation,
    Block,
    Family,
    Matching,
    Preactivation,
    ShortcutName,
    StrideOn,
    default_block,
    default_matching,
    default_stem_activation,
)


class ResNet(nn.Module):
    """A residual net whose forward pass is its definition: `head(units(stem(x)))`.

    Args:
        stem: images (N, 3, H, W) to the first unit's input.
        units: the Residual Units in order, a flat sequence; a plan of recomputation is applied to it.
        head: the last unit's output to logits (N, num_classes).

    Attributes:
        units_per_stage: how many units each stage (units of one spatial size) has.
    """

    def __init__(
        self, stem: nn.Sequential, units: nn.Sequential, head: nn.Sequential, units_per_stage: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.stem = stem
        self.units = units
        self.head = head
        self.units_per_stage = units_per_stage

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images `x: (N, 3, H, W)`."""
        logits: Tensor = self.head(self.units(self.stem(x)))
        return logits


def build_resnet(
    depth: int,
    *,
    dataset: Family = "cifar",
    num_classes: int = 10,
    block: Block | None = None,
    activation: Activation = "full_preactivation",
    shortcut: ShortcutName = "identity",
    matching: Matching | None = None,
    stride_on: StrideOn = "1x1",
    stem_activation: bool | None = None,
    preactivation: Preactivation = "shared",
    shortcut_scale: float = 0.5,
    residual_scale: float = 0.5,
    gate_bias: float = -6.0,
    dropout: float = 0.5,
) -> ResNet:
    """Build a net of the paper, or of its kind at another depth, with freshly drawn parameters.

    The last pre-activation unit is followed by one more activation, as in the paper's appendix. Convolutions
    are drawn from He's normal distribution (fan-out), linear weights as PyTorch draws them.

    Args:
        depth: number of weighted layers. CIFAR: 6n+2 (basic), 9n+2 (bottleneck), 3n+2 (single); ImageNet: 18,
            34 (basic), 50, 101, 152, 200 (bottleneck).
        dataset: `cifar` (3×3 stem, stages at the image's size, a half and a quarter of it, inner widths 16, 32,
            64) or `imagenet` (7×7 stride-2 stem and max pool, four stages, inner widths 64 to 512).
        num_classes: width of the last layer.
        block: kind of unit; by default, CIFAR nets are basic below 164 layers where the depth allows it and
            bottleneck nets otherwise, as in the paper.
        activation, shortcut, stride_on, shortcut_scale, residual_scale, gate_bias, dropout: see `ResidualUnit`.
        matching: how shortcuts match shapes; by default zero padding in CIFAR's basic nets, else projection.
        stem_activation: in a pre-activation net, activate once in the stem ("right after conv1", before
            ImageNet's max pool) instead of at the start of the first unit. By default in ImageNet nets, as in
            `fb.resnet.torch`, on which the authors' code builds; without a max pool between, as in CIFAR nets,
            both are the same function.
        preactivation: in a pre-activation net, where the first unit, and those that change the shape, have their
            first activation: `shared` by branch and shortcut, as in the paper's appendix and the authors' code;
            or the branch's `own`, with a projection of x_l itself, followed by batch norm, as in
            `fb.resnet.torch`.

    Raises:
        ValueError: no net has that depth (the message has the nearest that do), or an unknown variant or number.
    """
    _check_options(
        {
            "dataset": (dataset, FAMILIES),
            "block": (block, (None, *BLOCKS)),
            "activation": (activation, ACTIVATIONS),
            "shortcut": (shortcut, SHORTCUTS),
            "matching": (matching, (None, *MATCHINGS)),
            "stride_on": (stride_on, STRIDES_ON),
            "preactivation": (preactivation, PREACTIVATIONS),
        }
    )
    _check_numbers(
        {
            "shortcut_scale": shortcut_scale,
            "residual_scale": residual_scale,
            "gate_bias": gate_bias,
            "dropout": dropout,
        }
    )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    _check_whole({"depth": depth, "num_classes": num_classes})
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    layout = layout_of(depth, dataset, block)
    block = block or default_block(depth, dataset)
    leading = leading_activation(activation)
    if stem_activation is None:
        stem_activation = default_stem_activation(dataset)
    stem_activation = stem_activation or not leading
    shares = bool(leading) and preactivation == "shared"

    stem = _stem(layout.stem_channels, dataset, activates=stem_activation, leading=leading)
    units = list[nn.Module]()
    channels = layout.stem_channels
    for stage, (num_units, width) in enumerate(zip(layout.units, layout.widths, strict=True)):
        out_channels = width * 4 if block == "bottleneck" else width
        for k in range(num_units):
            stride = 2 if stage > 0 and k == 0 else 1
            where: UnitPreactivation = "own"
            if shares and not units:
                where = "none" if stem_activation else "shared"
            elif shares and (stride != 1 or channels != out_channels):
                where = "shared"
            unit = ResidualUnit(
                channels,
                width,
                out_channels,
                block=block,
                stride=stride,
                activation=activation,
                shortcut=shortcut,
                matching=matching or default_matching(dataset, block),
                stride_on=stride_on,
                preactivation=where,
                normalise_projection=True if leading and preactivation == "own" else None,
                shortcut_scale=float(shortcut_scale),
                residual_scale=float(residual_scale),
                gate_bias=float(gate_bias),
                dropout=float(dropout),
            )
            units.append(unit)
            channels = out_channels
    head = _head(channels, num_classes, leading)
    net = ResNet(stem, nn.Sequential(*units), head, layout.units)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(net.get_parameter("head.linear.bias"))
    return net


def _check_options(options: dict[str, tuple[object, tuple[object, ...]]]) -> None:
    for name, (value, known) in options.items():
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")


def _check_numbers(numbers: dict[str, float]) -> None:
    for name, number in numbers.items():
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {number!r:.80}")


def _check_whole(numbers: dict[str, object]) -> None:
    for name, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool):
            raise ValueError(f"{name} must be a whole number, got {number!r:.80}")


def _stem(channels: int, dataset: Family, *, activates: bool, leading: str) -> nn.Sequential:
    """What comes before the units.

    Args:
        channels: of its output.
        dataset: the kind of net.
        activates: whether its output is activated.
        leading: see `leading_activation`.
    """
    kernel, stride = (3, 1) if dataset == "cifar" else (7, 2)
    layers: dict[str, nn.Module] = {"conv": nn.Conv2d(3, channels, kernel, stride, kernel // 2, bias=False)}
    if activates and leading != "R":
        layers["norm"] = BatchNorm2d(channels)
    if activates:
        layers["relu"] = nn.ReLU(inplace=True)
    if dataset == "imagenet":
        layers["pool"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(OrderedDict(layers))


def _head(channels: int, num_classes: int, leading: str) -> nn.Sequential:
    """What comes after the units: the activation that pre-activation units leave to it, pooling, the classifier."""
    layers: dict[str, nn.Module] = {}
    if leading == "BR":
        layers["norm"] = BatchNorm2d(channels)
    if leading:
        layers["relu"] = nn.ReLU(inplace=leading == "BR")
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(channels, num_classes)
    return nn.Sequential(OrderedDict(layers))


def resnet110(num_classes: int = 10) -> ResNet:
    """The paper's CIFAR ResNet-110: basic units, full pre-activation."""
    return build_resnet(110, num_classes=num_classes, block="basic")


def resnet164(num_classes: int = 10) -> ResNet:
    """The paper's CIFAR ResNet-164: bottleneck units, full pre-activation."""
    return build_resnet(164, num_classes=num_classes, block="bottleneck")


def resnet1001(num_classes: int = 10) -> ResNet:
    """The paper's CIFAR ResNet-1001: bottleneck units, full pre-activation."""
    return build_resnet(1001, num_classes=num_classes, block="bottleneck")


def resnet101(num_classes: int = 1000) -> ResNet:
    """The paper's ImageNet ResNet-101, full pre-activation."""
    return build_resnet(101, dataset="imagenet", num_classes=num_classes)


def resnet152(num_classes: int = 1000) -> ResNet:
    """The paper's ImageNet ResNet-152, full pre-activation."""
    return build_resnet(152, dataset="imagenet", num_classes=num_classes)


def resnet200(num_classes: int = 1000) -> ResNet:
    """The paper's ImageNet ResNet-200, full pre-activation."""
    return build_resnet(200, dataset="imagenet", num_classes=num_classes)
