"""The values of a net's options, which `build_resnet` and configurations share."""

from __future__ import annotations

from typing import Literal, get_args

Family = Literal["cifar", "imagenet"]
"""Kind of net: its stem, stages and widths."""
Block = Literal["basic", "bottleneck", "single"]
"""Kind of unit: two 3×3 convolutions; 1×1, 3×3, 1×1; one 3×3."""
Activation = Literal[
    "original", "bn_after_addition", "relu_before_addition", "relu_only_preactivation", "full_preactivation"
]
"""Placement of batch norm and ReLU (the paper's Table 2)."""
ShortcutName = Literal[
    "identity", "constant_scaling", "exclusive_gating", "shortcut_only_gating", "conv1x1", "dropout"
]
"""Variant of h (the paper's Table 1)."""
Matching = Literal["projection", "zero_padding"]
"""How shortcuts change the shape."""
StrideOn = Literal["1x1", "3x3"]
"""Which convolution of a bottleneck unit has the stride."""
Preactivation = Literal["shared", "own"]
"""Whether branch and shortcut share the first activation of the first unit and of units that change the shape."""

FAMILIES: tuple[Family, ...] = get_args(Family)
BLOCKS: tuple[Block, ...] = get_args(Block)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
SHORTCUTS: tuple[ShortcutName, ...] = get_args(ShortcutName)
MATCHINGS: tuple[Matching, ...] = get_args(Matching)
STRIDES_ON: tuple[StrideOn, ...] = get_args(StrideOn)
PREACTIVATIONS: tuple[Preactivation, ...] = get_args(Preactivation)

ACTING_ON: dict[str, tuple[str, ...]] = {
    "shortcut_scale": ("constant_scaling",),
    "residual_scale": ("constant_scaling",),
    "gate_bias": ("exclusive_gating", "shortcut_only_gating"),
    "dropout": ("dropout",),
    "preactivation": ("relu_only_preactivation", "full_preactivation"),
    "matching": tuple(name for name in SHORTCUTS if name != "conv1x1"),
}
"""The shortcuts or activations for which a setting has an effect."""

LAYERS: dict[Block, int] = {"basic": 2, "bottleneck": 3, "single": 1}
"""Weighted layers in a unit's branch."""


def acts(setting: str, shortcut: ShortcutName, activation: Activation) -> bool:
    """Whether a net with that shortcut and activation has a setting of `ACTING_ON`."""
    return not {shortcut, activation}.isdisjoint(ACTING_ON[setting])


def default_block(depth: int, dataset: Family) -> Block:
    """The kind of unit that the paper uses at this depth."""
    if dataset == "imagenet":
        return "basic" if depth in (18, 34) else "bottleneck"
    fits_basic, fits_bottleneck = (depth - 2) % 6 == 0, (depth - 2) % 9 == 0
    return "basic" if fits_basic and not (fits_bottleneck and depth >= 164) else "bottleneck"


def default_matching(dataset: Family, block: Block) -> Matching:
    """How shortcuts of the paper's nets change the shape."""
    return "zero_padding" if dataset == "cifar" and block != "bottleneck" else "projection"


def default_stem_activation(dataset: Family) -> bool:
    """Whether the first activation of a pre-activation net is in its stem."""
    return dataset == "imagenet"
