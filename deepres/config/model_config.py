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
"""Of a net: to build one of more takes minutes."""


class ModelConfig(Section):
    """The net; see `deepres.build_resnet`, whose arguments these are."""

    depth: Annotated[int, Field(le=MOST_LAYERS)]
    """Weighted layers. CIFAR: 6n+2 (basic), 9n+2 (bottleneck), 3n+2 (single); ImageNet: 18, 34, 50, 101, 152, 200."""
    dataset: Family = "cifar"
    """The kind of net: its stem, stages and widths."""
    num_classes: NumClasses | None = None
    """By default as many as the data has."""
    block: Block | None = None
    """Two 3×3 convolutions; 1×1, 3×3, 1×1; or one 3×3. By default what the paper uses at this depth."""
    activation: Activation = "full_preactivation"
    """Where batch norm and ReLU stand (the paper's Table 2)."""
    shortcut: ShortcutName = "identity"
    """The function h of the shortcut (the paper's Table 1)."""
    matching: Matching | None = None
    """How a shortcut matches shapes; by default zero padding in CIFAR's basic nets, else projection."""
    stride_on: StrideOn = "1x1"
    """The convolution of a bottleneck unit that has the stride."""
    stem_activation: bool | None = None
    """Activate once in the stem of a pre-activation net, rather than in its first unit; by default in ImageNet nets."""
    preactivation: Preactivation = "shared"
    """Where the first activation of the first unit, and of those that change the shape, stands: before branch and
    shortcut part, or in the branch alone."""
    shortcut_scale: AnyFloat = 0.5
    """Of `constant_scaling`: the factor of the shortcut."""
    residual_scale: AnyFloat = 0.5
    """Of `constant_scaling`: the factor of the branch."""
    gate_bias: AnyFloat = -6.0
    """Of the gates: the bias that they begin with."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Of `dropout`: the probability that a value of the shortcut is dropped."""

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
        """All settings, with those that the net's kind decides if they are unset."""
        block, matching, in_stem = self.chosen_block, self.matching, self.stem_activation
        return self.model_dump(mode="json") | {
            "block": block,
            "matching": matching or default_matching(self.dataset, block),
            "stem_activation": default_stem_activation(self.dataset) if in_stem is None else in_stem,
        }

    def building(self, num_classes: int) -> dict[str, Any]:
        """The arguments of `deepres.build_resnet` for a net that tells so many classes apart."""
        return self.model_dump() | {"num_classes": num_classes}
