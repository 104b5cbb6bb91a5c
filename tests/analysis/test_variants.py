"""Variants by name, and what is said of those that there are not."""

import pytest

from deepres.analysis import Variant, VariantError, parse_variants
from deepres.models.residual_unit import ACTIVATIONS
from deepres.models.shortcut import SHORTCUTS


def test_a_variant_is_a_shortcut_an_activation_and_settings_in_any_order():
    assert parse_variants("gate_bias=-3+original+exclusive_gating, identity", "relu_before_addition") == (
        Variant(
            "gate_bias=-3+original+exclusive_gating", "exclusive_gating", "original", (("gate_bias", -3.0),)
        ),
        Variant("identity", "identity", "relu_before_addition"),
    )


def test_groups_stand_for_all_their_members():
    assert [variant.shortcut for variant in parse_variants("shortcuts")] == list(SHORTCUTS)
    assert [variant.activation for variant in parse_variants("activations")] == list(ACTIVATIONS)


def test_a_variant_builds_its_net():
    (variant,) = parse_variants("constant_scaling+shortcut_scale=0.25+preactivation=own")
    net = variant.build(20, "cifar", 7)
    assert net.head.linear.out_features == 7
    assert {unit.shortcut.shortcut_scale for unit in net.units} == {0.25}
    assert {unit.preactivation for unit in net.units} == {"own"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("identiti", "there is no shortcut or activation 'identiti'; did you mean identity?"),
        ("constant_scaling+0.5", "there is no shortcut or activation '0.5'; known: identity, "),
        ("constant_scaling+shortcut_scal=1", "'shortcut_scal' is unknown; did you mean shortcut_scale?"),
        ("dropout+dropout=1.5", "dropout must be at least 0 and below 1, got 1.5"),
        ("dropout+dropout=much", "dropout must be a number, got 'much'"),
        ("identity+gate_bias=nan", "gate_bias must be a number, got 'nan'"),
        ("identity+gate_bias=1+gate_bias=2", "setting 'gate_bias' is given twice"),
        ("identity+preactivation=mine", "preactivation must be shared or own, got 'mine'"),
        ("identity+dropout", "has more than one shortcut: identity, dropout"),
        ("original+full_preactivation", "has more than one activation"),
        ("identity,shortcuts", "'identity' is given twice"),
        (" , ", "no variant is given"),
    ],
)
def test_a_mistake_is_told_with_what_is_meant(text, message):
    with pytest.raises(VariantError) as caught:
        parse_variants(text)
    assert message in str(caught.value)
