"""Chains of real nets: what measuring and predicting find, and that plans made from them are kept."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres import apply_plan, build_resnet, make_plan, measure_chain, predict_chain
from deepres.memory import AllocatedBytes
from deepres.memory.gpus import GPUS
from deepres.net_options import ACTIVATIONS, SHORTCUTS
from deepres.recompute import Chain, Plan, keep_all_plan, per_unit_plan, simulate, sqrt_plan
from deepres.recompute.planner import smallest_budget

CPU = torch.device("cpu")


def peak_of_a_step(net: nn.Module, shape: tuple[int, ...], plan: Plan, dtype: torch.dtype) -> int:
    net = copy.deepcopy(net)
    apply_plan(net, plan)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    images, labels = torch.randn(shape), torch.zeros(shape[0], dtype=torch.long)
    meter = AllocatedBytes(CPU)
    with meter:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = net(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
    return meter.peak_bytes


def plans_of(chain: Chain) -> dict[str, Plan]:
    num_units = len(chain.units)
    floor = smallest_budget(chain)
    budgets = {f"{times} floors": make_plan(chain, int(floor * times)) for times in (1, 1.3, 2)}
    return {
        "all": keep_all_plan(num_units),
        "conv outputs": keep_all_plan(num_units, "conv_outputs"),
        "sqrt": sqrt_plan(num_units),
        "per unit": per_unit_plan(num_units),
        **budgets,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("depth", "variant", "shape"),
    [
        (29, {}, (8, 3, 32, 32)),
        (20, {"activation": "original"}, (8, 3, 32, 32)),
        (14, {"activation": "bn_after_addition"}, (8, 3, 32, 32)),
        (14, {"activation": "relu_before_addition"}, (8, 3, 32, 32)),
        (20, {"activation": "relu_only_preactivation"}, (8, 3, 32, 32)),
        (50, {"dataset": "imagenet", "num_classes": 1000}, (2, 3, 64, 64)),
    ],
)
def test_a_measured_chain_tells_the_peak_of_every_plan_within_one_percent(depth, variant, shape, dtype):
    net = build_resnet(depth, **variant)
    chain = measure_chain(net, shape, dtype=dtype, repeats=0)
    for name, plan in plans_of(chain).items():
        predicted = simulate(chain, plan).peak_bytes
        measured = peak_of_a_step(net, shape, plan, dtype)
        assert measured <= 1.01 * predicted, (name, measured, predicted)
        # Where nothing is planned, an x_0 that its unit does not read goes, too.
        x_0_bytes = 0 if plan.segments else chain.units[0].retention("all").dropped_bytes(chain.input_bytes)
        assert predicted - x_0_bytes <= 1.03 * measured, (name, measured, predicted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_predicted_chain_tells_the_peak_of_every_plan_within_three_percent(dtype):
    net, shape = build_resnet(29), (16, 3, 32, 32)
    chain = predict_chain(net, shape, dtype=dtype)
    for name, plan in plans_of(chain).items():
        predicted = simulate(chain, plan).peak_bytes
        assert peak_of_a_step(net, shape, plan, dtype) == pytest.approx(predicted, rel=0.03), name


PAIRS = [(activation, shortcut) for activation in ACTIVATIONS for shortcut in SHORTCUTS]
DTYPES = [  # a chequerboard: every activation and every shortcut meets both
    (torch.float32, torch.bfloat16)[(ACTIVATIONS.index(activation) + SHORTCUTS.index(shortcut)) % 2]
    for activation, shortcut in PAIRS
]


@pytest.mark.slow  # each shortcut with one placement, and each placement with one shortcut: test_predict.py
@pytest.mark.parametrize(
    ("activation", "shortcut", "dtype"), [(*pair, dtype) for pair, dtype in zip(PAIRS, DTYPES, strict=True)]
)
def test_predicted_kept_bytes_are_the_measured_ones_unit_by_unit(activation, shortcut, dtype):
    net = build_resnet(29 if shortcut == "identity" else 14, activation=activation, shortcut=shortcut)
    measured = measure_chain(net, (2, 3, 32, 32), dtype=dtype, repeats=0)
    predicted = predict_chain(net, (2, 3, 32, 32), dtype=dtype)
    assert predicted.state_bytes == measured.state_bytes
    numbers = 16 if shortcut == "constant_scaling" else 0  # two lambdas, which autograd keeps on the host
    for ours, theirs in zip(predicted.units, measured.units, strict=True):
        assert [(r.name, r.kept_bytes + numbers) for r in ours.retentions] == [
            (r.name, r.kept_bytes) for r in theirs.retentions
        ]


def test_kept_bytes_of_a_bottleneck_are_the_twelve_and_six_widths_of_the_theory():
    """A unit of inner width w keeps 12w values a pixel, 6w of them outputs of convolutions."""
    chain = predict_chain(build_resnet(29), (4, 3, 32, 32))
    memo = 2 * 4 * (16 + 16 + 64)  # of the norms, which is a fixed byte
    width_bytes = 4 * 4 * 16 * 32 * 32
    kept = {r.name: r.kept_bytes for r in chain.units[1].retentions}
    assert kept["all"] == 12 * width_bytes
    assert 6 * width_bytes <= kept["conv_outputs"] < 6 * width_bytes + memo


def test_units_that_are_alike_are_run_once():
    class Counted(nn.Linear):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            Counted.runs += 1
            return super().forward(x)

    def runs(num_units: int) -> int:
        Counted.runs = 0
        measure_chain(nn.Sequential(*[Counted(4, 4) for _ in range(num_units)]), (2, 4), repeats=0)
        return Counted.runs

    assert runs(50) == runs(3)
    different = nn.Sequential(Counted(4, 4), Counted(4, 4), Counted(4, 4, bias=False))
    Counted.runs = 0
    measure_chain(different, (2, 4), repeats=0)
    assert Counted.runs > runs(3)


@pytest.mark.parametrize("predict", [False, True])
def test_a_plain_mlp_that_knows_nothing_of_plans_has_a_chain(predict):
    model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Dropout(0.1)) for _ in range(5)])
    read = predict_chain if predict else measure_chain
    chain = read(model, (32, 64))
    assert len(set(chain.units[1:])) == 1
    assert [r.name for r in chain.units[0].retentions] == ["all"]
    assert chain.input_bytes == 32 * 64 * 4
    x_bytes = 32 * 64 * 4
    # What tanh keeps (its output), what dropout keeps (its mask, as bytes or floats), and the unit's output.
    assert 2 * x_bytes < chain.units[1].retentions[0].kept_bytes <= 3 * x_bytes
    apply_plan(model, make_plan(chain, smallest_budget(chain)))
    model(torch.randn(32, 64)).mean().backward()


@pytest.mark.parametrize("predict", [False, True])
def test_reading_a_chain_leaves_the_model_and_the_generators_as_they_were(predict):
    net = build_resnet(14, shortcut="dropout")
    apply_plan(net, per_unit_plan(6))
    before = copy.deepcopy(net.state_dict())
    generator = torch.get_rng_state()
    (predict_chain if predict else measure_chain)(net, (2, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.device == CPU for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert "forward" in vars(net.units)


def test_a_net_on_the_meta_device_can_be_predicted():
    with torch.device("meta"):
        net = build_resnet(1001)
    chain = predict_chain(net, (128, 3, 32, 32), GPUS[0])
    keep_all = simulate(chain, keep_all_plan(333)).peak_bytes
    assert round(keep_all / 128 / 2**20) == 146  # MiB an image


def test_frozen_units_at_the_front_keep_nothing_and_have_no_backward():
    net = build_resnet(29)
    net.stem.requires_grad_(False)
    net.units[:2].requires_grad_(False)
    chain = measure_chain(net, (4, 3, 16, 16))
    assert chain.units[0].backward_ms == 0
    assert chain.units[1].retentions[0].kept_bytes == chain.units[1].output_bytes
    assert chain.units[2].retentions[0].kept_bytes > 2 * chain.units[2].output_bytes
    assert chain.units[2].backward_ms > 0


def test_predicted_times_are_shares_of_a_step_that_make_sense():
    chain = predict_chain(build_resnet(110), (128, 3, 32, 32), GPUS[0])
    unit = chain.units[1]
    assert 1 < unit.backward_ms / unit.forward_ms < 4
    assert unit.retentions[0].replay_ms == 0
    assert 0 < unit.retentions[1].replay_ms < unit.forward_ms
    assert 0 < chain.fixed_ms < 0.1 * chain.step_ms


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_unit_that_returns_a_tuple_is_refused():
    with pytest.raises(TypeError, match=r"^_Pair must return one tensor, got tuple$"):
        measure_chain(nn.Sequential(nn.Linear(4, 4), _Pair()), (2, 4))


def test_a_model_that_does_not_call_its_units_is_refused():
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.units = nn.Sequential(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(TypeError, match="the forward pass of Lazy does not call its units"):
        measure_chain(Lazy(), (2, 4))


def test_an_unknown_card_is_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"unknown GPU 'RTX 306'; nearest: RTX 3060 12GB"):
        predict_chain(build_resnet(14), (2, 3, 8, 8), "RTX 306")
