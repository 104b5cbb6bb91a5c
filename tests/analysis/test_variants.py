"""Variants by name, and what is said of those that there are not."""

import itertools

import pytest
import torch

from deepres.analysis import Variant, VariantError, parse_variants
from deepres.analysis.variants import NUMBERS, SETTINGS
from deepres.models import build_resnet
from deepres.net_options import ACTING_ON, ACTIVATIONS, SHORTCUTS


def test_a_variant_is_a_shortcut_an_activation_and_settings_in_any_order():
    assert parse_variants("gate_bias=-3+original+exclusive_gating, identity", "relu_before_addition") == (
        Variant(
            "gate_bias=-3+original+exclusive_gating", "exclusive_gating", "original", (("gate_bias", -3.0),)
        ),
        Variant("identity+relu_before_addition", "identity", "relu_before_addition"),
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
        ("", "no variant is given"),
        ("identity+shortcut_scale=0.1", "shortcut_scale has no effect there; it is for constant_scaling"),
        ("dropout+residual_scale=0.1", "residual_scale has no effect there; it is for constant_scaling"),
        (
            "conv1x1+gate_bias=1",
            "gate_bias has no effect there; it is for exclusive_gating or shortcut_only_gating",
        ),
        ("original+dropout=0.1", "dropout has no effect there; it is for dropout"),
        (
            "conv1x1+matching=projection",
            "matching has no effect there; it is for identity or constant_scaling or ",
        ),
        (
            "original+preactivation=own",
            "preactivation has no effect there; it is for relu_only_preactivation or full_preactivation",
        ),
    ],
)
def test_a_mistake_is_told_with_what_is_meant(text, message):
    with pytest.raises(VariantError) as caught:
        parse_variants(text)
    assert message in str(caught.value)


VALUES = {
    "shortcut_scale": ("0.25", "0.75"),
    "residual_scale": ("0.25", "0.75"),
    "gate_bias": ("-3", "3"),
    "dropout": ("0.25", "0.75"),
    "preactivation": ("own", "shared"),
    "matching": ("projection", "zero_padding"),
}


def _logits(text):
    torch.manual_seed(0)
    (variant,) = parse_variants(text)
    net = variant.build(8, "cifar", 10)
    torch.manual_seed(1)
    return net(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("shortcut", "activation"), list(itertools.product(SHORTCUTS, ACTIVATIONS)))
def test_a_setting_is_refused_exactly_where_it_changes_nothing(shortcut, activation, setting):
    texts = [f"{shortcut}+{activation}+{setting}={value}" for value in VALUES[setting]]
    if {shortcut, activation} & set(ACTING_ON[setting]):
        assert not torch.equal(*map(_logits, texts))
        return
    for text in texts:
        with pytest.raises(VariantError, match=f"{setting} has no effect there"):
            parse_variants(text)
    values = [float(v) if setting in NUMBERS else v for v in VALUES[setting]]
    logits = []
    for value in values:
        torch.manual_seed(0)
        net = build_resnet(8, shortcut=shortcut, activation=activation, **{setting: value})
        torch.manual_seed(1)
        logits.append(net(torch.randn(2, 3, 8, 8)))
    assert torch.equal(*logits)


def test_an_activation_for_variants_that_all_name_theirs_is_refused():
    with pytest.raises(VariantError, match="activation original has no effect: every variant names its own"):
        parse_variants("activations", "original")
    assert parse_variants("full_preactivation,identity", "original")[1].activation == "original"
