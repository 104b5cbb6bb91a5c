"""Variants of a net by name: its shortcut, its placement of activations, and their settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from deepres.models import ResNet, build_resnet
from deepres.net_options import (
    ACTING_ON,
    ACTIVATIONS,
    MATCHINGS,
    PREACTIVATIONS,
    SHORTCUTS,
    Activation,
    Family,
    ShortcutName,
    acts,
)
from deepres.wording import nearest

NUMBERS = ("shortcut_scale", "residual_scale", "gate_bias", "dropout")
CHOICES: dict[str, tuple[str, ...]] = {"preactivation": PREACTIVATIONS, "matching": MATCHINGS}
SETTINGS = (*NUMBERS, *CHOICES)
GROUPS = {"shortcuts": SHORTCUTS, "activations": ACTIVATIONS}


class VariantError(ValueError):
    """An invalid variant; the message is one line."""


@dataclass(frozen=True)
class Variant:
    """A net's shortcut and activation, with what differs from `build_resnet`'s defaults.

    Attributes:
        name: as it was written, with its activation.
        shortcut, activation: as in `build_resnet`.
        settings: names (of `SETTINGS`) and values, as in `build_resnet`.
    """

    name: str
    shortcut: ShortcutName = "identity"
    activation: Activation = "full_preactivation"
    settings: tuple[tuple[str, float | str], ...] = ()

    def build(self, depth: int, dataset: Family, num_classes: int) -> ResNet:
        """A freshly drawn net.

        Raises:
            ValueError: there is no net of that depth.
        """
        settings: dict[str, Any] = dict(self.settings)
        return build_resnet(
            depth,
            dataset=dataset,
            num_classes=num_classes,
            shortcut=self.shortcut,
            activation=self.activation,
            **settings,
        )


def parse_variants(text: str, activation: Activation | None = None) -> tuple[Variant, ...]:
    """Read a list of variants, separated by commas.

    A variant is a shortcut, an activation and `setting=value`s, joined by `+`, each of which may be left out:
    `identity`, `constant_scaling+shortcut_scale=0.5+residual_scale=1`, `original+exclusive_gating+gate_bias=-6`.
    `shortcuts` and `activations` stand for all of them.

    Args:
        text: the list.
        activation: of the variants that name none (`full_preactivation` if unset).

    Raises:
        VariantError: a part is unknown (the message has the nearest that is known), given twice, not a number, or
            without effect.
    """
    variants = list[Variant]()
    for item in filter(None, (item.strip() for item in text.split(","))):
        for name in GROUPS.get(item, (item,)):
            variants.append(_parse(name, activation or "full_preactivation"))
    if not variants:
        raise VariantError("no variant is given; for example: identity,constant_scaling")
    names = [variant.name for variant in variants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise VariantError(f"variant {twice!r} is given twice")
    if activation is not None and all(set(name.split("+")) & set(ACTIVATIONS) for name in names):
        raise VariantError(
            f"activation {activation} has no effect: every variant names its own; leave it out"
        )
    return tuple(map(_named, variants))


def _named(variant: Variant) -> Variant:
    """The variant with its activation in its name, unless that is the usual one."""
    if variant.activation in ("full_preactivation", *variant.name.split("+")):
        return variant
    return replace(variant, name=f"{variant.name}+{variant.activation}")


def _parse(name: str, activation: Activation) -> Variant:
    shortcuts, activations, settings = list[ShortcutName](), list[Activation](), dict[str, float | str]()
    for part in name.split("+"):
        key, equals, value = part.partition("=")
        if equals:
            if key not in SETTINGS or key in settings:
                problem = "given twice" if key in settings else f"unknown; {nearest(key, SETTINGS)}"
                raise VariantError(f"variant {name!r}: setting {key!r} is {problem}")
            settings[key] = _choice(name, key, value) if key in CHOICES else _number(name, key, value)
        elif part in SHORTCUTS:
            shortcuts.append(next(s for s in SHORTCUTS if s == part))
        elif part in ACTIVATIONS:
            activations.append(next(a for a in ACTIVATIONS if a == part))
        else:
            known = (*SHORTCUTS, *ACTIVATIONS, *GROUPS)
            raise VariantError(
                f"variant {name!r}: there is no shortcut or activation {part!r}; {nearest(part, known)}"
            )
    for what, given in (("shortcut", shortcuts), ("activation", activations)):
        if len(given) > 1:
            raise VariantError(f"variant {name!r} has more than one {what}: {', '.join(given)}")
    variant = Variant(
        name,
        shortcuts[0] if shortcuts else "identity",
        activations[0] if activations else activation,
        tuple(settings.items()),
    )
    for key in settings:
        if not acts(key, variant.shortcut, variant.activation):
            raise VariantError(
                f"variant {name!r}: {key} has no effect there; it is for {' or '.join(ACTING_ON[key])}"
            )
    return variant


def _number(name: str, key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise VariantError(f"variant {name!r}: {key} must be a number, got {text!r}")
    if key == "dropout" and not 0 <= value < 1:
        raise VariantError(f"variant {name!r}: dropout must be at least 0 and below 1, got {text}")
    return value


def _choice(name: str, key: str, text: str) -> str:
    if text not in CHOICES[key]:
        raise VariantError(f"variant {name!r}: {key} must be {' or '.join(CHOICES[key])}, got {text!r}")
    return text
