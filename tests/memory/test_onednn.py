"""What convolutions allocate on the CPU, copies and kernels' scratch included, is what is said of them."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from deepres import build_resnet, measure_chain, predict_chain
from deepres.memory.onednn import _has_amx, convolution_peak_bytes
from deepres.recompute import keep_all_plan, per_unit_plan, simulate
from deepres.recompute.executor import planned_units
from tests.memory.operator_bytes import allocated_bytes

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="nobody has read what other kernels take"
)
FORWARD = torch.ops.aten.convolution.default
BACKWARD = torch.ops.aten.convolution_backward.default
# Images, channels in and out, side, kernel and stride: of bottlenecks, of their first in a stage, of a basic unit.
CONVOLUTIONS = [
    (2, 256, 64, 28, 1, 1),
    (2, 128, 128, 28, 3, 1),
    (2, 64, 256, 28, 1, 1),
    (2, 128, 128, 56, 3, 2),
    (2, 256, 512, 28, 1, 2),
    (2, 512, 256, 14, 1, 1),
    (16, 16, 16, 32, 3, 1),
    (16, 64, 16, 32, 1, 1),
]
# For each thread: what goes unsaid; and what is said too much, for with AMX it is a bound.
SLACK_BYTES = 100 * 2**10
BOUND_BYTES = SLACK_BYTES if "ONEDNN_MAX_CPU_ISA" in os.environ else 500 * 2**10


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


LAYOUTS = {
    "contiguous": (torch.contiguous_format, torch.contiguous_format),
    "channels_last": (torch.channels_last, torch.channels_last),
    "images channels_last": (torch.channels_last, torch.contiguous_format),
}


@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("convolution", [*CONVOLUTIONS, (2, 512, 512, 8, 3, 1)], ids=str)
def test_a_convolution_allocates_what_is_said(convolution, dtype, layouts, num_threads):
    if dtype == torch.bfloat16 and "channels_last" in str(layouts) and _has_amx():
        pytest.skip("nobody has looked at what AMX takes of channels_last")
    num_images, num_in, num_out, side, kernel, stride = convolution
    x = torch.randn(num_images, num_in, side, side).to(dtype).contiguous(memory_format=layouts[0])
    weight = torch.randn(num_out, num_in, kernel, kernel).to(dtype).contiguous(memory_format=layouts[1])
    how = (None, [stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], 1)
    gradient = torch.randn_like(FORWARD(x, weight, *how))
    calls = [(FORWARD, (x, weight, *how))]
    calls += [(BACKWARD, (gradient, x, weight, *how, [*mask, False])) for mask in ((1, 0), (0, 1), (1, 1))]
    for func, args in calls:
        over = convolution_peak_bytes(func, args) - allocated_bytes(func, args)
        assert -SLACK_BYTES <= over / num_threads <= BOUND_BYTES, (func, args[-1])


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
@pytest.mark.parametrize(
    "convolution",
    [
        (16, 16, 32, 3, 1), (16, 32, 32, 3, 2), (3, 16, 32, 3, 1), (64, 64, 17, 3, 1), (16, 64, 32, 1, 1),
        (16, 32, 33, 1, 2),
    ],
    ids=str,
)  # fmt: skip
def test_a_convolution_of_one_small_image_allocates_what_is_said_to_the_byte(
    convolution, memory_format, num_threads
):
    num_in, num_out, side, kernel, stride = convolution
    x = torch.randn(1, num_in, side, side).to(memory_format=memory_format)
    for weight_format in (torch.contiguous_format, memory_format):
        weight = torch.randn(num_out, num_in, kernel, kernel).to(memory_format=weight_format)
        how = (None, [stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], 1)
        gradient = torch.randn_like(FORWARD(x, weight, *how))
        calls = [(FORWARD, (x, weight, *how))]
        calls += [(BACKWARD, (gradient, x, weight, *how, [*mask, False])) for mask in ((0, 1), (1, 1))]
        for func, args in calls:
            assert convolution_peak_bytes(func, args) == allocated_bytes(func, args), (func, args[-1])


@pytest.mark.parametrize("side", [32, 33, 65])
def test_a_net_of_one_image_takes_what_is_predicted(side):
    net, shape = build_resnet(8), (1, 3, side, side)
    predicted, measured = predict_chain(net, shape), measure_chain(net, shape, repeats=0)
    assert simulate(predicted, keep_all_plan(3)).peak_bytes == pytest.approx(
        simulate(measured, keep_all_plan(3)).peak_bytes, rel=0.005
    )


@pytest.mark.parametrize("weights_too", [True, False])
def test_a_net_in_channels_last_takes_what_is_predicted(weights_too):
    """Of few and small images, so that copies of weights are much of it."""
    net, shape = build_resnet(18, dataset="imagenet"), (4, 3, 64, 64)
    if weights_too:
        net.to(memory_format=torch.channels_last)
    predicted = predict_chain(net, shape, channels_last=True)
    measured = measure_chain(net, shape, channels_last=True, repeats=0)
    for plan in (keep_all_plan(8), per_unit_plan(8)):
        assert simulate(predicted, plan).peak_bytes == pytest.approx(
            simulate(measured, plan).peak_bytes, rel=0.01
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_unit_takes_what_is_predicted(dtype, num_threads):
    """Of few images, so that scratch is much of it: the first two units of a stage, and those of the next."""
    units = planned_units(build_resnet(50, dataset="imagenet"))
    net, shape = nn.Sequential(*units[:2], *units[3:5]), (2, 64, 56, 56)
    predicted = predict_chain(net, shape, dtype=dtype)
    measured = measure_chain(net, shape, dtype=dtype, repeats=0)
    for ours, theirs in zip(predicted.units, measured.units, strict=True):
        pairs = [(ours.forward_temp_bytes, theirs.forward_temp_bytes)]
        for a, b in zip(ours.retentions, theirs.retentions, strict=True):
            pairs += [(a.forward_temp_bytes, b.forward_temp_bytes)]
            pairs += [(a.backward_temp_bytes, b.backward_temp_bytes)]
        for said, allocated in pairs:
            assert -SLACK_BYTES <= (said - allocated) / num_threads <= BOUND_BYTES


@pytest.mark.slow
@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="run by the test that sets it")
def test_so_it_is_with_the_kernels_of_a_processor_without_amx():
    """A process of its own, for oneDNN asks its environment once."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
