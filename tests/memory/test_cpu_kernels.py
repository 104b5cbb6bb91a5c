"""What operators allocate on the CPU beside their results is what is said of them."""

import pytest
import torch

from deepres import build_resnet, measure_chain, predict_chain
from deepres.memory.cpu_kernels import operator_peak_bytes
from deepres.recompute import keep_all_plan, simulate, sqrt_plan
from tests.memory.operator_bytes import allocated_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layouts", [(False, False), (True, True), (False, True)], ids=str)
def test_the_backward_pass_of_batch_norm_allocates_what_is_said(layouts, dtype):
    formats = [torch.channels_last if last else torch.contiguous_format for last in layouts]
    x, gradient = (torch.randn(4, 16, 32, 32).to(dtype).to(memory_format=each) for each in formats)
    channels = [torch.ones(16) for _ in range(5)]
    for mask in ([True, True, True], [True, False, False], [False, True, True]):
        args = (gradient, x, *channels, True, 1e-5, mask)
        func = torch.ops.aten.native_batch_norm_backward.default
        assert operator_peak_bytes(func, args) == pytest.approx(allocated_bytes(func, args), abs=1024)


@pytest.mark.parametrize("activation", ["relu_before_addition", "full_preactivation"])
def test_plans_of_few_segments_take_what_is_predicted_also_where_batch_norm_is_a_units_peak(activation):
    net = build_resnet(29, block="bottleneck", activation=activation)
    shape = (8, 3, 32, 32)
    chains = predict_chain(net, shape), measure_chain(net, shape, repeats=0)
    for plan in (keep_all_plan(9), sqrt_plan(9)):
        predicted, measured = (simulate(chain, plan).peak_bytes for chain in chains)
        assert predicted == pytest.approx(measured, rel=0.005)
