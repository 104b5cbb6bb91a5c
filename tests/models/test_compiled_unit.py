"""Units as compiled code: few graphs, the eager net's values, and the same bits under every plan."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from deepres.models import BatchNorm2d, build_resnet, compile_units, compiled_unit, synchronize_batch_norm
from deepres.net_options import ACTIVATIONS, SHORTCUTS
from deepres.recompute import Plan, apply_plan
from deepres.train import main
from tests.processes import metrics

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler on CPUs needs g++")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute"
    ),  # the tracer looks, and hides it unless it is an error
]


@pytest.fixture
def no_cpp(monkeypatch):
    """Traces and cuts the graphs, but runs them with PyTorch's own kernels: quick to make."""
    monkeypatch.setattr(compiled_unit, "_COMPILER", {"backend": "aot_eager"})


def net_and_batch(depth=29, dtype=torch.float32, **variant):
    torch.manual_seed(0)
    net = build_resnet(depth, **variant).to(dtype).to(memory_format=torch.channels_last).train()
    images = torch.randn(4, 3, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return net, images, torch.tensor([1, 3, 5, 7])


def compiled_copy(net):
    other = copy.deepcopy(net)
    compile_units(other.units)
    return other


def train(net, images, labels, steps=2, autocast=False):
    """Two steps: losses, gradients, buffers, and the generator's state."""
    torch.manual_seed(9)
    found = []
    for _ in range(steps):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(net(images).to(net.head.linear.weight.dtype), labels)
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in net.parameters())]
    return [*found, *(b.clone() for b in net.buffers()), torch.get_rng_state()]


def same(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def close(a, b, tolerance):
    return all(
        (x - y).double().norm() <= tolerance * (1 + y.double().norm()) for x, y in zip(a, b, strict=True)
    )


def test_a_thousand_layers_have_the_graphs_of_twenty_nine():
    assert compile_units(build_resnet(29).units) == compile_units(build_resnet(1001).units) == 6


def test_units_that_are_alike_share_one_graph_and_a_plan_needs_no_more(no_cpp):
    net, *batch = net_and_batch(29)
    compile_units(net.units)
    counters.clear()
    train(net, *batch)
    # The second unit of each stage is like its third.
    assert counters["stats"]["unique_graphs"] == 6
    apply_plan(net, Plan(((0, 8), (1, 5)), ("all",) * 9))
    train(net, *batch)
    assert counters["stats"]["unique_graphs"] == 6


_LIKE_OTHERS = ("bn_after_addition", "relu_only_preactivation", "constant_scaling", "shortcut_only_gating")


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param({kind: name}, marks=pytest.mark.slow if name in _LIKE_OTHERS else ())
        for kind, names in (("activation", ACTIVATIONS), ("shortcut", SHORTCUTS))
        for name in names
        if name != "dropout"
    ],
)
def test_compiled_units_compute_what_eager_ones_do(no_cpp, variant):
    net, *batch = net_and_batch(8, torch.float64, **variant)  # units of one shape, and of two
    assert close(train(compiled_copy(net), *batch), train(net, *batch), 1e-10)


@pytest.mark.parametrize(
    ("variant", "autocast"), [({"shortcut": "dropout"}, False), ({"activation": "original"}, True)]
)
def test_a_plan_over_compiled_units_changes_no_bit(no_cpp, variant, autocast):
    net, *batch = net_and_batch(20, **variant)
    kept = compiled_copy(net)
    planned = copy.deepcopy(kept)  # of the same code
    apply_plan(planned, Plan(((0, 6), (1, 4)), ("all",) * 9))
    assert same(train(kept, *batch, autocast=autocast), train(planned, *batch, autocast=autocast))


@needs_compiler
@pytest.mark.parametrize("autocast", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_with_real_kernels_a_plan_changes_no_bit(autocast):
    net, *batch = net_and_batch(11, shortcut="dropout")
    kept = compiled_copy(net)
    planned = copy.deepcopy(kept)  # of the same code
    apply_plan(planned, Plan(((0, 2),), ("all",) * 3))
    expected = train(kept, *batch, autocast=autocast)
    assert same(expected, train(planned, *batch, autocast=autocast))
    eager = train(net, *batch, autocast=autocast)
    assert close(expected[:1], eager[:1], 2e-2 if autocast else 1e-5)


def test_evaluation_and_frozen_norms_stay_eager(no_cpp):
    net, images, labels = net_and_batch(20)
    compiled = compiled_copy(net)
    assert torch.equal(net.eval()(images), compiled.eval()(images))
    for model in (net, compiled):
        model.train()
        for module in model.modules():
            if isinstance(module, BatchNorm2d):
                module.eval()
    assert same(train(net, images, labels), train(compiled, images, labels))


def test_names_and_values_of_parameters_stay_as_they_are(no_cpp):
    net, *_ = net_and_batch(20)
    state, compiled = net.state_dict(), compiled_copy(net).state_dict()
    assert list(state) == list(compiled)
    assert all(torch.equal(state[name], compiled[name]) for name in state)


def test_a_copy_has_the_same_code_and_its_own_weights(no_cpp):
    net, images, labels = net_and_batch(11)
    compile_units(net.units)
    other = copy.deepcopy(net)
    assert other.units[0].code is net.units[0].code
    torch.nn.init.zeros_(other.head.linear.weight)
    before = [b.clone() for b in net.buffers()]
    train(other, images, labels)
    assert all(map(torch.equal, before, net.buffers()))


def test_a_plan_with_another_retention_is_refused():
    net, *_ = net_and_batch(20)
    compile_units(net.units)
    with pytest.raises(ValueError, match=r"keeps 'conv_outputs' of unit 0 .* which offers all"):
        apply_plan(net, Plan((), ("conv_outputs",) * 9))


def test_compiled_in_evaluation_it_still_drops_in_training(no_cpp):
    net, images, _ = net_and_batch(11, shortcut="dropout")
    compile_units(net.eval().units)
    net.train()
    assert not torch.equal(net(images), net(images))


def test_a_frozen_norm_of_the_shortcut_and_synchronised_norms_stay_eager(no_cpp):
    net, images, _ = net_and_batch(29, activation="original")
    compile_units(net.units)
    unit = net.units[3]
    x = net.units[2](net.units[1](net.units[0](net.stem(images)))).detach()
    assert unit.code.fits(unit)
    unit.shortcut.norm.eval()
    before = unit.shortcut.norm.running_mean.clone()
    unit(x)
    assert torch.equal(before, unit.shortcut.norm.running_mean)
    unit.train()
    synchronize_batch_norm(unit, object())
    assert not unit.code.fits(unit)


def test_a_unit_with_nothing_to_train_makes_no_graph(no_cpp):
    net, images, _ = net_and_batch(11)
    compile_units(net.units)
    net.requires_grad_(False)
    assert not net.units(net.stem(images)).requires_grad


@needs_compiler
def test_a_run_compiles_each_graph_once_and_tells_what_compiled_units_keep(tmp_path):
    """Even where nothing is planned. Measuring, before the run and of its peak, and the engine use one layout."""
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {depth: 8, block: basic, activation: original}\n"
        "data: {name: synthetic, image_size: 16, num_images: 16}\n"
        "train: {max_steps: 2, global_batch_size: 4, save_every: null}\n"
        "engine: {compile: units, device: cpu}\nprecision: {channels_last: true, compute: bf16}\noptim: {fused: true}\n"
        "log: {plots: false}\n",
        encoding="utf-8",
    )
    counters.clear()
    assert main(["--config", str(config), f"train.run_dir={tmp_path / 'run'}"]) == 0
    assert counters["stats"]["unique_graphs"] == 3
    (plan,), (summary,) = (metrics(tmp_path / "run", kind) for kind in ("plan", "summary"))
    assert summary["activation_peak_bytes"] == pytest.approx(plan["predicted_peak_bytes"], rel=0.02)


def test_without_a_compiler_a_run_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {depth: 11}\ndata: {name: synthetic}\ntrain: {max_steps: 1, global_batch_size: 8}\n",
        encoding="utf-8",
    )
    overrides = ("engine.compile=units", "engine.device=cpu", "precision.channels_last=true")
    assert main(["--config", str(config), *overrides]) == 2
    assert capsys.readouterr().err.startswith("error: engine.compile=units needs a C++ compiler")
