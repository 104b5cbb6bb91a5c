"""On a CUDA device: peaks as predicted, budgets kept, and plans that change no bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepres import apply_plan, build_resnet, make_plan, measure_chain, predict_chain
from deepres.gradients import backward_in_this_thread
from deepres.memory import measure_activation_peak
from deepres.memory.gpus import GPUS
from deepres.models import BatchNorm2d
from deepres.out_of_memory import limit_device_memory
from deepres.recompute import Plan, keep_all_plan, per_unit_plan, price, sqrt_plan
from tests.recompute.exactness import nested_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(600),
]


@pytest.mark.parametrize("gib", [8, 4, 2, 1])
def test_resnet_1001_at_batch_128_peaks_within_its_budget_and_as_predicted(gib):
    net = build_resnet(1001)
    chain = measure_chain(net, (128, 3, 32, 32), "cuda", repeats=1)
    plan = make_plan(chain, gib * 2**30)
    net = net.cuda()
    apply_plan(net, plan)
    images = torch.randn(128, 3, 32, 32, device="cuda")
    labels = torch.arange(128, device="cuda") % 10
    peak = measure_activation_peak(net, net, images, labels)
    assert plan.peak_bytes == pytest.approx(peak, rel=0.03)
    assert peak <= 1.01 * gib * 2**30


@pytest.mark.parametrize("shortcut", ["identity", "dropout"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_kept_bytes_are_those_predicted_without_the_card(dtype, shortcut):
    net = build_resnet(29, shortcut=shortcut)
    predicted = predict_chain(net, (32, 3, 32, 32), GPUS[0], dtype)
    measured = measure_chain(net, (32, 3, 32, 32), "cuda", dtype, repeats=0)
    for unit, found in zip(predicted.units, measured.units, strict=True):
        kept = {each.name: (each.kept_bytes, each.reads_input) for each in unit.retentions}
        assert kept == {each.name: (each.kept_bytes, each.reads_input) for each in found.retentions}


@pytest.mark.parametrize("depth", [29, 110, 164])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_peaks_are_as_predicted(depth, dtype):
    net = build_resnet(depth)
    chain = measure_chain(net, (128, 3, 32, 32), "cuda", dtype, repeats=0)
    num_units = len(chain.units)
    net = net.cuda()
    images = torch.randn(128, 3, 32, 32, device="cuda")
    labels = torch.arange(128, device="cuda") % 10

    def run(x):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False):
            return net(x).float()

    for plan in (keep_all_plan(num_units), per_unit_plan(num_units), sqrt_plan(num_units)):
        plan = price(chain, plan)
        apply_plan(net, plan)
        assert plan.peak_bytes == pytest.approx(measure_activation_peak(net, run, images, labels), rel=0.03)


NETS = {
    "cifar": {"depth": 29},
    "dropout": {"depth": 29, "shortcut": "dropout"},
    "gating": {"depth": 29, "shortcut": "exclusive_gating"},
    "original": {"depth": 20, "activation": "original"},
    "imagenet": {"depth": 50, "dataset": "imagenet"},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize(
    ("variant", "compute", "layout", "in_benchmark"),
    [
        *((variant, compute, layout, False) for variant in NETS for compute in DTYPES for layout in LAYOUTS),
        *(("cifar", compute, layout, True) for compute in DTYPES for layout in LAYOUTS),
    ],
)
def test_plans_change_no_bit(variant, compute, layout, in_benchmark, monkeypatch):
    """In benchmark, too, where each thread times cuDNN's (deterministic) algorithms and chooses for itself."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = in_benchmark
    try:
        net = build_resnet(**NETS[variant]).cuda().to(memory_format=LAYOUTS[layout])
        for module in net.modules():
            if isinstance(module, BatchNorm2d):  # scales of 1 would hide in which order they are multiplied
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        n = len(net.units)
        chain = predict_chain(net, (32, 3, 32, 32), GPUS[0])
        plans = [
            None,
            per_unit_plan(n),
            sqrt_plan(n),
            make_plan(chain, price(chain, keep_all_plan(n)).peak_bytes // 2),
            Plan((), ("conv_outputs",) * n),
            nested_plan(n),
        ]
        images = torch.randn(32, 3, 32, 32, device="cuda").contiguous(memory_format=LAYOUTS[layout])
        labels = torch.arange(32, device="cuda") % 10
        found = []
        for plan in plans:
            own = copy.deepcopy(net)
            apply_plan(own, plan)
            torch.manual_seed(1)
            with torch.autocast("cuda", DTYPES[compute], enabled=compute != "fp32"):
                logits = own(images)
            loss = F.cross_entropy(logits.float(), labels)
            with backward_in_this_thread():
                loss.backward()
            state = [
                loss.detach(),
                *(p.grad for p in own.parameters()),
                *own.buffers(),
                torch.cuda.get_rng_state(),
            ]
            found.append(state)
        for state in found[1:]:
            assert all(map(torch.equal, state, found[0]))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


class _LSTM(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


def test_dropout_inside_of_cudnn_s_layers_is_refused():
    model = nn.Sequential(_LSTM(8, 8, num_layers=2, dropout=0.5)).cuda()
    apply_plan(model, per_unit_plan(1))
    x = torch.randn(3, 5, 8, device="cuda")
    with pytest.raises(RuntimeError, match="random numbers of cuDNN's own"):
        model(x)
    with torch.backends.cudnn.flags(enabled=False):
        model(x).mean().backward()


def test_a_device_s_memory_is_all_that_the_allocator_gets():
    device = torch.device("cuda", 0)
    limit_device_memory(device, 2**30)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**30 + 2**21, dtype=torch.uint8, device=device)
        assert torch.empty(2**29, dtype=torch.uint8, device=device).is_cuda
    finally:
        limit_device_memory(device, torch.cuda.get_device_properties(device).total_memory)
