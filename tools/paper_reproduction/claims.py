"""The paper's results as data: the rows of its tables with their errors (He et al. 2016, arXiv:1603.05027)."""

from __future__ import annotations

from dataclasses import dataclass

FAILED_ABOVE = 20.0
"""The test error in % above which the paper calls a net failed."""


@dataclass(frozen=True)
class Claim:
    """A row of a table.

    Attributes:
        name: of its config, `configs/paper/TABLE/NAME.yaml`.
        label: what was trained, in words.
        error: the paper's test error in %, top-1; None if it says "fail", or is not in the paper.
        top5_error: the same, top-5, if the paper has it.
        spread: mean and standard deviation over the runs, if the paper has them besides the median.
    """

    name: str
    label: str
    error: float | None
    top5_error: float | None = None
    spread: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the paper, or other results presented like one.

    Attributes:
        name: of the folder of its configs.
        title: what it compares, and on which data.
        claims: its rows.
        is_in_paper: whether it is in the paper.
    """

    name: str
    title: str
    claims: tuple[Claim, ...]
    is_in_paper: bool = True


PAPER = (
    Table(
        "table1",
        "Table 1: shortcuts. ResNet-110, original unit, CIFAR-10",
        (
            Claim("original", "original", 6.61),
            Claim("constant_scaling_plain", "constant scaling: 0 and 1 (plain net)", None),
            Claim("constant_scaling_shortcut", "constant scaling: 0.5 and 1", None),
            Claim("constant_scaling_both", "constant scaling: 0.5 and 0.5", 12.35),
            *(
                Claim(f"exclusive_gating_bias{b}", f"exclusive gating, bias {b}", None)
                for b in range(0, -6, -1)
            ),
            Claim("exclusive_gating_bias-6", "exclusive gating, bias -6", 8.70),
            Claim("exclusive_gating_bias-7", "exclusive gating, bias -7", 9.81),
            Claim("shortcut_only_gating_bias0", "shortcut-only gating, bias 0", 12.86),
            Claim("shortcut_only_gating_bias-6", "shortcut-only gating, bias -6", 6.91),
            Claim("conv1x1", "1×1 conv shortcut", 12.22),
            Claim("dropout", "dropout shortcut, 0.5", None),
        ),
    ),
    Table(
        "table2",
        "Table 2: placement of activations. CIFAR-10",
        (
            Claim("resnet110_original", "ResNet-110, original", 6.61),
            Claim("resnet164_original", "ResNet-164, original", 5.93),
            Claim("resnet110_bn_after_addition", "ResNet-110, BN after addition", 8.17),
            Claim("resnet164_bn_after_addition", "ResNet-164, BN after addition", 6.50),
            Claim("resnet110_relu_before_addition", "ResNet-110, ReLU before addition", 7.84),
            Claim("resnet164_relu_before_addition", "ResNet-164, ReLU before addition", 6.14),
            Claim("resnet110_relu_only_preactivation", "ResNet-110, ReLU-only pre-activation", 6.71),
            Claim("resnet164_relu_only_preactivation", "ResNet-164, ReLU-only pre-activation", 5.91),
            Claim("resnet110_full_preactivation", "ResNet-110, full pre-activation", 6.37),
            Claim("resnet164_full_preactivation", "ResNet-164, full pre-activation", 5.46),
        ),
    ),
    Table(
        "table3",
        "Table 3: original and pre-activation units. CIFAR",
        (
            Claim("cifar10_resnet110_single_original", "CIFAR-10, 110, one-layer shortcuts, original", 9.90),
            Claim(
                "cifar10_resnet110_single_full_preactivation",
                "CIFAR-10, 110, one-layer, pre-activation",
                8.91,
            ),
            Claim("cifar10_resnet110_original", "CIFAR-10, 110, original", 6.61),
            Claim("cifar10_resnet110_full_preactivation", "CIFAR-10, 110, pre-activation", 6.37),
            Claim("cifar10_resnet164_original", "CIFAR-10, 164, original", 5.93),
            Claim("cifar10_resnet164_full_preactivation", "CIFAR-10, 164, pre-activation", 5.46),
            Claim("cifar10_resnet1001_original", "CIFAR-10, 1001, original", 7.61),
            Claim("cifar10_resnet1001_full_preactivation", "CIFAR-10, 1001, pre-activation", 4.92),
            Claim("cifar100_resnet164_original", "CIFAR-100, 164, original", 25.16),
            Claim("cifar100_resnet164_full_preactivation", "CIFAR-100, 164, pre-activation", 24.33),
            Claim("cifar100_resnet1001_original", "CIFAR-100, 1001, original", 27.82),
            Claim("cifar100_resnet1001_full_preactivation", "CIFAR-100, 1001, pre-activation", 22.71),
        ),
    ),
    Table(
        "table4",
        "Table 4: residual nets among others (those are left out). CIFAR",
        (
            Claim("cifar10_resnet110_original", "CIFAR-10, 110, original (ResNet v1)", 6.61),
            Claim("cifar10_resnet1202_original", "CIFAR-10, 1202, original (ResNet v1)", 7.93),
            Claim("cifar10_resnet164", "CIFAR-10, 164", 5.46),
            Claim("cifar10_resnet1001", "CIFAR-10, 1001", 4.92, spread="4.89 ± 0.14"),
            Claim("cifar10_resnet1001_batch64", "CIFAR-10, 1001, batch 64", 4.62, spread="4.69 ± 0.20"),
            Claim("cifar100_resnet164_original", "CIFAR-100, 164, original", 25.16),
            Claim("cifar100_resnet1001_original", "CIFAR-100, 1001, original", 27.82),
            Claim("cifar100_resnet164", "CIFAR-100, 164", 24.33),
            Claim("cifar100_resnet1001", "CIFAR-100, 1001", 22.71, spread="22.68 ± 0.22"),
        ),
    ),
    Table(
        "table5",
        "Table 5: ImageNet, single crop, top-1 / top-5",
        (
            Claim("resnet152_original_at224", "152, original, 224 crop", 23.0, 6.7),
            Claim("resnet152_original", "152, original, 320 crop", 21.3, 5.5),
            Claim("resnet152_full_preactivation", "152, pre-activation, 320 crop", 21.1, 5.5),
            Claim("resnet200_original", "200, original, 320 crop", 21.8, 6.0),
            Claim("resnet200_full_preactivation", "200, pre-activation, 320 crop", 20.7, 5.3),
            Claim(
                "resnet200_aspect_ratio",
                "200, pre-activation, aspect ratio, 320 crop (fb.resnet.torch)",
                20.1,
                4.8,
            ),
        ),
    ),
    Table(
        "text",
        "In the text: ImageNet, ResNet-101, single 224 crop, top-1 / top-5",
        (
            Claim("resnet101_original", "101, original", 23.6, 7.1),
            Claim("resnet101_bn_after_addition", "101, BN after addition", 24.6, 7.5),
        ),
    ),
)

BESIDE_IT = Table(
    "resnet20",
    "Not in the paper: ResNet-20 by its CIFAR recipe, for two CPU cores. CIFAR-10",
    (
        Claim("original", "ResNet-20, original", None),
        Claim("full_preactivation", "ResNet-20, full pre-activation", None),
    ),
    is_in_paper=False,
)

TABLES = (*PAPER, BESIDE_IT)
