"""Residual networks against the figures of the paper's tables, and the paper's equations."""

import itertools
import math
import re
import warnings

import pytest
import torch
from torch import Tensor, nn

import deepres
from deepres.net_options import default_block


def _on_meta(depth: int, **arguments: object) -> deepres.ResNet:
    with torch.device("meta"):
        return deepres.build_resnet(depth, **arguments)


def _num_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def _multiply_adds(net: nn.Module, size: int) -> int:
    """Of the convolutions and linear layers, for one image of that size."""
    total = 0

    def count(module: nn.Module, _: object, y: Tensor) -> None:
        nonlocal total
        outputs_of_a_filter = y.numel() // y.size(1)
        total += module.weight.numel() * outputs_of_a_filter

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    net.eval()(torch.empty(1, 3, size, size, device="meta"))
    return total


@pytest.mark.parametrize(
    ("builder", "arguments", "num_parameters"),
    [
        (deepres.resnet110, {}, 1_727_962),
        (deepres.resnet164, {}, 1_703_258),
        (deepres.resnet1001, {}, 10_327_706),
        (deepres.resnet164, {"num_classes": 100}, 1_726_388),
        (deepres.resnet1001, {"num_classes": 100}, 10_350_836),
        (deepres.resnet101, {}, 44_541_480),
        (deepres.resnet152, {}, 60_185_128),
        (deepres.resnet200, {}, 64_666_152),
    ],
)
def test_the_paper_s_nets_have_its_numbers_of_parameters(builder, arguments, num_parameters):
    with torch.device("meta"):
        net = builder(**arguments)
    assert _num_parameters(net) == num_parameters
    if builder is deepres.resnet1001:
        assert net.units_per_stage == (111, 111, 111)


def test_resnet_110_with_projections_has_2560_parameters_more():
    assert _num_parameters(_on_meta(110, matching="projection")) == 1_730_522
    assert 1_730_522 - 1_727_962 == 16 * 32 + 32 * 64


@pytest.mark.parametrize(
    ("depth", "arguments", "multiply_adds"),
    [
        (110, {}, 252_887_680),
        (110, {"matching": "projection"}, 253_149_824),
        (164, {}, 244_500_992),
        (1001, {}, 1_487_849_984),
    ],
)
def test_cifar_nets_take_the_known_number_of_multiply_adds(depth, arguments, multiply_adds):
    assert _multiply_adds(_on_meta(depth, **arguments), 32) == multiply_adds


@pytest.mark.parametrize("num_units", [18, 111])
def test_the_multiply_adds_of_bottleneck_nets_follow_from_the_table(num_units):
    """At 32² with w = 16, every unit takes 17 w² a pixel of stage 1; those that change the shape differ."""
    a_unit = 17 * 16**2 * 32**2
    first = 16 * 16 + 9 * 16**2 + 16 * 64 + 16 * 64  # the input has 16 channels, and there is a projection
    shrinking = 2 + 9 + 4 + 8  # 1×1 from 2w to w, 3×3, 1×1 to 4w, projection from 2w to 4w, in w²
    total = 3 * 16 * 32**2 * 9 + first * 32**2 + 3 * (num_units - 1) * a_unit
    total += 2 * shrinking * 16**2 * 32**2 + 256 * 10
    assert {18: 244_500_992, 111: 1_487_849_984}[num_units] == total


@pytest.mark.parametrize(
    ("depth", "multiply_adds"), [(101, 7_570_194_432), (152, 11_282_415_616), (200, 14_776_270_848)]
)
def test_imagenet_nets_take_the_known_number_of_multiply_adds(depth, multiply_adds):
    net = _on_meta(depth, dataset="imagenet", num_classes=1000)
    assert _multiply_adds(net, 224) == multiply_adds


def test_the_stride_on_the_3x3_costs_multiply_adds_but_no_parameters():
    first, second = (
        _on_meta(101, dataset="imagenet", num_classes=1000, stride_on=where) for where in ("1x1", "3x3")
    )
    assert _num_parameters(first) == _num_parameters(second)
    # The first 1×1 of the first unit in stages 2 to 4 sees four times as many pixels, 28², 14², 7² after it.
    extra = sum(3 * side**2 * c * c // 2 for side, c in ((28, 256), (14, 512), (7, 1024)))
    assert _multiply_adds(second, 224) - _multiply_adds(first, 224) == extra


@pytest.mark.parametrize(
    ("depth", "dataset", "units", "widths"),
    [
        (20, "cifar", (3, 3, 3), (16, 32, 64)),
        (29, "cifar", (3, 3, 3), (64, 128, 256)),
        (110, "cifar", (18, 18, 18), (16, 32, 64)),
        (164, "cifar", (18, 18, 18), (64, 128, 256)),
        (34, "imagenet", (3, 4, 6, 3), (64, 128, 256, 512)),
        (101, "imagenet", (3, 4, 23, 3), (256, 512, 1024, 2048)),
        (152, "imagenet", (3, 8, 36, 3), (256, 512, 1024, 2048)),
        (200, "imagenet", (3, 24, 36, 3), (256, 512, 1024, 2048)),
    ],
)
def test_stages_have_the_paper_s_units_widths_and_sizes(depth, dataset, units, widths):
    net = _on_meta(depth, dataset=dataset)
    assert net.units_per_stage == units
    assert len(net.units) == sum(units)
    shapes = []
    for unit in net.units:
        unit.register_forward_hook(lambda _m, _x, y: shapes.append((y.size(1), y.size(2), y.size(3))))
    size, first = (32, 32) if dataset == "cifar" else (224, 56)
    assert net.eval()(torch.empty(2, 3, size, size, device="meta")).shape == (2, 10)
    sides = [first >> stage for stage in range(len(units))]
    expected = [[(w, s, s)] * n for n, w, s in zip(units, widths, sides, strict=True)]
    assert shapes == list(itertools.chain(*expected))


def test_a_net_of_single_layers_has_a_shortcut_over_every_convolution():
    net = _on_meta(110, block="single")
    assert net.units_per_stage == (36, 36, 36)
    assert all(len(unit.convs) == 1 for unit in net.units)


@pytest.mark.parametrize("depth", [20, 29, 110, 164])
def test_the_depth_is_the_number_of_weighted_layers(depth):
    net = _on_meta(depth, matching="zero_padding")
    num_layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules())
    projections = sum(unit.shortcut.conv is not None for unit in net.units)
    assert num_layers - projections == depth


@pytest.mark.parametrize(
    ("depth", "block"),
    [
        (20, "basic"),
        (29, "bottleneck"),
        (38, "basic"),  # fits both
        (47, "bottleneck"),
        (110, "basic"),  # fits both
        (164, "bottleneck"),  # fits both
        (1001, "bottleneck"),
        (1202, "basic"),
    ],
)
def test_the_default_unit_of_a_cifar_net_is_the_paper_s(depth, block):
    assert default_block(depth, "cifar") == block


@pytest.mark.parametrize(("depth", "num_convs"), [(20, 2), (29, 3)])
def test_a_net_has_the_default_unit_unless_it_is_told_otherwise(depth, num_convs):
    assert {len(unit.convs) for unit in _on_meta(depth).units} == {num_convs}


@pytest.mark.parametrize(
    ("depth", "block"), [(18, "basic"), (34, "basic"), (50, "bottleneck"), (200, "bottleneck")]
)
def test_the_default_unit_of_an_imagenet_net_is_the_paper_s(depth, block):
    assert default_block(depth, "imagenet") == block


@pytest.mark.parametrize(
    ("depth", "block", "message"),
    [
        (
            1000,
            None,
            (
                "depth must be 6n+2 for basic units (e.g. 20, 110) or 9n+2 for bottleneck units (e.g. 164, 1001), "
                "got 1000; nearest: 998, 1001"
            ),
        ),
        (
            1000,
            "basic",
            "depth must be 6n+2 for basic units (e.g. 20, 110), got 1000; nearest: 998, 1004",
        ),
        (111, "single", "depth must be 3n+2 for single units (e.g. 110), got 111; nearest: 110, 113"),
        (2, "basic", "depth must be 6n+2 for basic units (e.g. 20, 110), got 2; nearest: 8"),
        (-5, "bottleneck", "depth must be 9n+2 for bottleneck units (e.g. 164, 1001), got -5; nearest: 11"),
    ],
)
def test_a_depth_that_no_cifar_net_has_is_refused_with_the_nearest(depth, block, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        deepres.build_resnet(depth, block=block)


@pytest.mark.parametrize(
    ("depth", "block", "message"),
    [
        (
            100,
            None,
            "depth must be one of 50, 101, 152, 200 for ImageNet nets of bottleneck units, got 100",
        ),
        (50, "basic", "depth must be one of 18, 34 for ImageNet nets of basic units, got 50"),
    ],
)
def test_a_depth_that_no_imagenet_net_has_is_refused_with_those_that_are(depth, block, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        deepres.build_resnet(depth, dataset="imagenet", block=block)


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("dataset", "mnist", "cifar, imagenet"),
        ("block", "wide", "None, basic, bottleneck, single"),
        (
            "activation",
            "preact",
            "original, bn_after_addition, relu_before_addition, relu_only_preactivation, full_preactivation",
        ),
        (
            "shortcut",
            "none",
            "identity, constant_scaling, exclusive_gating, shortcut_only_gating, conv1x1, dropout",
        ),
        ("matching", "A", "None, projection, zero_padding"),
        ("stride_on", "2x2", "1x1, 3x3"),
    ],
)
def test_an_unknown_variant_is_refused_with_those_that_are_known(name, value, known):
    message = f"{name} must be one of {known}, got {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        deepres.build_resnet(20, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dropout", 1.5, "dropout must be at least 0 and below 1, got 1.5"),
        ("dropout", -1, "dropout must be at least 0 and below 1, got -1"),
        ("gate_bias", math.inf, "gate_bias must be a finite number, got inf"),
        ("shortcut_scale", "half", "shortcut_scale must be a finite number, got 'half'"),
    ],
)
def test_a_number_that_a_shortcut_cannot_have_is_refused(name, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        deepres.build_resnet(20, **{name: value})


def test_a_net_without_classes_is_refused():
    with pytest.raises(ValueError, match=r"^num_classes must be at least 1, got 0$"):
        deepres.build_resnet(20, num_classes=0)


@pytest.mark.parametrize("depth", [20.0, "20", True])
def test_a_depth_that_is_no_whole_number_is_refused(depth):
    with pytest.raises(ValueError, match=f"^depth must be a whole number, got {re.escape(repr(depth))}$"):
        deepres.build_resnet(depth)


@pytest.mark.parametrize(("stride_on", "strides"), [("1x1", (2, 1, 1)), ("3x3", (1, 2, 1))])
def test_the_stride_of_a_bottleneck_sits_where_it_is_asked_for(stride_on, strides):
    net = _on_meta(29, stride_on=stride_on)
    for i, unit in enumerate(net.units):
        expected = strides if i in (3, 6) else (1, 1, 1)
        assert tuple(conv.stride[0] for conv in unit.convs) == expected
    assert [unit.shortcut.conv.stride[0] for unit in net.units if unit.shortcut.conv] == [1, 2, 2]


def test_the_stride_of_other_units_sits_on_the_first_convolution():
    net = _on_meta(20, stride_on="3x3")
    assert [conv.stride[0] for conv in net.units[3].convs] == [2, 1]


def test_basic_cifar_nets_pad_with_zeros_and_others_project():
    assert all(unit.shortcut.conv is None for unit in _on_meta(20).units)
    assert [unit.shortcut.conv is not None for unit in _on_meta(29).units] == [True, False, False] * 3
    assert [i for i, u in enumerate(_on_meta(34, dataset="imagenet").units) if u.shortcut.conv] == [3, 7, 13]
    assert [i for i, u in enumerate(_on_meta(20, matching="projection").units) if u.shortcut.conv] == [3, 6]


@pytest.mark.parametrize("matching", ["projection", "zero_padding"])
def test_units_that_change_the_shape_share_their_activation_and_no_others(matching):
    """Seen from outside: the convolutions of shortcut and branch get the same values, and not x_l's."""
    torch.manual_seed(0)
    net = deepres.build_resnet(29, matching=matching)
    inputs: dict[nn.Module, Tensor] = {}
    for module in net.modules():
        if isinstance(module, nn.Conv2d | deepres.ResidualUnit):
            module.register_forward_pre_hook(lambda m, x: inputs.update({m: x[0].clone()}))
    net(torch.randn(2, 3, 8, 8))
    for i, unit in enumerate(net.units):
        activated = inputs[unit.convs[0]]
        assert activated.min() == 0
        assert inputs[unit].min() < 0
        assert (unit.shortcut.conv is not None) == (matching == "projection" and i in (0, 3, 6))
        if unit.shortcut.conv is not None:
            assert torch.equal(inputs[unit.shortcut.conv], activated)


def test_the_first_unit_shares_its_activation_even_if_it_keeps_the_shape():
    """h(x_0) = ReLU(BN(x_0)): with a residual branch that puts out zeros, that is what is left."""
    torch.manual_seed(0)
    net = deepres.build_resnet(20)
    x = torch.randn(2, 16, 8, 8)
    for unit, expected in (
        (net.units[0], torch.relu(nn.BatchNorm2d(16)(x))),
        (net.units[1], x),
    ):
        nn.init.zeros_(unit.convs[-1].weight)
        assert torch.equal(unit(x), expected)


def test_the_stem_s_activation_is_the_first_unit_s_in_a_net_without_max_pool():
    torch.manual_seed(0)
    own = deepres.build_resnet(29)
    torch.manual_seed(0)
    stem = deepres.build_resnet(29, stem_activation=True)
    assert _num_parameters(own) == _num_parameters(stem)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(own(x), stem(x))


@pytest.mark.parametrize(
    ("dataset", "activation", "stem", "head"),
    [
        ("cifar", "original", "conv norm relu", "pool flatten linear"),
        ("cifar", "bn_after_addition", "conv norm relu", "pool flatten linear"),
        ("cifar", "relu_before_addition", "conv norm relu", "pool flatten linear"),
        ("cifar", "relu_only_preactivation", "conv", "relu pool flatten linear"),
        ("cifar", "full_preactivation", "conv", "norm relu pool flatten linear"),
        ("imagenet", "original", "conv norm relu pool", "pool flatten linear"),
        ("imagenet", "relu_only_preactivation", "conv relu pool", "relu pool flatten linear"),
        ("imagenet", "full_preactivation", "conv norm relu pool", "norm relu pool flatten linear"),
    ],
)
def test_pre_activation_nets_have_one_more_activation_after_the_last_unit(dataset, activation, stem, head):
    net = _on_meta(20 if dataset == "cifar" else 18, dataset=dataset, activation=activation)
    assert " ".join(name for name, _ in net.stem.named_children()) == stem
    assert " ".join(name for name, _ in net.head.named_children()) == head


def test_the_forward_pass_is_stem_units_head():
    torch.manual_seed(0)
    net = deepres.build_resnet(20).eval()
    x = torch.randn(2, 3, 8, 8)
    y = net.stem(x)
    for unit in net.units:
        y = unit(y)
    assert torch.equal(net(x), net.head(y))


def test_convolutions_are_drawn_from_he_s_normal_distribution_with_fan_out():
    torch.manual_seed(0)
    net = deepres.build_resnet(50, dataset="imagenet", num_classes=3, shortcut="shortcut_only_gating")
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        std = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        n = conv.weight.numel()
        assert conv.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n))
        assert abs(conv.weight.mean().item()) < 5 * std / math.sqrt(n)
    # A uniform distribution of that deviation would end at 1.73 of them.
    assert (convs[0].weight.abs().max() / convs[0].weight.std()).item() > 3


def test_batch_norms_begin_as_identities_and_linear_biases_and_gates_where_they_are_told():
    net = deepres.build_resnet(29, activation="original", shortcut="exclusive_gating", gate_bias=-3.0)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 9 * 3 + 3
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)
    assert all(not norm.bias.any() for norm in norms)
    assert not net.head.linear.bias.any()
    assert all((unit.shortcut.gate.bias == -3).all() for unit in net.units)


def test_projections_are_normalised_only_where_the_branch_ends_in_batch_norm_after_activation():
    for activation, num_norms in (
        ("original", 3),
        ("relu_before_addition", 3),
        ("bn_after_addition", 0),
        ("relu_only_preactivation", 0),
        ("full_preactivation", 0),
    ):
        net = _on_meta(29, activation=activation)
        assert sum(unit.shortcut.norm is not None for unit in net.units) == num_norms


@pytest.mark.parametrize("depth", [20, 29])
def test_within_a_stage_x_grows_by_the_sum_of_the_residual_functions(depth):
    """x_L = x_l + sum F(x_i): Equation 4 of the paper, for every l < L of every stage."""
    torch.manual_seed(0)
    net = deepres.build_resnet(depth).double()
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    residuals: list[Tensor] = []

    def note(_: nn.Module, x: tuple[Tensor], y: Tensor) -> None:
        inputs.append(x[0].detach())
        outputs.append(y.detach())

    for unit in net.units:
        unit.register_forward_hook(note)
    net(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    states = [*inputs, outputs[-1]]
    for unit, x in zip(net.units, inputs, strict=True):
        residuals.append(unit.residual(x).detach())
    for stage in range(3):
        for first, last in itertools.combinations(range(3 * stage + 1, 3 * stage + 4), 2):
            total = sum(residuals[first:last])
            assert total.abs().max() > 0.1
            torch.testing.assert_close(states[last] - states[first], total, rtol=0, atol=1e-12)


def test_within_a_stage_the_gradient_reaches_shallow_units_undiminished():
    """dE/dx_l = dE/dx_L (1 + d/dx_l sum F): with residual functions of no weight it passes unchanged."""
    torch.manual_seed(0)
    net = deepres.build_resnet(20).double()
    stage = net.units[1:3]
    for unit in stage:
        nn.init.zeros_(unit.convs[-1].weight)
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    stage(x).backward(gradient)
    assert torch.equal(x.grad, gradient)


def test_a_net_runs_without_warnings_in_training_and_evaluation():
    net = deepres.build_resnet(29, num_classes=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(torch.randn(2, 3, 32, 32)).sum().backward()
        assert net.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 7)


def test_with_own_preactivations_shortcuts_read_x_itself_and_projections_are_normalised():
    """As in fb.resnet.torch, where the stem activates and the first unit does so again."""
    net = _on_meta(50, dataset="imagenet", preactivation="own")
    assert [name for name, _ in net.stem.named_children()] == ["conv", "norm", "relu", "pool"]
    assert {len(unit.norms) for unit in net.units} == {3}
    assert all((unit.shortcut.norm is None) is (unit.shortcut.conv is None) for unit in net.units)
    assert {unit.preactivation for unit in net.units} == {"own"}


def test_own_preactivations_make_a_basic_cifar_net_one_path_of_identities():
    net = deepres.build_resnet(20, preactivation="own").double()
    assert sum(p.numel() for p in net.parameters()) == sum(
        p.numel() for p in deepres.build_resnet(20).parameters()
    )
    for unit in net.units:
        nn.init.zeros_(unit.convs[-1].weight)
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    y = net.units(x)
    assert torch.equal(y[:, :16], x[:, :, ::4, ::4])
    assert not y[:, 16:].any()


def test_every_value_must_not_be_dropped():
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1, got 1"):
        deepres.build_resnet(20, shortcut="dropout", dropout=1)


@pytest.mark.parametrize("activation", ["original", "bn_after_addition", "relu_before_addition"])
def test_where_activations_come_after_the_addition_preactivation_says_nothing(activation):
    nets = [
        deepres.build_resnet(11, block="bottleneck", activation=activation, preactivation=where)
        for where in ("own", "shared")
    ]
    assert str(nets[0]) == str(nets[1])


@pytest.mark.parametrize("activation", ["full_preactivation", "relu_only_preactivation", "original"])
def test_the_head_leaves_the_last_units_output_as_it_is(activation):
    net, seen = deepres.build_resnet(8, activation=activation), []
    net.units[-1].register_forward_hook(lambda _unit, _x, y: seen.extend([y, y.clone()]))
    net(torch.randn(2, 3, 16, 16))
    assert torch.equal(*seen)
