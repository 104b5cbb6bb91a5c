"""The section `model` of a configuration: which net."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from deepres.config.fields import AnyFloat, NumClasses, Section
from deepres.net_options import (
    ACTING_ON,
    Activation,
    Block,
    Family,
    Matching,
    Preactivation,
    ShortcutName,
    StrideOn,
    acts,
    default_block,
    default_matching,
    default_stem_activation,
)

MOST_LAYERS = 30_000
"""A net's greatest depth: building a deeper one takes minutes."""


class ModelConfig(Section):
    """The net; see `deepres.build_resnet`, whose arguments these are."""

    depth: Annotated[int, Field(le=MOST_LAYERS)]
    """Weighted layers. CIFAR: 6n+2 (basic), 9n+2 (bottleneck), 3n+2 (single); ImageNet: 18, 34, 50, 101, 152, 200."""
    dataset: Family = "cifar"
    """The kind of net: its stem, stages and widths."""
    num_classes: NumClasses | None = None
    """By default the data set's number of classes."""
    block: Block | None = None
    """Two 3×3 convolutions; 1×1, 3×3, 1×1; or one 3×3. By default what the paper uses at this depth."""
    activation: Activation = "full_preactivation"
    """Where batch norm and ReLU are placed (the paper's Table 2)."""
    shortcut: ShortcutName = "identity"
    """The function h of the shortcut (the paper's Table 1)."""
    matching: Matching | None = None
    """How a shortcut changes the shape; by default zero padding in CIFAR's basic nets, else projection."""
    stride_on: StrideOn = "1x1"
    """Which convolution of a bottleneck unit has the stride."""
    stem_activation: bool | None = None
    """Activate in the stem of a pre-activation net rather than in its first unit; by default in ImageNet nets."""
    preactivation: Preactivation = "shared"
    """The first activation of the first unit and of units that change the shape: `shared` by branch and shortcut, or
    the branch's `own`."""
    shortcut_scale: AnyFloat = 0.5
    """`constant_scaling`: the factor of the shortcut."""
    residual_scale: AnyFloat = 0.5
    """`constant_scaling`: the factor of the branch."""
    gate_bias: AnyFloat = -6.0
    """Gating shortcuts: the gates' initial bias."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """`dropout`: the probability that a value of the shortcut is dropped."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        for key, where in ACTING_ON.items():
            value = getattr(self, key)
            is_chosen = value != type(self).model_fields[key].default
            if is_chosen and not acts(key, self.shortcut, self.activation):
                what = "activation" if key == "preactivation" else "shortcut"
                raise ValueError(
                    f"{key}={value} has no effect with {what}={getattr(self, what)}; it is for {' or '.join(where)}"
                )
        return self

    @property
    def chosen_block(self) -> Block:
        """`block`, or the one that the paper uses at this depth."""
        return self.block or default_block(self.depth, self.dataset)

    def resolved(self) -> dict[str, Any]:
        """All settings, with unset ones replaced by the defaults of this kind of net."""
        block, matching, in_stem = self.chosen_block, self.matching, self.stem_activation
        return self.model_dump(mode="json") | {
            "block": block,
            "matching": matching or default_matching(self.dataset, block),
            "stem_activation": default_stem_activation(self.dataset) if in_stem is None else in_stem,
        }

    def building(self, num_classes: int) -> dict[str, Any]:
        """The arguments of `deepres.build_resnet` for a net with this many classes."""
        return self.model_dump() | {"num_classes": num_classes}
