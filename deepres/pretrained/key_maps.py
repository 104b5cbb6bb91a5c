"""How sources of pre-trained weights name the modules of a net; see NOTE [ Weights from elsewhere ]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from deepres.known_sets import Normalize
from deepres.net_options import Preactivation

Source = Literal["timm", "torch7"]
Names = tuple[tuple[str, str], ...]
"""Names of modules: the file's (with `{stage}` and `{unit}`), and ours (within the unit, if it is a unit's)."""


@dataclass(frozen=True)
class KeyMap:
    """How a source names modules, and which net its weights are for.

    Attributes:
        net: names in stem and head.
        unit: names in every unit.
        projection: names in the shortcuts of units that change the shape.
        first_stage: the number of the first stage.
        has_biases: whether convolutions may have biases.
        depths: of the published nets.
        stem_activation, preactivation: arguments of `build_resnet` for this net, besides
            `dataset="imagenet", stride_on="3x3"`.
        normalize: the `data.normalize` of the images that they were trained on.
    """

    net: Names
    unit: Names
    projection: Names
    first_stage: int
    has_biases: bool
    depths: tuple[int, ...]
    stem_activation: bool
    preactivation: Preactivation
    normalize: Normalize

    def arguments(self, depth: int, num_classes: int) -> dict[str, Any]:
        """The arguments of `build_resnet` that make the net."""
        return {
            "depth": depth,
            "dataset": "imagenet",
            "num_classes": num_classes,
            "stride_on": "3x3",
            "stem_activation": self.stem_activation,
            "preactivation": self.preactivation,
        }


_T7 = "{stage}.{unit}.0"  # the unit's ConcatTable: .0 the residual branch, .1 the shortcut
SOURCES: dict[Source, KeyMap] = {
    "timm": KeyMap(
        net=(("stem.conv", "stem.conv"), ("norm", "head.norm"), ("head.fc", "head.linear")),
        unit=tuple(
            (f"stages.{{stage}}.blocks.{{unit}}.{kind}{k + 1}", f"{kind}s.{k}")
            for k in range(3)
            for kind in ("norm", "conv")
        ),
        projection=(("stages.{stage}.blocks.{unit}.downsample.conv", "shortcut.conv"),),
        first_stage=0,
        has_biases=False,
        depths=(50, 101, 152),
        stem_activation=False,
        preactivation="shared",
        normalize="half",
    ),
    "torch7": KeyMap(
        net=(("0", "stem.conv"), ("1", "stem.norm"), ("9", "head.norm"), ("13.1", "head.linear")),
        unit=(
            (f"{_T7}.0.0", "norms.0"),
            (f"{_T7}.0.2", "convs.0"),
            (f"{_T7}.0.3", "norms.1"),
            (f"{_T7}.0.5", "convs.1"),
            (f"{_T7}.0.6", "norms.2"),
            (f"{_T7}.0.8", "convs.2"),
        ),
        projection=((f"{_T7}.1.0", "shortcut.conv"), (f"{_T7}.1.1", "shortcut.norm")),
        first_stage=4,
        has_biases=True,
        depths=(200,),
        stem_activation=True,
        preactivation="own",
        normalize="imagenet_mean_std",
    ),
}
