"""What a pass through a net takes, and that measuring leaves no trace."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepres import ResNet, apply_plan, build_resnet, make_plan, measure_chain, predict_chain
from deepres.memory import measure_activation_peak
from deepres.recompute import Plan, keep_all_plan, per_unit_plan, simulate, smallest_budget, sqrt_plan


def _batch(size: int, side: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, side, side), torch.arange(size) % 10


def _state(net: nn.Module) -> list[Tensor]:
    return [*(t.clone() for t in net.state_dict().values()), torch.get_rng_state()]


@given(batch=st.integers(10, 200), num_classes=st.integers(2, 20))
def test_the_peak_of_a_linear_classifier_follows_by_hand(batch, num_classes):
    """In the backward of log-softmax: the answer, what it kept, and the gradients of its output and of its input.

    Beside these, two numbers: the loss and its gradient.
    """
    net = nn.Linear(1, num_classes)
    images, labels = torch.randn(batch, 1), torch.arange(batch) % num_classes
    assert measure_activation_peak(net, net, images, labels) == 4 * (4 * batch * num_classes + 2)


def test_the_answers_of_many_classes_are_held_as_predicted():
    net, shape = build_resnet(8, num_classes=20_000), (8, 3, 8, 8)
    images, labels = _batch(8)
    predicted = simulate(predict_chain(net, shape), keep_all_plan(3)).peak_bytes
    assert measure_activation_peak(net, net, images, labels) == pytest.approx(predicted, rel=0.01)


def test_parameters_buffers_images_and_gradients_that_were_added_up_do_not_count():
    """A weight a thousand times the activations shows only while its own gradient is being made."""
    net = nn.Sequential(nn.Linear(1000, 1), nn.BatchNorm1d(1), nn.Linear(1, 2))
    images, labels = torch.randn(8, 1000), torch.arange(8) % 2
    peak = measure_activation_peak(net, net, images, labels)
    assert 4 * 1000 <= peak < 4 * 1000 + 4 * 8 * 10
    net[0].requires_grad_(False)
    assert measure_activation_peak(net, net, images, labels) < 4 * 8 * 20


def _bytes_per_image(net: nn.Module, run: Callable[[Tensor], Tensor], tolerance: float = 0.0) -> int:
    """From three batches, large enough for activations to outweigh what does not grow with them."""
    peaks = [measure_activation_peak(net, run, *_batch(size)) for size in (32, 40, 48)]
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=tolerance)
    return (peaks[1] - peaks[0]) // 8


def test_the_bytes_of_an_image_are_those_that_can_be_counted_by_hand():
    """All that autograd keeps of ResNet-29, its answer, and two gradients as large as the last unit's output."""
    first, second, third = 64, 16, 4  # pixels of each stage
    floats = 16 * first  # the stem's output
    # In the first unit of a stage: the shared activation, two convolutions' outputs activated, the unit's output.
    floats += 16 * first + 4 * 16 * first + 64 * first
    floats += 64 * first + 4 * 32 * second + 128 * second
    floats += 128 * second + 4 * 64 * third + 256 * third
    # In the others 12w, the output included; then the head's activation, and in its backward the two gradients.
    floats += 2 * (12 * 16 * first + 12 * 32 * second + 12 * 64 * third)
    floats += 256 * third + 2 * 256 * third + 10
    net = build_resnet(29)
    assert _bytes_per_image(net, net) == 4 * floats == 274_472


@pytest.mark.parametrize("plan", [sqrt_plan(9), keep_all_plan(9, "conv_outputs"), per_unit_plan(9)])
def test_under_a_plan_too_the_peak_grows_by_the_same_bytes_with_every_image(plan):
    net = build_resnet(29)
    apply_plan(net, plan)
    assert 0 < _bytes_per_image(net, net) < 0.65 * 274_432


def test_a_plan_lowers_the_peak():
    net = build_resnet(29)
    plans = (
        None,
        keep_all_plan(9, "conv_outputs"),
        per_unit_plan(9),
        Plan(tuple((0, n) for n in range(8, 0, -1)), ("all",) * 9),
    )
    peaks = []
    for plan in plans:
        apply_plan(net, plan)
        peaks.append(measure_activation_peak(net, net, *_batch(32)))
    assert peaks == sorted(set(peaks), reverse=True)
    assert len(peaks) == 4
    assert peaks[1] < 0.65 * peaks[0]  # of tensors alone it is 0.6; convolutions copy
    assert peaks[3] < 0.42 * peaks[0]


@pytest.mark.parametrize("shortcut", ["identity", "dropout"])
@pytest.mark.parametrize("factor", [1, 1.5])
def test_a_budget_is_kept_to_the_byte(shortcut, factor):
    """Also the smallest, and where every unit draws random numbers."""
    net = build_resnet(20, shortcut=shortcut)
    chain = measure_chain(net, (16, 3, 8, 8), repeats=0)
    plan = make_plan(chain, round(factor * smallest_budget(chain)))
    assert plan.segments
    apply_plan(net, plan)
    assert measure_activation_peak(net, net, *_batch(16)) == plan.peak_bytes


def test_an_image_takes_half_the_bytes_in_bf16():
    net = build_resnet(29)

    def run(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(images)

    # With AMX, oneDNN's scratch follows the batch in steps.
    tolerance = 0.02 if torch.cpu._is_amx_tile_supported() else 0.0
    assert 0.5 < _bytes_per_image(net, run, tolerance) / 274_432 < 0.51


class _DoesNotFitError(RuntimeError):
    pass


def _fails(net: ResNet) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor) -> Tensor:
        net(images)
        raise _DoesNotFitError

    return run


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("plan", [None, per_unit_plan(9)])
@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_net_as_it_was_also_if_the_pass_fails(training, plan, fails):
    net = build_resnet(29, shortcut="dropout").train(training)
    net.units[2].norms[1].train(not training)
    net.stem.requires_grad_(False)
    apply_plan(net, plan)
    images, labels = _batch(4)
    modes = [m.training for m in net.modules()]
    before = _state(net)
    if fails:
        with pytest.raises(_DoesNotFitError):
            measure_activation_peak(net, _fails(net), images, labels)
    else:
        measure_activation_peak(net, net, images, labels)
    assert all(map(torch.equal, _state(net), before))
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())


def test_a_net_trains_the_same_after_it_was_measured():
    torch.manual_seed(0)
    nets = [build_resnet(20, shortcut="dropout")]
    nets.append(copy.deepcopy(nets[0]))
    images, labels = _batch(4)
    measure_activation_peak(nets[0], nets[0], images, labels)
    gradients = []
    for net in nets:
        torch.manual_seed(1)
        nn.functional.cross_entropy(net(images), labels).backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(map(torch.equal, *gradients))


def test_padding_labels_do_not_count_towards_the_loss_and_change_no_byte():
    net = build_resnet(20)
    images, labels = _batch(4)
    padded = labels.clone()
    padded[1:] = -100
    peaks = {measure_activation_peak(net, net, images, y) for y in (labels, padded)}
    assert len(peaks) == 1
